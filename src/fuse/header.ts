/** The header that starts every reply. */
import { OutHeader } from './abi.js';
import { OUT_HEADER_BYTES, type Message } from './request.js';

/** What a reply is to. */
export interface Asked {
  readonly message: Message;
  readonly uniqueLow: number;
  readonly uniqueHigh: number;
}

/** Write the reply header; `length` is the whole reply. 0 when there is no room even for that. */
export function putHeader(r: Asked, length: number, error: number): number {
  const { message } = r;
  if (!message.locateWrite(0, OUT_HEADER_BYTES)) return scatterHeader(r, length, error);
  const { view, offset } = message;
  view.setUint32(offset, length, true);
  view.setInt32(offset + OutHeader.error, error, true);
  view.setUint32(offset + OutHeader.unique, r.uniqueLow, true);
  view.setUint32(offset + OutHeader.unique + 4, r.uniqueHigh, true);
  return length;
}

function scatterHeader(r: Asked, length: number, error: number): number {
  const { message } = r;
  if (message.writeBytes < OUT_HEADER_BYTES) return 0;
  const header = new DataView(new ArrayBuffer(OUT_HEADER_BYTES));
  header.setUint32(0, length, true);
  header.setInt32(OutHeader.error, error, true);
  header.setUint32(OutHeader.unique, r.uniqueLow, true);
  header.setUint32(OutHeader.unique + 4, r.uniqueHigh, true);
  message.copyOut(0, new Uint8Array(header.buffer), 0, OUT_HEADER_BYTES);
  return length;
}

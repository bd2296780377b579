/** Bodies of requests: bytes in memory, or a range of a file. */
import { fstatSync, read, readSync } from 'node:fs';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { CheckedFile } from './disk-errors.js';
import { StorageError } from './errors.js';
import { viewOf } from '../../ffi/memory.js';
import type { Body, Target } from './store.js';

const readFd = promisify(read);
/** Bytes of a file that are read at once. */
const STEP = 1 << 18;

export function bodyBytes(body: Body): number {
  return body instanceof Uint8Array ? body.byteLength : body.bytes;
}

/** The whole body in memory. @throws StorageError `short-body` when the file ends before the range does, `bad-body` when the disk has lost some of it. */
export function bodyContent(body: Body, operation: string): Uint8Array {
  if (body instanceof Uint8Array) return body;
  const content = new Uint8Array(body.bytes);
  const file = new CheckedFile(body.fd, operation);
  try {
    for (let at = 0; at < content.length; ) {
      const n = readSync(file.fd, content, at, content.length - at, body.offset + at);
      if (n === 0) throw new StorageError('short-body', operation, { providerMessage: `the file ends ${content.length - at} bytes early` });
      at += n;
    }
    file.check();
  } finally {
    file.close();
  }
  return content;
}

/** A stream of the body that can be asked for again, for a client that wants one per attempt. The descriptor stays open. */
export function bodyStream(body: Body, operation: string): Readable {
  if (body instanceof Uint8Array) return Readable.from([Buffer.from(body.buffer, body.byteOffset, body.byteLength)]);
  if (body.bytes === 0) return Readable.from([]);
  if (fstatSync(body.fd).size < body.offset + body.bytes) {
    throw new StorageError('short-body', operation, { providerMessage: 'the file is shorter than the range to be sent' });
  }
  return Readable.from(fileRange(body, operation), { objectMode: false, highWaterMark: STEP });
}

/** Not a stream of node:fs: those close the descriptor when they are destroyed, whatever autoClose says. */
async function* fileRange({ fd, offset, bytes }: Exclude<Body, Uint8Array>, operation: string): AsyncGenerator<Buffer> {
  const file = new CheckedFile(fd, operation);
  try {
    for (let at = 0; at < bytes; ) {
      const length = Math.min(STEP, bytes - at);
      const { bytesRead, buffer } = await readFd(file.fd, Buffer.allocUnsafe(length), 0, length, offset + at);
      if (bytesRead === 0) throw new StorageError('short-body', operation, { providerMessage: `the file ends ${bytes - at} bytes early` });
      at += bytesRead;
      if (at === bytes) file.check();
      yield buffer.subarray(0, bytesRead);
    }
  } finally {
    file.close();
  }
}

/**
 * Views of native memory that large reads went to, by address, the one used last at the end: the same memory is used again and again, and for each
 * new view V8 believes that so many more bytes are in use, and collects garbage.
 */
const views = new Map<number, Uint8Array>();
const VIEWS_MAX = 128;
const VIEW_MIN_BYTES = 1 << 18;

/** A view of where a read goes. SAFETY: native memory stays mapped until the read is done, which is the caller's promise. */
export function targetView(target: Target): Uint8Array {
  if (target instanceof Uint8Array) return target;
  const { address, bytes } = target;
  if (bytes < VIEW_MIN_BYTES) return bytes === 0 ? new Uint8Array(0) : new Uint8Array(viewOf(address, bytes));
  let view = views.get(address);
  if (view === undefined || view.length < bytes) view = new Uint8Array(viewOf(address, bytes));
  else views.delete(address);
  views.set(address, view);
  if (views.size > VIEWS_MAX) views.delete(views.keys().next().value!);
  return view.subarray(0, bytes);
}

export function targetBytes(target: Target): number {
  return target instanceof Uint8Array ? target.byteLength : target.bytes;
}

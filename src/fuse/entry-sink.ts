/** Where directory entries go: straight into the guest's buffer if it lies together, else into one of ours first. */
import type { DirectorySink } from '../storage/filesystem.js';
import { Dirent, ENTRY_OUT_BYTES } from './abi.js';
import { putEntryOut, type Timeouts } from './encode.js';
import type { FuseRequest } from './request.js';

export class EntrySink implements DirectorySink {
  used = 0;
  #request: FuseRequest | null = null;
  #dv: DataView = new DataView(new ArrayBuffer(8));
  #at = 0;
  #room = 0;
  #plus = false;
  #timeouts: Timeouts | null = null;

  /** Begin a listing of at most `room` bytes at `at`. */
  begin(request: FuseRequest, dv: DataView, at: number, room: number, plus: boolean, timeouts: Timeouts): void {
    this.used = 0;
    this.#request = request;
    this.#dv = dv;
    this.#at = at;
    this.#room = room;
    this.#plus = plus;
    this.#timeouts = timeouts;
  }

  fits(nameLength: number): boolean {
    return this.used + this.#bytes(nameLength) <= this.#room;
  }

  /** How many of these entries fit, in their order. */
  fitting(names: readonly { readonly name: Uint8Array }[]): number {
    let bytes = this.used;
    const over = names.findIndex(({ name }) => (bytes += this.#bytes(name.length)) > this.#room);
    return over < 0 ? names.length : over;
  }

  #bytes(nameLength: number): number {
    return ((this.#plus ? ENTRY_OUT_BYTES : 0) + Dirent.bytes + nameLength + 7) & ~7;
  }

  put(
    inoLow: number, inoHigh: number, offLow: number, offHigh: number, type: number, source: Uint8Array, nameAt: number, nameLength: number,
    known: boolean,
  ): void {
    const dv = this.#dv;
    let at = this.#at + this.used;
    const end = at + this.#bytes(nameLength);
    if (this.#plus) {
      const r = this.#request!;
      if (known) {
        putEntryOut(dv, at, r.entryLow, r.entryHigh, r.attr, r.attrFlags, this.#timeouts!);
      } else {
        // nodeid 0: the name is listed, nothing is said about the inode but its type
        for (let i = at; i < at + ENTRY_OUT_BYTES; i += 4) dv.setUint32(i, 0, true);
      }
      at += ENTRY_OUT_BYTES;
    }
    dv.setUint32(at + Dirent.ino, inoLow, true);
    dv.setUint32(at + Dirent.ino + 4, inoHigh, true);
    dv.setUint32(at + Dirent.off, offLow, true);
    dv.setUint32(at + Dirent.off + 4, offHigh, true);
    dv.setUint32(at + Dirent.namelen, nameLength, true);
    dv.setUint32(at + Dirent.type, type, true);
    at += Dirent.bytes;
    for (let i = 0; i < nameLength; i++) dv.setUint8(at + i, source[nameAt + i]);
    for (let i = at + nameLength; i < end; i++) dv.setUint8(i, 0);
    this.used = end - this.#at;
  }
}

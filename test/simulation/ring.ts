/** FUSE messages in memory of the tests, as a ring brings them to the server. */
import type { NativeMemory } from '../../src/ffi/memory.js';
import type { Message } from '../../src/fuse/request.js';
import { ownMemory } from './machine.js';

const HALF_BYTES = 76 << 10;
const FUSE_HEADER_BYTES = 40;
const OUT_HEADER_BYTES = 16;
const spare: NativeMemory[] = [];

export interface Reply {
  /** 0 or −errno. */
  readonly error: number;
  readonly data: DataView;
}

export class RingMessage implements Message {
  readonly readBytes: number;
  readonly writeBytes: number;
  view: DataView;
  offset = 0;
  readonly #memory: NativeMemory;

  constructor(
    opcode: number,
    node: bigint,
    unique: number,
    args: Uint8Array,
    room: number,
    readonly finished: (reply: Reply) => void,
  ) {
    this.#memory = spare.pop() ?? ownMemory(2 * HALF_BYTES);
    const { dv, u8 } = this.#memory;
    this.view = dv;
    this.readBytes = FUSE_HEADER_BYTES + args.length;
    this.writeBytes = OUT_HEADER_BYTES + room;
    dv.setUint32(0, this.readBytes, true);
    dv.setUint32(4, opcode, true);
    dv.setUint32(8, unique, true);
    dv.setUint32(12, 0, true);
    dv.setBigUint64(16, node, true);
    for (const at of [24, 28, 36]) dv.setUint32(at, 0, true);
    dv.setUint32(32, 1234, true);
    u8.set(args, FUSE_HEADER_BYTES);
  }

  /** Of guest memory, which is all that it is laid out in. */
  readonly segments = 2;
  readonly capacity = 2;

  detach(): this {
    return this;
  }

  locateRead(from: number, bytes: number): boolean {
    this.offset = from;
    return from + bytes <= this.readBytes;
  }

  locateWrite(from: number, bytes: number): boolean {
    this.offset = HALF_BYTES + from;
    return from + bytes <= this.writeBytes;
  }

  copyIn(from: number, target: Uint8Array, at: number, bytes: number): number {
    const n = Math.max(0, Math.min(bytes, this.readBytes - from));
    target.set(this.#memory.u8.subarray(from, from + n), at);
    return n;
  }

  copyOut(from: number, source: Uint8Array, at: number, bytes: number): number {
    const n = Math.max(0, Math.min(bytes, this.writeBytes - from));
    this.#memory.u8.set(source.subarray(at, at + n), HALF_BYTES + from);
    return n;
  }

  iovecs(writable: boolean, from: number, bytes: number, target: Uint32Array, _capacity: number): number {
    if (bytes === 0) return 0;
    const address = this.#memory.address + (writable ? HALF_BYTES : 0) + from;
    target[0] = address >>> 0;
    target[1] = Math.floor(address / 2 ** 32);
    target[2] = bytes;
    target[3] = 0;
    return 1;
  }

  /** The message's memory is free again. */
  finish(written: number): void {
    const { dv, u8 } = this.#memory;
    const bytes = Math.max(0, written - OUT_HEADER_BYTES);
    const at = HALF_BYTES + OUT_HEADER_BYTES;
    const reply = { error: written < OUT_HEADER_BYTES ? 0 : dv.getInt32(HALF_BYTES + 4, true), data: new DataView(u8.slice(at, at + bytes).buffer) };
    this.forget();
    this.finished(reply);
  }

  /** Free the memory: nobody will answer. */
  forget(): void {
    spare.push(this.#memory);
  }
}

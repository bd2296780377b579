/** Requests of a guest, any number at the same time. */
import { setImmediate as turn } from 'node:timers/promises';
import type { FuseClient, Reply } from '../../support/guest.js';
import { concat } from '../../support/frontend.js';

/** Of those without an answer, at most; descriptors are used in turn. */
const IN_FLIGHT_MAX = 100;
const MEMORY_MAX_BYTES = 10 << 20;
const HEADER_BYTES = 16;

interface Waiting {
  readonly parts: readonly { readonly at: number; readonly bytes: number }[];
  readonly resolve: (reply: Reply) => void;
}

export class Requests {
  readonly #waiting = new Map<number, Waiting>();
  readonly #mark: number;
  #taken = 0;
  #bytes = 0;
  #polls = false;

  /** Nobody else asks through this client. */
  constructor(readonly client: FuseClient) {
    this.#mark = client.memory.mark;
  }

  async ask(opcode: number, node: bigint, args: Uint8Array, room = 4096): Promise<Reply> {
    // Memory is given back when nothing is in flight
    while (this.#waiting.size > 0 && (this.#taken >= IN_FLIGHT_MAX || this.#bytes > MEMORY_MAX_BYTES)) await turn();
    if (this.#waiting.size === 0) {
      this.client.memory.rewind(this.#mark);
      this.#taken = this.#bytes = 0;
    }
    this.#taken++;
    this.#bytes += args.length + room + 1024;
    const { bytes } = this.client.request(opcode, node, args);
    const sizes = [HEADER_BYTES, room].filter((size) => size > 0);
    const { head, writable } = this.client.queue.chain([bytes.subarray(0, 40), bytes.subarray(40)].filter((part) => part.length > 0), sizes, true);
    const answered = new Promise<Reply>((resolve) => {
      this.#waiting.set(head, { parts: writable.map((at, i) => ({ at, bytes: sizes[i] })), resolve });
    });
    this.client.queue.kick();
    if (!this.#polls) void this.#poll();
    return answered;
  }

  async #poll(): Promise<void> {
    this.#polls = true;
    while (this.#waiting.size > 0) {
      for (const { head, length } of this.client.queue.take()) {
        const { parts, resolve } = this.#waiting.get(head)!;
        this.#waiting.delete(head);
        const all = concat(...parts.map(({ at, bytes }) => this.client.memory.u8.slice(at, at + bytes)));
        resolve({ error: new DataView(all.buffer).getInt32(4, true), data: new DataView(all.buffer, HEADER_BYTES, length - HEADER_BYTES), used: length });
      }
      await turn();
    }
    this.#polls = false;
  }
}

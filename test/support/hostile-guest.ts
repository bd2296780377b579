/** A guest that asks for as much as rings can hold: the same few requests in every entry of large rings, again as soon as they are answered. */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { DriverQueue, INDIRECT, NEXT, WRITE } from './driver.js';
import { F_LOG_ALL, Frontend, GPA, SharedMemory, concat, u32, u64 } from './frontend.js';
import { OP } from './guest.js';

/** How the memory of such guests is named in /proc/PID/smaps (see SharedMemory). */
export const GUEST_MEMORY = '/memfd:test-guest';

/** Requests that are laid out once: descriptors of a ring from 0 on, each with a table of its own. */
export interface Layout {
  readonly opcode: number;
  readonly node?: bigint;
  readonly args?: Uint8Array;
  /** Bytes of results that there is room for. */
  readonly room?: number;
  /** Further readable bytes, behind the arguments; `pieces`: of how many descriptors. */
  readonly data?: number;
  readonly pieces?: number;
  readonly uid?: number;
}

export interface Answer {
  readonly error: number;
  readonly data: DataView;
}

const ROOT = 1n;

export class HostileGuest {
  readonly memory: SharedMemory;
  readonly frontend: Frontend;
  readonly queues: DriverQueue[] = [];
  /** Of requests that are awaited. */
  readonly control: DriverQueue;
  #unique = 1n;
  #loads: NodeJS.Timeout[] = [];

  private constructor(socket: string, memoryBytes: number) {
    this.memory = new SharedMemory(memoryBytes);
    this.frontend = Frontend.connect(socket);
    this.control = new DriverQueue(this.memory, 1, 256);
  }

  /** A session, and so many further rings of that size, from queue 2 on. Queue 0 has no ring unless it is started. */
  static async connect(socket: string, queues: number, size: number, memoryBytes = 256 << 20): Promise<HostileGuest> {
    const self = new HostileGuest(socket, memoryBytes);
    await self.frontend.negotiate({ features: F_LOG_ALL });
    assert.ok(await self.frontend.setMemory(self.memory));
    await self.control.start(self.frontend);
    for (let i = 0; i < queues; i++) {
      const queue = new DriverQueue(self.memory, 2 + i, size);
      await queue.start(self.frontend);
      self.queues.push(queue);
    }
    const { error } = await self.call({ opcode: OP.INIT, node: 0n, args: concat(u32(7, 45, 131072, 0xffffffff, 0xffffffff), new Uint8Array(44)), room: 64 });
    assert.equal(error, 0);
    return self;
  }

  /** A table of descriptors for a request; replies of all requests of a layout go to the same place. */
  #table({ opcode, node = ROOT, args = new Uint8Array(0), room = 0, data = 0, pieces = 1, uid = 0 }: Layout, reply: number): { at: number; bytes: number } {
    const { memory, control } = this;
    const header = concat(u32(40 + args.length + data, opcode), u64(this.#unique++, node), u32(uid, uid, 1234, 0), args);
    const at = memory.take(header.length);
    memory.u8.set(header, at);
    const parts = [{ address: GPA + at, length: header.length, flags: 0 }];
    if (data > 0) {
      const junk = this.#area(data);
      // From both ends in turn, so that no two descriptors can be taken together
      for (let i = 0; i < pieces; i++) parts.push({ address: GPA + junk + (data / pieces) * (i % 2 === 0 ? i >> 1 : pieces - 1 - (i >> 1)), length: data / pieces, flags: 0 });
    }
    parts.push({ address: GPA + reply, length: 16 + room, flags: WRITE });
    const table = memory.take(16 * parts.length, 16);
    parts.forEach((part, i) => control.put(i, { ...part, flags: part.flags | (i < parts.length - 1 ? NEXT : 0), next: i < parts.length - 1 ? i + 1 : 0 }, table));
    return { at: table, bytes: 16 * parts.length };
  }

  readonly #areas = new Map<number, number>();

  #area(bytes: number): number {
    const known = this.#areas.get(bytes);
    if (known !== undefined) return known;
    const at = this.memory.take(bytes, 4096);
    this.#areas.set(bytes, at);
    return at;
  }

  /** Ask and wait. */
  async call(layout: Layout): Promise<Answer> {
    const { memory, control } = this;
    const mark = memory.mark;
    const reply = memory.take(16 + (layout.room ?? 0));
    const table = this.#table(layout, reply);
    const head = control.availIdx % control.size;
    control.put(head, { address: GPA + table.at, length: table.bytes, flags: INDIRECT, next: 0 });
    control.offer(head);
    control.kick();
    const [used] = await control.wait();
    const bytes = memory.u8.slice(reply, reply + Math.max(16, used.length));
    if (layout.data === undefined) memory.rewind(mark);
    const view = new DataView(bytes.buffer);
    return { error: used.length === 0 ? 0 : view.getInt32(4, true), data: new DataView(bytes.buffer, 16) };
  }

  /** Fill every ring with these requests in turn; with `again`, what is answered is asked again at once, as long as the guest is there. @returns heads */
  fill(layouts: readonly Layout[], again = false, queues = this.queues): void {
    for (const queue of queues) {
      const reply = this.memory.take(16 + Math.max(...layouts.map(({ room = 0 }) => room)), 4096);
      layouts.forEach((layout, head) => {
        const { at, bytes } = this.#table(layout, reply);
        queue.put(head, { address: GPA + at, length: bytes, flags: INDIRECT, next: 0 });
      });
      for (let i = 0; i < queue.size; i++) queue.offer(i % layouts.length);
      queue.kick();
      if (again) this.#loads.push(setInterval(() => this.#again(queue, layouts.length), 1));
    }
  }

  #again(queue: DriverQueue, heads: number): void {
    const answered = queue.take().length;
    for (let i = 0; i < answered; i++) queue.offer(i % heads);
    if (answered > 0) queue.kick();
  }

  /** Requests that were answered in all rings, of those that were not asked again. */
  answered(): number {
    return this.queues.reduce((sum, queue) => sum + queue.take().length, 0);
  }

  /** Until so many are answered, or for so many turns of this process's event loop. */
  async answeredAtLeast(count: number, patience_ms = 60_000): Promise<void> {
    let sum = 0;
    for (const deadline = Date.now() + patience_ms; (sum += this.answered()) < count; await turn()) assert.ok(Date.now() < deadline, `${sum} of ${count} requests were answered`);
  }

  /** The frontend goes, with all that was asked for. */
  leave(): void {
    for (const load of this.#loads.splice(0)) clearInterval(load);
    this.frontend.close();
    for (const queue of [this.control, ...this.queues]) queue.close();
    this.memory.close();
  }
}

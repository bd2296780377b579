/** Several requests of one client under way at the same time, answered in any order; otherwise it has one after the other. */
import { setImmediate as turn } from 'node:timers/promises';
import type { Used } from './driver.js';
import { concat } from './frontend.js';
import type { FuseClient } from './guest.js';

/** @returns what ends it: requests that are not answered by then fail */
export function allowInFlight(client: FuseClient): () => void {
  const { queue, memory } = client;
  const waiting = new Map<number, (used: Used) => void>();
  let failed: ((error: unknown) => void)[] = [];
  let pumping = false;
  let ended = false;
  const pump = async (): Promise<void> => {
    pumping = true;
    try {
      for (const deadline = Date.now() + queue.patience_ms; waiting.size > 0; await turn()) {
        for (const used of queue.take()) {
          waiting.get(used.head)?.(used);
          waiting.delete(used.head);
        }
        if (ended) throw new Error('nobody answers any more');
        if (Date.now() > deadline) throw new Error(`${waiting.size} requests were not answered`);
      }
    } catch (error) {
      for (const fail of failed) fail(error);
    } finally {
      pumping = false;
      failed = [];
    }
  };
  client.raw = async (readable, writable) => {
    const pending = queue.chain(readable, writable, true);
    const used = await new Promise<Used>((resolve, reject) => {
      waiting.set(pending.head, resolve);
      failed.push(reject);
      queue.kick();
      if (!pumping) void pump();
    });
    const all = concat(...pending.writable.map((at, i) => memory.u8.slice(at, at + writable[i])));
    const view = new DataView(all.buffer);
    if (used.length < 16) return { error: 0, data: new DataView(new ArrayBuffer(0)), used: used.length };
    return { error: view.getInt32(4, true), data: new DataView(all.buffer, 16, used.length - 16), used: used.length };
  };
  return () => void (ended = true);
}

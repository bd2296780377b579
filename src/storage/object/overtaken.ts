/**
 * Reads that our own changes overtake. A commit, a change of metadata or a rename replaces the version that a read has asked for; the server
 * has done it, and the answer that says so has not come yet. Such a read waits until that is over and reads what is there then.
 */
import { isLost } from './errors.js';
import type { FileHandle } from './file-handle.js';
import { inTurn } from './nodes.js';
import type { Gate } from './write/gate.js';
import type { Committer } from './write/committer.js';
import type { Base } from './write/records.js';

/** A read that is overtaken more often has somebody against it. */
const ATTEMPTS = 10;

/** Where a handle's bytes come from that are not staged. */
export const sourceOf = (file: FileHandle): Base | null => (file.staged === null ? file.base : file.staged.base);

/** The read of `before` has failed with `error`; `isHere`: the bytes are staged by now. @returns what it is worth when it is made again @throws `error`, or that of the last one */
export async function readAgain(
  file: FileHandle, before: Base | null, error: unknown, gate: Gate, committer: Committer, isHere: () => boolean, read: () => number | Promise<number>,
): Promise<number> {
  let [from, failure] = [before, error];
  for (let attempt = 1; attempt < ATTEMPTS; attempt++) {
    if (!isLost(failure)) throw failure;
    await ownChanges(file, gate, committer);
    const now = sourceOf(file);
    // Not by us; what we remove is staged before
    if (now?.version === from?.version && now?.key === from?.key && !isHere()) throw failure;
    from = now;
    try {
      return await read();
    } catch (next) {
      failure = next;
    }
  }
  throw failure;
}

/** What is under way, at this file or around it, is over. */
async function ownChanges({ node, staged }: FileHandle, gate: Gate, committer: Committer): Promise<void> {
  await gate.pass(() => node.key);
  await inTurn(node, async () => undefined);
  if (staged === null) return;
  await committer.over(staged);
  // One of which we did not hear: the next one finds out
  if (staged.mayBeCommitted) await committer.committed(staged).catch(() => undefined);
}

/** A store that has done what it was asked for, while nobody hears of it yet: what happens between the two is where requests overtake each other. */
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import type { ObjectStore } from '../../src/storage/object/store.js';

export interface HeldAnswers {
  readonly store: ObjectStore;
  /** How many of those operations are done. */
  done(): number;
  /** Their answers come, and from now on at once. */
  open(): void;
}

export function answersHeld(behind: ObjectStore, operations: readonly Call['operation'][]): HeldAnswers {
  let done = 0;
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => (open = resolve));
  const store = intercept(behind, async (call, attempt) => {
    const result = await attempt(call.signal);
    if (operations.includes(call.operation)) {
      done++;
      await opened;
    }
    return result;
  });
  return { store, done: () => done, open: () => open() };
}

/** When nothing happens any more. */
import { setImmediate as turn } from 'node:timers/promises';

/** @returns a count that has not changed for so many turns of the event loop */
export async function settled(count: () => number, turns = 50): Promise<number> {
  for (let last = -1, same = 0; ; ) {
    await turn();
    const now = count();
    same = now === last ? same + 1 : 0;
    if (same === turns) return now;
    last = now;
  }
}

/** An attempt that a layer may give up by itself. */
import { StorageError } from '../errors.js';
import type { Call } from './intercept.js';

export class GivenUp {
  constructor(readonly cause: StorageError) {}
}

/** @returns what the attempt gives, or GivenUp if it ended because of `own`, not because the caller gave up or for a reason of its own */
export async function unless<T>(own: AbortSignal, { signal }: Call, attempt: (signal: AbortSignal) => Promise<T>): Promise<T | GivenUp> {
  try {
    return await attempt(signal === undefined ? own : AbortSignal.any([signal, own]));
  } catch (error) {
    if (!own.aborted || signal?.aborted === true || !(error instanceof StorageError) || error.code !== 'aborted') throw error;
    return new GivenUp(error);
  }
}

/** A broken invariant is a bug of ours, never of a guest: the process crashes and is restarted. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

export class AssertionError extends Error {
  override name = 'AssertionError';
}

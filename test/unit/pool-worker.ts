/** A pool worker for tests: the production calls and some ways to wait and to die. */
import { poll, errno } from '../../src/ffi/libc.js';
import { CALLS } from '../../src/pool/calls.js';
import { serve } from '../../src/pool/serve.js';

const TEST_CALLS = {
  ...CALLS,
  /** Do nothing that could be waited for: the cost of the way to a worker and back. */
  nothing: () => 7,
  /** Block the thread inside the kernel for so many milliseconds. */
  sleep: (ms: number) => poll(0, 0, ms),
  /** End the thread in the middle of the request. */
  exit: (code: number) => process.exit(code),
  /** Need more heap than a worker is allowed to have. */
  exhaust: () => {
    const kept: number[][] = [];
    for (;;) kept.push(new Array<number>(10_000).fill(errno()));
  },
};

export type TestCall = keyof typeof TEST_CALLS;

export default serve(TEST_CALLS);

/** How many descriptors the daemon may have open. */
import { fileLimit, setFileLimit } from '../ffi/limits.js';
import { StartError } from './errors.js';

/**
 * Sets the limit to `wanted`; null: to the hard limit; 0: leaves it. Returns the limit in force.
 * StartError if it is beyond what this user may have.
 */
export function applyFileLimit(wanted: number | null): number {
  const now = fileLimit();
  if (wanted === 0) return now.soft;
  const soft = wanted ?? now.hard;
  if (soft === now.soft) return soft;
  const result = setFileLimit({ soft, hard: Math.max(soft, now.hard) });
  if (result < 0) {
    throw new StartError(`--rlimit-nofile ${soft} is more than this user may have: the hard limit is ${now.hard} (raise it with LimitNOFILE= in the unit, or run as root)`);
  }
  return soft;
}

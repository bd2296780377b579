/** Configuration that somebody else has written. */
import { readFileSync, statSync } from 'node:fs';

const BYTES_MAX = 1 << 20;

/** null: there is none, or nothing of that size that could be read. */
export function readSmall(path: string): string | null {
  try {
    const stat = statSync(path);
    return stat.isFile() && stat.size <= BYTES_MAX ? readFileSync(path, 'utf8') : null;
  } catch {
    return null;
  }
}

/** Which boot of the machine this is: what only its memory had is gone with it. */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';

/** https://docs.kernel.org/admin-guide/sysctl/kernel.html, random/boot_id. One that is told by nobody is another one each time. */
export function bootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return randomUUID();
  }
}

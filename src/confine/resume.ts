/** Confinement goes on in the image that the one before has become. */
import { checkHandover, type Handover } from './handover.js';
import type { ConfineOptions } from './policy.js';

/** Returns when the process is what it is to be; until then it becomes another image. @throws StartError, UsageError */
export async function resumeConfinement<Options extends ConfineOptions>(passed: Handover<Options>, bucket = false): Promise<void> {
  if (passed.stage !== 'confined') {
    const { confine, confinementOf } = await import('./confine.js');
    const confinement = confinementOf(passed.options, bucket);
    if (confinement !== null) confine(confinement, passed);
  }
  checkHandover(passed);
}

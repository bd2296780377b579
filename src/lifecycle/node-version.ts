/** Node.js as the daemon needs it: an older one would end in the middle of a start with an error of its own. */
import { StartError } from './errors.js';

/** `engines` of package.json: [major, first minor]; later majors have it all. */
const NEEDED: readonly (readonly [number, number])[] = [[20, 19], [22, 2]];

/** @throws StartError. `version`: as process.version */
export function checkNodeVersion(version: string): void {
  const [major = 0, minor = 0] = version.replace(/^v/, '').split('.').map(Number);
  const known = NEEDED.find(([one]) => one === major);
  if (known === undefined ? major > 22 : minor >= known[1]) return;
  throw new StartError(`this is Node.js ${version}, and 20.19 or later is needed, of 22 at least 22.2: install one, or name it in BUCKETFSD_NODE`);
}

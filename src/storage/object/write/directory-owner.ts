/** Whether a directory is safe to keep data in: the rule, for all that the daemon writes by a name on the host's disk. */
import { lstatSync, readdirSync, realpathSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';

const OTHERS_WRITE = 0o022;
const ANYBODY_WRITES = 0o002;
const STICKY = 0o1000;
/** Owner of what has none in a user namespace (/proc/sys/kernel/overflowuid). */
const OVERFLOW_UID = 65_534;

/**
 * Nobody but `owner` may put anything into the directory: else others read or change what guests have written, and a symlink of theirs is followed with the rights of the
 * daemon. Above it everything belongs to that user or to root, and where anybody may write there is the sticky bit. null: so it is; else what is wrong, for people.
 * @throws an error of the file system
 */
export function directoryRisk(path: string, owner: number): string | null {
  const real = realpathSync(path);
  const { uid, mode } = statSync(real);
  if (uid !== owner) return `${path} belongs to another user (uid ${uid}): name one of this user's (uid ${owner}), or change its owner`;
  if ((mode & OTHERS_WRITE) !== 0) return `others may write to ${path}: take that from them with chmod go-w`;
  // By its name, too: a symlink in it leads elsewhere tomorrow
  for (const above of new Set([...foldersAbove(real), ...foldersAbove(resolve(path))])) {
    const { uid, mode } = statSync(above);
    if (uid !== owner && uid !== 0 && uid !== OVERFLOW_UID) return `${above} above ${path} belongs to another user (uid ${uid}), who could put something else in its place`;
    if ((mode & ANYBODY_WRITES) !== 0 && (mode & STICKY) === 0) return `anybody may write to ${above} above ${path}: take that from them with chmod o-w`;
  }
  return null;
}

function foldersAbove(path: string): string[] {
  const folder = dirname(path);
  return folder === path ? [] : [folder, ...foldersAbove(folder)];
}

/** The same for root, who finishes what another user's daemon has left: nothing in it leads elsewhere. @throws an error of the file system */
export function foreignDirectoryRisk(path: string): string | null {
  const risk = directoryRisk(path, statSync(path).uid);
  if (risk !== null) return risk;
  for (const folder of [path, join(path, 'staging'), join(path, 'blocks')]) {
    if (lstatSync(folder, { throwIfNoEntry: false })?.isDirectory() !== true) continue;
    const odd = readdirSync(folder, { withFileTypes: true }).find((entry) => !entry.isFile() && !entry.isDirectory());
    if (odd !== undefined) return `${join(folder, odd.name)} is no file: remove it`;
  }
  return null;
}

/** Files of a cache directory, which belong to whom the directory belongs: root makes them for a daemon that is no longer root. */
import { closeSync, constants, fchownSync, fstatSync, openSync, statSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

export interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/** null: files belong to their maker, since it is not root, or the directory is root's. */
export function ownerOf(directory: string): Owner | null {
  if (process.geteuid!() !== 0) return null;
  const { uid, gid } = statSync(directory);
  return uid === 0 ? null : { uid, gid };
}

/**
 * open(2) with mode 0600; a file of root's becomes `owner`'s. `bucketfsd recover` is run as root on the directory of a unit with a user of its
 * own, which could not open its journal any more. A second name of the file is no file of the directory's: it stays root's.
 */
export function openOwned(path: string, flags: number, owner: Owner | null = ownerOf(dirname(path))): number {
  const fd = openSync(path, flags | constants.O_NOFOLLOW, 0o600);
  if (owner === null) return fd;
  try {
    const { uid, nlink } = fstatSync(fd);
    if (uid === 0 && nlink === 1) fchownSync(fd, owner.uid, owner.gid);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** A file with this content. */
export function writeOwned(path: string, text: string): void {
  const fd = openOwned(path, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC);
  try {
    writeFileSync(fd, text);
  } finally {
    closeSync(fd);
  }
}

/**
 * What an object may say of rights in the guest. The rule: whoever may put an object is not root in the guest. So without
 * --privileged-metadata nothing that lends rights is believed of an object, or made by a guest and then not kept:
 *
 *   set-user-ID and set-group-ID of what can be executed   of a directory they lend nothing, and stay
 *   device nodes                                           but for 0:0, which no kernel opens and overlayfs needs
 *   extended attributes other than user.*                  security.capability above all
 *
 * It is applied to all metadata that is read (facts.ts, attributes.ts, commit.ts), and to every mode that a guest gives (changes.ts, attribute-changes.ts).
 */
import { E } from '../../base/errno.js';
import { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID, S_ISUID } from '../../ffi/constants.js';
import { PERMISSIONS, readPosix, type Read } from './posix-metadata.js';
import type { Metadata } from './store.js';

const USER_XATTR = 'user.';
const S_IFCHR = 0o020000;
const S_IFBLK = 0o060000;

/** Whether other programs or kernels would give rights because of it. */
export function lendsRights(mode: number, rdev: number): boolean {
  const type = mode & S_IFMT;
  return (type !== S_IFDIR && type !== S_IFLNK && (mode & (S_ISUID | S_ISGID)) !== 0) || type === S_IFBLK || (type === S_IFCHR && rdev !== 0);
}

/** The errno for a mode that a guest gives, or 0. EPERM, as on a host where the caller may not. */
export function modeRefusal(mode: number, rdev: number, privileged: boolean): number {
  return !privileged && lendsRights(mode, rdev) ? E.PERM : 0;
}

/** Only these are shown and can be set by a guest. */
export const isUserXattr = (name: string): boolean => name.startsWith(USER_XATTR);

/** `privileged`: whether everything counts. What does not is as if absent, a device node is a file, and `ignored` says so. `directory`: it is a directory's. */
export function readBelieved(metadata: Metadata, privileged: boolean, directory: boolean): Read {
  const read = readPosix(metadata);
  if (privileged) return read;
  const ignored = [...read.ignored];
  let { mode, rdev, xattrs } = read.posix;
  if (mode !== null && lendsRights(directory ? S_IFDIR | (mode & PERMISSIONS) : mode, rdev ?? 0)) {
    const device = (mode & S_IFMT) === S_IFBLK || (mode & S_IFMT) === S_IFCHR;
    mode = (device ? S_IFREG : mode & S_IFMT) | (mode & PERMISSIONS & ~(S_ISUID | S_ISGID));
    if (device) rdev = null;
    ignored.push(`mode (${device ? 'a device node' : 'set-id bits'}, without --privileged-metadata)`);
  }
  if (xattrs !== null && [...xattrs.keys()].some((name) => !isUserXattr(name))) {
    xattrs = new Map([...xattrs].filter(([name]) => isUserXattr(name)));
    ignored.push('xattr (other than user.*, without --privileged-metadata)');
  }
  return { posix: { ...read.posix, mode, rdev, xattrs }, ignored };
}

/** Attributes of an object that a guest cannot change: they stay, believed or not. */
export function foreignXattrs(kept: Metadata): [string, Uint8Array][] {
  return kept['xattr'] === undefined ? [] : [...(readPosix({ xattr: kept['xattr'] }).posix.xattrs ?? [])].filter(([name]) => !isUserXattr(name));
}

/** Whom the socket's file belongs to, and who may connect: settled before listen(2), until when the kernel refuses every connection. */
import { closeSync, fstatSync, openSync, unlinkSync, type BigIntStats } from 'node:fs';
import { AT_EMPTY_PATH, O_CLOEXEC, O_NOFOLLOW, O_PATH } from '../ffi/constants.js';
import * as c from '../ffi/libc.js';
import { NativeMemory } from '../ffi/memory.js';
import { StartError } from './errors.js';

const OWNER_ONLY = 0o600;
const WITH_GROUP = 0o660;
const PERMISSIONS = 0o777;
/** chown(2): leave the user as it is. */
const NO_UID = 0xffff_ffff;

/** For bind(2): the socket is made with the mode that it is to have; a default ACL of the directory does not widen it. */
export const umaskFor = (gid: number | null): number => (gid === null ? OWNER_ONLY : WITH_GROUP) ^ PERMISSIONS;

/**
 * Gives the socket that was just bound at `path` its group. The rule: in a directory that others may write there can be something else by now, so the name is
 * looked at once, without following it, and everything is done to that very inode, which must be a socket of this user with one name.
 * @throws StartError
 */
export function settleOwner(path: string, gid: number | null): BigIntStats {
  const fd = openSync(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  try {
    const { uid, nlink } = fstatSync(fd);
    if (!fstatSync(fd).isSocket() || uid !== process.geteuid!() || nlink !== 1) {
      throw new StartError(`something else was put in the place of ${path} while it was made: let nobody else write to its directory`);
    }
    if (gid !== null) changeGroup(fd, path, gid);
    return fstatSync(fd, { bigint: true });
  } finally {
    closeSync(fd);
  }
}

function changeGroup(fd: number, path: string, gid: number): void {
  const nothing = NativeMemory.allocate(8);
  const changed = c.neg(c.fchownat(fd, nothing.putString(0, ''), NO_UID, gid, AT_EMPTY_PATH));
  nothing.free();
  if (changed === 0) return;
  unlinkSync(path);
  throw new StartError(`cannot give ${path} to the group of --socket-group: the user must be root or a member of it`);
}

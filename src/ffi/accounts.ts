/** The group database, by the C library, so that every source of /etc/nsswitch.conf counts. */
import koffi from 'koffi';
import { viewOf } from './memory.js';

const lib = koffi.load('libc.so.6');
const getgrnam = lib.func('int64 getgrnam(const char *name)') as (name: string) => number;

/** struct group of grp.h on 64-bit machines: name and password (two pointers), then gr_gid. */
const GR_GID = 16;

/** The id of a group, or null if there is none of that name. */
export function groupId(name: string): number | null {
  // SAFETY: the result is the C library's static struct, read before the next call in this thread.
  const address = getgrnam(name);
  return address === 0 ? null : new DataView(viewOf(address, GR_GID + 4)).getUint32(GR_GID, true);
}

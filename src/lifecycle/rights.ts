/** What the daemon's user and group lend to those whom it serves: nothing. */
import * as c from '../ffi/libc.js';

/** Creations get the mode that the guest asked for, and no group of the daemon's user lends them rights. @throws EPERM for root without CAP_SETGID */
export function becomeServer(): void {
  c.umask(0);
  if (process.geteuid!() === 0) process.setgroups!([]);
}

/** The same for a bucket's daemon, which makes nothing with a guest's rights: in a container without CAP_SETGID its groups stay. */
export function becomeBucketServer(): void {
  try {
    becomeServer();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') throw error;
  }
}

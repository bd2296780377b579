/** What the daemon's user and group lend to those whom it serves: nothing. */
import * as c from '../ffi/libc.js';

/** Creations get the mode that the guest asked for, and no group of the daemon's user lends them rights. */
export function becomeServer(): void {
  c.umask(0);
  if (process.geteuid!() === 0) process.setgroups!([]);
}

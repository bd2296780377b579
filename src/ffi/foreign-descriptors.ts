/** Closing descriptors that somebody else has opened. */
import { readlinkSync } from 'node:fs';
import { F_GET_SEALS } from './constants.js';
import * as c from './libc.js';

/** Threads of libuv's four that may wait in close(2). */
const CLOSING_MAX = 2;

const waiting: number[] = [];
let closing = 0;
let endsByForce = false;

/**
 * Rule: a descriptor that a frontend has passed is closed here. close(2) of a file on FUSE or a network file system asks that (FLUSH) and waits for the answer, which
 * whoever serves it can keep back for ever; so it is done in another thread, unless the file is one of the kernel's own: shared memory, eventfds, sockets, pipes.
 * Nobody can end such a thread, not even by SIGKILL (a FLUSH that was sent is waited for uninterruptibly): a process that ends meanwhile is gone when the file
 * system answers or goes. It kills itself after all else, since exit(3) would wait for that thread before.
 */
export function closeForeign(fd: number): void {
  if (isOfKernel(fd)) {
    c.close(fd);
    return;
  }
  waiting.push(fd);
  if (!endsByForce) {
    endsByForce = true;
    process.on('exit', () => void (closing > 0 && process.kill(process.pid, 'SIGKILL')));
  }
  next();
}

function next(): void {
  while (closing < CLOSING_MAX && waiting.length > 0) {
    closing++;
    void c.closeElsewhere(waiting.shift()!).finally(() => {
      closing--;
      next();
    });
  }
}

/** Asks no file system: neither does fcntl(2), nor is the link's text looked up. */
function isOfKernel(fd: number): boolean {
  if (c.fcntl(fd, F_GET_SEALS, 0) >= 0) return true;
  try {
    return /^(?:anon_inode|socket|pipe):/.test(readlinkSync(`/proc/self/fd/${fd}`));
  } catch {
    return false;
  }
}

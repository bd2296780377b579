import { write } from 'node:fs';

/**
 * Bytes that are written to a file at once.
 *
 * Linux takes folios as large as what is written for the page cache. Large ones that are free have not been used for a while, so that a hypervisor
 * may have taken them back, and touching them costs many times the copying: measured on ext4, 0.6 to 1.5 s of CPU time for 512 MiB in pieces of 256 KiB
 * and more, 0.1 to 0.3 s in smaller ones.
 */
export const WRITE_BYTES = 64 << 10;

/** All of it, in such pieces: neither a promise nor a view for each of them. @throws an error of the file system */
export function writeAll(fd: number, content: Uint8Array, offset: number): Promise<void> {
  return new Promise((resolve, reject) => {
    let done = 0;
    const next = (error: Error | null, written: number): void => {
      done += written;
      if (error !== null) reject(error);
      else if (done >= content.length) resolve();
      else write(fd, content, done, Math.min(WRITE_BYTES, content.length - done), offset + done, next);
    };
    next(null, 0);
  });
}

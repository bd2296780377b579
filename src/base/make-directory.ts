import { existsSync, mkdirSync, statSync } from 'node:fs';
import { dirname } from 'node:path';

/**
 * Makes a directory, and those that it is to be in, with mode 0700; no-op where it is there. mkdirSync({ recursive: true }) never ends below a directory in
 * which nothing can be made, as /proc, and takes a read-only file system for a missing directory.
 * @throws an error of the file system, of the directory that could not be made
 */
export function makeDirectory(path: string): void {
  const parent = dirname(path);
  if (parent !== path && !existsSync(parent)) makeDirectory(parent);
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    // It was there, or another process has made it meanwhile
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST' || statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) throw error;
  }
}

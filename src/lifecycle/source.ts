/** Can this process share the directory at all? Asked before anything is set up, for one clear sentence. */
import { accessSync, constants, statSync, type Stats } from 'node:fs';
import { StartError } from './errors.js';

/** StartError if `path` is missing, is no directory, or may not be read and searched by this user; it calls the directory `name`. */
export function checkSource(path: string, name = path): void {
  if (!inspect(name, () => statSync(path)).isDirectory()) throw new StartError(`cannot share ${name}: it is not a directory`);
  inspect(name, () => accessSync(path, constants.R_OK | constants.X_OK));
}

/** Whether nobody can write there, whatever his rights: the mount is read-only. */
export function isReadOnlyMount(path: string): boolean {
  try {
    accessSync(path, constants.W_OK);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EROFS';
  }
}

function inspect<T = Stats>(name: string, look: () => T): T {
  try {
    return look();
  } catch (error) {
    switch ((error as NodeJS.ErrnoException).code) {
      case 'ENOENT':
        throw new StartError(`cannot share ${name}: there is no such directory`);
      case 'ENOTDIR':
        throw new StartError(`cannot share ${name}: a part of the path is not a directory`);
      case 'EACCES':
      case 'EPERM':
        throw new StartError(`cannot share ${name}: no permission to read it; run as a user that may, or as root`);
      case 'ELOOP':
        throw new StartError(`cannot share ${name}: too many symbolic links`);
      default:
        throw new StartError(`cannot share ${name}: ${(error as Error).message}`);
    }
  }
}

import { errnoName } from '../base/errno.js';

/** A system call failed where that was not part of the plan. */
export class SysError extends Error {
  override name = 'SysError';
  readonly code: string;

  constructor(
    readonly errno: number,
    readonly syscall: string,
    readonly subject = '',
  ) {
    super(`${syscall}${subject ? ` ${subject}` : ''}: ${errnoName(errno)}`);
    this.code = errnoName(errno);
  }
}

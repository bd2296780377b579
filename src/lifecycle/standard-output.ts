/** Standard output of the commands that print: help, check, recover. */
import { EXIT } from './errors.js';

let isHeard = false;

/** A reader that has gone (`| head`) has what it wanted, and does not end what is being done; where there is no room the exit code says so. */
export function print(text: string): void {
  if (!isHeard) {
    isHeard = true;
    process.stdout.on('error', ({ code, message }: NodeJS.ErrnoException) => {
      if (code === 'EPIPE' || code === 'ERR_STREAM_DESTROYED') return;
      process.stderr.write(`bucketfsd: cannot write to standard output: ${message}\n`);
      process.exitCode = EXIT.RUNTIME;
    });
  }
  process.stdout.write(text);
}

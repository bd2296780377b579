/** Exit codes of the daemon, as docs/OPERATIONS.md lists them. */
export const EXIT = { OK: 0, RUNTIME: 1, USAGE: 2, UNSENT: 3 } as const;
export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

/** The daemon cannot start, and the message is the one sentence that says why to the person who started it. */
export class ExitError extends Error {
  override name = 'ExitError';

  constructor(
    sentence: string,
    readonly exitCode: ExitCode,
  ) {
    super(sentence);
  }
}

/** The command line is wrong: nothing was tried. Exit code 2. */
export class UsageError extends ExitError {
  override name = 'UsageError';

  constructor(sentence: string) {
    super(sentence, EXIT.USAGE);
  }
}

/** The command line is right but the machine refuses. Exit code 1. */
export class StartError extends ExitError {
  override name = 'StartError';

  constructor(sentence: string) {
    super(sentence, EXIT.RUNTIME);
  }
}

/** What to write to standard error, and the exit code, when starting failed with `error`. */
export function failureOf(error: unknown): { text: string; exitCode: ExitCode } {
  if (error instanceof UsageError) return { text: `bucketfsd: ${error.message} (see bucketfsd --help)\n`, exitCode: error.exitCode };
  if (error instanceof ExitError) return { text: `bucketfsd: ${error.message}\n`, exitCode: error.exitCode };
  const detail = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return { text: `bucketfsd: unexpected error: ${detail}\n`, exitCode: EXIT.RUNTIME };
}

/** What `posix record` prints (test/e2e/posix/record.h), read and compared. */

/** Lines of each recording, by "file: name". */
export type Recordings = ReadonlyMap<string, readonly string[]>;

/** A line that is another one on the share. */
export interface Difference {
  readonly recording: string;
  readonly expected: string;
  readonly got: string;
}

/** @throws when the program did not come to its end */
export function parseRecordings(output: string): Recordings {
  const recordings = new Map<string, string[]>();
  let lines: string[] | null = null;
  let total = -1;
  for (const line of output.split('\n')) {
    const head = /^# (.*)$/.exec(line);
    const end = /^total (\d+)$/.exec(line);
    if (head !== null) recordings.set(head[1], (lines = []));
    else if (end !== null) total = Number(end[1]);
    else if (line !== '') lines?.push(line);
  }
  if (total !== recordings.size) throw new Error(`the recordings did not come to their end:\n${output.slice(-2000)}`);
  return recordings;
}

/** Recordings take the same way whatever the results are: each line has one that corresponds. */
export function differencesOf(expected: Recordings, got: Recordings): Difference[] {
  const differences: Difference[] = [];
  for (const [recording, lines] of expected) {
    const others = got.get(recording) ?? [];
    for (let i = 0; i < Math.max(lines.length, others.length); i++) {
      if (lines[i] !== others[i]) differences.push({ recording, expected: lines[i] ?? 'nothing', got: others[i] ?? 'nothing' });
    }
  }
  return differences;
}

export const linesOf = (recordings: Recordings): number => [...recordings.values()].reduce((sum, lines) => sum + lines.length, 0);

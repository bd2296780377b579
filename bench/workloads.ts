/** The rows of the benchmark: what the client does, and in which unit the rows are compared. */

export interface Row {
  readonly name: string;
  /** Arguments of `vufs bench SOCKET …`. */
  readonly args: readonly string[];
  readonly unit: 'ops/s' | 'entries/s' | 'MB/s';
}

const QUEUE_DEPTHS = [1, 16] as const;
const BLOCK_SIZES = ['4k', '128k', '1m'] as const;
const DIRECTORY_ENTRIES = 10_000;

function metadataRows(): Row[] {
  const kinds: readonly Omit<Row, 'name'>[] = [
    { args: ['getattr'], unit: 'ops/s' },
    { args: ['lookup'], unit: 'ops/s' },
    { args: ['open-read-close'], unit: 'ops/s' },
    { args: ['create-write-unlink'], unit: 'ops/s' },
    { args: ['readdirplus', '--files', String(DIRECTORY_ENTRIES)], unit: 'entries/s' },
  ];
  return kinds.flatMap(({ args, unit }) =>
    QUEUE_DEPTHS.map((qd) => ({ name: `${args[0]}-qd${qd}`, args: [...args, '--qd', String(qd)], unit })),
  );
}

function dataRows(): Row[] {
  return ['randread', 'seqread', 'randwrite', 'seqwrite'].flatMap((kind) =>
    BLOCK_SIZES.flatMap((bs) =>
      QUEUE_DEPTHS.map((qd) => ({
        name: `${kind}-${bs}-qd${qd}`,
        args: [kind, '--bs', bs, '--qd', String(qd)],
        unit: 'MB/s' as const,
      })),
    ),
  );
}

/** Rows whose name contains one of `only`; all of them if `only` is empty. */
export function selectRows(only: readonly string[]): Row[] {
  const rows = [...metadataRows(), ...dataRows()];
  return only.length === 0 ? rows : rows.filter((row) => only.some((part) => row.name.includes(part)));
}

/**
 * The same system calls on a file system of the host and on a share over it, by this machine's own kernel (`bench/vufs mount`): each line that differs
 * is in allowed.ts, with its sentence in SEMANTICS, or a fault. BUCKETFSD_LONG runs the whole matrix; DIFFERENTIAL_ONLY only recordings whose name or file
 * contains it, DIFFERENTIAL_SHARES only shares whose name does.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync, renameSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import { buildVufs, projectRoot } from '../../bench/vufs.js';
import { parseFacts } from '../e2e/facts.js';
import { isolated } from '../storage/power/isolated.js';
import { ALLOWED, isAllowed } from './allowed.js';
import type { Parameters, Recorded } from './program.js';
import { differencesOf, linesOf, parseRecordings, type Difference } from './recordings.js';
import { nameOf, SHARES, type Base, type ShareKind } from './shares.js';

const PROGRAM = '../../differential/program.js';
const SOURCES = join(projectRoot, 'test/e2e/posix');
const POSIX = fileURLToPath(new URL('posix', import.meta.url));
const LEAST_LINES = 3_000;
const LEAST_LOCK_FACTS = 15;
const SHOWN = 500;

const long = process.env['BUCKETFSD_LONG'] !== undefined;
const part = process.env['DIFFERENTIAL_ONLY'] ?? '';
const only = process.env['DIFFERENTIAL_SHARES'] ?? '';
const shares = SHARES.filter((share) => (long || !share.long) && nameOf(share).includes(only));

/** As scripts/guest-image.sh builds it for guests. */
function buildPosix(): void {
  const sources = readdirSync(SOURCES).filter((file) => /\.[ch]$/.test(file)).map((file) => join(SOURCES, file));
  if (existsSync(POSIX) && sources.every((file) => statSync(file).mtimeMs < statSync(POSIX).mtimeMs)) return;
  const made = `${POSIX}.${process.pid}`;
  const { status, stderr } = spawnSync('gcc', ['-std=gnu17', '-O1', '-fno-toplevel-reorder', '-Wall', '-Wextra', '-static', '-o', made, ...sources.filter((file) => file.endsWith('.c'))], { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  renameSync(made, POSIX);
}

function unavailable(): string | false {
  if (process.geteuid!() !== 0) return 'mounting needs root';
  return existsSync('/dev/fuse') ? false : 'there is no /dev/fuse';
}

const used = new Set<number>();

/** Differences that nothing allows; those that are allowed are noted. */
function faultsOf(share: ShareKind, differences: readonly Difference[]): Difference[] {
  return differences.filter((difference) => {
    const by = ALLOWED.flatMap((allowed, i) => (isAllowed(allowed, share, difference) ? [i] : []));
    for (const i of by) used.add(i);
    return by.length === 0;
  });
}

const describe = ({ recording, expected, got }: Difference): string => `${recording}\n  host:  ${expected}\n  share: ${got}`;

for (const base of ['ext4', 'xfs', 'tmpfs'] as const satisfies readonly Base[]) {
  const these = shares.filter((share) => share.base === base);
  if (these.length === 0) continue;
  test(`what calls do on ${base} and on shares over it`, { skip: unavailable() }, async (context) => {
    buildVufs();
    buildPosix();
    const recorded: Recorded[] = [];
    await isolated<Recorded>(PROGRAM, { base, shares: these, posix: POSIX, part } satisfies Parameters, (one) => recorded.push(one));
    assert.equal(recorded.length, these.length);
    for (const { share, expected, got, log, facts } of recorded) {
      await context.test(nameOf(share), () => {
        const reference = parseRecordings(expected);
        const faults = faultsOf(share, differencesOf(reference, parseRecordings(got)));
        if (part === '') assert.ok(linesOf(reference) >= LEAST_LINES, `${linesOf(reference)} lines`);
        assert.ok(faults.length === 0, `${faults.length} lines differ:\n${faults.slice(0, SHOWN).map(describe).join('\n')}\n${log.slice(-2000)}`);
      });
      if (facts === '') continue;
      await context.test(`${nameOf(share)}: the facts about locks, those among them who wait and are interrupted or killed`, () => {
        const all = parseFacts(facts);
        assert.deepEqual(all.filter(({ outcome }) => outcome !== 'ok').map(({ name, detail }) => `${name}: ${detail}`), []);
        assert.ok(all.length >= LEAST_LOCK_FACTS, `${all.length} facts`);
      });
    }
  });
}

test('each difference that is allowed is there, and is what SEMANTICS says', { skip: unavailable() }, () => {
  const semantics = readFileSync(join(projectRoot, 'docs/SEMANTICS.md'), 'utf8').replace(/\s+/g, ' ');
  for (const { sentence } of ALLOWED) assert.ok(semantics.includes(sentence.replace(/\s+/g, ' ')), `SEMANTICS does not say: ${sentence}`);
  if (part !== '' || only !== '') return;
  const unused = ALLOWED.filter((allowed, i) => !used.has(i) && shares.some((share) => allowed.where(share)));
  assert.deepEqual(unused.map(({ recording, got }) => `${recording} ${got}`), []);
});

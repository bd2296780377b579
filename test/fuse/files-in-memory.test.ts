/**
 * Reads of files in memory. tmpfs cannot say whether a read would wait (RWF_NOWAIT), and none does: the pool cost five times what the read does.
 * Tried here: a share in memory, a mount in memory inside a share that is not, and one on disk inside a share in memory.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test, type TestContext } from 'node:test';
import type { StepPool } from '../../src/storage/local/share.js';
import { TestGuest } from '../support/guest.js';

const ROOT = 1n;
const MISSING = !('getuid' in process) || process.getuid!() !== 0;

/** A pool that no step comes back from with more than an error: a request that needs it fails. */
class Refusing implements StepPool {
  readonly steps: string[] = [];

  run(step: string): Promise<number> {
    this.steps.push(step);
    return Promise.resolve(-5);
  }
}

const made: string[] = [];
after(() => {
  for (const directory of made) rmSync(directory, { recursive: true, force: true });
});

function directoryIn(parent: string): string {
  const directory = mkdtempSync(join(parent, 'bucketfsd-memory-'));
  made.push(directory);
  return directory;
}

function mount(t: TestContext, type: string, source: string, at: string, ...options: string[]): void {
  mkdirSync(at);
  execFileSync('mount', ['-t', type, ...options, source, at]);
  t.after(() => execFileSync('umount', [at]));
}

async function readsInline(directory: string, path: readonly string[]): Promise<void> {
  const pool = new Refusing();
  const g = await TestGuest.start({ directory }, pool);
  try {
    let node = ROOT;
    for (const part of path) ({ node } = await g.lookup(node, part));
    const fh = await g.open(node);
    for (const [offset, bytes] of [[0, 9000], [4096, 4904], [9000, 0], [1 << 20, 0]] as const) {
      const { error, data } = await g.read(node, fh, offset, 16_384);
      assert.deepEqual([error, data.byteLength], [0, bytes]);
    }
    assert.deepEqual(pool.steps, []);
  } finally {
    await g.close();
  }
}

test('a share in memory is read without the pool', async () => {
  const directory = directoryIn('/dev/shm');
  writeFileSync(join(directory, 'f'), new Uint8Array(9000));
  await readsInline(directory, ['f']);
});

for (const type of ['tmpfs', 'ramfs']) {
  test(`so is a ${type} that is mounted inside a share`, { skip: MISSING && 'needs root' }, async (t) => {
    const directory = directoryIn(tmpdir());
    mount(t, type, 'none', join(directory, 'in'));
    writeFileSync(join(directory, 'in/f'), new Uint8Array(9000));
    await readsInline(directory, ['in', 'f']);
  });
}

test('what may wait is read in the pool, also where it is mounted inside a share in memory', { skip: MISSING && 'needs root' }, async (t) => {
  const directory = directoryIn('/dev/shm');
  // A file of /proc knows no RWF_NOWAIT
  mount(t, 'proc', 'none', join(directory, 'in'));
  const pool = new Refusing();
  const g = await TestGuest.start({ directory }, pool);
  try {
    const { node } = await g.lookup((await g.lookup(ROOT, 'in')).node, 'version');
    assert.equal((await g.read(node, await g.open(node), 0, 4096)).error, -5);
    assert.deepEqual(pool.steps, ['read']);
  } finally {
    await g.close();
  }
});

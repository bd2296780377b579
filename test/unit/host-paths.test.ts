/** Paths of the host in the root of a bucket's daemon: links, and files that are replaced, are seen there as outside. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { belongsToOthers, follow } from '../../src/confine/host-paths.js';
import { planRoot } from '../../src/confine/new-root.js';

const RDONLY = 1;
let dir = '';
before(() => {
  dir = realpathSync(mkdtempSync(join(tmpdir(), 'bucketfsd-paths-')));
  mkdirSync(join(dir, 'a/b'), { recursive: true });
  writeFileSync(join(dir, 'a/b/file'), '');
  symlinkSync('a', join(dir, 'relative'));
  symlinkSync(join(dir, 'relative/b'), join(dir, 'absolute'));
  symlinkSync('../../absolute/file', join(dir, 'a/b/link'));
  symlinkSync('loop', join(dir, 'loop'));
});
after(() => rmSync(dir, { recursive: true }));

const plan = (paths: readonly (readonly [string, boolean])[], scratch: string | null = null): ReturnType<typeof planRoot> =>
  planRoot({ share: { paths: paths.map(([path, writable]) => ({ path: join(dir, path), writable })), scratch, workingDirectory: dir }, readonly: false, socketDirectory: null });
const ours = (from: ReturnType<typeof planRoot>): string[] => from.trees.filter(({ target }) => target.startsWith(dir)).map(({ target, purpose }) => `${target.slice(dir.length)} ${purpose}`);

describe('a path', () => {
  test('leads by every link on its way to one without links', () => {
    assert.deepEqual(follow(`${dir}/relative/../a/b/link`), {
      real: join(dir, 'a/b/file'),
      links: [
        { path: join(dir, 'relative'), to: 'a' }, { path: join(dir, 'a/b/link'), to: '../../absolute/file' }, { path: join(dir, 'absolute'), to: join(dir, 'relative/b') },
        { path: join(dir, 'relative'), to: 'a' },
      ],
    });
    assert.deepEqual(follow('/'), { real: '/', links: [] });
  });

  test('that leads nowhere, in a circle or through a file leads to nothing', () => {
    for (const path of ['none', 'loop', 'loop/x', 'a/b/file/x', 'relative/none/x']) assert.equal(follow(join(dir, path)), null, path);
  });

  test('is looked at for its owner with what is in it', () => {
    const own = process.geteuid!();
    assert.equal(belongsToOthers([join(dir, 'a/b'), join(dir, 'a/b/file')], own), false);
    assert.equal(belongsToOthers([join(dir, 'a/b')], own + 1), true);
    assert.equal(belongsToOthers([join(dir, 'none')], own), false);
  });
});

describe('the root of a bucket', () => {
  test('has each path where the host has it, outer ones first, and links outside of them', () => {
    const made = plan([['absolute/file', false], ['a/b', true], ['relative', false]]);
    assert.deepEqual(ours(made), ['/a read', '/a/b write']);
    assert.deepEqual(made.links.filter(({ path }) => path.startsWith(dir)).map(({ path }) => path.slice(dir.length)).sort(), ['/absolute', '/relative']);
    assert.deepEqual([made.network, made.workingDirectory], [true, dir]);
  });

  test('has no mount of its own for a file in a directory that is there: it would stay when the file is replaced', () => {
    assert.deepEqual(ours(plan([['a/b/file', false], ['a/b', false]])), ['/a/b read']);
  });

  test('has what is both written and read as what is written, all without devices and programs, and only that writable', () => {
    const made = plan([['a', false], ['a', true]]);
    assert.deepEqual(ours(made), ['/a write']);
    for (const { purpose, attributes } of made.trees) {
      assert.equal((attributes & RDONLY) === 0, ['write', 'null', 'socket'].includes(purpose), purpose);
      if (purpose === 'write' || purpose === 'read') assert.equal(attributes & (2 | 4 | 8), 2 | 4 | 8);
    }
    assert.deepEqual(ours(plan([['a', true]], join(dir, 'a'))), ['/a scratch']);
  });
});

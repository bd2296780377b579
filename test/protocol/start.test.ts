/**
 * What each process image of the daemon loads until it listens: a start takes as long as that does (docs/adr/0007). Whoever adds a package or a folder to
 * a list here makes every start slower, also one that does not need it.
 */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { DaemonProcess, killDaemons } from '../support/daemon.js';

const ROOT = process.getuid?.() === 0;
/** Folders and files of src/, in every image. */
const ALWAYS = ['base', 'confine', 'ffi', 'lifecycle', 'main'];
/** The command line, and the rules of options that are checked with it. */
const PARSING = [...ALWAYS, 'cli', 'storage'];
const SERVING = [...ALWAYS, 'daemon', 'fuse', 'pool', 'storage', 'vhost'];

let dir = '';
before(() => {
  dir = mkdtempSync(join(tmpdir(), 'bucketfsd-start-'));
  for (const name of ['share', 'run']) mkdirSync(join(dir, name));
});
after(() => {
  killDaemons();
  rmSync(dir, { recursive: true, force: true });
});

interface Image {
  /** Paths below src/, without .js. */
  readonly files: readonly string[];
  /** Names of packages. */
  readonly packages: readonly string[];
}

/** Starts a daemon; Node itself says what it loads, to standard error. */
async function imagesOf(...args: string[]): Promise<Image[]> {
  const daemon = new DaemonProcess(['--socket-path', join(dir, 'run', 'socket'), ...args], { env: { NODE_DEBUG: 'esm,module' } });
  await daemon.until(/"sharing /);
  await daemon.stop();
  const [text] = daemon.stderr.split('"sharing ');
  const loaded = [...text.matchAll(/^ESM \d+: (?:Translating|Loading) \w+ file:\/\/(\S+)|^MODULE \d+: load "([^"]+)"/gm)].map((match) => match[1] ?? match[2]);
  const images: string[][] = [];
  for (const path of loaded) {
    if (path.endsWith('/build/src/main.js')) images.push([]);
    images.at(-1)?.push(path);
  }
  const unique = (names: readonly (string | undefined)[]): string[] => [...new Set(names.filter((name) => name !== undefined))].sort();
  return images.map((paths) => ({
    files: unique(paths.map((path) => /\/build\/src\/(.*)\.js$/.exec(path)?.[1])),
    packages: unique(paths.map((path) => /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1].replace(/^@koromix\/koffi-.*/, 'koffi'))),
  }));
}

/** Folders of src/, and files beside them. */
const foldersOf = ({ files }: Image): string[] => [...new Set(files.map((file) => file.split('/')[0]))].sort();

describe('a directory', () => {
  test('with a sandbox, the image that confines loads a table of options and koffi, and the one that serves what serves and koffi', { skip: !ROOT && 'needs root' }, async () => {
    const images = await imagesOf('--source', join(dir, 'share'));
    assert.equal(images.length, 2);
    const [confining, serving] = images;
    assert.deepEqual(foldersOf(confining), [...PARSING].sort());
    assert.deepEqual(confining.files.filter((file) => file.startsWith('storage/')), ['storage/local/options']);
    assert.deepEqual(confining.packages, ['koffi']);
    assert.deepEqual(foldersOf(serving), [...SERVING].sort());
    assert.deepEqual(serving.files.filter((file) => file.startsWith('storage/object/')), []);
    assert.deepEqual(serving.packages, ['koffi']);
  });

  test('without one, it is a single image that loads the same: no SDK, no logger until a line wants it, no threads until a request does', async () => {
    const images = await imagesOf('--source', join(dir, 'share'), '--sandbox=none', '--seccomp=none');
    assert.equal(images.length, 1);
    assert.deepEqual(foldersOf(images[0]), [...new Set([...PARSING, ...SERVING])].sort());
    assert.deepEqual(images[0].packages, ['koffi']);
  });
});

describe('a bucket', () => {
  const CONFINING = [...ALWAYS, 'bucket', 'bucket-start', 'cli', 'storage'];
  const SERVING_IT = [...SERVING, 'bucket', 'bucket-start'];

  test('with a sandbox, the image that confines loads nothing of a store, and the one that serves no command line', { skip: !ROOT && 'needs root' }, async () => {
    const images = await imagesOf('--source', 'memory:');
    assert.equal(images.length, 2);
    const [confining, serving] = images;
    assert.deepEqual(foldersOf(confining), [...CONFINING].sort());
    assert.deepEqual(confining.packages, ['koffi']);
    assert.deepEqual(foldersOf(serving), [...SERVING_IT].sort());
    assert.deepEqual(serving.packages.filter((name) => ['commander', 'pino'].includes(name)), []);
  });
});

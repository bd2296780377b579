/** Changes of a bucket, each with what was there before and what is to be there afterwards. */
import assert from 'node:assert/strict';
import { E } from '../../../src/base/errno.js';
import type { Capabilities } from '../../../src/storage/object/store.js';
import type { GuestOptions } from '../../support/object-guest.js';
import { pattern } from '../contract.js';
import type { Actor } from './actor.js';

const KIB = 1 << 10;

export interface Scenario {
  readonly capabilities?: Partial<Capabilities>;
  readonly options?: GuestOptions;
  readonly durability?: 'remote' | 'writeback';
  /** Objects that others have put. */
  readonly there?: Readonly<Record<string, Uint8Array>>;
  prepare?(actor: Actor): Promise<void>;
  /** @returns 0 or −errno */
  act(actor: Actor): Promise<number>;
  /** What a second attempt may say, if the first was done and nobody heard. */
  readonly again?: number;
  /** Whatever `act` says, what was prepared is to be in the bucket in the end. */
  readonly acknowledged?: boolean;
  /** What a change that failed may leave: markers of directories that are there anyway. */
  readonly mayStay?: readonly string[];
  /** A name whose object may have got the content of the other one already when the change fails: it was to be replaced by it. */
  readonly replaced?: { readonly name: string; readonly by: string };
  /** Keys in the bucket afterwards. */
  readonly keys: readonly string[];
}

export const small = pattern(5 * KIB);
export const large = pattern(60 * KIB);
export const piece = pattern(9 * KIB).map((byte) => byte ^ 0x55);
export const huge = pattern((8 << 20) + 100 * KIB);
export const flushes = (actor: Actor): Promise<number> => actor.fsync();

export const writes = async (actor: Actor): Promise<number> => {
  assert.equal(await actor.files.write(actor.file, 0, large), 0);
  return actor.fsync();
};

export const SCENARIOS: Readonly<Record<string, Scenario>> = {
  'a new file': { prepare: (a) => a.create('f', small), act: flushes, acknowledged: true, keys: ['f'] },
  'a new file, written back': { durability: 'writeback', prepare: (a) => a.create('f', small), act: flushes, acknowledged: true, keys: ['f'] },
  'a new file where conditions are not honoured': {
    capabilities: { putIfAbsent: false, putIfVersion: false }, prepare: (a) => a.create('f', small), act: flushes, acknowledged: true, keys: ['f'],
  },
  'a changed file': { there: { f: small }, prepare: (a) => a.change('f', 100, pattern(10)), act: flushes, acknowledged: true, keys: ['f'] },
  'a new file in parts': { prepare: (a) => a.create('f', small), act: writes, acknowledged: true, keys: ['f'] },
  'a new file in parts, written back': { durability: 'writeback', prepare: (a) => a.create('f', small), act: writes, acknowledged: true, keys: ['f'] },
  'a new file in parts that has got another mode meanwhile': {
    prepare: (a) => a.create('f', small), acknowledged: true, keys: ['f'],
    act: async (a) => {
      assert.equal(await a.files.write(a.file, 0, large), 0);
      assert.equal(await a.chmodOpen(0o600), 0);
      return a.fsync();
    },
  },
  'a changed file in parts, most of them copied': { there: { f: large }, prepare: (a) => a.change('f', 20 * KIB, piece), act: flushes, acknowledged: true, keys: ['f'] },
  'a changed file in parts, where copies have to be compared': {
    capabilities: { copyPartIfVersion: false }, there: { f: large }, prepare: (a) => a.change('f', 20 * KIB, piece), act: flushes, acknowledged: true, keys: ['f'],
  },
  'a changed file in parts, where nothing can be copied': {
    capabilities: { copyPart: 'none' }, there: { f: large }, prepare: (a) => a.change('f', 20 * KIB, piece), act: flushes, acknowledged: true, keys: ['f'],
  },
  'a truncated file': { there: { f: small }, act: (a) => a.truncate('f', 1000), keys: ['f'] },
  'a file that others have changed': {
    there: { f: small }, keys: ['.bucketfsd-conflicts/f.ID', 'f'], acknowledged: true,
    prepare: async (a) => {
      await a.change('f', 0, small.map((byte) => ~byte));
      await a.others.put('f', pattern(77));
    },
    act: async (a) => {
      const error = await a.fsync();
      return error === -E.STALE ? 0 : error;
    },
  },
  ...Object.fromEntries([true, false].flatMap((rename) => {
    const capabilities = { rename };
    const where = `where the store ${rename ? 'renames' : 'copies'}`;
    return Object.entries<Scenario>({
      [`rename of a file ${where}`]: { capabilities, there: { f: small }, act: (a) => a.rename('f', 'g'), again: -E.NOENT, keys: ['g'] },
      [`rename of a file over another ${where}`]: {
        capabilities, there: { f: small, g: large }, act: (a) => a.rename('f', 'g'), again: -E.NOENT, keys: ['g'], replaced: { name: 'g', by: 'f' },
      },
      [`rename of a file that was made and closed here ${where}`]: {
        capabilities, act: (a) => a.rename('f', 'g'), again: -E.NOENT, keys: ['g'],
        prepare: async (a) => {
          await a.create('f', small);
          assert.equal(await a.files.close(a.file), 0);
        },
      },
      [`rename out of a directory without a marker ${where}`]: {
        capabilities, there: { 'd/f': small }, act: (a) => a.rename('d/f', 'g'), again: -E.NOENT, keys: ['d/', 'g'], mayStay: ['d/'],
      },
      [`rename of a file that is being changed ${where}`]: {
        capabilities, there: { f: small }, prepare: (a) => a.change('f', 100, pattern(10)), act: (a) => a.rename('f', 'g'), again: -E.NOENT, keys: ['g'],
      },
      [`rename of a tree ${where}`]: {
        capabilities, there: { 'd/': new Uint8Array(0), 'd/a': small, 'd/e/b': large, 'd/e/c': piece, x: small }, act: (a) => a.rename('d', 'n'), again: -E.NOENT,
        keys: ['n/', 'n/a', 'n/e/b', 'n/e/c', 'x'],
      },
      [`rename of a tree over an empty directory ${where}`]: {
        capabilities, there: { 'd/a': small, 'd/b': piece, 'n/': new Uint8Array(0) }, act: (a) => a.rename('d', 'n'), again: -E.NOENT, keys: ['n/a', 'n/b'],
      },
    });
  })),
  'rename of a file that is only here': { prepare: (a) => a.create('f', small), act: (a) => a.rename('f', 'g'), again: -E.NOENT, keys: ['g'] },
  'unlink of a file': { there: { f: small, g: piece }, act: (a) => a.unlink('f'), again: -E.NOENT, keys: ['g'] },
  'unlink of a file that is being changed': {
    there: { f: small, g: piece }, prepare: (a) => a.change('f', 100, pattern(10)), act: (a) => a.unlink('f'), again: -E.NOENT, keys: ['g'],
  },
  'unlink of the last file of a directory without a marker': { there: { 'd/f': small }, act: (a) => a.unlink('d/f'), again: -E.NOENT, keys: ['d/'], mayStay: ['d/'] },
  'unlink of a large file that is open': {
    there: { f: huge, g: piece }, act: (a) => a.unlink('f'), again: -E.NOENT, keys: ['g'],
    prepare: async (a) => {
      const node = await a.walk('f');
      a.file = { node, fh: await a.g.open(node, 0) };
    },
  },
  'rmdir': { there: { 'd/': new Uint8Array(0), g: piece }, act: (a) => a.rmdir('d'), again: -E.NOENT, keys: ['g'] },
  'rmdir in a directory without a marker': { there: { 'd/e/': new Uint8Array(0) }, act: (a) => a.rmdir('d/e'), again: -E.NOENT, keys: ['d/'], mayStay: ['d/'] },
  'mkdir': { act: (a) => a.mkdir('d'), again: -E.EXIST, keys: ['d/'] },
  'symlink': { act: (a) => a.symlink('l', 'target'), again: -E.EXIST, keys: ['l'] },
  'chmod of a file': { there: { f: small }, act: (a) => a.chmod('f', 0o640), keys: ['f'] },
  'chmod of a directory': { there: { 'd/': new Uint8Array(0) }, act: (a) => a.chmod('d', 0o710), keys: ['d/'] },
  'chmod of a directory without a marker': { there: { 'd/f': small }, act: (a) => a.chmod('d', 0o710), keys: ['d/', 'd/f'] },
  'setxattr': { there: { f: small }, act: (a) => a.setxattr('f', 'user.colour', 'green'), keys: ['f'] },
};

/** What a provider does is found out by trying, and remembered: see src/storage/object/probe.ts and src/bucket/capabilities.ts. */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { SILENT_LOG, type Logger } from '../../src/base/log.js';
import { capabilitiesOf } from '../../src/bucket/capabilities.js';
import { parseCommandLine, type BucketSettings } from '../../src/cli.js';
import { StartError } from '../../src/lifecycle/errors.js';
import { StorageError, type StorageErrorCode } from '../../src/storage/object/errors.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import { probe } from '../../src/storage/object/probe.js';
import type { Capabilities, ObjectStore } from '../../src/storage/object/store.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { Files } from '../support/object-files.js';
import { ObjectGuest } from '../support/object-guest.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const CONDITIONAL = ['putIfAbsent', 'putIfVersion', 'copyIfAbsent', 'copyIfVersion', 'completeIfAbsent', 'completeIfVersion', 'deleteIfVersion'] as const;
type Operation = 'put' | 'copy' | 'completeUpload' | 'remove';
const OF: Readonly<Record<Operation, readonly (typeof CONDITIONAL)[number][]>> = {
  put: ['putIfAbsent', 'putIfVersion'], copy: ['copyIfAbsent', 'copyIfVersion'], completeUpload: ['completeIfAbsent', 'completeIfVersion'], remove: ['deleteIfVersion'],
};
const OPERATIONS = Object.keys(OF) as Operation[];

/** A store of S3's kind, whose claims are those of S3 itself. */
function honest(): MemoryStore {
  return new MemoryStore({ name: 'bucket', capabilities: { rename: false, listingHasMetadata: false, metadataInPlace: false } });
}

const plain = (inner: ObjectStore): ObjectStore => intercept(inner, (_call, attempt) => attempt(undefined));

/** Takes conditions, and looks at none, of these operations. */
function ignoring(inner: ObjectStore, operations: readonly Operation[] = OPERATIONS): ObjectStore {
  const ignores = (operation: Operation): boolean => operations.includes(operation);
  const without = <O extends object>(options: O | undefined, name: string): O => ({ ...options, [name]: undefined }) as O;
  return {
    ...plain(inner),
    put: (key, body, options) => inner.put(key, body, ignores('put') ? without(options, 'condition') : options),
    copy: (from, to, options) => inner.copy(from, to, ignores('copy') ? without(options, 'condition') : options),
    completeUpload: (upload, parts, options) => inner.completeUpload(upload, parts, ignores('completeUpload') ? without(options, 'condition') : options),
    remove: (key, options) => inner.remove(key, ignores('remove') ? without(options, 'version') : options),
  };
}

/** Answers so whenever there is a condition, whether it holds or not. */
const refusing = (inner: ObjectStore, code: StorageErrorCode, operations: readonly Operation[] = OPERATIONS): ObjectStore =>
  intercept(inner, async (call, attempt) => {
    if (call.conditional && (operations as readonly string[]).includes(call.operation)) throw new StorageError(code, call.subject);
    return attempt(undefined);
  });

/** Answers so to all that changes something. */
const failing = (inner: ObjectStore, code: StorageErrorCode, operations: readonly Call['operation'][] = ['put', 'remove', 'copy', 'beginUpload']): ObjectStore =>
  intercept(inner, async (call, attempt) => {
    if (operations.includes(call.operation)) throw new StorageError(code, call.subject, { providerMessage: 'No.' });
    return attempt(undefined);
  });

const honoured = (found: Capabilities): string[] => CONDITIONAL.filter((name) => found[name]);
const others = (operations: readonly Operation[]): string[] => CONDITIONAL.filter((name) => !operations.some((operation) => OF[operation].includes(name)));

async function assertEmpty(store: ObjectStore): Promise<void> {
  assert.deepEqual((await store.list({ prefix: '' })).objects.map((object) => object.key), []);
  assert.deepEqual((await store.listUploads({ prefix: '' })).uploads, []);
}

describe('the probe', () => {
  test('finds everything where everything is done, and leaves nothing behind', async () => {
    const store = honest();
    assert.deepEqual(await probe(store, 'some/where/'), { ...store.capabilities, atomicDelete: false });
    await assertEmpty(store);
  });

  for (const operations of [OPERATIONS, ...OPERATIONS.map((one) => [one])]) {
    test(`is not deceived by a store that ignores conditions of ${operations.join(', ')}`, async () => {
      const store = honest();
      assert.deepEqual(honoured(await probe(ignoring(store, operations), 'p/')), others(operations));
      await assertEmpty(store);
    });

    // S3 says 501 of what it has not; some refuse the header as invalid, some the right to use it, some all that has a condition
    for (const code of ['unsupported', 'invalid', 'denied', 'changed', 'not-found'] as const) {
      test(`finds that ${operations.join(', ')} with a condition is always ${code}`, async () => {
        const store = honest();
        assert.deepEqual(honoured(await probe(refusing(store, code, operations), 'p/')), others(operations));
        await assertEmpty(store);
      });
    }
  }

  test('finds what is copied into parts: what was named, whatever is there, other bytes, or nothing', async () => {
    const copies = async (copyPart: (store: MemoryStore) => ObjectStore['copyPart']): Promise<unknown> => {
      const store = honest();
      const found = await probe({ ...plain(store), copyPart: copyPart(store) }, 'p/');
      await assertEmpty(store);
      return [found.copyPart, found.copyPartIfVersion];
    };
    assert.deepEqual(await copies((store) => store.copyPart.bind(store)), ['range', true]);
    const whatever = (store: MemoryStore): ObjectStore['copyPart'] => async (upload, number, source) =>
      store.copyPart(upload, number, { ...source, version: (await store.head(source.key)).version });
    assert.deepEqual(await copies(whatever), ['range', false]);
    assert.deepEqual(await copies((store) => (upload, number, source) => store.copyPart(upload, number, { ...source, offset: 0 })), ['none', false]);
    assert.deepEqual(await copies(() => async () => Promise.reject(new StorageError('unsupported', 'copyPart'))), ['none', false]);
  });

  for (const code of ['throttled', 'unavailable', 'unreachable', 'timeout', 'expired', 'bad-credentials', 'clock-skew'] as const) {
    test(`says nothing about a store that is ${code}, at once or in the middle`, async () => {
      const store = honest();
      await assert.rejects(probe(failing(store, code), 'p/'), { code });
      await assert.rejects(probe(refusing(store, code), 'p/'), { code });
      await assert.rejects(probe(refusing(store, code, ['completeUpload']), 'p/'), { code });
      await assertEmpty(store);
    });
  }
});

describe('what is remembered', () => {
  const ENDPOINT = 'http://storage.example:9000';
  let directory: string;
  let path: string;
  let calls: number;
  const warnings: string[] = [];
  const log: Logger = { ...SILENT_LOG, warn: (_fields, message) => void warnings.push(message) };
  before(() => (directory = mkdtempSync(join(tmpdir(), 'bucketfsd-probe-'))));
  after(() => rmSync(directory, { recursive: true }));
  beforeEach(() => {
    path = join(directory, 'capabilities.json');
    rmSync(path, { force: true });
    warnings.length = 0;
  });

  function settings(...more: string[]): BucketSettings {
    const command = parseCommandLine(['--fd', '3', '--source', 's3://bucket', '--endpoint', ENDPOINT, ...more], {}, 1);
    assert.equal(command.action, 'run');
    return (command as { options: BucketSettings }).options;
  }

  const counted = (store: ObjectStore): ObjectStore => intercept(store, (_call, attempt) => (calls++, attempt(undefined)));
  const asked = async (store: ObjectStore, of = settings()): Promise<{ found: Capabilities; calls: number }> => {
    calls = 0;
    const found = await capabilitiesOf(counted(store), directory, of, log);
    return { found, calls };
  };
  const OVERWRITE = settings('--on-conflict', 'overwrite');
  const SENTENCE = `cannot share s3://bucket: ${ENDPOINT} does not honour conditions of writes (putIfAbsent, putIfVersion, completeIfAbsent, completeIfVersion), ` +
    'so what others write meanwhile could be lost unnoticed: say --on-conflict=overwrite to accept that, or --readonly';

  test('the answers of a provider, so that the next start asks nothing', async () => {
    const first = await asked(honest());
    assert.ok(first.calls > 10);
    assert.deepEqual(await asked(honest()), { found: first.found, calls: 0 });
  });

  test('Amazon and Google are known: nothing is asked, nothing remembered', async () => {
    const { endpoint: _endpoint, ...rest } = settings();
    assert.equal((await asked(ignoring(honest()), { ...rest, endpoint: null })).calls, 0);
    assert.equal((await asked(ignoring(honest()), { ...settings(), source: { kind: 'gcs', bucket: 'b', prefix: '', path: 'gs://b' } })).calls, 0);
    assert.equal(existsSync(path), false);
  });

  for (const [what, lie] of [
    ['ignores conditions', (store: ObjectStore) => ignoring(store)],
    ['refuses conditions with 501', (store: ObjectStore) => refusing(store, 'unsupported')],
  ] as const) {
    test(`a start on a provider that ${what} is refused, unless overwriting is said; what was found then refuses no later start`, async () => {
      const refused = (error: unknown): boolean => error instanceof StartError && error.message === SENTENCE;
      await assert.rejects(asked(lie(honest())), refused);
      const { found } = await asked(lie(honest()), OVERWRITE);
      assert.deepEqual(honoured(found), []);
      assert.deepEqual(await asked(lie(honest()), OVERWRITE), { found, calls: 0 }, 'remembered');
      await assert.rejects(asked(lie(honest())), refused);
      assert.deepEqual(honoured((await asked(honest())).found), [...CONDITIONAL], 'it has learnt meanwhile');
    });
  }

  test('conditions of copies and removals alone may be missing: the file system does without', async () => {
    assert.deepEqual(honoured((await asked(ignoring(honest(), ['copy', 'remove']))).found), others(['copy', 'remove']));
  });

  for (const code of ['throttled', 'unavailable', 'expired'] as const) {
    test(`nothing, when the provider is ${code}: the start fails with that`, async () => {
      await assert.rejects(asked(failing(honest(), code)), { code });
      await assert.rejects(asked(refusing(honest(), code)), { code });
      assert.equal(existsSync(path), false);
    });
  }

  test('nothing, when writing is not allowed: the share starts, says so, and relies on no condition', async () => {
    const { found } = await asked(failing(honest(), 'denied'));
    assert.deepEqual([honoured(found), found.copyPart], [[], 'none']);
    assert.deepEqual(warnings, ['these credentials may not write to s3://bucket (No.): it can be read, and changes fail until they may; --readonly says so to the guest']);
    assert.equal(existsSync(path), false);
  });

  test('nothing that is damaged, old, from the future, of another version, endpoint or bucket, or not whole', async () => {
    await asked(honest());
    const good = readFileSync(path, 'utf8');
    const known = JSON.parse(good) as { capabilities: object };
    assert.equal((await asked(honest())).calls, 0);
    const day_ms = 24 * 3600 * 1000;
    const capabilities = (change: object): object => ({ ...known, capabilities: { ...known.capabilities, ...change } });
    const bad: [string, string][] = [
      ['empty', ''], ['cut off', good.slice(0, 40)], ['no JSON', 'capabilities'], ['null', 'null'], ['a list', '[]'], ['a number', '7'],
      ...([
        ['old', { ...known, probed_ms: Date.now() - 8 * day_ms }], ['from the future', { ...known, probed_ms: Date.now() + 8 * day_ms }],
        ['without a time', { ...known, probed_ms: undefined }], ['with a time that is none', { ...known, probed_ms: 'yesterday' }],
        ['of another version', { ...known, bucketfsd: '0.0.0-other' }], ['of another endpoint', { ...known, endpoint: 'http://other' }],
        ['of another bucket', { ...known, location: 's3://other' }], ['without capabilities', { ...known, capabilities: null }],
        ['with one missing', capabilities({ copyIfAbsent: undefined })], ['with a text for a truth', capabilities({ putIfVersion: 'true' })],
      ] as const).map(([what, value]): [string, string] => [what, JSON.stringify(value)]),
    ];
    for (const [what, content] of bad) {
      writeFileSync(path, content);
      // What it says must not matter: the provider has changed for the worse since
      const { found, calls: made } = await asked(ignoring(honest(), ['copy']));
      assert.ok(made > 10, what);
      assert.deepEqual(honoured(found), others(['copy']), what);
      assert.equal((await asked(honest())).calls, 0, `after ${what} the file is good again`);
    }
  });

  test('nothing in a directory that cannot be written to; what was found counts all the same', async () => {
    const { found } = await asked(honest());
    assert.deepEqual(await capabilitiesOf(honest(), join(directory, 'not', 'there'), settings(), log), found);
  });
});

test('where conditions are not honoured, a change that was made in time is noticed by looking', async () => {
  const inner = honest();
  const lying = ignoring(inner);
  const found = await probe(lying, 'p/');
  const guest = await ObjectGuest.start({ ...lying, capabilities: found });
  try {
    await inner.put('f', bytes('before'));
    const files = new Files(guest);
    const [file, made] = [await files.open('f'), await files.create('made')];
    for (const one of [file, made]) assert.equal(await files.write(one, 0, bytes('mine')), 0);
    await inner.put('f', bytes('theirs'));
    await inner.put('made', bytes('theirs too'));
    assert.deepEqual([await files.fsync(file), await files.fsync(made)], [-E.STALE, -E.STALE]);
    assert.deepEqual([(await inner.head('f')).size, (await inner.head('made')).size], [6, 10]);
    assert.equal((await inner.list({ prefix: '.bucketfsd-conflicts/' })).objects.length, 2);
  } finally {
    await guest.close();
  }
});

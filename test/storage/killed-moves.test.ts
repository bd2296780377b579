/**
 * A file that is open and being written to while its name or its attributes change: whoever starts after a daemon that was killed, at whatever moment, finds
 * what was written, at one name.
 *
 * The fault: recovery gave the file the new name and left its base at the old one. The next commit took its own object for somebody else's ("opened as X, found
 * X"), and acknowledged lines were in a conflict copy, the rest of it zeros. What else fails for the same reason, and is tried here:
 *   - each step of it: between two calls of the store, and between two records of the journal
 *   - a version that changes with the move: generations, ETags of uploads in parts; objects of others, which have no id of ours
 *   - a directory above it; one whose files are not in the bucket yet; several renames in a row; a name that is taken from another open file
 *   - attributes that are set meanwhile, which make another version too
 *   - a removal: the name is gone with all that was written, or it is there with it
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MemoryStore, type MemoryContents } from '../../src/storage/object/stores/memory.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { CephLikeStore } from '../support/ceph-like-store.js';
import { Moments, type Moment } from '../support/moments.js';
import { ObjectGuest } from '../support/object-guest.js';
import { allowInFlight } from '../support/requests-in-flight.js';
import { objectOf } from '../support/writing-guest.js';
import { pattern } from './contract.js';
import { Actor } from './write-faults/actor.js';

interface Provider {
  readonly memory: MemoryStore;
  readonly store: ObjectStore;
}

const PROVIDERS: Readonly<Record<string, (contents?: MemoryContents) => Provider>> = {
  'a store that renames': (contents) => plain(new MemoryStore({ ...(contents === undefined ? {} : { contents }) })),
  'a store that copies': (contents) => plain(new MemoryStore({ capabilities: { rename: false, metadataInPlace: false }, ...(contents === undefined ? {} : { contents }) })),
  'a store like Ceph': (contents) => new CephLikeStore({}, contents),
};

const plain = (memory: MemoryStore): Provider => ({ memory, store: memory });

interface Scenario {
  /** What others have put. */
  readonly there?: Readonly<Record<string, number>>;
  /** What this guest has made before. */
  readonly made?: Readonly<Record<string, number>>;
  readonly directories?: readonly string[];
  /** The one that is open, and written to. It is made now if it is nowhere else. */
  readonly open: string;
  act(actor: Actor): Promise<number>;
  /** Where it may be if the change was not answered, and where it is if it was; null: nowhere. */
  readonly names: readonly (string | null)[];
  readonly finally: string | null;
  readonly durability?: 'remote' | 'writeback';
}

const renames = (...names: readonly string[]) => async (actor: Actor): Promise<number> => {
  for (let i = 1; i < names.length; i++) assert.equal(await actor.rename(names[i - 1], names[i]), 0, `${names[i - 1]} to ${names[i]}`);
  return 0;
};

const LARGE = 1_200_000;
const AT_ONCE = 4;
const SCENARIOS: Readonly<Record<string, Scenario>> = {
  'a file is renamed': { made: { f: 300, other: 10 }, open: 'f', act: renames('f', 'g'), names: ['f', 'g'], finally: 'g' },
  'a file of others is renamed': { there: { f: 300 }, open: 'f', act: renames('f', 'g'), names: ['f', 'g'], finally: 'g' },
  'a large file is renamed': { made: { f: LARGE }, open: 'f', act: renames('f', 'g'), names: ['f', 'g'], finally: 'g' },
  'a large file of others is renamed': { there: { f: LARGE }, open: 'f', act: renames('f', 'g'), names: ['f', 'g'], finally: 'g' },
  'a file is renamed over another': { made: { f: 300, g: 200 }, open: 'f', act: renames('f', 'g'), names: ['f', 'g'], finally: 'g' },
  'a file is renamed three times': { made: { f: 300 }, open: 'f', act: renames('f', 'g', 'h', 'f'), names: ['f', 'g', 'h'], finally: 'f' },
  'a file that is only here is renamed': { open: 'f', act: renames('f', 'g'), names: ['f', 'g'], finally: 'g', durability: 'writeback' },
  'a directory above it is renamed': { made: { 'd/f': 300, 'd/e/x': 20 }, open: 'd/f', act: renames('d', 'n'), names: ['d/f', 'n/f'], finally: 'n/f' },
  'a directory of others above it is renamed': { there: { 'd/f': 300, 'd/e/x': 20 }, open: 'd/f', act: renames('d', 'n'), names: ['d/f', 'n/f'], finally: 'n/f' },
  'a directory with a marker above it is renamed': { directories: ['d'], made: { 'd/f': LARGE }, open: 'd/f', act: renames('d', 'n'), names: ['d/f', 'n/f'], finally: 'n/f' },
  'a directory is renamed over an empty one': { directories: ['d', 'n'], made: { 'd/f': 300 }, open: 'd/f', act: renames('d', 'n'), names: ['d/f', 'n/f'], finally: 'n/f' },
  'a directory above one that is only here is renamed': { directories: ['d'], made: { 'd/x': 20 }, open: 'd/f', act: renames('d', 'n'), names: ['d/f', 'n/f'], finally: 'n/f', durability: 'writeback' },
  'a file is renamed, then the directory that it is in': {
    directories: ['d'], made: { f: 300 }, open: 'f', names: ['f', 'd/f', 'n/f'], finally: 'n/f',
    act: async (actor) => {
      assert.equal(await renames('f', 'd/f')(actor), 0);
      return renames('d', 'n')(actor);
    },
  },
  'a file that is only here is renamed over another': { made: { g: 200 }, open: 'f', act: renames('f', 'g'), names: ['f', 'g'], finally: 'g', durability: 'writeback' },
  'one that is only here is renamed over it': {
    made: { f: 300 }, open: 'f', names: ['f', null], finally: null, durability: 'writeback',
    act: async (actor) => {
      const { file } = actor;
      await actor.create('n', pattern(200));
      actor.file = file;
      return renames('n', 'f')(actor);
    },
  },
  'its mode is changed': { made: { f: 300 }, open: 'f', act: (actor) => actor.chmod('f', 0o600), names: ['f'], finally: 'f' },
  'the mode of a large file of others is changed': { there: { f: LARGE }, open: 'f', act: (actor) => actor.chmod('f', 0o600), names: ['f'], finally: 'f' },
  'it gets an attribute, and another name': {
    made: { f: 300 }, open: 'f', names: ['f', 'g'], finally: 'g',
    act: async (actor) => {
      assert.equal(await actor.setxattr('f', 'user.colour', 'green'), 0);
      return renames('f', 'g')(actor);
    },
  },
  'it is removed': { made: { f: 300 }, open: 'f', act: (actor) => actor.unlink('f'), names: ['f', null], finally: null },
  'another one is renamed over it': { made: { f: 300, g: 200 }, open: 'f', act: renames('g', 'f'), names: ['f', null], finally: null },
};

interface Lines {
  /** All that was sent, and how many bytes of it were acknowledged. */
  readonly sent: string;
  readonly acknowledged: number;
  readonly answered: boolean;
}

for (const [where, open] of Object.entries(PROVIDERS)) for (const begins of where === 'a store that copies' ? ['before', 'meanwhile'] as const : ['meanwhile'] as const) {
  describe(`in ${where}, what is written, first ${begins}, where`, () => {
    for (const [title, scenario] of Object.entries(SCENARIOS)) {
      test(`${title} is there, at one name, whenever the daemon is killed`, async (context) => {
        const { memory, store } = open();
        for (const [key, size] of Object.entries(scenario.there ?? {})) await memory.put(key, pattern(size));
        let lines: Lines = { sent: '', acknowledged: 0, answered: false };
        let actor: Actor | null = null;
        let base = 0;
        let writing: Promise<void> = Promise.resolve();
        // A line more at each moment, which is acknowledged before anything goes on
        const write = async (): Promise<void> => {
          const line = `line ${lines.sent.length}\n`;
          const at = base + lines.sent.length;
          lines = { ...lines, sent: lines.sent + line };
          const n = await actor!.files.write(actor!.file, at, Buffer.from(line));
          if (n === 0) lines = { ...lines, acknowledged: lines.acknowledged + line.length };
          assert.equal(n, 0);
        };
        const moments = new Moments<Lines>(memory, store, () => lines, () => (writing = writing.then(write)));
        const durability = scenario.durability ?? 'remote';
        const options = { cacheDirectory: moments.cacheDirectory, durability, writebackDelay_ms: 60_000 } as const;
        const guest = await ObjectGuest.start(moments.store, { write: options });
        actor = new Actor(guest, memory);
        try {
          for (const directory of scenario.directories ?? []) assert.equal(await actor.mkdir(directory), 0);
          for (const path of Object.keys(scenario.made ?? {})) await made(actor, path, scenario.made![path]);
          if (durability === 'writeback') await guest.opened.idle();
          const known = { ...scenario.there, ...scenario.made }[scenario.open];
          base = known ?? 0;
          if (known === undefined) await actor.create(scenario.open, new Uint8Array(0));
          else await actor.change(scenario.open, known, new Uint8Array(0));
          allowInFlight(guest);
          await moments.during(async () => {
            if (begins === 'before') await write();
            assert.equal(await scenario.act(actor!), 0);
            lines = { ...lines, answered: true };
            await write();
          });
          await guest.kill();
          await judged(open, moments, scenario, base);
          context.diagnostic(`${moments.taken.length} moments`);
        } finally {
          moments.discard();
        }
      });
    }
  });
}

async function made(actor: Actor, path: string, size: number): Promise<void> {
  for (let at = path.indexOf('/'); at > 0; at = path.indexOf('/', at + 1)) if ((await actor.walk(path.slice(0, at))) < 0n) assert.equal(await actor.mkdir(path.slice(0, at)), 0);
  await actor.create(path, pattern(size));
  assert.equal(await actor.files.close(actor.file), 0);
}

/** Another daemon starts from each of the moments. */
async function judged(open: (contents: MemoryContents) => Provider, moments: Moments<Lines>, { names, finally: last }: Scenario, base: number): Promise<void> {
  assert.ok(moments.taken.length > 1);
  const left = [...moments.taken.entries()];
  const judge = async ([i, { label, contents, cacheDirectory, state }]: [number, Moment<Lines>]): Promise<void> => {
    const at = `moment ${i} of ${moments.taken.length}, ${label}`;
    const { memory, store } = open(contents);
    const guest = await ObjectGuest.start(store, { write: { cacheDirectory } });
    await guest.opened.idle();
    const report = `${at}\n${guest.recovered.join('\n')}\n${guest.log.join('\n')}`;
    assert.equal(await guest.close(), 0, report);
    const keys = (await memory.list({ prefix: '' })).objects.map(({ key }) => key);
    assert.deepEqual(keys.filter((key) => key.startsWith('.bucketfsd')), [], report);
    const expected = Buffer.concat([pattern(base), Buffer.from(state.sent)]);
    const found: string[] = [];
    for (const key of keys.filter((one) => names.includes(one))) {
      const content = await objectOf(memory, key);
      const whole = content.equals(expected.subarray(0, content.length)) && content.length >= base + state.acknowledged;
      // Or what it was to replace, or what was to replace it
      if (whole) found.push(key);
      else assert.ok(names.length > 1 && content.equals(Buffer.from(pattern(200))), `${key} has ${content.length} bytes that are neither\n${report}`);
    }
    if (found.length === 0) assert.ok(names.includes(null), `it is nowhere, of ${keys.join()}\n${report}`);
    else assert.equal(found.length, 1, `it is ${found.join(' and ')}\n${report}`);
    if (state.answered) assert.deepEqual(found, last === null ? [] : [last], report);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    for (let one = left.shift(); one !== undefined; one = left.shift()) await judge(one);
  }));
}

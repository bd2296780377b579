/** Random programs of a guest. Each step has random numbers of its own, so that leaving one out does not change the others. */
import { chanceOf, type Chance } from './chance.js';
import { Gone } from './daemon.js';
import type { AttributeRequests } from './attributes.js';
import type { Files, Handle } from './files.js';
import type { Guest } from './guest.js';
import type { Names } from './names.js';

export interface ProgramOptions {
  readonly seed: number;
  readonly name: string;
  readonly steps: number;
  readonly mood: Mood;
  readonly paths: readonly string[];
  readonly directories: readonly string[];
  /** Steps that are left out. */
  readonly skipped: ReadonlySet<string>;
  /** A moment later. @throws Gone */
  readonly pause: (ms: number) => Promise<void>;
}

/** Larger files are sent in parts. */
const FILE_MAX_BYTES = 60_000;
const SCATTERED = 1100;

type Action = (p: Program, chance: Chance) => Promise<void>;

export class Program {
  readonly #held: { readonly path: string; readonly handle: Handle }[] = [];
  #writes = 0;

  constructor(
    readonly guest: Guest,
    readonly files: Files,
    readonly names: Names,
    readonly attributes: AttributeRequests,
    readonly options: ProgramOptions,
  ) {}

  async run(): Promise<void> {
    const { seed, name, steps, skipped, mood, pause } = this.options;
    try {
      for (let step = 0; step < steps; step++) {
        if (skipped.has(`${name}/${step}`)) continue;
        const chance = chanceOf(seed, 'step', name, step);
        const [action, what] = pickAction(chance, mood);
        this.guest.note(`${name}/${step} ${what}`);
        await action(this, chance);
        if (chance.chance(60)) await pause(chance.skewed(0.1, 3_000));
      }
      for (const { handle } of this.#held.splice(0)) await this.files.close(handle);
    } catch (error) {
      if (!(error instanceof Gone)) throw error;
    }
  }

  path(chance: Chance): string {
    return chance.pick(this.options.paths);
  }

  /** Unique bytes without zeros. */
  bytes(count: number): Uint8Array {
    const text = `<${this.options.name}.${++this.#writes}>`;
    return Buffer.from(text.repeat(Math.ceil(count / text.length)).slice(0, count));
  }

  /** Run with the paths locked. @returns null where the model does not know the state of one */
  async alone<T>(paths: readonly string[], body: () => Promise<T>): Promise<T | null> {
    return this.guest.locks.locked(paths, async () => {
      if (paths.some((path) => this.guest.book.isUnclear(this.guest.key(path)))) return null;
      return body();
    });
  }

  async opened(path: string, truncates: boolean): Promise<Handle | null> {
    return this.alone([path], async () => {
      const found = await this.files.open(path, truncates);
      if (found !== null) return found;
      return this.files.create(path);
    });
  }

  hold(path: string, handle: Handle): void {
    this.#held.push({ path, handle });
  }

  takeHeld(chance: Chance): { readonly path: string; readonly handle: Handle } | null {
    if (this.#held.length === 0) return null;
    return this.#held.splice(chance.below(this.#held.length), 1)[0];
  }

  pause(ms: number): Promise<void> {
    return this.options.pause(ms);
  }
}

/** Some writes, cuts, reads and fsyncs; some fsyncs are not waited for. */
async function change(p: Program, chance: Chance, handle: Handle): Promise<void> {
  const { files } = p;
  const under: Promise<unknown>[] = [];
  const count = 1 + chance.below(5);
  for (let i = 0; i < count; i++) {
    const size = handle.file.data.value.length;
    const dice = chance.below(20);
    if (dice < 11) {
      const offset = chance.chance(40) ? size : chance.below(size + 1);
      const bytes = Math.min(FILE_MAX_BYTES - offset, 1 + (chance.chance(70) ? chance.below(2_000) : chance.below(24_000)));
      if (bytes > 0) await files.write(handle, offset, p.bytes(bytes));
    } else if (dice < 13) {
      await files.truncate(handle, chance.chance(60) ? chance.below(size + 1) : chance.below(FILE_MAX_BYTES));
    } else if (dice < 17) {
      const sync = files.sync(handle);
      if (chance.chance(50)) await sync;
      else under.push(sync.catch(ignoreGone));
    } else if (dice < 19) {
      await files.read(handle, chance.below(size + 1), 1 + chance.below(30_000));
    } else {
      await p.pause(chance.skewed(0.1, 500));
    }
  }
  await Promise.all(under);
}

const ignoreGone = (error: unknown): void => {
  if (!(error instanceof Gone)) throw error;
};

async function finish(p: Program, chance: Chance, path: string, handle: Handle): Promise<void> {
  if (chance.chance(25)) p.hold(path, handle);
  else await p.files.close(handle);
}

const edit: Action = async (p, chance) => {
  const path = p.path(chance);
  const handle = await p.opened(path, chance.chance(15));
  if (handle === null) return;
  await change(p, chance, handle);
  await finish(p, chance, path, handle);
};

const goOn: Action = async (p, chance) => {
  const held = p.takeHeld(chance);
  if (held === null) return edit(p, chance);
  await change(p, chance, held.handle);
  await finish(p, chance, held.path, held.handle);
};

const log: Action = async (p, chance) => {
  const path = p.path(chance);
  const handle = await p.opened(path, false);
  if (handle === null) return;
  for (let i = 0; i < 4; i++) {
    const offset = handle.file.data.value.length;
    if (offset + 400 > FILE_MAX_BYTES || !(await p.files.write(handle, offset, p.bytes(1 + chance.below(400))))) break;
    if (chance.chance(70) && (await p.files.sync(handle)) !== 0) break;
  }
  await finish(p, chance, path, handle);
};

const read: Action = async (p, chance) => {
  const path = p.path(chance);
  const handle = await p.alone([path], () => p.files.open(path));
  if (handle === null) return;
  const size = handle.file.data.value.length;
  for (let at = 0; at <= size; at += 16_000) {
    await p.files.read(handle, at, 16_000);
    if (chance.chance(20)) await p.pause(chance.skewed(1, 2_000));
  }
  await finish(p, chance, path, handle);
};

/** Write a new file and rename it over the old one, as editors do. */
const replace: Action = async (p, chance) => {
  const path = p.path(chance);
  const temporary = `${path}~${p.options.name.replace(/\W/g, '')}`;
  await p.alone([path, temporary], async () => {
    const handle = await p.files.create(temporary);
    if (handle === null) return;
    await p.files.write(handle, 0, p.bytes(1 + chance.below(12_000)));
    if (chance.chance(60)) await p.files.sync(handle);
    const closes = chance.chance(80);
    if (closes) await p.files.close(handle);
    await p.names.rename(temporary, path);
    if (!closes) await p.files.close(handle);
  });
};

const remove: Action = async (p, chance) => {
  const path = p.path(chance);
  await p.alone([path], () => p.names.unlink(path));
};

const rename: Action = async (p, chance) => {
  const [from, to] = [p.path(chance), p.path(chance)];
  if (from === to) return;
  await p.alone([from, to], () => p.names.rename(from, to, chance.chance(20) ? 1 : 0));
};

const renameDirectory: Action = async (p, chance) => {
  const [from, to] = [chance.pick(p.options.directories), chance.pick(p.options.directories)];
  if (from === to) return;
  await p.guest.locks.locked([from, to], async () => {
    const { guest } = p;
    if ([...guest.book.fog.keys()].some((key) => key.startsWith(`${guest.key(from)}/`) || key.startsWith(`${guest.key(to)}/`))) return;
    await p.names.renameDirectory(from, to);
  });
};

const directory: Action = async (p, chance) => {
  const path = chance.pick(p.options.directories);
  await p.guest.locks.locked([path], () => (chance.chance(75) ? p.names.mkdir(path) : p.names.rmdir(path)));
};

const chmod: Action = async (p, chance) => {
  const path = p.path(chance);
  const mode = chance.pick([0o600, 0o640, 0o755, 0o664]);
  await p.alone([path], () => p.attributes.chmod(path, mode));
};

const setxattr: Action = async (p, chance) => {
  const path = p.path(chance);
  await p.alone([path], () => p.attributes.setTag(path, `t${chance.below(100_000)}`));
};

/** A database: very many pieces. */
const scatter: Action = async (p, chance) => {
  const path = p.path(chance);
  const handle = await p.opened(path, false);
  if (handle === null) return;
  await p.files.scatter(handle, SCATTERED, chance);
  await p.files.sync(handle);
  await finish(p, chance, path, handle);
};

/** Actions that some seeds do more often than others. */
export const MOODS = ['any', 'any', 'attributes', 'names', 'directories', 'databases', 'open files'] as const;
export type Mood = (typeof MOODS)[number];

const ACTIONS: readonly (readonly [weight: number, what: string, run: Action, moods: readonly Mood[]])[] = [
  [200, 'edit', edit, ['attributes', 'open files']], [150, 'goes on', goOn, ['open files']], [70, 'log', log, ['attributes']], [80, 'read', read, ['open files']],
  [90, 'replace', replace, ['names']], [80, 'unlink', remove, ['names']], [110, 'rename', rename, ['names']], [50, 'rename directory', renameDirectory, ['directories']],
  [50, 'directory', directory, ['directories']], [90, 'chmod', chmod, ['attributes']], [40, 'setxattr', setxattr, ['attributes']], [3, 'scatter', scatter, ['databases']],
];
/** So many times as often. */
const MOOD_FACTOR = 6;
const DATABASE_FACTOR = 40;

function pickAction(chance: Chance, mood: Mood): [Action, string] {
  const factor = mood === 'databases' ? DATABASE_FACTOR : MOOD_FACTOR;
  const weights = ACTIONS.map(([weight, , , moods]) => (moods.includes(mood) ? weight * factor : weight));
  let dice = chance.below(weights.reduce((sum, weight) => sum + weight, 0));
  const [, what, action] = ACTIONS[weights.findIndex((weight) => (dice -= weight) < 0)];
  return [action, what];
}

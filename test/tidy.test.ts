/** Rules of the house that a program can check: layers, cycles, sizes, banned words, and documents against tables. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { helpText, optionsMarkdown } from '../src/cli/help.js';
import { OPTION_ENTRIES } from '../src/cli/options.js';

const REPOSITORY = fileURLToPath(new URL('../../', import.meta.url));
const FILE_LINES_MAX = 450;

/** What each folder of src/ may import, besides itself. `main`, `daemon` and `bucket-start` put the parts together and may import everything. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  base: [],
  ffi: ['base'],
  storage: ['ffi', 'base'],
  vhost: ['ffi', 'base'],
  fuse: ['storage', 'base'],
  pool: ['storage', 'ffi', 'base'],
  lifecycle: ['ffi', 'base'],
  confine: ['lifecycle', 'ffi', 'base'],
  cli: ['lifecycle', 'ffi', 'base'],
  bucket: ['cli', 'pool', 'storage', 'lifecycle', 'base'],
};

/** Single files of other layers: requests of FUSE hold native blocks that system calls read and write (docs/adr/0001). */
const MAY_ALSO_IMPORT: Readonly<Record<string, readonly string[]>> = { fuse: ['src/ffi/memory.ts'] };

interface Import {
  from: string;
  to: string;
  /** `import type`: gone after compiling. */
  typeOnly: boolean;
}

function filesBelow(folder: string, ends: string): string[] {
  const top = join(REPOSITORY, folder);
  if (!existsSync(top)) return [];
  return readdirSync(top, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith(ends))
    .map((name) => join(folder, name))
    .sort();
}

const read = (path: string): string => readFileSync(join(REPOSITORY, path), 'utf8');

const SOURCES = filesBelow('src', '.ts');
const ALL_CODE = [...SOURCES, ...filesBelow('test', '.ts'), ...filesBelow('bench', '.ts')];

/** Every import of a file; relative ones as paths of sources, others as they are. */
function importsOf(path: string): Import[] {
  const pattern = /^\s*(?:import|export)\s+(type\s+)?(?:[^'";]*?\sfrom\s+)?'([^']+)'|\bimport\(\s*'([^']+)'\s*\)|new URL\(\s*'(\.[^']+\.js)'/gm;
  return [...read(path).matchAll(pattern)].map((match) => {
    const target = match[2] ?? match[3] ?? match[4];
    const to = target.startsWith('.') ? normalize(join(dirname(path), target)).replace(/\.js$/, '.ts') : target;
    return { from: path, to, typeOnly: match[1] !== undefined };
  });
}

/** The folder of src/ that a file belongs to; cli.ts to cli, main.ts, daemon.ts and bucket-start.ts to main. */
function layerOf(path: string): string {
  const name = path.split('/')[1].replace(/\.ts$/, '');
  return name === 'daemon' || name === 'bucket-start' ? 'main' : name;
}

const IMPORTS = SOURCES.flatMap(importsOf);

describe('layers', () => {
  test('the check sees the imports', () => {
    assert.ok(IMPORTS.some((one) => one.from === 'src/cli.ts' && one.to === 'src/cli/options.ts'));
    assert.ok(IMPORTS.length > SOURCES.length);
  });

  test('every relative import is a file of src/', () => {
    const known = new Set(SOURCES);
    const lost = IMPORTS.filter(({ to }) => to.startsWith('src/') || to.startsWith('..')).filter(({ to }) => !known.has(to));
    assert.deepEqual(lost.map(({ from, to }) => `${from} imports ${to}`), []);
  });

  test('imports go downward only', () => {
    const wrong = IMPORTS.filter(({ from, to }) => {
      const [above, below] = [layerOf(from), to.startsWith('src/') ? layerOf(to) : ''];
      return below !== '' && above !== 'main' && above !== below && !MAY_IMPORT[above]?.includes(below) && !MAY_ALSO_IMPORT[above]?.includes(to);
    });
    assert.deepEqual(wrong.map(({ from, to }) => `${from} imports ${to}`), []);
  });

  test('every folder of src/ has a place in the layers', () => {
    const unknown = SOURCES.map(layerOf).filter((layer) => layer !== 'main' && MAY_IMPORT[layer] === undefined);
    assert.deepEqual([...new Set(unknown)], []);
  });

  test('only src/ffi imports koffi', () => {
    const wrong = [...IMPORTS, ...ALL_CODE.filter((path) => !path.startsWith('src/')).flatMap(importsOf)];
    assert.deepEqual(wrong.filter(({ from, to }) => to === 'koffi' && !from.startsWith('src/ffi/')).map(({ from }) => from), []);
  });

  test('no file imports itself by a cycle', () => {
    const next = new Map<string, string[]>();
    for (const { from, to, typeOnly } of IMPORTS) if (!typeOnly) next.set(from, [...(next.get(from) ?? []), to]);
    const done = new Set<string>();
    const walk = (path: string, trail: string[]): void => {
      assert.ok(!trail.includes(path), `cycle: ${[...trail.slice(trail.indexOf(path)), path].join(' → ')}`);
      if (done.has(path)) return;
      for (const to of next.get(path) ?? []) walk(to, [...trail, path]);
      done.add(path);
    };
    for (const path of SOURCES) walk(path, []);
  });

  test('packages that are imported are dependencies, at one exact version, and every dependency is imported', () => {
    const manifest = JSON.parse(read('package.json')) as { dependencies: Record<string, string>; devDependencies: Record<string, string> };
    const imported = new Set(IMPORTS.map(({ to }) => to).filter((to) => !to.startsWith('src/') && !to.startsWith('node:')));
    for (const name of imported) assert.ok(manifest.dependencies[name] !== undefined, `${name} is not in dependencies`);
    for (const [name, range] of Object.entries({ ...manifest.dependencies, ...manifest.devDependencies })) assert.match(range, /^\d+\.\d+\.\d+$/, name);
    const text = SOURCES.map(read).join('\n');
    for (const name of Object.keys(manifest.dependencies)) assert.ok(text.includes(`'${name}'`), `${name} is not used`);
  });
});

/** Lines of code that match, as file:line. */
function linesWith(files: readonly string[], pattern: RegExp): string[] {
  return files.flatMap((path) =>
    read(path).split('\n').flatMap((line, index) => (pattern.test(line) ? [`${path}:${index + 1}: ${line.trim()}`] : [])),
  );
}

describe('habits', () => {
  test(`no file has more than ${FILE_LINES_MAX} lines`, () => {
    const long = ALL_CODE.map((path) => [path, read(path).split('\n').length - 1] as const).filter(([, lines]) => lines > FILE_LINES_MAX);
    assert.deepEqual(long, []);
  });

  test('a store is written to on a condition, in settle.ts, or for a reason, in unconditional-writes.ts', () => {
    const write = /\bstore\.(put|copy|remove|rename|setMetadata|completeUpload)\(/;
    const OBJECT = 'src/storage/object/';
    // What the two are made of, and stands below them; the probe has keys of its own
    const below = [`${OBJECT}stores/`, `${OBJECT}layers/`, `${OBJECT}conditional-copy.ts`, `${OBJECT}probe.ts`];
    const here = ['settle.ts', 'unconditional-writes.ts'].map((name) => OBJECT + name);
    for (const path of here) assert.ok(linesWith([path], write).length > 0, `${path} is where it is done`);
    assert.deepEqual(linesWith(SOURCES.filter((path) => !here.includes(path) && !below.some((one) => path.startsWith(one))), write), []);
  });

  test('objects `as const` instead of enums', () => {
    assert.deepEqual(linesWith(ALL_CODE, /^\s*(export\s+)?(declare\s+)?(const\s+)?enum\s/), []);
  });

  test('nothing is left to do later in a comment', () => {
    const words = new RegExp(['TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X'].map((word) => `\\b${word}\\b`).join('|'));
    assert.deepEqual(linesWith([...ALL_CODE, ...filesBelow('scripts', '.sh'), ...filesBelow('deploy', '')].filter((path) => /\.\w+$/.test(path)), words), []);
  });

  test('the daemon logs by its logger, never by the console', () => {
    assert.deepEqual(linesWith(SOURCES, /\bconsole\s*\./), []);
  });

  test('no type is given up', () => {
    assert.deepEqual(linesWith(SOURCES, /:\s*any\b|\bas any\b|@ts-(ignore|nocheck)/), []);
  });

  test('no file only passes on what others export', () => {
    const barrels = SOURCES.filter((path) => {
      const lines = read(path).split('\n').filter((line) => line.trim() !== '' && !/^\s*(\/\/|\/?\*)/.test(line));
      return lines.length > 0 && lines.every((line) => /^export\s.*\sfrom\s/.test(line));
    });
    assert.deepEqual(barrels, []);
  });

  test('no test is left alone or switched off', () => {
    assert.deepEqual(linesWith(filesBelow('test', '.test.ts').filter((path) => path !== 'test/tidy.test.ts'), /\.only\(|\bonly: true|\.todo\(/), []);
  });

  test('the lock file names packages by version and checksum, not by where they came from', () => {
    assert.ok(!read('package-lock.json').includes('"resolved"'));
  });
});

describe('documents', () => {
  const OPERATIONS = 'docs/OPERATIONS.md';
  const section = /(<!-- options:[^\n]*-->\n)([\s\S]*?)(<!-- \/options -->)/;

  test('docs/OPERATIONS.md has the options section as the table makes it (make docs)', () => {
    const text = read(OPERATIONS);
    const wanted = text.replace(section, (_all, head: string, _old, tail: string) => `${head}${optionsMarkdown()}${tail}`);
    if (process.env.UPDATE_DOCS) writeFileSync(join(REPOSITORY, OPERATIONS), wanted);
    else assert.equal(section.exec(text)?.[2], optionsMarkdown());
  });

  test('every option is in the manual and in the help', () => {
    const manual = read(OPERATIONS);
    const help = helpText();
    for (const [, spec] of OPTION_ENTRIES) {
      const name = spec.flag === '' ? `-${spec.short}` : `--${spec.flag}`;
      assert.ok(manual.includes(`${name}`) && help.includes(name), name);
    }
  });

  test('every long option that a document names exists', () => {
    const known = new Set(OPTION_ENTRIES.flatMap(([, spec]) => [`--${spec.flag}`, `--no-${spec.flag}`, ...(spec.alias ? [`--${spec.alias}`] : [])]));
    const documents = ['README.md', OPERATIONS].filter((path) => existsSync(join(REPOSITORY, path)));
    for (const path of documents) {
      // Options of the daemon stand in backquotes of their own, or follow its name.
      for (const match of read(path).matchAll(/(?:`|bucketfsd [^\n`]*?)(--[a-z][a-z0-9-]+)/g)) {
        assert.ok(known.has(match[1]), `${path} names ${match[1]}, which the daemon does not have`);
      }
    }
  });

  test('files that a document links to exist', () => {
    const documents = [...['README.md', 'CHANGELOG.md'].filter((path) => existsSync(join(REPOSITORY, path))), ...filesBelow('docs', '.md')];
    for (const path of documents) {
      for (const match of read(path).matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)) {
        if (/^[a-z]+:/.test(match[1])) continue;
        assert.ok(existsSync(join(REPOSITORY, dirname(path), match[1])), `${path} links to ${match[1]}`);
      }
    }
  });
});

/** Command lines that are read without commander mean what they mean to it. The seed is printed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { buildCommand } from '../../src/cli/help.js';
import { OPTION_ENTRIES } from '../../src/cli/options.js';
import { mainName, otherNames, readPlain } from '../../src/cli/plain.js';

const ROUNDS = 2000;
const VALUES = ['', 'a', '1', 'a=b', '=', 'a b', '/srv', 's3://bbb', '-', '--', '-1', '--source', 'x,y'];
const OTHERS = ['word', '-', '--', '--unknown', '-h', '-V', '-d', '-f', '-df', '-o', '-oa', '--help', '--version', '--posix-acl', '--no-posix-acl', '--daemonize', '--sourc', 'check'];

type Heard = readonly [index: number, name: string, text: string | null];

function plain(args: readonly string[]): Heard[] | null {
  const heard: Heard[] = [];
  return readPlain(args, (_spec, index, name, text) => heard.push([index, name, text])) ? heard : (assert.deepEqual(heard, []), null);
}

function commander(args: readonly string[]): { heard: Heard[]; rest: readonly string[] } {
  const heard: Heard[] = [];
  const command = buildCommand((_spec, index, name, text) => heard.push([index, name, text]));
  return { heard, rest: command.parse([...args], { from: 'user' }).args };
}

test('a random command line is read as commander reads it, or left to it', (t) => {
  const seed = Number(process.env['SEED'] ?? Date.now() % 2 ** 32);
  t.diagnostic(`SEED=${seed}`);
  let state = seed >>> 0;
  const random = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const pick = <T>(list: readonly T[]): T => list[random(list.length)];
  const names = OPTION_ENTRIES.flatMap(([, spec]) => [
    ...(spec.flag === '' ? [] : [mainName(spec), ...otherNames(spec)].map((name) => `--${name}`)), ...(spec.short === undefined ? [] : [`-${spec.short}`]),
  ]);
  let read = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const args = Array.from({ length: random(5) }, () => {
      const name = pick(names);
      switch (random(6)) {
        case 0: return [`${name}=${pick(VALUES)}`];
        case 1: return [name, pick(VALUES)];
        case 2: return random(8) === 0 ? [pick(OTHERS)] : [name];
        default: {
          const [, spec] = pick(OPTION_ENTRIES);
          if (spec.flag === '' || spec.type === 'negotiated') return ['-o', 'a,b'];
          const value = pick(VALUES.filter((text) => !text.startsWith('-')));
          return spec.value === undefined ? [`--${mainName(spec)}`] : pick([[`--${spec.flag}=${value}`], [`--${spec.flag}`, value]]);
        }
      }
    }).flat();
    const heard = plain(args);
    if (heard === null) continue;
    read++;
    assert.deepEqual({ heard, rest: [] }, commander(args), `seed ${seed}, round ${round}: ${JSON.stringify(args)}`);
  }
  assert.ok(read > ROUNDS / 10, `${read} were plain`);
});

test('what programs write is plain, and help, mistakes and short options are not', () => {
  const base = ['--socket-path=/run/a', '--shared-dir', '/srv'];
  for (const more of [[], ['--cache=auto', '--sandbox', 'none'], ['--no-readdirplus', '--writeback'], ['-o', 'source=/srv,cache=auto']]) {
    assert.notEqual(plain([...base, ...more]), null, more.join(' '));
  }
  for (const more of [['-h'], ['--help'], ['--version'], ['-d'], ['-f'], ['--writeback=yes'], ['--cache'], ['--cache', '--sandbox'], ['--cach=auto'], ['--posix-acl'], ['--daemonize'], ['word'], ['--'], ['-ocache=auto']]) {
    assert.equal(plain([...base, ...more]), null, more.join(' '));
  }
});

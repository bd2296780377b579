import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { pino } from 'pino';
import type { LogLevel } from '../../src/base/log-level.js';
import { createLogger, SILENT_LOG, type Logger } from '../../src/base/log.js';
import { isPlain, LEVEL_NUMBERS, plainLine, type PlainValue, type WrittenLevel } from '../../src/base/plain-line.js';
import { GUEST_LINES_PER_KEY, GUEST_LINES_TOTAL, GUEST_WINDOW_MS, GuestLimiter } from '../../src/base/log-limiter.js';

interface Line {
  level: number;
  time: string;
  msg: string;
  [field: string]: unknown;
}

function memory(level: LogLevel, pretty = false): { log: Logger; lines: () => Line[]; text: () => string } {
  const written: string[] = [];
  const log = createLogger({ level, pretty, destination: { write: (line) => void written.push(line) } });
  return { log, lines: () => written.map((line) => JSON.parse(line) as Line), text: () => written.join('') };
}

describe('logger', () => {
  test('a line is one JSON object with its fields, an ISO time and the pid', () => {
    const { log, lines } = memory('info');
    log.info({ tag: 'share' }, 'hello');
    const [line] = lines();
    assert.deepEqual([line.msg, line.tag, line.pid], ['hello', 'share', process.pid]);
    assert.ok(!Number.isNaN(Date.parse(line.time)));
  });

  test('a level below the chosen one is not written, and off writes nothing', () => {
    for (const [level, expected] of [['off', 0], ['error', 1], ['warn', 2], ['info', 3], ['debug', 4], ['trace', 5]] as const) {
      const { log, lines } = memory(level);
      log.error({}, 'm');
      log.warn({}, 'm');
      log.info({}, 'm');
      log.debug({}, 'm');
      log.trace({}, 'm');
      assert.equal(lines().length, expected, level);
      assert.equal(log.enabled('info'), expected >= 3, level);
      assert.equal(log.guest('k', {}, 'm'), expected >= 2, level);
    }
  });

  test('an error is written with its type and stack', () => {
    const { log, lines } = memory('info');
    log.error({ err: new RangeError('boom') }, 'failed');
    const err = lines()[0].err as Record<string, string>;
    assert.equal(err.type, 'RangeError');
    assert.match(err.stack, /log\.test/);
  });

  test('a child adds its fields to each line', () => {
    const { log, lines } = memory('info');
    log.child({ connection: 3 }).info({ queue: 1 }, 'm');
    assert.deepEqual([lines()[0].connection, lines()[0].queue], [3, 1]);
  });

  test('bytes of a guest cannot forge a line: control characters are escaped in both forms', () => {
    for (const pretty of [false, true]) {
      const { log, text } = memory('info', pretty);
      log.guest('k', { name: 'a\n{"level":60}\u001b[31m' }, 'bad name');
      assert.ok(!text().includes('\n{"level":60}') && !text().includes('\u001b'), text());
    }
  });

  test('the pretty form is for people', () => {
    const { log, text } = memory('info', true);
    log.warn({ tag: 'share' }, 'hello');
    assert.match(text(), /WARN.*hello\n\s+tag: "share"\n/);
  });

  test('the silent logger is a logger that does nothing', () => {
    SILENT_LOG.child({}).error({}, 'm');
    assert.equal(SILENT_LOG.guest('k', {}, 'm'), false);
  });
});

describe('plain lines', () => {
  const KEYS = ['a', 'b c', '"', '\\', 'é', '\ud800', '\u2028', 'msg', 'level', '__proto__', '1', ''];
  const VALUES: readonly PlainValue[] = ['', 'x', '"\\\n\u001b\u0000', '\ud800', 'é😀\u2028', 'y'.repeat(200), 0, -0, 1.5, 2 ** 53, NaN, Infinity, true, false, null, undefined];

  test('a random one is what pino would have written', (t) => {
    const seed = Number(process.env['SEED'] ?? Date.now() % 2 ** 32);
    t.diagnostic(`SEED=${seed}`);
    let state = seed >>> 0;
    const pick = <T>(list: readonly T[]): T => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return list[Math.floor((state / 2 ** 32) * list.length)];
    };
    const fieldsOf = (): Record<string, PlainValue> => Object.fromEntries(Array.from({ length: pick([0, 1, 2, 4]) }, () => [pick(KEYS), pick(VALUES)]));
    let expected = '';
    const root = pino({ level: 'trace', base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime }, { write: (line: string) => void (expected = line) });
    const parsed = (line: string): unknown => ({ ...(JSON.parse(line) as object), time: '' });
    for (let round = 0; round < 3000; round++) {
      // `level` of a child is an option of pino's
      const { level: _level, ...bindings } = fieldsOf();
      const [level, fields, message] = [pick(Object.keys(LEVEL_NUMBERS)) as WrittenLevel, fieldsOf(), pick(['', 'hello', '%s %d %%', '"\n\ud800'])];
      assert.ok(isPlain(bindings) && isPlain(fields));
      root.child(bindings)[level](fields, message);
      const line = plainLine(level, [{ pid: process.pid }, bindings, fields], message);
      assert.deepEqual(parsed(line), parsed(expected), `seed ${seed}, round ${round}`);
      assert.equal(line.indexOf('\n'), line.length - 1, 'one line');
    }
  });

  test('what pino bounds is not plain', () => {
    for (const value of [{}, [], new Error('boom'), () => 0, 1n, Symbol('s'), new Date()]) assert.equal(isPlain({ ok: 1, value }), false, String(value));
  });

  test('where pino has gone since the start a line with an error is written without it', () => {
    const place = mkdtempSync(join(tmpdir(), 'bucketfsd-log-'));
    cpSync(fileURLToPath(new URL('../../src/base/', import.meta.url)), join(place, 'base'), { recursive: true });
    writeFileSync(join(place, 'package.json'), '{"type":"module"}');
    writeFileSync(join(place, 'main.js'), `import { createLogger } from './base/log.js';
      const log = createLogger({ level: 'info', pretty: false, destination: { write: (line) => process.stdout.write(line) } });
      log.child({ list: [1] }).error({ err: new RangeError('boom'), n: 1 }, 'failed');`);
    const { stdout, stderr } = spawnSync(process.execPath, [join(place, 'main.js')], { encoding: 'utf8', env: {} });
    rmSync(place, { recursive: true });
    const line = JSON.parse(stdout) as Line;
    assert.deepEqual([line.level, line.msg, line['n'], line['list'], stderr], [50, 'failed', 1, '1', '']);
    assert.match(String(line['err']), /^RangeError: boom\n +at /);
  });
});

describe('lines that a guest causes', () => {
  test('one key gets its lines in a window, its children count with it, and another key still gets through', () => {
    const { log, lines } = memory('info');
    for (let i = 0; i < 1000; i++) log.child({ i }).guest('flood', {}, 'm');
    assert.equal(lines().length, GUEST_LINES_PER_KEY);
    assert.equal(log.guest('other', {}, 'm'), true);
    assert.equal(lines().at(-1)?.event, 'other');
  });

  test('all keys together get a bounded number of lines in a window', () => {
    const { log, lines } = memory('info');
    for (let i = 0; i < 5000; i++) log.guest(`key-${i}`, {}, 'm');
    assert.equal(lines().length, GUEST_LINES_TOTAL);
  });

  test('after the window the count of what was suppressed is reported once, and lines are written again', () => {
    let now = 1000;
    const reports: [number, Record<string, number>][] = [];
    const limiter = new GuestLimiter((count, keys) => void reports.push([count, keys]), () => now);
    for (let i = 0; i < GUEST_LINES_PER_KEY + 7; i++) limiter.admit('a');
    assert.equal(limiter.admit('b'), true);
    assert.equal(reports.length, 0);
    now += GUEST_WINDOW_MS - 1;
    assert.equal(limiter.admit('a'), false);
    now += 1;
    assert.equal(limiter.admit('a'), true);
    assert.deepEqual(reports, [[8, { a: 8 }]]);
    now += GUEST_WINDOW_MS;
    assert.equal(limiter.admit('a'), true);
    assert.equal(reports.length, 1, 'nothing was suppressed in the second window');
  });

  test('the report comes by itself when the guest falls silent', async (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] });
    const reports: number[] = [];
    const limiter = new GuestLimiter((count) => void reports.push(count), () => 0);
    for (let i = 0; i < GUEST_LINES_PER_KEY + 3; i++) limiter.admit('a');
    t.mock.timers.tick(GUEST_WINDOW_MS - 1);
    assert.deepEqual(reports, []);
    t.mock.timers.tick(1);
    assert.deepEqual(reports, [3]);
  });

  test('any number of keys is counted in bounded memory', () => {
    let now = 0;
    let report: Record<string, number> = {};
    const limiter = new GuestLimiter((_count, keys) => void (report = keys), () => now);
    for (let i = 0; i < 10_000; i++) limiter.admit(`key-${i}`);
    now = GUEST_WINDOW_MS;
    limiter.admit('a');
    assert.ok(Object.keys(report).length <= 257);
    assert.equal(Object.values(report).reduce((a, b) => a + b, 0), 10_000 - GUEST_LINES_TOTAL);
  });
});

describe('standard error of a process', () => {
  const program = (body: string): string[] => {
    const module = new URL('../../src/base/log.js', import.meta.url).href;
    return ['--input-type=module', '-e', `import { createLogger } from ${JSON.stringify(module)}; const log = createLogger({ level: 'info' }); ${body}`];
  };

  test('a line is written before the call returns, so that a crash loses none, and nothing goes to standard output', async () => {
    const child = spawn(process.execPath, program(`log.info({}, 'last words'); process.kill(process.pid, 'SIGKILL');`), { stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (data) => (stdout += data));
    child.stderr.on('data', (data) => (stderr += data));
    const [, signal] = (await once(child, 'close')) as [number, string];
    assert.equal(signal, 'SIGKILL');
    assert.equal(stdout, '');
    assert.equal((JSON.parse(stderr) as Line).msg, 'last words');
  });

  test('a reader that went away does not end the daemon', async () => {
    const body = `process.stdin.once('data', () => { for (let i = 0; i < 10; i++) log.info({}, 'nobody listens'); setTimeout(() => process.exit(7), 10); });`;
    const child = spawn(process.execPath, program(body), { stdio: ['pipe', 'ignore', 'pipe'] });
    child.stderr.destroy();
    child.stdin.write('x');
    const [code] = (await once(child, 'close')) as [number];
    assert.equal(code, 7);
  });
});

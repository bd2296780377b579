/**
 * The daemon serves, and ends, whatever becomes of the reader of its standard error.
 *
 * The reader may never read, stop, be slow, be gone; standard error may be a pipe, a socket (the journal's), a file, a terminal. What is lost is counted, and said.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, mkdirSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import { StandardError } from '../../src/lifecycle/standard-error.js';
import { socketPair } from '../../src/ffi/socket.js';
import { MAIN } from '../support/daemon.js';
import { Frontend, MESSAGE } from '../support/frontend.js';

const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-stderr-'));
after(() => rmSync(directory, { recursive: true, force: true }));

let pipes = 0;
/** Both ends of a pipe in one descriptor. */
function pipe(): number {
  const path = join(directory, `pipe${pipes++}`);
  execFileSync('mkfifo', [path]);
  return openSync(path, constants.O_RDWR);
}

/** Read until a line matches. */
async function readUntil(fd: number, pattern: RegExp): Promise<string[]> {
  const buffer = Buffer.alloc(1 << 16);
  let text = '';
  while (!pattern.test(text)) {
    try {
      text += buffer.toString('utf8', 0, readSync(fd, buffer));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      await sleep(1);
    }
    await turn();
  }
  return text.trimEnd().split('\n');
}

/** A descriptor to write to, and one that reads without waiting. */
const WAYS: readonly (readonly [string, () => readonly [write: number, read: number]])[] = [
  ['a pipe', () => {
    const fd = pipe();
    return [fd, openSync(`/proc/self/fd/${fd}`, constants.O_RDONLY | constants.O_NONBLOCK)];
  }],
  ['a socket', () => socketPair()],
];

for (const [what, make] of WAYS) {
  test(`${what} that nobody reads takes lines up to a bound, without waiting, and tells later in order what it has, and how many were lost`, async () => {
    const [write, read] = make();
    const output = new StandardError(write);
    const line = (i: number): string => `${JSON.stringify({ i, text: 'x'.repeat(i % 7 === 0 ? 9000 : 900) })}\n`;
    const COUNT = 2000;
    for (let i = 0; i < COUNT; i++) output.write(line(i));
    assert.ok(output.waitingBytes > 0 && output.waitingBytes <= 1 << 20, `${output.waitingBytes} bytes wait`);
    const lines = (await readUntil(read, /"lost":\d+/)).map((text) => JSON.parse(text) as { i?: number; lost?: number; msg?: string });
    const { lost = 0, msg } = lines.pop()!;
    assert.match(msg!, /log lines were lost/);
    assert.equal(lines.length + lost, COUNT);
    const numbers = lines.map(({ i }) => i!);
    assert.deepEqual(numbers, [...numbers].sort((a, b) => a - b));
    assert.equal(output.waitingBytes, 0);
    output.write('{"again":1}\n');
    assert.deepEqual(await readUntil(read, /again/), ['{"again":1}']);
    for (const fd of [write, read]) closeSync(fd);
    output.write('nobody\n');
  });
}

for (const [what, stderr] of [['a pipe', () => pipe()], ['a socket', () => socketPair()[0]]] as const) {
  test(`a daemon whose standard error is ${what} that nobody reads serves, and ends when it is told to`, async () => {
    const share = join(directory, 'share');
    mkdirSync(share, { recursive: true });
    const socket = join(directory, `socket-${what.slice(2)}`);
    const fd = stderr();
    const child = spawn(process.execPath, [MAIN, '--socket-path', socket, '--shared-dir', share, '--log-level', 'debug'], {
      stdio: ['ignore', 'ignore', fd], timeout: 60_000, killSignal: 'SIGKILL', env: { ...process.env, NODE_TEST_CONTEXT: undefined },
    });
    const ended = once(child, 'exit');
    try {
      let frontend: Frontend | null = null;
      while (frontend === null) {
        try {
          frontend = Frontend.connect(socket);
        } catch {
          await sleep(10);
        }
      }
      for (let i = 0; i < 4000; i++) await frontend.getU64(MESSAGE.GET_FEATURES);
      child.kill('SIGTERM');
      assert.deepEqual(await ended, [0, null]);
      frontend.close();
    } finally {
      child.kill('SIGKILL');
      closeSync(fd);
    }
  });
}

test('what is written to a file is there at once', () => {
  const path = join(directory, 'file');
  const fd = openSync(path, 'a');
  const output = new StandardError(fd);
  for (let i = 0; i < 100; i++) output.write(`${'line '.repeat(300)}${i}\n`);
  assert.equal(readFileSync(path, 'utf8').split('\n').length, 101);
  closeSync(fd);
});

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { createLogger } from '../../src/base/log.js';
import { severityOf } from '../../src/base/severity.js';
import * as c from '../../src/ffi/libc.js';
import { DATAGRAM_MAX_BYTES } from '../../src/ffi/datagram.js';
import { bindUnix, receive } from '../../src/ffi/socket.js';
import { syslogDatagram, SyslogDestination } from '../../src/lifecycle/syslog.js';

const NOW = new Date(2024, 1, 3, 4, 5, 6);

let dir = '';
let path = '';
const sockets: number[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'bucketfsd-syslog-'));
  path = join(dir, 'log');
});
afterEach(() => {
  for (const fd of sockets.splice(0)) c.close(fd);
  rmSync(dir, { recursive: true });
});

/** A syslog daemon that takes what heard() asks for. */
function daemon(): number {
  const fd = c.check(c.socket(1, 2, 0), 'socket');
  assert.equal(bindUnix(fd, path), 0);
  sockets.push(fd);
  return fd;
}

function heard(fd: number): string[] {
  const messages: string[] = [];
  for (let got = receive(fd, 65536); got.length > 0; got = receive(fd, 65536)) messages.push(Buffer.from(got.data).toString());
  return messages;
}

describe('form', () => {
  test('severity by level, facility daemon, local time, ident and pid, the other fields as JSON', () => {
    const line = '{"level":40,"time":"2024-01-01T00:00:00Z","pid":1,"event":"x","msg":"hello"}\n';
    assert.equal(syslogDatagram(line, NOW, 77), '<28>Feb  3 04:05:06 bucketfsd[77]: hello {"event":"x"}');
    assert.equal(syslogDatagram('{"level":30,"msg":"plain"}', NOW, 77), '<30>Feb  3 04:05:06 bucketfsd[77]: plain');
    assert.deepEqual([10, 20, 30, 40, 50, 60].map(severityOf), [7, 7, 6, 4, 3, 2]);
  });

  test('no control character gets through, and a long line is cut between characters', () => {
    const text = syslogDatagram(JSON.stringify({ level: 30, msg: 'a\nb\x1b[31m', name: 'c\nd' }), NOW, 1);
    assert.ok(!/[\0-\x1f\x7f]/.test(text), text);
    const long = syslogDatagram(JSON.stringify({ level: 30, msg: '€'.repeat(DATAGRAM_MAX_BYTES) }), NOW, 1);
    assert.ok(Buffer.byteLength(long) <= DATAGRAM_MAX_BYTES && Buffer.byteLength(long) > DATAGRAM_MAX_BYTES - 10);
    assert.ok(long.endsWith('€'), 'no half character');
  });
});

function connected(): SyslogDestination {
  const destination = SyslogDestination.connect(path, 42);
  assert.ok(destination !== null);
  return destination;
}

describe('destination', () => {
  test('lines of the logger arrive as one datagram each', () => {
    const fd = daemon();
    const log = createLogger({ level: 'info', pretty: false, destination: connected() });
    log.info({ a: 1 }, 'one');
    log.error({ err: new Error('bad') }, 'two');
    log.debug({}, 'not this one');
    const lines = heard(fd);
    assert.equal(lines.length, 2);
    assert.match(lines[0], /^<30>.{15} bucketfsd\[42\]: one \{"a":1\}$/);
    assert.match(lines[1], /^<27>.{15} bucketfsd\[42\]: two \{"err":\{"type":"Error","message":"bad"/);
  });

  test('where nobody listens there is none', () => assert.equal(SyslogDestination.connect(path), null));

  test('a syslog daemon that takes nothing holds nothing up; what was lost is counted and told later', () => {
    const fd = daemon();
    const syslog = connected();
    for (let i = 0; i < 5000; i++) syslog.write(`{"level":30,"msg":"${i}"}\n`);
    const lost = syslog.lost;
    assert.ok(lost > 0, 'the queue of a datagram socket is bounded');
    const taken = heard(fd);
    assert.equal(taken.length + lost, 5000);
    syslog.write('{"level":30,"msg":"after"}\n');
    const [report, line] = heard(fd);
    assert.match(report, new RegExp(`^<28>.*log lines were lost: .*\\{"lost":${lost}\\}$`));
    assert.match(line, /: after$/);
    assert.equal(syslog.lost, 0);
  });

  test('a syslog daemon that was started again is found', () => {
    const first = daemon();
    const syslog = connected();
    c.close(sockets.pop()!);
    assert.ok(first >= 0);
    rmSync(path);
    const second = daemon();
    syslog.write('{"level":30,"msg":"again"}\n');
    assert.match(heard(second).join('|'), /: again$/);
    assert.equal(syslog.lost, 0);
  });

  test('one that stays away costs the lines and nothing else', () => {
    daemon();
    const syslog = connected();
    c.close(sockets.pop()!);
    rmSync(path);
    for (let i = 0; i < 3; i++) syslog.write('{"level":30,"msg":"x"}\n');
    assert.equal(syslog.lost, 3);
  });
});

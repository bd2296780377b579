import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { bindUnix, receive } from '../../src/ffi/socket.js';
import { ServiceNotifier, systemdSockets, watchdogTimeout_ms } from '../../src/lifecycle/systemd.js';

const AF_UNIX = 1;
const SOCK_DGRAM = 2;

/** What the service manager has been told since the last look. */
function heard(fd: number): string[] {
  const messages: string[] = [];
  for (;;) {
    const { length, data } = receive(fd, 4096);
    if (length === -E.AGAIN) return messages;
    assert.ok(length > 0);
    messages.push(Buffer.from(data).toString());
  }
}

function abstractSocket(name: string): number {
  const fd = c.check(c.socket(AF_UNIX, SOCK_DGRAM, 0), 'socket');
  const address = NativeMemory.allocate(128);
  address.dv.setUint16(0, AF_UNIX, true);
  address.u8.set(Buffer.from(name), 3);
  c.check(c.bind(fd, address.address, 3 + name.length), 'bind');
  address.free();
  return fd;
}

describe('sd_notify', () => {
  let dir = '';
  let manager = -1;
  let env: NodeJS.ProcessEnv = {};

  before(() => {
    dir = mkdtempSync(join(tmpdir(), 'bucketfsd-notify-'));
    manager = c.check(c.socket(AF_UNIX, SOCK_DGRAM, 0), 'socket');
    assert.equal(bindUnix(manager, join(dir, 'notify')), 0);
  });
  beforeEach(() => {
    env = { NOTIFY_SOCKET: join(dir, 'notify') };
  });
  after(() => {
    c.close(manager);
    rmSync(dir, { recursive: true });
  });

  test('READY, STATUS and STOPPING arrive as one message each', () => {
    const notifier = ServiceNotifier.fromEnvironment(env);
    notifier.ready('Sharing /srv');
    notifier.status('1 guest');
    notifier.stopping();
    notifier.close();
    assert.deepEqual(heard(manager), ['READY=1\nSTATUS=Sharing /srv', 'STATUS=1 guest', 'STOPPING=1\nSTATUS=Stopping']);
  });

  test('a status cannot carry another assignment, and its length is bounded', () => {
    const notifier = ServiceNotifier.fromEnvironment(env);
    notifier.status(`a\nMAINPID=1\n${'x'.repeat(10_000)}`);
    notifier.close();
    const [message] = heard(manager);
    assert.ok(!message.includes('\n') && message.length <= 210, message);
  });

  test('an abstract socket is reached by @', () => {
    const name = `bucketfsd-test-${process.pid}`;
    const fd = abstractSocket(name);
    const notifier = ServiceNotifier.fromEnvironment({ NOTIFY_SOCKET: `@${name}` });
    notifier.ready('x');
    notifier.close();
    assert.deepEqual(heard(fd), ['READY=1\nSTATUS=x']);
    c.close(fd);
  });

  test('without a manager, with an unknown kind of address, or one that nobody listens on, nothing happens', () => {
    for (const address of [undefined, '', 'vsock:2:1234', join(dir, 'nobody'), `/${'x'.repeat(200)}`, '@']) {
      const notifier = ServiceNotifier.fromEnvironment({ NOTIFY_SOCKET: address });
      assert.equal(notifier.active, false, String(address));
      notifier.ready('x');
      notifier.stopping();
      notifier.close();
      notifier.close();
    }
  });

  test('WATCHDOG follows READY at half of the timeout, also while stopping, and ends with close()', (t) => {
    t.mock.timers.enable({ apis: ['setInterval'] });
    const notifier = ServiceNotifier.fromEnvironment({ ...env, WATCHDOG_USEC: '20000000', WATCHDOG_PID: String(process.pid) });
    t.mock.timers.tick(60_000);
    assert.deepEqual(heard(manager), [], 'nothing before READY');
    notifier.ready('x');
    assert.deepEqual(heard(manager), ['READY=1\nSTATUS=x', 'WATCHDOG=1']);
    t.mock.timers.tick(9_999);
    assert.deepEqual(heard(manager), []);
    t.mock.timers.tick(1);
    assert.deepEqual(heard(manager), ['WATCHDOG=1']);
    notifier.stopping();
    t.mock.timers.tick(10_000);
    assert.deepEqual(heard(manager), ['STOPPING=1\nSTATUS=Stopping', 'WATCHDOG=1']);
    notifier.close();
    t.mock.timers.tick(60_000);
    assert.deepEqual(heard(manager), []);
  });

  test('the watchdog counts only when it is meant for this process', () => {
    assert.equal(watchdogTimeout_ms({ WATCHDOG_USEC: '3000000' }, 5), 3000);
    assert.equal(watchdogTimeout_ms({ WATCHDOG_USEC: '3000000', WATCHDOG_PID: '5' }, 5), 3000);
    for (const env of [{}, { WATCHDOG_USEC: '3000000', WATCHDOG_PID: '6' }, { WATCHDOG_USEC: '0' }, { WATCHDOG_USEC: 'x' }]) {
      assert.equal(watchdogTimeout_ms(env, 5), null);
    }
    assert.equal(watchdogTimeout_ms({ WATCHDOG_USEC: '999999999999999' }, 5), 2 ** 31 - 1);
  });
});

describe('sd_listen_fds', () => {
  test('descriptors start at 3 and count only for the process that LISTEN_PID names', () => {
    assert.deepEqual(systemdSockets({ LISTEN_FDS: '2', LISTEN_PID: '7' }, 7), [3, 4]);
    for (const env of [{}, { LISTEN_FDS: '1' }, { LISTEN_FDS: '1', LISTEN_PID: '8' }, { LISTEN_FDS: '0', LISTEN_PID: '7' }, { LISTEN_FDS: '-1', LISTEN_PID: '7' }]) {
      assert.deepEqual(systemdSockets(env, 7), []);
    }
    assert.equal(systemdSockets({ LISTEN_FDS: '999999999', LISTEN_PID: '7' }, 7).length, 1024);
  });
});

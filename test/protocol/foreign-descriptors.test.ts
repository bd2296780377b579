/**
 * A descriptor that a frontend passes cannot stop the daemon, whatever file system it is of: one that does not answer keeps waiting who closes a file of its.
 *
 * Every message that carries descriptors is a way in: memory, kicks, logs, records, the backend's channel; as many as a message can have; in a message that nobody knows.
 */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import * as c from '../../src/ffi/libc.js';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { Frontend, GPA, MESSAGE, NEED_REPLY, USER, concat, u32, u64 } from '../support/frontend.js';
import { HeldFileSystem } from '../support/held-fs.js';

const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-foreign-'));
after(() => {
  killDaemons();
  rmSync(directory, { recursive: true, force: true });
});

const REGION = u64(GPA, 1 << 20, USER, 0);
const regions = (count: number): Uint8Array =>
  concat(u32(count, 0), ...Array.from({ length: count }, (_, i) => u64(GPA + (i << 20), 1 << 20, USER + (i << 20), 0)));

const WAYS: readonly (readonly [string, code: number, payload: Uint8Array, fds: number])[] = [
  ['guest memory', MESSAGE.SET_MEM_TABLE, regions(1), 1],
  ['guest memory in eight regions', MESSAGE.SET_MEM_TABLE, regions(8), 8],
  ['a memory slot', MESSAGE.ADD_MEM_REG, concat(u64(0), REGION), 1],
  ['a kick', MESSAGE.SET_VRING_KICK, u64(0), 1],
  ['an inflight record', MESSAGE.SET_INFLIGHT_FD, concat(u64(1 << 20, 0), u32((64 << 16) | 1, 0)), 1],
  ['the channel of the backend', MESSAGE.SET_BACKEND_REQ_FD, new Uint8Array(0), 1],
  ['nothing', MESSAGE.SET_OWNER, new Uint8Array(0), 100],
];

for (const [what, code, payload, count] of WAYS) {
  test(`a file that cannot be closed, passed as ${what}: others are served, SIGTERM is heard, and the daemon ends when the file system answers`, { skip: process.getuid!() !== 0 && 'needs root, to mount' }, async () => {
    const point = mkdtempSync(join(directory, 'held-'));
    const share = join(directory, 'share');
    mkdirSync(share, { recursive: true });
    const socket = join(mkdtempSync(join(directory, 'socket-')), 'socket');
    const held = await HeldFileSystem.mount(point);
    const daemon = await DaemonProcess.start(['--socket-path', socket, '--shared-dir', share]);
    // After the last process was started: it would wait for them, since it has copies to close
    const fds = Array.from({ length: count }, () => openSync(join(point, 'unclosable'), 'r+'));
    try {
      const first = Frontend.connect(socket);
      await first.negotiate();
      first.send(code, payload, fds, NEED_REPLY);
      await first.reply();
      first.close();
      await held.held(1);
      const second = Frontend.connect(socket);
      for (let i = 0; i < 10; i++) await second.getU64(MESSAGE.GET_FEATURES);
      const ended = daemon.stop();
      await daemon.until(/"reason":"SIGTERM"/);
      second.close();
      // The kernel lets nobody end who is in a FLUSH: not even by SIGKILL
      await held.unmount();
      await ended;
      assert.ok(!existsSync(socket));
    } finally {
      await held.unmount();
      for (const fd of fds) c.close(fd); // ENOTCONN
    }
  });
}

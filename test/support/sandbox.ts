/** What tests of a confined daemon share: options, what a guest does all day, and datagrams as syslog and systemd get them. */
import assert from 'node:assert/strict';
import { chownSync, existsSync, readdirSync, readFileSync, readlinkSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { receive } from '../../src/ffi/socket.js';
import { concat, u32, u64 } from './frontend.js';
import { FuseClient, name, OP } from './guest.js';

export const NAMESPACE = ['--sandbox=namespace', '--seccomp=kill'];
/** With --xattr: CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP. */
export const KEPT = 0x880000dbn;

/** A guest of the daemon at `socket`, which leaves with the test. */
export async function client(t: TestContext, socket: string): Promise<FuseClient> {
  const guest = new FuseClient(socket);
  t.after(() => guest.leave());
  await guest.begin();
  return guest;
}

/** Everything that a guest does all day, checked against the host's own view of `directory`. */
export async function serves(guest: FuseClient, directory: string): Promise<void> {
  writeFileSync(join(directory, 'host'), 'from the host');
  chownSync(join(directory, 'host'), statSync(directory).uid, statSync(directory).gid);
  const file = await guest.lookup(1n, 'host');
  const fh = await guest.open(file.node);
  assert.equal(Buffer.from(new Uint8Array((await guest.read(file.node, fh, 0, 100)).data.buffer.slice(16))).subarray(0, 13).toString(), 'from the host');
  const made = await guest.create(1n, 'guest');
  assert.equal((await guest.write(made.entry.node, made.fh, 0, new TextEncoder().encode('from the guest'))).error, 0);
  assert.equal((await guest.call(OP.FSYNC, made.entry.node, concat(u64(made.fh), u32(0, 0)))).error, 0);
  assert.equal(readFileSync(join(directory, 'guest'), 'utf8'), 'from the guest');
  assert.equal((await guest.call(OP.SYMLINK, 1n, concat(name('link'), name('guest')), 128)).error, 0);
  assert.equal(readlinkSync(join(directory, 'link')), 'guest');
  assert.equal((await guest.call(OP.RENAME, 1n, concat(u64(1), name('guest'), name('renamed')))).error, 0);
  assert.deepEqual(await guest.list(1n), readdirSync(directory).sort());
  assert.ok(existsSync(join(directory, 'renamed')));
  assert.equal((await guest.call(OP.SETXATTR, file.node, concat(u32(1, 0, 0, 0), name('user.a'), new TextEncoder().encode('x')))).error, 0);
}

/** A bound datagram socket; a name that begins with NUL is abstract. */
export function datagramSocket(path: string): number {
  const fd = c.check(c.socket(1, 2, 0), 'socket');
  const address = NativeMemory.allocate(128);
  address.dv.setUint16(0, 1, true);
  address.u8.set(Buffer.from(path), 2);
  c.check(c.bind(fd, address.address, 2 + path.length), 'bind');
  address.free();
  return fd;
}

/** Datagrams that have come. */
export function heard(fd: number): string[] {
  const messages: string[] = [];
  for (;;) {
    const { length, data } = receive(fd, 65536);
    if (length <= 0) return messages;
    messages.push(Buffer.from(data).toString());
  }
}

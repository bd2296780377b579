// The way libvirt starts a virtiofs daemon: a listening socket as a descriptor, legacy options, foreground.
import assert from 'node:assert/strict'
import { closeSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { AF_UNIX, SOCK_STREAM } from '../../src/ffi/constants.js'
import { check, listen, socket } from '../../src/ffi/libc.js'
import { bindUnix } from '../../src/ffi/socket.js'
import { MAIN, otherDaemon } from './daemon.js'
import { Guest } from './guest.js'
import { withDaemon } from './session.js'

/** The descriptor in the daemon; spawn places the fourth stdio entry there. */
const LISTEN_FD = 3

/**
 * A listening, blocking Unix socket, as libvirt makes one. Not a net.Server: that would accept connections itself.
 * The caller closes it.
 */
function listenAt(path: string): number {
  const fd = check(socket(AF_UNIX, SOCK_STREAM, 0), 'socket')
  check(bindUnix(fd, path), 'bind')
  check(listen(fd, 1), 'listen')
  return fd
}

function argv(): string[] {
  const start = otherDaemon ? [process.env['E2E_DAEMON']!.split(' ')[0]!] : [process.execPath, MAIN]
  return [...start, `--fd=${LISTEN_FD}`, '-o', 'source={DIR},cache=always,xattr', '-f']
}

test("started libvirt's way (--fd, -o source=…,cache=always,xattr -f), the share is mounted by QEMU's guest", async () => {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-libvirt-'))
  const socketPath = join(directory, 'socket')
  const fd = listenAt(socketPath)
  try {
    await withDaemon({ argv: argv(), listenFd: fd }, async (daemon) => {
      writeFileSync(join(daemon.shareDir, 'file'), 'by descriptor\n')
      const guest = await Guest.boot({ socketPath, abort: daemon.untilDeath() })
      try {
        await guest.mount()
        assert.equal(await guest.sh('cat /mnt/file'), 'by descriptor')
        // The option xattr was understood: ENODATA rather than EOPNOTSUPP, says the fact.
        assert.match(await guest.sh("mkdir /mnt/facts && posix /mnt/facts xattr 'XATTR_CREATE on an existing'"), /^ok 1 /)
      } finally {
        await guest.stop()
      }
    })
  } finally {
    closeSync(fd)
    rmSync(directory, { recursive: true, force: true })
  }
})

// One daemon outlives its guests: five QEMU processes one after the other, and five reboots within one of them.
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { type Daemon, otherDaemon } from './daemon.js'
import { Guest } from './guest.js'
import { withDaemon, withGuest } from './session.js'

const REBOOTS = 5
const skip = otherDaemon ? 'the daemon named ends with its connection' : false

async function useShare(daemon: Daemon, guest: Guest, round: number): Promise<void> {
  await guest.mount()
  writeFileSync(join(daemon.shareDir, 'host'), `host ${round}\n`)
  assert.equal(await guest.sh('cat /mnt/host'), `host ${round}`)
  await guest.sh(`echo guest ${round} > /mnt/guest${round}`)
  for (let earlier = 1; earlier <= round; earlier++) {
    assert.equal(readFileSync(join(daemon.shareDir, `guest${earlier}`), 'utf8'), `guest ${earlier}\n`)
  }
}

test(`a guest reboots ${REBOOTS} times inside one QEMU, and each mount works`, { skip }, async () => {
  await withGuest({}, {}, async (daemon, guest) => {
    await useShare(daemon, guest, 1)
    for (let round = 2; round <= REBOOTS + 1; round++) {
      // No unmount, a file left open: as a crash would leave it.
      await guest.sh('sleep 1000 < /mnt/host > /dev/null 2>&1 &')
      await guest.reboot()
      await useShare(daemon, guest, round)
    }
    assert.ok(daemon.alive)
  })
})

test(`${REBOOTS} QEMU processes, killed or powered off, use one daemon one after the other`, { skip }, async () => {
  await withDaemon({}, async (daemon) => {
    for (let round = 1; round <= REBOOTS; round++) {
      const guest = await Guest.boot({ socketPath: daemon.socketPath, abort: daemon.untilDeath(), requestQueues: round % 2 === 0 ? 2 : 1 })
      try {
        await useShare(daemon, guest, round)
        if (round % 2 === 0) await guest.powerOff()
      } finally {
        await guest.stop()
      }
      assert.ok(daemon.alive)
    }
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null })
  })
})

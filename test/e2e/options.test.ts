// What options change for a guest as a whole: translated ids, and other file systems inside the share.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, chownSync, lstatSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { MAIN, otherDaemon } from './daemon.js'
import { withGuest } from './session.js'

const skip = otherDaemon ? 'options of ours' : false
/** Guest ids 1000 to 1999 are 101000 to 101999 on the host, in both directions. */
const TRANSLATED = ['--translate-uid', 'map:1000:101000:1000', '--translate-gid', 'map:1000:101000:1000']
// Ids inside of ACLs are not translated, so the usual options with --posix-acl will not do.
// What is mounted later reaches a sandbox only where the host's mounts are shared, which they need not be here.
const argv = [
  process.execPath, MAIN, '--socket-path', '{SOCK}', '--shared-dir', '{DIR}', '--xattr', '--sandbox=none', ...TRANSLATED,
]

test('a guest behind translated ids, with a file system mounted inside the share', { skip }, async (context) => {
  await withGuest({ argv }, {}, async (daemon, guest) => {
    const host = (name: string): string => join(daemon.shareDir, name)
    const owner = (name: string): number[] => [lstatSync(host(name)).uid, lstatSync(host(name)).gid]
    const other = host('other')
    mkdirSync(other)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'test', other])
    try {
      chmodSync(daemon.shareDir, 0o777)
      await guest.mount()
      await guest.sh('chmod 755 / /bin /bin/busybox && mkdir -p /etc && printf "one:x:1000:1001::/:/bin/sh\\ntwo:x:1002:1003::/:/bin/sh\\n" > /etc/passwd')

      await context.test('what user 1000 makes in the guest belongs to user 101000 on the host, and to 1000 in the guest', async () => {
        await guest.sh('mkdir /mnt/home && chown 1000:1001 /mnt/home')
        assert.deepEqual(owner('home'), [101000, 101001])
        await guest.sh('su one -c "cd /mnt/home && echo x > made && mkdir sub && ln -s made link"')
        for (const made of ['made', 'sub', 'link']) {
          assert.deepEqual(owner(`home/${made}`), [101000, 101001], made)
          assert.equal(await guest.sh(`stat -c %u:%g /mnt/home/${made}`), '1000:1001', made)
        }
      })
      await context.test('what root makes stays root\'s, and a host file of user 101002 is user 1002\'s in the guest', async () => {
        await guest.sh('echo x > /mnt/of-root')
        assert.deepEqual(owner('of-root'), [0, 0])
        writeFileSync(host('of-host'), 'x')
        chownSync(host('of-host'), 101002, 101003)
        assert.equal(await guest.sh('stat -c %u:%g /mnt/of-host'), '1002:1003')
        await guest.sh('su two -c "echo y >> /mnt/of-host"')
      })
      await context.test('the file system inside the share is a mount of its own, with a device number and a size of its own', async () => {
        const device = (name: string): Promise<string> => guest.sh(`stat -c %d /mnt/${name}`)
        await guest.sh('mkdir /mnt/other/below && echo inside > /mnt/other/below/f')
        assert.notEqual(await device('other'), await device(''))
        assert.equal(await device('other/below'), await device('other'))
        assert.equal(await device('home'), await device(''))
        assert.match(await guest.sh('cat /proc/mounts'), / \/mnt\/other virtiofs /)
        assert.equal(await guest.sh("df -k /mnt/other | tail -n 1 | awk '{ print $2 }'"), '1024')
        assert.equal(await guest.sh('cat /mnt/other/below/f'), 'inside')
        assert.notEqual((await guest.run('ln /mnt/other/below/f /mnt/linked')).code, 0, 'links do not cross')
        await guest.sh('umount /mnt')
      })
    } finally {
      spawnSync('umount', ['-l', other])
    }
  })
})

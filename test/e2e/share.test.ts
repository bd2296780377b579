// What one side writes, the other reads: the host's view of the share and the guest's are one.
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { withGuest } from './session.js'

/** How long a guest may believe what it knows with cache auto (1 s), and some. */
const CACHE_TIMEOUT_S = 2

for (const cache of ['auto', 'never'] as const) {
  test(`host and guest share one directory, cache ${cache}`, async (context) => {
    await withGuest({ cache }, {}, async (daemon, guest) => {
      const host = (name: string): string => join(daemon.shareDir, name)
      const forget = (): Promise<string> => guest.sh(cache === 'auto' ? `sleep ${CACHE_TIMEOUT_S}` : ':')
      await guest.mount()

      await context.test('a file that the host writes is read in the guest', async () => {
        writeFileSync(host('from-host'), 'written on the host\n')
        assert.equal(await guest.sh('cat /mnt/from-host'), 'written on the host')
      })
      await context.test('a file that the guest writes is on the host', async () => {
        await guest.sh('echo written in the guest > /mnt/from-guest')
        assert.equal(readFileSync(host('from-guest'), 'utf8'), 'written in the guest\n')
      })
      await context.test('a change on the host is seen in the guest when its cache is over', async () => {
        writeFileSync(host('from-host'), 'changed, and longer than before\n')
        await forget()
        assert.equal(await guest.sh('cat /mnt/from-host; wc -c < /mnt/from-host'), 'changed, and longer than before\n32')
      })
      await context.test('an append in the guest is on the host, an append on the host in the guest', async () => {
        await guest.sh('echo one > /mnt/both')
        writeFileSync(host('both'), 'two\n', { flag: 'a' })
        await forget()
        await guest.sh('echo three >> /mnt/both')
        assert.equal(readFileSync(host('both'), 'utf8'), 'one\ntwo\nthree\n')
      })
      await context.test('names that the host makes, renames and removes follow in the guest', async () => {
        mkdirSync(host('directory'))
        writeFileSync(host('directory/a'), '')
        symlinkSync('a', host('directory/link'))
        assert.equal(await guest.sh('ls -1 /mnt/directory; readlink /mnt/directory/link'), 'a\nlink\na')
        renameSync(host('directory/a'), host('directory/b'))
        rmSync(host('directory/link'))
        await forget()
        assert.equal(await guest.sh('ls -1 /mnt/directory'), 'b')
      })
      await context.test('names that the guest makes, renames and removes follow on the host', async () => {
        await guest.sh('mkdir -p /mnt/tree/sub && echo x > /mnt/tree/sub/f && ln -s sub/f /mnt/tree/l && mv /mnt/tree/sub /mnt/tree/moved')
        assert.deepEqual(readdirSync(host('tree')).sort(), ['l', 'moved'])
        assert.equal(readlinkSync(host('tree/l')), 'sub/f')
        await guest.sh('rm -r /mnt/tree')
        assert.throws(() => lstatSync(host('tree')), { code: 'ENOENT' })
      })
      await context.test('mode, owner and time that the guest sets are on the host', async () => {
        await guest.sh('echo x > /mnt/owned && chmod 2750 /mnt/owned && chown 1234:5678 /mnt/owned && chmod 2750 /mnt/owned && touch -d @1000000000 /mnt/owned')
        const status = lstatSync(host('owned'))
        assert.deepEqual([status.mode & 0o7777, status.uid, status.gid, status.mtimeMs], [0o2750, 1234, 5678, 1_000_000_000_000])
      })
      await context.test('an 8 MiB file of random bytes goes both ways unchanged', async () => {
        const bytes = randomBytes(8 * 1024 * 1024)
        const sum = createHash('sha256').update(bytes).digest('hex')
        writeFileSync(host('large'), bytes)
        assert.equal((await guest.sh('sha256sum /mnt/large')).split(' ')[0], sum)
        await guest.sh('cp /mnt/large /tmp/large && cp /tmp/large /mnt/copy && sync')
        assert.ok(readFileSync(host('copy')).equals(bytes))
      })
      await context.test('a symlink on the host cannot lead the guest out of the share', async () => {
        symlinkSync('/etc/hostname', host('absolute'))
        symlinkSync('../../../../../../etc/hostname', host('relative'))
        // Both are followed in the guest, which has no such file.
        assert.notEqual((await guest.run('cat /mnt/absolute')).code, 0)
        assert.notEqual((await guest.run('cat /mnt/relative')).code, 0)
      })
      await context.test('unmount and mount again work', async () => {
        await guest.sh('umount /mnt')
        await guest.mount()
        assert.equal(await guest.sh('cat /mnt/from-guest'), 'written in the guest')
      })
    })
  })
}

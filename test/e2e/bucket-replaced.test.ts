// Objects that another client replaces while programs of a real guest read them: a program sees one version, or "Stale file handle".
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { gcsProvider, s3Provider, type Provider } from '../support/providers.js'
import { Rgw } from '../support/rgw.js'
import { pattern } from '../storage/contract.js'
import { MAIN } from './daemon.js'
import type { Guest } from './guest.js'
import { withGuest } from './session.js'

const KIB = 1 << 10
const MIB = 1 << 20
const sum = (content: Uint8Array): string => createHash('sha256').update(content).digest('hex')

/** A program that reads `read` bytes of a file, waits until it may go on, and reads the rest as cat(1) does. */
class Program {
  constructor(readonly guest: Guest, readonly file: string) {}

  async begin(read: number): Promise<void> {
    const at = `/tmp/${this.file}`
    await this.guest.sh(
      `(exec 3< /mnt/${this.file}; dd bs=${16 * KIB} count=${read / (16 * KIB)} <&3 > ${at}.read 2> /dev/null; readlink /proc/self/fd/3 > ${at}.half; ` +
      `until [ -e ${at}.go ]; do sleep 0.1; done; cat <&3 >> ${at}.read 2> ${at}.said; echo $? > ${at}.ended; mv ${at}.ended ${at}.code) > /dev/null 2>&1 & ` +
      `until [ -s ${at}.half ]; do sleep 0.1; done`,
    )
  }

  /** @returns the exit code, what it has said, and the size and digest of what it has read */
  async end(): Promise<{ code: number; said: string; bytes: number; digest: string }> {
    const at = `/tmp/${this.file}`
    const output = await this.guest.sh(`touch ${at}.go; until [ -e ${at}.code ]; do sleep 0.1; done; cat ${at}.code; wc -c < ${at}.read; sha256sum < ${at}.read; cat ${at}.said`)
    const [code, bytes, digest, ...said] = output.split('\n')
    return { code: Number(code), said: said.join('\n'), bytes: Number(bytes), digest: digest!.split(' ')[0]! }
  }
}

async function endsAsOneVersion(program: Program, whole: Uint8Array): Promise<void> {
  const { code, said, bytes, digest } = await program.end()
  assert.equal(digest, sum(whole.subarray(0, bytes)), 'bytes of another version')
  if (code === 0) assert.equal(bytes, whole.length, 'a clean end before the end of what was opened')
  else assert.match(said, /Stale file handle/)
}

function suite(name: string, skip: string | false, open: () => Promise<Provider>): void {
  test(`${name}: what another client replaces while a guest reads it`, { skip }, async (context) => {
    const provider = await open()
    context.after(() => provider.stop())
    const { store } = provider
    const argv = [process.execPath, MAIN, '--socket-path', '{SOCK}', '--cache-dir', '{DIR}', '--metadata-ttl', '0', '--memory-budget', '32', '--source', provider.source, ...provider.options]
    await withGuest({ argv, env: provider.env }, {}, async (_daemon, guest) => {
      await guest.mount()
      for (const [fact, file, before, read, after] of [
        ['an object of 9 MiB of which 8 were read, by 1,000 bytes', 'large', 9 * MIB, 8 * MIB, 1000],
        ['a log of 300 KiB of which 64 were read, by 10 bytes', 'log', 300 * KIB, 64 * KIB, 10],
        ['one by a longer one', 'longer', 300 * KIB, 64 * KIB, 2 * MIB],
      ] as const) {
        await context.test(`is read to its end or to an error, and a second program reads the other one: ${fact}`, async () => {
          const [old, next] = [pattern(before, 1), pattern(after, 2)]
          await store.put(file, old)
          const program = new Program(guest, file)
          await program.begin(read)
          await store.put(file, next)
          assert.equal((await guest.sh(`sha256sum < /mnt/${file}`)).split(' ')[0], sum(next))
          assert.equal(await guest.sh(`stat -c %s /mnt/${file}`), String(after))
          await endsAsOneVersion(program, old)
        })
      }
      await context.test('the open one and the one in its place are two files, and the name is of the second', async () => {
        await store.put('two', pattern(5000, 1))
        await guest.sh('(exec 3< /mnt/two; touch /tmp/two.open; until [ -e /tmp/two.go ]; do sleep 0.1; done; ' +
          'stat -L -c "%s %h" /proc/self/fd/3; stat -c "%s %h" /mnt/two; [ /proc/self/fd/3 -ef /mnt/two ] && echo one || echo others; rm /mnt/two; ' +
          'stat -L -c "%s %h" /proc/self/fd/3; [ -e /mnt/two ] || echo gone) > /tmp/two.said 2>&1 & until [ -e /tmp/two.open ]; do sleep 0.1; done')
        await store.put('two', pattern(70, 2))
        assert.equal(await guest.sh('touch /tmp/two.go; wait; until grep -q gone /tmp/two.said; do sleep 0.1; done; cat /tmp/two.said'), '5000 0\n70 1\nothers\n5000 0\ngone')
        assert.deepEqual((await store.list({ prefix: 'two' })).objects, [])
      })
    })
  })
}

suite('S3 (Ceph RGW)', Rgw.unavailable(), () => s3Provider('a-bucket'))
suite('Google Cloud Storage (a server of the tests)', false, () => gcsProvider('a-bucket'))

// A bucket in a real guest: what other programs have put there is a file system, read-only.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import type { ObjectStore } from '../../src/storage/object/store.js'
import { credentialsOf, gcsProvider, s3Provider, type Provider } from '../support/providers.js'
import { Rgw } from '../support/rgw.js'
import { MAIN } from './daemon.js'
import { withGuest } from './session.js'

const BUCKET = 'a-bucket'
const PREFIX = 'some/where/'
const MANY = 1500
const BIG = randomBytes(24 << 20)
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
const sum = (content: Uint8Array): string => createHash('sha256').update(content).digest('hex')

async function fill(store: ObjectStore): Promise<void> {
  const put = (key: string, content: Uint8Array, metadata: Record<string, string> = {}): Promise<string> => store.put(PREFIX + key, content, { metadata })
  await put('hello', bytes('hello from a bucket\n'))
  await put('dir/deep/er', bytes('deep\n'))
  await put('both', bytes('the object\n'))
  await put('both/below', bytes('below\n'))
  await put('a//b', bytes('an empty component\n'))
  await put('private', bytes('x'), { mode: '33152', uid: '1000', gid: '1001', mtime: '1000000000' })
  await put('link', bytes('dir/deep/er'), { mode: '41471' })
  await put('big', BIG)
  await store.put('outside', bytes('not to be seen'))
  for (let i = 0; i < MANY; i += 100) {
    await Promise.all(Array.from({ length: 100 }, (_, j) => put(`many/${String(i + j).padStart(5, '0')}`, bytes(String(i + j)))))
  }
}

function suite(name: string, skip: string | false, open: () => Promise<Provider>): void {
  test(`${name}: a guest reads a bucket as a file system`, { skip }, async (context) => {
    const provider = await open()
    context.after(() => provider.stop())
    await fill(provider.store)
    const argv = [process.execPath, MAIN, '--socket-path', '{SOCK}', '--readonly', '--memory-budget', '64', '--source', `${provider.source}/${PREFIX}`, ...provider.options]
    await withGuest({ argv, env: provider.env }, {}, async (_daemon, guest) => {
      await guest.mount()
      await context.test('objects are files, keys with slashes are directories', async () => {
        assert.equal(await guest.sh('cat /mnt/hello /mnt/dir/deep/er; ls -1 /mnt'), 'hello from a bucket\ndeep\na\nbig\nboth\nboth%~f\ndir\nhello\nlink\nmany\nprivate')
      })
      await context.test('an object and a directory of one name, and an empty component, are all there', async () => {
        assert.equal(await guest.sh("cat /mnt/both/below '/mnt/both%~f' '/mnt/a/%~e/b'"), 'below\nthe object\nan empty component')
      })
      await context.test('modes, owners, times and links of the metadata', async () => {
        assert.equal(await guest.sh("stat -c '%a %u %g %Y %s' /mnt/private; readlink /mnt/link; cat /mnt/link"), '600 1000 1001 1000000000 1\ndir/deep/er\ndeep')
      })
      await context.test('a file of 24 MiB is read whole, in order and from the middle', async () => {
        assert.equal((await guest.sh('sha256sum /mnt/big')).split(' ')[0], sum(BIG))
        const middle = await guest.sh('dd if=/mnt/big bs=4096 skip=3000 count=2 2>/dev/null | sha256sum')
        assert.equal(middle.split(' ')[0], sum(BIG.subarray(3000 * 4096, 3002 * 4096)))
      })
      await context.test(`a directory of ${MANY} objects is listed whole`, async () => {
        assert.equal(await guest.sh("ls /mnt/many | wc -l; find /mnt/many -type f | wc -l; cat /mnt/many/01234"), `${MANY}\n${MANY}\n1234`)
      })
      await context.test('what others change is read by who opens it afterwards', async () => {
        await provider.store.put(`${PREFIX}hello`, bytes('changed by somebody else\n'))
        assert.equal(await guest.sh('cat /mnt/hello'), 'changed by somebody else')
        await provider.store.remove(`${PREFIX}hello`)
        assert.notEqual((await guest.run('cat /mnt/hello')).code, 0)
      })
      await context.test('nothing can be changed', async () => {
        for (const command of ['echo x > /mnt/new', 'echo x >> /mnt/private', 'rm /mnt/private', 'mkdir /mnt/d', 'mv /mnt/private /mnt/p', 'chmod 777 /mnt/private']) {
          const { code, output } = await guest.run(`(${command}) 2>&1`)
          assert.ok(code !== 0 && /Read-only file system/.test(output), `${command}: ${output}`)
        }
      })
    })
  })
}

/** Standard error of a daemon that does not start, and its exit code. */
function refusal(argv: readonly string[], env: Readonly<Record<string, string>>): string {
  const socket = join(tmpdir(), `bucketfsd-never-${process.pid}`)
  const { status, stderr } = spawnSync(process.execPath, [MAIN, '--socket-path', socket, '--readonly', ...argv], {
    encoding: 'utf8', env: { ...process.env, ...env }, timeout: 60_000,
  })
  assert.equal(existsSync(socket), false)
  return `${status}: ${stderr}`
}

test('a bucket that cannot be shared is one sentence that says what to do, and exit code 1', { skip: Rgw.unavailable() }, async () => {
  const server = await Rgw.start()
  try {
    const env = credentialsOf(server)
    const at = ['--endpoint', server.endpoint, '--path-style']
    assert.match(refusal(['--source', 's3://nobody-has-it', ...at], env), /^1: bucketfsd: cannot share s3:\/\/nobody-has-it: there is no bucket nobody-has-it at http:.*\n$/)
    const wrong = refusal(['--source', 's3://bucket', ...at], { ...env, AWS_SECRET_ACCESS_KEY: 'wrong' })
    assert.match(wrong, /^1: bucketfsd: cannot share s3:\/\/bucket: the credentials are missing or wrong .*check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.*\n$/)
    const closed = refusal(['--source', 's3://bucket', '--endpoint', 'http://127.0.0.1:1'], env)
    assert.match(closed, /^1: bucketfsd: cannot share s3:\/\/bucket: http:\/\/127.0.0.1:1 cannot be reached .*: check --endpoint\n$/)
    assert.match(refusal(['--source', 'gs://bucket', '--endpoint', 'http://127.0.0.1:1', '--unsigned'], {}), /^1: bucketfsd: cannot share gs:\/\/bucket: .* cannot be reached .*\n$/)
    assert.match(refusal(['--source', 's3://bucket', '--ca-bundle', '/nonexistent', ...at], env), /^1: bucketfsd: cannot read the certificates of --ca-bundle: .*\n$/)
  } finally {
    server.stop()
  }
})

test('bucketfsd check says what a provider does, and leaves nothing behind', { skip: Rgw.unavailable() }, async () => {
  const provider = await s3Provider(BUCKET)
  try {
    const check = (...more: string[]) =>
      spawnSync(process.execPath, [MAIN, 'check', '--source', `${provider.source}/p`, ...provider.options, ...more], {
        encoding: 'utf8', env: { ...process.env, ...provider.env }, timeout: 60_000,
      })
    const { status, stdout, stderr } = check()
    assert.deepEqual([status, stderr], [0, ''])
    for (const expected of [/bucket and credentials +good/, /writing +allowed/, /only if there is none +yes/, /server-side copies into uploads in parts +any range/, /rename as one step +no/]) {
      assert.match(stdout, expected)
    }
    assert.match(check('--readonly').stdout, /writing +not tried/)
    assert.match(check('--unsigned').stderr, /^bucketfsd: cannot share s3:\/\/a-bucket\/p: these credentials may not list it .*--unsigned uses none\n$/)
    assert.deepEqual((await provider.store.list({ prefix: '' })).objects, [])
  } finally {
    await provider.stop()
  }
})

suite('S3 (Ceph RGW)', Rgw.unavailable(), () => s3Provider(BUCKET))
suite('Google Cloud Storage (a server of the tests)', false, () => gcsProvider(BUCKET))

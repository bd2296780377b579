// A bucket that a real guest writes: what its programs have closed, another client of the bucket reads.
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { readPosix } from '../../src/storage/object/posix-metadata.js'
import { readBucket } from '../support/manifest.js'
import { gcsProvider, s3Provider, type Provider } from '../support/providers.js'
import { Rgw } from '../support/rgw.js'
import { MAIN, type DaemonOptions } from './daemon.js'
import { parseFacts } from './facts.js'
import type { Guest } from './guest.js'
import { withGuest } from './session.js'

const PREFIX = 'some/where/'
const MIB = 1 << 20
/** As large as parts are, and more. */
const LARGE = randomBytes(40 * MIB + 12345)
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
const sum = (content: Uint8Array): string => createHash('sha256').update(content).digest('hex')

/** A daemon with a cache directory of its own. */
function sharing(provider: Provider, ...more: string[]): DaemonOptions {
  const argv = [process.execPath, MAIN, '--socket-path', '{SOCK}', '--cache-dir', '{DIR}', '--source', `${provider.source}/${PREFIX}`, ...provider.options, ...more]
  return { argv, env: provider.env }
}

/** The other client: keys and contents without the prefix. */
class Elsewhere {
  constructor(readonly provider: Provider) {}

  content(key: string): Promise<Buffer> {
    return this.provider.get(PREFIX + key)
  }

  async text(key: string): Promise<string> {
    return (await this.content(key)).toString()
  }

  async posix(key: string): Promise<ReturnType<typeof readPosix>['posix']> {
    return readPosix((await this.provider.store.head(PREFIX + key)).metadata ?? {}).posix
  }

  put(key: string, text: string): Promise<string> {
    return this.provider.store.put(PREFIX + key, bytes(text))
  }

  async keys(below = ''): Promise<string[]> {
    return [...(await readBucket(this.provider.store, PREFIX + below)).keys()].sort()
  }
}

type Step = readonly [fact: string, body: (guest: Guest, other: Elsewhere) => Promise<void>]

const STEPS: readonly Step[] = [
  ['a file that is written and closed', async (guest, other) => {
    await guest.sh('echo written in the guest > /mnt/new')
    assert.equal(await other.text('new'), 'written in the guest\n')
  }],
  ['an append, to a file of somebody else and again', async (guest, other) => {
    await other.put('log', 'one\n')
    await guest.sh('echo two >> /mnt/log; echo three >> /mnt/log')
    assert.equal(await other.text('log'), 'one\ntwo\nthree\n')
  }],
  ['cp of a large file, read back and read elsewhere', async (guest, other) => {
    await other.provider.store.put(`${PREFIX}large`, LARGE)
    await guest.sh('cp /mnt/large /mnt/copy && cmp /mnt/large /mnt/copy')
    assert.equal(sum(await other.content('copy')), sum(LARGE))
  }],
  ['a few bytes in the middle of a large file', async (guest, other) => {
    await guest.sh('printf changed | dd of=/mnt/copy bs=1 seek=20000000 conv=notrunc 2>/dev/null')
    const expected = Buffer.from(LARGE)
    expected.set(bytes('changed'), 20_000_000)
    assert.equal(sum(await other.content('copy')), sum(expected))
  }],
  ['truncate, shorter and longer', async (guest, other) => {
    await guest.sh('truncate -s 1000000 /mnt/copy && truncate -s 1000100 /mnt/copy')
    assert.equal(sum(await other.content('copy')), sum(Buffer.concat([LARGE.subarray(0, 1_000_000), Buffer.alloc(100)])))
  }],
  ['sed -i', async (guest, other) => {
    await guest.sh("sed -i 's/two/2/' /mnt/log")
    assert.equal(await other.text('log'), 'one\n2\nthree\n')
    assert.deepEqual((await other.keys()).filter((key) => key.startsWith('sed')), [])
  }],
  ['mkdir -p, and files in it', async (guest, other) => {
    await guest.sh('mkdir -p /mnt/a/b/c && echo deep > /mnt/a/b/c/f && echo upper > /mnt/a/g')
    assert.deepEqual([await other.text('a/b/c/f'), await other.text('a/g')], ['deep\n', 'upper\n'])
  }],
  ['mv of a file, also onto another', async (guest, other) => {
    await guest.sh('mv /mnt/new /mnt/a/moved && echo newer > /mnt/newer && mv /mnt/newer /mnt/a/g')
    assert.deepEqual([await other.text('a/moved'), await other.text('a/g')], ['written in the guest\n', 'newer\n'])
    const keys = await other.keys()
    assert.ok(!keys.includes('new') && !keys.includes('newer'), keys.join())
  }],
  ['mv of a directory', async (guest, other) => {
    await guest.sh('mv /mnt/a /mnt/z && [ ! -e /mnt/a ] && cat /mnt/z/b/c/f')
    assert.equal(await other.text('z/b/c/f'), 'deep\n')
    assert.deepEqual(await other.keys('a/'), [])
  }],
  ['a symbolic link', async (guest, other) => {
    assert.equal(await guest.sh('ln -s z/g /mnt/link && cat /mnt/link'), 'newer')
    assert.equal(await other.text('link'), 'z/g')
    assert.equal((await other.posix('link')).mode! & 0o170000, 0o120000)
  }],
  ['chmod, chown and touch -d', async (guest, other) => {
    await guest.sh('chown 1234:5678 /mnt/log && chmod 640 /mnt/log && touch -d @1000000000 /mnt/log')
    const { mode, uid, gid, mtime } = await other.posix('log')
    assert.deepEqual([mode! & 0o7777, uid, gid, mtime?.seconds], [0o640, 1234, 5678, 1_000_000_000])
    assert.equal(await other.text('log'), 'one\n2\nthree\n')
    assert.equal(await guest.sh('stat -c "%a %u %g %Y" /mnt/log'), '640 1234 5678 1000000000')
  }],
  ['tar x', async (guest, other) => {
    await guest.sh('cd /tmp && mkdir -p t/d && for i in 1 2 3 4 5; do seq $i$i$i > t/d/$i; done && ln -s d/1 t/l && tar cf /tmp/t.tar t && tar xf /tmp/t.tar -C /mnt && diff -r t /mnt/t')
    assert.equal(await other.text('t/d/3'), Array.from({ length: 333 }, (_, i) => `${i + 1}\n`).join(''))
    assert.equal(await other.text('t/l'), 'd/1')
  }],
  ['dd with fsync, before it is closed', async (guest, other) => {
    await guest.sh('dd if=/dev/zero of=/mnt/zeros bs=1M count=3 conv=fsync 2>/dev/null')
    assert.deepEqual(await other.content('zeros'), Buffer.alloc(3 * MIB))
  }],
  ['what was written through a mapping', async (guest, other) => {
    const facts = parseFacts((await guest.run('mkdir /mnt/mapped && posix /mnt/mapped mmap "shared writes"')).output)
    assert.deepEqual(facts.map(({ outcome, detail }) => `${outcome} ${detail}`.trim()), ['ok', 'ok'])
    const [first, second] = [await other.content('mapped/1/f'), await other.content('mapped/2/f')]
    assert.deepEqual([first.length, first.toString('latin1', 4090, 4102), second.length, second.toString('latin1', 0, 4)], [12288, 'across pages', 4096, 'kept'])
  }],
  ['locks between two processes of the guest, and four writers of one file', async (guest) => {
    const facts = parseFacts((await guest.run('mkdir /mnt/locks; posix /mnt/locks "" flock; mkdir /mnt/together')).output)
    const together = parseFacts((await guest.run('posix /mnt/together "" "4 writers"')).output)
    assert.ok(facts.length >= 4 && together.length >= 2)
    assert.deepEqual([...facts, ...together].filter(({ outcome }) => outcome === 'failed'), [])
  }],
  ['a file that is removed while it is open goes on until it is closed', async (guest, other) => {
    assert.equal(await guest.sh('echo gone > /mnt/gone; exec 3< /mnt/gone; rm /mnt/gone; cat <&3; ls /mnt | grep -c gone; true'), 'gone\n0')
    assert.deepEqual((await other.keys()).filter((key) => key.includes('gone')), [])
  }],
  ['rm -r, mv and find of trees whose names are escaped, in one run with nothing left', async (guest, other) => {
    for (const tree of ['rm', 'moved', 'found']) {
      for (const key of ['x', 'x/b', 'd/', 'd2', 'd2/', 'e/f', 'e/f/g', 'e/f/g/h', '/y', '/', '//z', './q', '../w', 'L'.repeat(300), `${'L'.repeat(300)}/k`]) await other.put(`escaped-${tree}/${key}`, key)
    }
    const until = there('/mnt/escaped-found')
    await guest.sh(`${until}; ls -R /mnt/escaped-* > /dev/null; rm -r /mnt/escaped-rm && mv /mnt/escaped-moved /mnt/escaped-to && rm -r /mnt/escaped-to && find /mnt/escaped-found -depth \\( -type d -exec rmdir {} \\; -o -exec rm {} \\; \\)`, 120_000)
    assert.deepEqual(await other.keys('escaped'), [])
  }],
  ['rm -r', async (guest, other) => {
    await guest.sh('rm -r /mnt/z /mnt/t /mnt/mapped /mnt/locks /mnt/together /mnt/copy /mnt/link /mnt/zeros')
    assert.deepEqual(await other.keys(), ['large', 'log'])
  }],
]

function suite(name: string, skip: string | false, open: () => Promise<Provider>): void {
  test(`${name}: what a guest writes, another client of the bucket reads`, { skip }, async (context) => {
    const provider = await open()
    context.after(() => provider.stop())
    const other = new Elsewhere(provider)
    await withGuest(sharing(provider), {}, async (_daemon, guest) => {
      await guest.mount()
      for (const [fact, body] of STEPS) await context.test(fact, () => body(guest, other))
    })
  })

  test(`${name}: durability writeback, what a guest has written is there when it has unmounted and the daemon has ended`, { skip }, async (context) => {
    const provider = await open()
    context.after(() => provider.stop())
    await withGuest(sharing(provider, '--durability', 'writeback'), {}, async (_daemon, guest) => {
      await guest.mount()
      await guest.sh('mkdir /mnt/d && for i in 1 2 3 4 5 6 7 8 9; do seq $i > /mnt/d/$i; done; dd if=/dev/zero of=/mnt/synced bs=1M count=20 conv=fsync 2>/dev/null; umount /mnt')
    })
    const other = new Elsewhere(provider)
    assert.deepEqual((await other.keys()).filter((key) => key !== 'd/'), [...Array.from({ length: 9 }, (_, i) => `d/${i + 1}`), 'synced'])
    assert.equal(await other.text('d/4'), '1\n2\n3\n4\n')
    assert.deepEqual(await other.content('synced'), Buffer.alloc(20 * MIB))
  })

  test(`${name}: two guests with a daemon each on one bucket`, { skip }, async (context) => {
    const provider = await open()
    context.after(() => provider.stop())
    const other = new Elsewhere(provider)
    await withGuest(sharing(provider), {}, (_one, a) => withGuest(sharing(provider), {}, async (_two, b) => {
      await Promise.all([a.mount(), b.mount()])
      await context.test('what one has closed, the other reads when it opens', () => closeToOpen(a, b))
      await context.test('who commits on top of what another has changed meanwhile gets ESTALE, and a copy is kept', () => conflict(a, b, other))
      await context.test('the one that lost reads what is there, and can write again', async () => {
        assert.equal(await a.sh('cat /mnt/contended'), 'changed by b')
        await a.sh('echo and by a >> /mnt/contended')
        assert.equal(await b.sh('cat /mnt/contended'), 'changed by b\nand by a')
      })
    }))
  })
}

/** That a name is not there is believed for --metadata-ttl. */
const there = (path: string): string => `until [ -e ${path} ]; do sleep 0.1; done`

async function closeToOpen(a: Guest, b: Guest): Promise<void> {
  let expected = ''
  for (let i = 0; i < 5; i++) {
    const [writer, reader] = i % 2 === 0 ? [a, b] : [b, a]
    // Of one length, so that the size gives nothing away
    expected = `round ${i}`
    await writer.sh(`echo ${expected} > /mnt/shared`)
    assert.equal(await reader.sh('cat /mnt/shared'), expected)
  }
  await a.sh('mkdir /mnt/dir && echo x > /mnt/dir/x')
  assert.equal(await b.sh(`${there('/mnt/dir/x')}; cat /mnt/dir/x && mv /mnt/dir/x /mnt/dir/y && ls /mnt/dir`), 'x\ny')
}

/** `a` has the file open and has written, `b` writes it and closes, `a` syncs. */
async function conflict(a: Guest, b: Guest, other: Elsewhere): Promise<void> {
  await a.sh('echo at first > /mnt/contended')
  await a.sh('mkfifo /tmp/pipe; (printf held; while [ ! -e /tmp/go ]; do sleep 0.1; done) > /tmp/pipe & ' +
    '(dd if=/tmp/pipe of=/mnt/contended bs=4 conv=notrunc,fsync 2> /tmp/said; echo $? > /tmp/result; mv /tmp/result /tmp/code) & ' +
    'until [ "$(head -c 4 /mnt/contended)" = held ]; do sleep 0.1; done')
  // Of the version that is going to be lost, the copy has what was read since it was changed; the pages before may be the guest's own
  assert.equal(await a.sh('cat /mnt/contended'), 'heldirst')
  await b.sh(`${there('/mnt/contended')}; echo changed by b > /mnt/contended`)
  const said = await a.sh('touch /tmp/go; until [ -e /tmp/code ]; do sleep 0.1; done; cat /tmp/code /tmp/said')
  assert.match(said, /^1\n/)
  assert.match(said, /Stale file handle/)
  assert.equal(await other.text('contended'), 'changed by b\n')
  const kept = (await other.keys()).filter((key) => key.startsWith('.bucketfsd-conflicts/'))
  assert.equal(kept.length, 1, kept.join())
  assert.match(kept[0]!, /contended\.[^/]+$/)
  assert.equal(await other.text(kept[0]!), 'heldirst\n')
}

suite('S3 (Ceph RGW)', Rgw.unavailable(), () => s3Provider('a-bucket'))
suite('Google Cloud Storage (a server of the tests)', false, () => gcsProvider('a-bucket'))

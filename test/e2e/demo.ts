// The main job, for people to watch. `make demo` runs it: a throw-away VM mounts a directory of the host, reads a file of the
// host's and writes one that the host then has. With SOURCE=s3 or SOURCE=gcs it mounts a bucket instead, on a server that
// is started for it, reads what another client has put there, and writes what the other client then gets.
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gcsProvider, s3Provider, type Provider } from '../support/providers.js'
import { MAIN } from './daemon.js'
import type { Guest } from './guest.js'
import { withGuest } from './session.js'

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

/** Runs commands in the guest, shown as if typed. @returns the output of the last */
async function type(guest: Guest, commands: readonly string[]): Promise<string> {
  let output = ''
  for (const command of commands) {
    say(`guest# ${command}`)
    output = await guest.sh(command)
    if (output !== '') say(output)
  }
  return output
}

async function mounted(guest: Guest): Promise<void> {
  say(`guest: booted ${await guest.sh('uname -sr')} under QEMU`)
  await guest.sh('mount -t virtiofs -o nosuid,nodev share /mnt')
  say('guest# mount -t virtiofs -o nosuid,nodev share /mnt')
}

function directory(): Promise<boolean> {
  return withGuest({ cache: 'auto' }, {}, async (daemon, guest) => {
    say(`bucketfsd ${daemon.pid} shares ${daemon.shareDir} on ${daemon.socketPath}`)
    writeFileSync(join(daemon.shareDir, 'from-host.txt'), 'Hello, guest: the host wrote this.\n')
    say('host:  wrote from-host.txt into it')
    await mounted(guest)
    await type(guest, ['grep virtiofs /proc/mounts', 'cat /mnt/from-host.txt', 'echo "Hello, host: the guest wrote this." > /mnt/from-guest.txt', 'ls -l /mnt'])
    await guest.sh('umount /mnt')
    const written = readFileSync(join(daemon.shareDir, 'from-guest.txt'), 'utf8')
    say(`host$  cat ${join(daemon.shareDir, 'from-guest.txt')}\n${written.trimEnd()}`)
    return written === 'Hello, host: the guest wrote this.\n'
  })
}

async function bucket(provider: Provider): Promise<boolean> {
  try {
    const put = (key: string, text: string): Promise<string> => provider.store.put(key, new TextEncoder().encode(text))
    await put('hello.txt', 'Hello, guest: another client of the bucket wrote this.\n')
    await put('data/2026/report.csv', 'a,b\n1,2\n')
    say(`another client put hello.txt and data/2026/report.csv into ${provider.source}`)
    const argv = [process.execPath, MAIN, '--socket-path', '{SOCK}', '--cache-dir', '{DIR}', '--source', provider.source, ...provider.options]
    return await withGuest({ argv, env: provider.env }, {}, async (daemon, guest) => {
      say(`bucketfsd ${daemon.pid} shares ${provider.source} on ${daemon.socketPath}`)
      await mounted(guest)
      await type(guest, ['ls -lR /mnt', 'cat /mnt/data/2026/report.csv'])
      const read = await type(guest, ['cat /mnt/hello.txt'])
      await type(guest, ['sort /mnt/data/2026/report.csv > /mnt/data/2026/sorted.csv', 'dd if=/dev/urandom of=/mnt/data/random bs=1M count=20 2>/dev/null'])
      const sum = await type(guest, ['sha256sum < /mnt/data/random'])
      const sorted = await provider.get('data/2026/sorted.csv')
      say(`another client GETs data/2026/sorted.csv:\n${sorted.toString().trimEnd()}`)
      const random = createHash('sha256').update(await provider.get('data/random')).digest('hex')
      say(`another client GETs data/random, and its SHA-256 is\n${random}`)
      return read === 'Hello, guest: another client of the bucket wrote this.' && sorted.toString() === '1,2\na,b\n' && sum.startsWith(random)
    })
  } finally {
    await provider.stop()
  }
}

async function demo(source: string): Promise<boolean> {
  switch (source) {
    case 'directory':
      return directory()
    case 's3':
      return bucket(await s3Provider('demo'))
    case 'gcs':
      return bucket(await gcsProvider('demo'))
    default:
      throw new Error(`SOURCE is directory, s3 or gcs, not ${source}`)
  }
}

const source = process.env['SOURCE'] ?? 'directory'
const worked = await demo(source).catch((error: unknown) => {
  say(`The demo could not be shown: ${(error as Error).message.trim()}`)
  process.exit(1)
})
const what = source === 'directory' ? 'one directory, seen from both sides' : 'a bucket, seen by a guest and by another client'
say(worked ? `The demo worked: ${what}.` : 'The demo FAILED: what was read is not what was written.')
process.exitCode = worked ? 0 : 1

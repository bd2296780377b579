// The main job, for people to watch: a throw-away VM mounts a directory of the host, reads a file of the host's and
// writes one that the host then has. `make demo` runs it.
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { withGuest } from './session.js'

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

const code = await withGuest({ cache: 'auto' }, {}, async (daemon, guest) => {
  say(`bucketfsd ${daemon.pid} shares ${daemon.shareDir} on ${daemon.socketPath}`)
  writeFileSync(join(daemon.shareDir, 'from-host.txt'), 'Hello, guest: the host wrote this.\n')
  say(`host:  wrote from-host.txt into it`)
  say(`guest: booted ${await guest.sh('uname -sr')} under QEMU`)
  const mount = 'mount -t virtiofs share /mnt'
  await guest.mount()
  say(`guest# ${mount}`)
  for (const command of ['grep virtiofs /proc/mounts', 'cat /mnt/from-host.txt', 'echo "Hello, host: the guest wrote this." > /mnt/from-guest.txt', 'ls -l /mnt']) {
    say(`guest# ${command}`)
    const output = await guest.sh(command)
    if (output !== '') say(output)
  }
  await guest.sh('umount /mnt')
  const written = readFileSync(join(daemon.shareDir, 'from-guest.txt'), 'utf8')
  say(`host$  cat ${join(daemon.shareDir, 'from-guest.txt')}\n${written.trimEnd()}`)
  return written === 'Hello, host: the guest wrote this.\n' ? 0 : 1
})
say(code === 0 ? 'The demo worked: one directory, seen from both sides.' : 'The demo FAILED: the host did not see what the guest wrote.')
process.exitCode = code

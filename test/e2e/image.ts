// The guest's kernel and initramfs, made by scripts/guest-image.sh when missing or out of date.
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

/** Debian's kernel series: 6.1 knows one request queue; 6.12 uses several, and has FUSE_TMPFILE and more. */
export type KernelSeries = '6.1' | '6.12'

export interface Image {
  readonly vmlinuz: string
  readonly initrd: string
}

/** The directory that holds package.json: sources and build output are at different depths below it. */
export const projectRoot: string = findRoot(dirname(fileURLToPath(import.meta.url)))

function findRoot(from: string): string {
  if (existsSync(join(from, 'package.json'))) return from
  const parent = dirname(from)
  if (parent === from) throw new Error('no package.json above the tests')
  return findRoot(parent)
}

/** Downloading a kernel package may take a while; all else is a matter of seconds. */
const IMAGE_TIMEOUT_MS = 300_000

export async function guestImage(series: KernelSeries): Promise<Image> {
  const script = join(projectRoot, 'scripts', 'guest-image.sh')
  const made = promisify(execFile)(script, [series], { timeout: IMAGE_TIMEOUT_MS })
  made.child.stderr?.on('data', (text) => process.stderr.write(String(text)))
  const { stdout } = await made
  const directory = stdout.trim()
  return { vmlinuz: join(directory, 'vmlinuz'), initrd: join(directory, 'initrd') }
}

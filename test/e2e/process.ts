// What the harness needs of child processes: their end awaited with a limit, and no one left behind.
import type { ChildProcess } from 'node:child_process'
import { rmSync } from 'node:fs'

export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

const running = new Set<ChildProcess>()
/** Directories that go with the process, if they have not gone before. */
export const temporary = new Set<string>()

// A test run that is cut short must not leave an emulator behind.
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL')
  for (const directory of temporary) rmSync(directory, { recursive: true, force: true })
})
// By default a signal ends the process without that.
process.once('SIGTERM', () => process.exit(143))
process.once('SIGINT', () => process.exit(130))

/** Resolves when the process has ended; never rejects. */
export function exitOf(child: ChildProcess): Promise<Exit> {
  running.add(child)
  return new Promise((resolve) => {
    const ended = (code: number | null, signal: NodeJS.Signals | null): void => {
      running.delete(child)
      resolve({ code, signal })
    }
    child.once('exit', ended)
    child.once('error', () => ended(null, null))
  })
}

/** A promise that had not settled in the time it was given. */
export class TimeIsUp extends Error {}

/** Rejects with `message`, as {@link TimeIsUp}, when the promise has not settled after `timeout_ms`. */
export async function within<T>(promise: Promise<T>, timeout_ms: number, message: () => string): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const limit = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new TimeIsUp(message())), timeout_ms)
  })
  try {
    return await Promise.race([promise, limit])
  } finally {
    clearTimeout(timer)
  }
}

/** SIGTERM, then SIGKILL after `grace_ms`. Gives the way it ended. */
export async function terminate(child: ChildProcess, exited: Promise<Exit>, grace_ms: number): Promise<Exit> {
  child.kill('SIGTERM')
  const timer = setTimeout(() => child.kill('SIGKILL'), grace_ms)
  try {
    return await exited
  } finally {
    clearTimeout(timer)
  }
}

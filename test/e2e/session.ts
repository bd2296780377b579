// A daemon and a guest that uses it, both ended whatever happens.
import { Daemon, type DaemonOptions } from './daemon.js'
import { Guest, type GuestOptions } from './guest.js'

export async function withDaemon<T>(options: DaemonOptions, body: (daemon: Daemon) => Promise<T>): Promise<T> {
  const daemon = await Daemon.start(options)
  try {
    return await body(daemon)
  } catch (error) {
    throw withLog(error, daemon)
  } finally {
    await daemon.stop()
  }
}

export function withGuest<T>(
  daemonOptions: DaemonOptions,
  guestOptions: Omit<GuestOptions, 'socketPath' | 'abort'>,
  body: (daemon: Daemon, guest: Guest) => Promise<T>,
): Promise<T> {
  return withDaemon(daemonOptions, async (daemon) => {
    const guest = await Guest.boot({ socketPath: daemon.socketPath, abort: daemon.untilDeath(), ...guestOptions })
    try {
      return await body(daemon, guest)
    } finally {
      await guest.stop()
    }
  })
}

function withLog(error: unknown, daemon: Daemon): Error {
  const failure = error instanceof Error ? error : new Error(String(error))
  failure.message += `\nthe daemon's log (${daemon.alive ? 'still running' : 'ended'}):\n${daemon.log.slice(-4000)}`
  return failure
}

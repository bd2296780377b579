/** What systemd passes to a service and wants to hear from it: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3). */
import { assert } from '../base/assert.js';
import * as c from '../ffi/libc.js';
import { connectDatagram, sendDatagram, setCloseOnExec } from '../ffi/datagram.js';

/** SD_LISTEN_FDS_START: the first descriptor that systemd passes. */
const LISTEN_FDS_START = 3;
const LISTEN_FDS_MAX = 1024;
const STATUS_MAX_CHARACTERS = 200;
/** Longest delay of a Node timer. */
const TIMER_MAX_MS = 2 ** 31 - 1;

function positiveInteger(text: string | undefined): number | null {
  if (text === undefined || !/^\d{1,15}$/.test(text)) return null;
  const value = Number(text);
  return value > 0 ? value : null;
}

/** Descriptors that systemd passed to this very process; none if the variables are meant for another one. */
export function systemdSockets(env: NodeJS.ProcessEnv, pid = process.pid): number[] {
  const count = positiveInteger(env.LISTEN_FDS);
  if (count === null || positiveInteger(env.LISTEN_PID) !== pid) return [];
  return Array.from({ length: Math.min(count, LISTEN_FDS_MAX) }, (_, i) => LISTEN_FDS_START + i);
}

/** Time after which systemd takes the service for hung, in ms, or null if it does not watch this process. */
export function watchdogTimeout_ms(env: NodeJS.ProcessEnv, pid = process.pid): number | null {
  const timeout_us = positiveInteger(env.WATCHDOG_USEC);
  const forPid = env.WATCHDOG_PID;
  if (timeout_us === null || (forPid !== undefined && positiveInteger(forPid) !== pid)) return null;
  return Math.min(timeout_us / 1000, TIMER_MAX_MS);
}

/** The service's line to systemd. Without NOTIFY_SOCKET every call does nothing; no call ever throws. */
export class ServiceNotifier {
  /** Connected to the service manager, or negative. */
  readonly fd: number;
  readonly #watchdog_ms: number | null;
  #timer: NodeJS.Timeout | null = null;
  #closed = false;

  private constructor(fd: number, watchdog_ms: number | null) {
    this.fd = fd;
    this.#watchdog_ms = watchdog_ms;
  }

  /** An address that cannot be reached is like none: a service manager's absence must not stop a share. */
  static fromEnvironment(env: NodeJS.ProcessEnv = process.env, pid = process.pid): ServiceNotifier {
    const address = env.NOTIFY_SOCKET;
    const usable = address !== undefined && /^[/@]/.test(address);
    return new ServiceNotifier(usable ? connectDatagram(address) : -1, watchdogTimeout_ms(env, pid));
  }

  /** The connection of the process image before execve(2): a namespace of the network's own would hide an abstract address. */
  static adopt(fd: number, env: NodeJS.ProcessEnv = process.env, pid = process.pid): ServiceNotifier {
    if (fd >= 0) setCloseOnExec(fd);
    return new ServiceNotifier(fd, watchdogTimeout_ms(env, pid));
  }

  /** Is somebody listening? */
  get active(): boolean {
    return this.fd >= 0 && !this.#closed;
  }

  /** READY=1: guests can connect. From now on WATCHDOG=1 follows at half of the timeout while the event loop turns. */
  ready(status: string): void {
    this.#send(`READY=1\nSTATUS=${statusLine(status)}`);
    if (this.#watchdog_ms === null || !this.active || this.#timer) return;
    this.#timer = setInterval(() => this.#send('WATCHDOG=1'), Math.max(1, Math.floor(this.#watchdog_ms / 2)));
    this.#timer.unref();
    this.#send('WATCHDOG=1');
  }

  /** One line for `systemctl status`. */
  status(text: string): void {
    this.#send(`STATUS=${statusLine(text)}`);
  }

  /** STOPPING=1. The watchdog goes on: stopping may hang, too. */
  stopping(): void {
    this.#send('STOPPING=1\nSTATUS=Stopping');
  }

  close(): void {
    if (this.#timer) clearInterval(this.#timer);
    this.#timer = null;
    if (this.active) c.close(this.fd);
    this.#closed = true;
  }

  #send(text: string): void {
    assert(text.length > 0, 'empty notification');
    if (this.active) sendDatagram(this.fd, text);
  }
}

/** A status that cannot smuggle in another assignment. */
function statusLine(text: string): string {
  return text.replaceAll(/[\0-\x1f\x7f]/g, ' ').slice(0, STATUS_MAX_CHARACTERS);
}

/** --syslog: log lines as datagrams of RFC 3164 to the local syslog daemon, in the form of syslog(3) (no host name). */
import { E } from '../base/errno.js';
import type { LogDestination } from '../base/log.js';
import { severityOf } from '../base/severity.js';
import * as c from '../ffi/libc.js';
import { connectDatagram, DATAGRAM_MAX_BYTES, setCloseOnExec, trySendDatagram } from '../ffi/datagram.js';

export const SYSLOG_SOCKET = '/dev/log';
/** LOG_DAEMON << 3 (syslog.h). */
const FACILITY_DAEMON = 3 << 3;
/** No more than one attempt in so long to reach a syslog daemon that went away. */
const RECONNECT_MS = 1000;
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'] as const;

/** One JSON line of the log as a datagram: the message, then its other fields as JSON; cut to `DATAGRAM_MAX_BYTES`. */
export function syslogDatagram(line: string, now: Date, pid: number): string {
  const { level = 30, time: _time, pid: _pid, msg = '', ...fields } = JSON.parse(line) as { level?: number; time?: string; pid?: number; msg?: string };
  const day = String(now.getDate()).padStart(2, ' ');
  const clock = [now.getHours(), now.getMinutes(), now.getSeconds()].map((part) => String(part).padStart(2, '0')).join(':');
  const rest = Object.keys(fields).length === 0 ? '' : ` ${JSON.stringify(fields)}`;
  // JSON has no control characters; the message may have some of a path.
  const text = `${msg.replaceAll(/[\0-\x1f\x7f]/g, ' ')}${rest}`;
  return cut(`<${FACILITY_DAEMON | severityOf(level)}>${MONTHS[now.getMonth()]} ${day} ${clock} bucketfsd[${pid}]: ${text}`);
}

function cut(text: string): string {
  const bytes = Buffer.from(text);
  if (bytes.length <= DATAGRAM_MAX_BYTES) return text;
  // A character that was cut in half becomes one of three bytes.
  return bytes.subarray(0, DATAGRAM_MAX_BYTES - 4).toString().replace(/\ufffd$/, '');
}

/** Never waits: what the syslog daemon does not take at once is lost, and counted. */
export class SyslogDestination implements LogDestination {
  #fd: number;
  #lost = 0;
  #nextAttempt_ms = 0;
  readonly #path: string;
  readonly #pid: number;

  private constructor(fd: number, path: string, pid: number) {
    this.#fd = fd;
    this.#path = path;
    this.#pid = pid;
  }

  /** null if nobody listens there, as in many containers: a share is worth more than the place of its log. */
  static connect(path = SYSLOG_SOCKET, pid = process.pid): SyslogDestination | null {
    const fd = connectDatagram(path);
    return fd < 0 ? null : new SyslogDestination(fd, path, pid);
  }

  /** The connection of the process image before execve(2). */
  static adopt(fd: number, path = SYSLOG_SOCKET, pid = process.pid): SyslogDestination {
    setCloseOnExec(fd);
    return new SyslogDestination(fd, path, pid);
  }

  get fd(): number {
    return this.#fd;
  }

  /** Lines that were lost and not yet reported. */
  get lost(): number {
    return this.#lost;
  }

  write(line: string): void {
    const now = new Date();
    const lost = this.#lost;
    if (lost > 0 && this.#send(syslogDatagram(JSON.stringify({ level: 40, msg: 'log lines were lost: syslog did not take them', lost }), now, this.#pid))) {
      this.#lost = 0;
    }
    if (!this.#send(syslogDatagram(line, now, this.#pid))) this.#lost++;
  }

  #send(datagram: string): boolean {
    let result = this.#fd < 0 ? -E.NOTCONN : trySendDatagram(this.#fd, datagram);
    if (result === -E.CONNREFUSED || result === -E.NOTCONN || result === -E.CONNRESET) {
      this.#reconnect();
      result = this.#fd < 0 ? result : trySendDatagram(this.#fd, datagram);
    }
    return result === 0;
  }

  /** A syslog daemon that was started again has a new socket; in a sandbox that is out of reach. */
  #reconnect(): void {
    const now_ms = performance.now();
    if (now_ms < this.#nextAttempt_ms) return;
    this.#nextAttempt_ms = now_ms + RECONNECT_MS;
    const fd = connectDatagram(this.#path);
    if (fd < 0) return;
    if (this.#fd >= 0) c.close(this.#fd);
    this.#fd = fd;
  }
}

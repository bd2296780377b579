/** A daemon of its own whose memory and turns are looked at from outside. */
import assert from 'node:assert/strict';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DaemonProcess, type Ended } from './daemon.js';
import { GUEST_MEMORY } from './hostile-guest.js';
import type { Probed } from './loop-probe.js';

const PATIENCE_MS = 15_000;
const SAMPLE_MS = 50;
const LIFE_MS = 600_000;

export class ProbedDaemon {
  readonly scratch = mkdtempSync(join(tmpdir(), 'bucketfsd-probed-'));
  readonly socket = join(this.scratch, 'socket');
  readonly #probe = join(this.scratch, 'probe');
  #daemon: DaemonProcess | null = null;
  #probed = 0;
  #sampling: NodeJS.Timeout | null = null;
  #peak = 0;

  /** Without sandbox and filter, which the probe could not be loaded through. */
  static async start(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<ProbedDaemon> {
    const self = new ProbedDaemon();
    closeSync(openSync(self.#probe, 'w'));
    self.#daemon = await DaemonProcess.start(['--socket-path', self.socket, '--sandbox=none', '--seccomp=none', ...args], {
      life_ms: LIFE_MS,
      env: { ...env, NODE_OPTIONS: `--import=${new URL('./loop-probe.js', import.meta.url).href}`, LOOP_PROBE: self.#probe },
    });
    self.#sampling = setInterval(() => self.#sample(), SAMPLE_MS);
    return self;
  }

  get daemon(): DaemonProcess {
    return this.#daemon!;
  }

  /**
   * Resident bytes of the process, program and libraries included, without those pages of the guest's memory that it has touched: the table of nodes is
   * shared memory as well, and counts.
   */
  resident(): number {
    let bytes = 0;
    let guests = false;
    for (const line of readFileSync(`/proc/${this.daemon.pid}/smaps`, 'latin1').split('\n')) {
      if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) guests = line.includes(GUEST_MEMORY);
      else if (!guests && line.startsWith('Rss:')) bytes += Number.parseInt(line.slice(4), 10) * 1024;
    }
    return bytes;
  }

  /** The same by what is mapped, the largest first; for messages. */
  breakdown(): string {
    const bytes = new Map<string, number>();
    let key = '';
    for (const line of readFileSync(`/proc/${this.daemon.pid}/smaps`, 'latin1').split('\n')) {
      const mapping = /^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)$/.exec(line);
      if (mapping !== null) key = mapping[1].split('/').at(-1)! || 'anonymous';
      else if (line.startsWith('Rss:')) bytes.set(key, (bytes.get(key) ?? 0) + Number.parseInt(line.slice(4), 10));
    }
    return [...bytes].sort((a, b) => b[1] - a[1]).slice(0, 5).map(([what, kib]) => `${what} ${(kib / 1024).toFixed(0)}`).join(', ');
  }

  #sample(): void {
    if (existsSync(`/proc/${this.daemon.pid}/smaps`)) this.#peak = Math.max(this.#peak, this.resident());
  }

  /** The most that was resident since the last time this was asked. */
  peak(): number {
    this.#sample();
    const peak = this.#peak;
    this.#peak = 0;
    return peak;
  }

  /** Since the last time this was asked; garbage is collected. */
  async probe(): Promise<Probed> {
    process.kill(this.daemon.pid, 'SIGUSR2');
    for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(20)) {
      const lines = readFileSync(this.#probe, 'latin1').trim().split('\n').filter((line) => line !== '');
      if (lines.length > this.#probed) {
        this.#probed = lines.length;
        return JSON.parse(lines.at(-1)!) as Probed;
      }
      assert.ok(Date.now() < deadline, 'the event loop does not turn');
    }
  }

  /** Wait until no more than `bytes` are resident, as long as that gets on. @returns what is */
  async settled(bytes: number): Promise<number> {
    let now = this.resident();
    for (const deadline = Date.now() + PATIENCE_MS; now > bytes && Date.now() < deadline; now = this.resident()) {
      await this.probe();
      await sleep(200);
    }
    return now;
  }

  /** As DaemonProcess.isOver(). */
  isOver(): Promise<void> {
    return this.daemon.isOver();
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<Ended> {
    if (this.#sampling !== null) clearInterval(this.#sampling);
    const ended = await this.daemon.stop(signal);
    rmSync(this.scratch, { recursive: true, force: true });
    return ended;
  }
}

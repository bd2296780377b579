/** A real S3 server for tests: Ceph RGW on loopback, started and stopped by scripts/rgw.sh. */
import { spawnSync } from 'node:child_process';
import { createServer } from 'node:net';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';

const SCRIPT = fileURLToPath(new URL('../../../scripts/rgw.sh', import.meta.url));
/** The first start builds the root file system. */
const START_TIMEOUT_MS = 280_000;

export class Rgw {
  private constructor(
    readonly port: number,
    readonly endpoint: string,
    readonly credentials: { readonly accessKeyId: string; readonly secretAccessKey: string },
  ) {}

  /** Why it cannot be started here, or false. */
  static unavailable(): string | false {
    return process.geteuid!() === 0 ? false : 'Ceph RGW needs root: it runs in a chroot of its own';
  }

  static async start(): Promise<Rgw> {
    const port = await freePort();
    const { status, stdout, stderr } = spawnSync(SCRIPT, ['up', String(port)], { encoding: 'utf8', timeout: START_TIMEOUT_MS, stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, RGW_FOR: String(process.pid) } });
    if (status !== 0) throw new Error(`${SCRIPT} up ${port} failed: ${stderr.slice(-2000)}`);
    const said = Object.fromEntries(stdout.trim().split(/\s+/).map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]));
    return new Rgw(port, said['S3_ENDPOINT'], { accessKeyId: said['AWS_ACCESS_KEY_ID'], secretAccessKey: said['AWS_SECRET_ACCESS_KEY'] });
  }

  stop(): void {
    spawnSync(SCRIPT, ['down', String(this.port)], { timeout: 30_000 });
  }
}

/** A port that nobody listens on, nor on the next one, which the monitor gets. */
async function freePort(): Promise<number> {
  for (;;) {
    const first = createServer().listen(0, '127.0.0.1');
    await once(first, 'listening');
    const { port } = first.address() as AddressInfo;
    const second = createServer();
    const free = await new Promise<boolean>((resolve) => {
      second.once('error', () => resolve(false)).listen(port + 1, '127.0.0.1', () => resolve(true));
    });
    for (const server of free ? [first, second] : [first]) {
      server.close();
      await once(server, 'close');
    }
    if (free && port < 65_000) return port;
  }
}

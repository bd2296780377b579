/**
 * A real daemon on Ceph RGW is killed with SIGKILL while a file that a guest goes on writing to gets another name, or its directory does: the next one finds every
 * line that was acknowledged, at one name. All moments of it, without a process: killed-moves.test.ts.
 *
 *   SEED=1 BUCKETFSD_KILLED_RENAMES=100 node --test build/test/storage/killed-rename.test.js
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Random } from '../model/random.js';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { FuseClient, name, OP } from '../support/guest.js';
import { readBucket } from '../support/manifest.js';
import { s3Provider, type Provider } from '../support/providers.js';
import { allowInFlight } from '../support/requests-in-flight.js';
import { Rgw } from '../support/rgw.js';
import { pattern } from './contract.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);
const KILLS = Number(process.env['BUCKETFSD_KILLED_RENAMES'] ?? 8);
/** Its square root. */
const DELAY_MAX = 20;
const ROOT = 1n;

describe('kill -9 in a rename, on Ceph RGW', { skip: Rgw.unavailable() }, () => {
  let provider: Provider;
  before(async () => (provider = await s3Provider('killed-renames')), { timeout: 300_000 });
  after(async () => {
    killDaemons();
    await provider.stop();
  });

  test(`every line that was acknowledged is there, at one name (${KILLS} kills, seed ${SEED})`, async (context) => {
    const found = new Map<string, number>();
    for (let i = 0; i < KILLS; i++) {
      const where = await killed(provider, i, new Random((SEED + i) % 2 ** 31));
      found.set(where, (found.get(where) ?? 0) + 1);
    }
    context.diagnostic([...found].map(([where, count]) => `${where} ${count}`).join(', '));
  });
});

async function killed(provider: Provider, i: number, random: Random): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-kill-'));
  const prefix = `point-${i}/`;
  const base = pattern(random.chance(30) ? 1_200_000 : 300, i + 1);
  const whole = random.chance(50);
  const start = (socket: string): Promise<DaemonProcess> => DaemonProcess.start([
    '--socket-path', socket, '--source', `${provider.source}/${prefix}`, ...provider.options, '--cache-dir', join(directory, 'cache'), '--durability', random.chance(50) ? 'remote' : 'writeback',
  ], { env: { ...provider.env } });
  try {
    await provider.store.put(`${prefix}d/f`, base);
    const daemon = await start(join(directory, 'first'));
    const client = new FuseClient(join(directory, 'first'));
    await client.begin();
    const d = await client.lookup(ROOT, 'd');
    const f = await client.lookup(d.node, 'f');
    const fh = await client.open(f.node);
    const end = allowInFlight(client);
    let [sent, acknowledged] = ['', 0];
    const writing = (async () => {
      for (let n = 0; ; n++) {
        const line = `line ${n}\n`;
        const at = base.length + sent.length;
        sent += line;
        const { error } = await client.write(f.node, fh, at, Buffer.from(line));
        assert.equal(error, 0);
        acknowledged += line.length;
      }
    })().catch(() => undefined);
    const args = whole ? concat(u64(ROOT), u32(0, 0), name('d'), name('e')) : concat(u64(d.node), u32(0, 0), name('f'), name('g'));
    const renamed = client.call(OP.RENAME2, whole ? ROOT : d.node, args, 0).then(({ error }) => error, () => null);
    await sleep(random.below(DELAY_MAX) ** 2);
    assert.equal((await daemon.stop('SIGKILL')).signal, 'SIGKILL', daemon.stderr);
    end();
    await writing;
    const told = await renamed;
    client.leave();
    const next = await start(join(directory, 'second'));
    const { code } = await next.stop();
    assert.equal(code, 0, next.stderr);
    const objects = await readBucket(provider.store, prefix);
    const report = `kill ${i} of seed ${SEED}, ${whole ? 'the directory' : 'the file'}, told ${told}, ${[...objects.keys()].join()}\n${next.stderr}`;
    const names = ['d/f', whole ? 'e/f' : 'd/g'];
    const keys = [...objects.keys()].filter((key) => !key.endsWith('/'));
    assert.equal(keys.length, 1, report);
    assert.ok(told === 0 ? keys[0] === names[1] : names.includes(keys[0]), report);
    const content = Buffer.from(objects.get(keys[0])!.content);
    const expected = Buffer.concat([base, Buffer.from(sent)]);
    assert.ok(content.length >= base.length + acknowledged && content.equals(expected.subarray(0, content.length)), `${content.length} bytes, ${acknowledged} acknowledged; ${report}`);
    return `${told === 0 ? 'answered' : 'not answered'}, ${keys[0] === names[0] ? 'old name' : 'new name'}:`;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

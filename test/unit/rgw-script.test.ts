/** scripts/rgw.sh, which the demo and the tests start a real S3 server with: it says how far it is, and nothing stays, however it or its caller ends. */
import assert from 'node:assert/strict';
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { after, describe, test } from 'node:test';
import { Rgw } from '../support/rgw.js';

const SCRIPT = fileURLToPath(new URL('../../../scripts/rgw.sh', import.meta.url));
const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-rgw-'));
after(() => rmSync(directory, { recursive: true, force: true }));

/** Makes half a root with a mount in it; then it waits, or goes on if it may. */
const MAKER = join(directory, 'mmdebstrap');
writeFileSync(MAKER, `#!/bin/bash
for word in "$@"; do case $word in */*.new) root=$word;; esac; done
mkdir -p "$root/proc" "$root/usr/bin" "$root/root"
mount -t tmpfs none "$root/proc"
echo half-made >&2
[ -n "$MAY_END" ] || exec sleep 3600
umount "$root/proc"
printf '#!/bin/sh\\n' >"$root/usr/bin/radosgw"
chmod +x "$root/usr/bin/radosgw"
`, { mode: 0o755 });

const env = { ...process.env, RGW_ROOT: join(directory, 'root'), RGW_MMDEBSTRAP: MAKER, MAY_END: '' };

/** Of processes that have the directory in their command line. */
const left = (): string[] => readdirSync('/proc').filter((pid) => {
  try {
    return /^\d+$/.test(pid) && Number(pid) !== process.pid && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(directory);
  } catch {
    return false;
  }
});

async function until(child: ChildProcess, text: string): Promise<string> {
  let said = '';
  while (!said.includes(text)) said += String((await once(child.stderr!, 'data'))[0]);
  return said;
}

/** What is bounded by the test's time. */
async function eventually(fact: () => boolean): Promise<void> {
  while (!fact()) await sleep(50);
}

describe('scripts/rgw.sh build', { skip: Rgw.unavailable() }, () => {
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGKILL'] as const) {
    test(`that ends by ${signal} leaves no process and no mount${signal === 'SIGKILL' ? '; the next one clears up' : ', nor half a root'}`, async () => {
      const build = spawn(SCRIPT, ['build'], { env, stdio: ['ignore', 'ignore', 'pipe'], timeout: 60_000 });
      const said = await until(build, 'half-made');
      assert.match(said, /^rgw\.sh: making the root of the S3 server \(Ceph RGW\) in .*: 600 MB from .*, once, some minutes$/m);
      build.kill(signal);
      await once(build, 'exit');
      await eventually(() => left().length === 0);
      assert.ok(!readFileSync('/proc/mounts', 'utf8').includes(directory));
      if (signal !== 'SIGKILL') assert.ok(!existsSync(`${env.RGW_ROOT}.new`));
    });
  }

  test('says when it is done, and has nothing to say the next time', () => {
    const first = spawnSync(SCRIPT, ['build'], { env: { ...env, MAY_END: '1' }, encoding: 'utf8', timeout: 60_000 });
    assert.equal(first.status, 0, first.stderr);
    assert.match(first.stderr, /the root is made, after \d+ s\n$/);
    assert.deepEqual(readdirSync(directory).sort(), ['mmdebstrap', 'root', 'root.lock']);
    const second = spawnSync(SCRIPT, ['build'], { env, encoding: 'utf8', timeout: 60_000 });
    assert.deepEqual([second.status, second.stderr], [0, '']);
  });
});

test('a server ends with whom it was started for', { skip: Rgw.unavailable() }, async () => {
  const caller = spawn('sleep', ['600']);
  const port = 17_480;
  try {
    const up = spawnSync(SCRIPT, ['up', String(port)], { encoding: 'utf8', timeout: 280_000, env: { ...process.env, RGW_FOR: String(caller.pid) } });
    assert.equal(up.status, 0, up.stderr);
    const server = Number(readFileSync(`/run/rgw-${port}.pid`, 'utf8'));
    caller.kill('SIGKILL');
    await eventually(() => !existsSync(`/proc/${server}`) || /^State:\s+Z/m.test(readFileSync(`/proc/${server}/status`, 'utf8')));
    await eventually(() => !existsSync(`/run/rgw-${port}.pid`));
  } finally {
    caller.kill('SIGKILL');
    spawnSync(SCRIPT, ['down', String(port)], { timeout: 30_000 });
  }
});

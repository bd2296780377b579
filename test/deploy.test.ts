import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { version } from '../src/base/version.js';
import { CAPABILITIES, parseCommandLine } from '../src/cli.js';

const REPOSITORY = fileURLToPath(new URL('../../', import.meta.url));
const DEPLOY = join(REPOSITORY, 'deploy');
const read = (name: string): string => readFileSync(join(DEPLOY, name), 'utf8');
const hasAnalyze = spawnSync('systemd-analyze', ['--version']).status === 0;

let dir = '';
before(() => {
  dir = mkdtempSync(join(tmpdir(), 'bucketfsd-deploy-'));
});
after(() => rmSync(dir, { recursive: true, force: true }));

/** Values of a directive in a unit, in order. */
function directive(unit: string, name: string): string[] {
  return [...unit.matchAll(new RegExp(`^${name}=(.*)$`, 'gm'))].map((match) => match[1]);
}

/** The command line that a unit makes with its example of settings. */
function commandLine(service: string, example: string): ReturnType<typeof parseCommandLine> {
  const env = Object.fromEntries([...read(example).matchAll(/^([A-Z]+)=(.*)$/gm)].map((match) => [match[1], match[2]]));
  const words = directive(service, 'ExecStart')[0].split(' ').slice(1);
  const args = words.flatMap((word) => (word === '$OPTIONS' ? env.OPTIONS.split(' ') : [word.replace('${SOURCE}', env.SOURCE)]));
  return parseCommandLine(args, { LISTEN_FDS: '1', LISTEN_PID: '9' }, 9);
}

describe('the systemd units of a bucket', () => {
  const service = read('bucketfsd-bucket@.service');

  test('the daemon has a place for what is not in the bucket yet, time to write it at the end, the network, and no rights', () => {
    assert.deepEqual(directive(service, 'StateDirectory'), ['bucketfsd/%i']);
    assert.ok(Number(directive(service, 'TimeoutStopSec')[0]) > 65, 'more than what close() takes');
    assert.match(directive(service, 'RestrictAddressFamilies')[0], /AF_UNIX.*AF_INET.*AF_INET6/);
    assert.deepEqual(directive(service, 'PrivateNetwork'), []);
    assert.deepEqual(directive(service, 'CapabilityBoundingSet'), ['']);
    assert.deepEqual(directive(service, 'RestartPreventExitStatus'), ['2']);
  });

  test('the environment example and the command of the unit make a command line that is accepted', () => {
    const command = commandLine(service, 'bucketfsd-bucket.env.example');
    assert.ok(command.action === 'run' && command.options.source.kind === 's3');
  });
});

describe('what people copy from the documents', () => {
  const texts = ['README.md', 'docs/OPERATIONS.md', 'deploy/examples/qemu.sh', 'deploy/examples/cloud-hypervisor.sh'].map((name) => [name, readFileSync(join(REPOSITORY, name), 'utf8')] as const);
  const [[, readme], [, operations]] = texts;

  test('no socket lies in /tmp, and mounts of a guest are nosuid,nodev', () => {
    for (const [name, text] of texts) {
      assert.doesNotMatch(text, /(--socket-path|path=)[ =]?\/tmp/, name);
      for (const [line] of text.matchAll(/^.*mount -t virtiofs (?!TAG|…).*$/gm)) assert.match(line, /nosuid,nodev/, name);
    }
  });

  test('a bucket comes with its keys and its region, and tests with the time that they take', () => {
    assert.match(readme, /AWS_ACCESS_KEY_ID=[^]*--source s3:\/\/BUCKET/);
    assert.match(readme, /region/);
    assert.match(operations, /AWS_REGION/);
    assert.match(readme, /make test .*minutes/);
  });
});

/** Starts that fail are counted by systemd in the interval; fewer than the burst in it, and they go on for ever. */
describe('a unit whose starts fail', () => {
  for (const [unit, patience_s] of [['bucketfsd@.service', 300], ['bucketfsd-bucket@.service', 540]] as const) {
    test(`${unit} is tried for ${patience_s} s at least, and gives up however slowly it fails`, () => {
      const number = (name: string): number => Number(directive(read(unit), name)[0]);
      const [burst, pause_s, interval_s] = [number('StartLimitBurst'), number('RestartSec'), number('StartLimitIntervalSec')];
      assert.ok(burst * pause_s >= patience_s, `${burst * pause_s} s`);
      assert.ok(burst * (pause_s + number('TimeoutStartSec')) <= interval_s, 'the burst is reached within the interval');
      assert.deepEqual(directive(read(unit), 'Restart'), ['on-failure']);
    });
  }
});

describe('systemd units', () => {
  const service = read('bucketfsd@.service');

  test('systemd-analyze verify finds nothing in services and sockets', { skip: !hasAnalyze && 'no systemd-analyze' }, () => {
    const kinds = ['bucketfsd', 'bucketfsd-bucket'];
    for (const kind of kinds) {
      writeFileSync(join(dir, `${kind}@.service`), read(`${kind}@.service`).replace('/usr/local/bin/bucketfsd', process.execPath));
      writeFileSync(join(dir, `${kind}@.socket`), read(`${kind}@.socket`));
    }
    const units = kinds.flatMap((kind) => [`${kind}@data.service`, `${kind}@data.socket`].map((unit) => join(dir, unit)));
    const result = spawnSync('systemd-analyze', ['verify', '--man=no', ...units], { encoding: 'utf8' });
    assert.equal(result.stderr + result.stdout, '');
    assert.equal(result.status, 0);
  });

  test('what the daemon says to systemd is what the unit expects', () => {
    assert.deepEqual(directive(service, 'Type'), ['notify']);
    assert.ok(Number(directive(service, 'WatchdogSec')[0]) > 0);
    assert.ok(Number(directive(service, 'TimeoutStopSec')[0]) > 5, 'more than the drain limit');
    assert.deepEqual(directive(service, 'Restart'), ['on-failure']);
    assert.deepEqual(directive(service, 'RestartPreventExitStatus'), ['2']);
  });

  test('the daemon has the capabilities that a share of root needs, and no others', () => {
    const wanted = ['DAC_OVERRIDE', 'CHOWN', 'FOWNER', 'FSETID', 'MKNOD', 'SETUID', 'SETGID', 'SETFCAP'].map((name) => `CAP_${name}`);
    assert.deepEqual(directive(service, 'CapabilityBoundingSet')[0].split(' '), wanted);
  });

  test('the machine is read-only but for the share, which a drop-in names; memory and threads are bounded, and nothing is spared that is not', () => {
    const [bucket, dropIn] = [read('bucketfsd-bucket@.service'), read('bucketfsd-share.conf')];
    for (const unit of [service, bucket]) {
      assert.deepEqual(directive(unit, 'ProtectSystem'), ['strict']);
      assert.match(directive(unit, 'MemoryMax')[0] ?? '', /^\d+(%|[MG])$/);
      assert.ok(Number(directive(unit, 'TasksMax')[0]) >= 256 + 20, 'the largest --thread-pool-size, and what is always there');
      assert.deepEqual(directive(unit, 'OOMScoreAdjust'), []);
    }
    assert.deepEqual(directive(dropIn, 'ReadWritePaths'), [/^SOURCE=(.*)$/m.exec(read('bucketfsd.env.example'))![1]]);
    assert.deepEqual(directive(bucket, 'Environment'), [`HOME=/var/lib/${directive(bucket, 'StateDirectory')[0]}`]);
  });

  test('no file handle reaches beyond the share', () => {
    const command = commandLine(service, 'bucketfsd.env.example');
    assert.ok(command.action === 'run' && command.options.inodeFileHandles === 'never');
    assert.doesNotMatch(directive(service, 'SystemCallFilter')[0], /open_by_handle_at/);
  });

  test('what would break a share or the JIT is not set', () => {
    for (const name of ['MemoryDenyWriteExecute', 'RestrictSUIDSGID', 'PrivateDevices', 'PrivateTmp', 'ProtectHome', 'PrivateUsers', 'DynamicUser']) {
      assert.deepEqual(directive(service, name), [], name);
    }
  });

  test('the environment example and the command of the unit make a command line that is accepted', () => {
    const command = commandLine(service, 'bucketfsd.env.example');
    assert.ok(command.action === 'run' && command.options.source.path === '/srv/share' && command.options.xattr);
  });
});

/** docs/interop/vhost-user.json of QEMU: struct VhostUserBackend, and the capabilities of a backend. */
const BACKEND_TYPES = [
  '9p', 'balloon', 'block', 'caif', 'console', 'crypto', 'gpu', 'input', 'net', 'rng', 'rpmsg', 'rproc-serial', 'scsi', 'vsock', 'fs',
];

describe('capability JSON', () => {
  const json = JSON.parse(read('50-bucketfsd.json')) as Record<string, unknown>;

  test('it has the documented fields with the documented types and no others', () => {
    assert.equal(typeof json.description, 'string');
    assert.ok(BACKEND_TYPES.includes(json.type as string));
    assert.match(json.binary as string, /^\//);
    for (const list of ['features', 'tags']) {
      if (json[list] !== undefined) assert.ok(Array.isArray(json[list]) && json[list].every((item) => typeof item === 'string'), list);
    }
    assert.deepEqual(Object.keys(json).filter((key) => !['description', 'type', 'binary', 'features', 'tags'].includes(key)), []);
  });

  test('it says the same as --print-capabilities', () => {
    assert.deepEqual({ type: json.type, features: json.features }, CAPABILITIES);
  });
});

/** The first thing that makes a document not well-formed XML, or null. Knows elements, comments and attributes. */
function xmlFault(text: string): string | null {
  const open: string[] = [];
  let roots = 0;
  const rest = text.replaceAll(/<!--(?:(?!--)[\s\S])*-->/g, '').replaceAll(/<(\/?)([\w:.-]+)((?:\s+[\w:.-]+=(?:"[^"<]*"|'[^'<]*'))*)\s*(\/?)>/g, (_all, end, name, attributes, empty) => {
    const names = [...String(attributes).matchAll(/([\w:.-]+)=/g)].map((match) => match[1]);
    if (new Set(names).size !== names.length) open.push(`!attribute twice in ${name}`);
    if (end && open.pop() !== name) open.push(`!${name} closed but not open`);
    if (!end && open.length === 0) roots++;
    if (!end && !empty) open.push(String(name));
    return '';
  });
  if (open.length > 0) return `not closed: ${open.join(', ')}`;
  if (/[<>]|&(?!\w+;|#\d+;)/.test(rest)) return `stray markup near ${rest.trim().slice(0, 40)}`;
  return roots === 1 ? null : `${roots} root elements`;
}

describe('examples', () => {
  test("libvirt's XML is well-formed, and the checker knows what is not", () => {
    assert.equal(xmlFault(read('examples/libvirt.xml')), null);
    for (const bad of ['<a>', '<a></b>', '<a/><b/>', '<a x="1" x="2"/>', '<a x=1/>', '<a>&</a>', '<a><b></a></b>', '']) assert.notEqual(xmlFault(bad), null, bad);
  });

  test('the libvirt example shares memory, names our binary and asks for large requests', () => {
    const xml = read('examples/libvirt.xml');
    for (const part of ['<source type="memfd"/>', '<access mode="shared"/>', 'path="/usr/local/bin/bucketfsd"', 'queue="1024"']) assert.ok(xml.includes(part), part);
  });

  for (const [script, args, parts] of [
    ['qemu.sh', ['disk.img', '-snapshot'], ['memory-backend-memfd', 'share=on', 'vhost-user-fs-pci,chardev=share,tag=share,queue-size=1024', '-snapshot']],
    ['cloud-hypervisor.sh', ['vmlinux', 'disk.img'], ['shared=on', 'tag=share,socket=/run/bucketfsd/share.sock', 'queue_size=1024']],
  ] as const) {
    test(`${script} is a shell script that prints its command, and says what is missing`, () => {
      const path = join(DEPLOY, 'examples', script);
      const output = execFileSync(path, args, { encoding: 'utf8', env: { ...process.env, DRY_RUN: '1' } });
      for (const part of parts) assert.ok(output.includes(part), `${part} in ${output}`);
      const wrong = spawnSync(path, [], { encoding: 'utf8' });
      assert.notEqual(wrong.status, 0);
      assert.match(wrong.stderr, /usage/);
    });
  }

  test("the guest's fstab line has six fields and the type virtiofs", () => {
    const lines = read('examples/guest.fstab').split('\n').filter((line) => line !== '' && !line.startsWith('#'));
    for (const line of lines) {
      const fields = line.split(/\s+/);
      assert.equal(fields.length, 6);
      assert.equal(fields[2], 'virtiofs');
    }
    assert.equal(lines.length, 1);
  });
});

/** A directory with an npm that finds nothing. */
function noNpm(): string {
  const path = join(dir, 'bin');
  mkdirSync(path);
  writeFileSync(join(path, 'npm'), '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  return path;
}

describe('make install', () => {
  const prefix = '/opt/bucketfsd';
  const destination = (path: string): string => join(dir, 'stage', prefix, path);

  before(() => {
    // `build` is done: this very test runs from it. npm names packages by the path without links, whichever way we came.
    mkdirSync(join(dir, 'stage'));
    const link = join(dir, 'a link (here)');
    symlinkSync(REPOSITORY.replace(/\/$/, ''), link);
    const env = { ...process.env, MAKEFLAGS: '', MFLAGS: '', PWD: link };
    const result = spawnSync('make', ['-o', 'build', 'install', `DESTDIR=${join(dir, 'stage')}`, `PREFIX=${prefix}`], { cwd: link, encoding: 'utf8', env });
    assert.equal(result.status, 0, result.stderr);
  });

  test('the daemon starts from there, by its launcher, with no npm on the PATH', () => {
    const env = { PATH: '/nonexistent', BUCKETFSD_NODE: process.execPath };
    const launcher = spawnSync('/bin/sh', ['-c', 'PATH=/usr/bin:/bin exec "$0" --version', destination('bin/bucketfsd')], { encoding: 'utf8', env });
    assert.equal(launcher.stdout, `bucketfsd ${version()}\n`, launcher.stderr);
  });

  test('a missing source is refused by the installed daemon with its own packages', () => {
    const result = spawnSync(destination('bin/bucketfsd'), ['--source', '/nonexistent', '--socket-path', join(dir, 's')], {
      encoding: 'utf8', cwd: '/', env: { ...process.env, BUCKETFSD_NODE: process.execPath, NODE_PATH: '' },
    });
    assert.equal(result.status, 1);
    assert.match(result.stderr, /cannot share \/nonexistent: there is no such directory/);
  });

  test('packages for development and for other purposes are not installed', () => {
    const packages = readdirSync(destination('lib/bucketfsd/node_modules'));
    assert.ok(packages.includes('koffi') && packages.includes('commander') && packages.includes('pino'));
    assert.ok(!packages.includes('typescript') && !packages.includes('@types'));
    assert.ok(!existsSync(destination('lib/bucketfsd/build/test')));
  });

  test('without packages it says so and fails', () => {
    const result = spawnSync('make', ['-o', 'build', 'install', `DESTDIR=${join(dir, 'other')}`, `PREFIX=${prefix}`], {
      cwd: REPOSITORY, encoding: 'utf8', env: { ...process.env, MAKEFLAGS: '', MFLAGS: '', PATH: `${noNpm()}:${process.env.PATH}` },
    });
    assert.notEqual(result.status, 0);
    assert.match(result.stderr, /make install: npm ls names no packages to install: run npm ci in this directory/);
  });

  test('units and capability JSON name the installed binary', () => {
    assert.match(readFileSync(destination('lib/systemd/system/bucketfsd@.service'), 'utf8'), /^ExecStart=\/opt\/bucketfsd\/bin\/bucketfsd /m);
    const json = JSON.parse(readFileSync(destination('share/qemu/vhost-user/50-bucketfsd.json'), 'utf8')) as { binary: string };
    assert.equal(json.binary, `${prefix}/bin/bucketfsd`);
    assert.ok(statSync(destination('share/doc/bucketfsd/OPERATIONS.md')).isFile());
  });

  test('make uninstall leaves no file', () => {
    const result = spawnSync('make', ['uninstall', `DESTDIR=${join(dir, 'stage')}`, `PREFIX=${prefix}`], { cwd: REPOSITORY, encoding: 'utf8' });
    assert.equal(result.status, 0, result.stderr);
    const left = readdirSync(join(dir, 'stage'), { recursive: true, withFileTypes: true }).filter((entry) => !entry.isDirectory());
    assert.deepEqual(left.map((entry) => entry.name), []);
  });
});

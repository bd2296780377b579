import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { CAPABILITIES, parseCapabilities } from '../../src/confine/capabilities.js';
import { confinementOf } from '../../src/confine/confine.js';
import { takeHandover } from '../../src/confine/handover.js';
import { planRoot } from '../../src/confine/new-root.js';
import { seccompAction, type ConfineOptions } from '../../src/confine/policy.js';
import { filterProgram, RETURN, type Architecture } from '../../src/confine/seccomp.js';
import { ABSENT, EXAMINED, FILE_HANDLES, FORBIDDEN, SOCKETS } from '../../src/confine/system-calls.js';
import { isOwnIds, parseIdMaps, parseIdRanges } from '../../src/confine/user-namespace.js';
import { UsageError } from '../../src/lifecycle/errors.js';

const CHILD = fileURLToPath(new URL('./confine-child.js', import.meta.url));
const AUDIT_ARCH = { x64: 0xc000003e, arm64: 0xc00000b7 } as const;
const ENOSYS = RETURN.ERRNO | 38;
const PID = 4321;
const NOTHING = { fileHandles: false, unixSockets: false, network: false } as const;
const SIGSYS = 'SIGSYS';

const refused = (call: () => unknown, sentence: RegExp): void =>
  assert.throws(call, (error: unknown) => error instanceof UsageError && sentence.test(error.message) && !error.message.includes('\n'));

/** Classic BPF as far as filters use it: what the kernel would answer to a call. */
function evaluate(program: Uint8Array, arch: number, nr: number, args: readonly number[] = []): number {
  const code = new DataView(program.buffer);
  const data = new DataView(new ArrayBuffer(64));
  data.setUint32(0, nr, true);
  data.setUint32(4, arch, true);
  args.forEach((value, index) => data.setBigUint64(16 + 8 * index, BigInt(value), true));
  let accumulator = 0;
  for (let at = 0; at < program.length / 8; at++) {
    const [k, jump] = [code.getUint32(8 * at + 4, true), (yes: boolean): number => code.getUint8(8 * at + (yes ? 2 : 3))];
    switch (code.getUint16(8 * at, true)) {
      case 0x20: accumulator = data.getUint32(k, true); break;
      case 0x15: at += jump(accumulator === k); break;
      case 0x35: at += jump(accumulator >= k); break;
      case 0x45: at += jump((accumulator & k) !== 0); break;
      case 0x06: return k;
      default: assert.fail(`instruction ${at}`);
    }
  }
  return assert.fail('the program has no end');
}

describe('filter', () => {
  for (const [index, arch] of (['x64', 'arm64'] as const).entries()) {
    const numbers = (table: Record<string, readonly [number, number | null]>): number[] => Object.values(table).flatMap((pair) => pair[index] ?? []);
    const program = filterProgram('kill', arch, PID, NOTHING);
    const answer = (nr: number, ...args: number[]): number => evaluate(program, AUDIT_ARCH[arch], nr, args);

    test(`${arch}: what is forbidden is refused, what the C library does without is not there, all else is allowed`, () => {
      const [forbidden, absent, examined] = [numbers({ ...FORBIDDEN, ...FILE_HANDLES, ...SOCKETS }), numbers(ABSENT), numbers(EXAMINED)];
      assert.equal(new Set([...forbidden, ...absent, ...examined]).size, forbidden.length + absent.length + examined.length, 'no number twice');
      for (let nr = 0; nr < 1024; nr++) {
        const expected = forbidden.includes(nr) ? RETURN.KILL_PROCESS : absent.includes(nr) ? ENOSYS : RETURN.ALLOW;
        if (!examined.includes(nr)) assert.equal(answer(nr), expected, `call ${nr}`);
      }
    });

    test(`${arch}: threads, Unix sockets, signals to itself and ioctls of files are allowed, processes, networks, signals to others and typing into a terminal are not`, () => {
      assert.equal(answer(EXAMINED.clone[index], 0x3d0f00), RETURN.ALLOW, 'pthread_create');
      assert.equal(answer(EXAMINED.clone[index], 0x1200011), RETURN.KILL_PROCESS, 'fork');
      assert.equal(answer(EXAMINED.clone[index], 0x4111), RETURN.KILL_PROCESS, 'vfork');
      const needy = filterProgram('kill', arch, PID, { fileHandles: true, unixSockets: true, network: false });
      for (const [name, of] of [['socket', needy], ['socketpair', program], ['socketpair', needy]] as const) {
        assert.equal(evaluate(of, AUDIT_ARCH[arch], EXAMINED[name][index], [1]), RETURN.ALLOW);
        for (const family of [0, 2, 10, 16, 17, 40]) assert.equal(evaluate(of, AUDIT_ARCH[arch], EXAMINED[name][index], [family]), RETURN.KILL_PROCESS, `${name} ${family}`);
      }
      for (const family of [0, 1, 2]) assert.equal(answer(EXAMINED.socket[index], family), RETURN.KILL_PROCESS, 'no new sockets unless the options need some');
      for (const nr of numbers({ ...FILE_HANDLES, ...SOCKETS })) assert.equal(evaluate(needy, AUDIT_ARCH[arch], nr), RETURN.ALLOW);
      for (const [of, expected] of [[0, RETURN.ALLOW], [PID, RETURN.ALLOW], [1, RETURN.KILL_PROCESS]] as const) assert.equal(answer(EXAMINED.prlimit64[index], of, 7), expected);
      for (const command of [0, 1, 2, 3, 4, 9, 37, 1030, 1033]) assert.equal(answer(EXAMINED.fcntl[index], 5, command), RETURN.ALLOW, `fcntl ${command}`);
      for (const command of [8, 10, 15]) assert.equal(answer(EXAMINED.fcntl[index], 5, command), RETURN.KILL_PROCESS, `fcntl ${command}`);
      for (const request of [0x8901, 0x8902]) assert.equal(answer(EXAMINED.ioctl[index], 0, request), RETURN.KILL_PROCESS);
      for (const name of ['kill', 'tgkill'] as const) {
        assert.equal(answer(EXAMINED[name][index], PID, 15), RETURN.ALLOW);
        for (const other of [0, 1, PID + 1, 0xffffffff]) assert.equal(answer(EXAMINED[name][index], other, 15), RETURN.KILL_PROCESS, `${name} ${other}`);
      }
      assert.equal(answer(EXAMINED.unshare[index], 0x200), RETURN.ALLOW, 'CLONE_FS: a umask of its own');
      for (const flags of [0, 0x20000, 0x20200, 0x10000000]) assert.equal(answer(EXAMINED.unshare[index], flags), RETURN.KILL_PROCESS, `unshare ${flags}`);
      assert.equal(answer(EXAMINED.ioctl[index], 0, 0x80086601), RETURN.ALLOW);
      for (const request of [0x5412, 0x541c]) assert.equal(answer(EXAMINED.ioctl[index], 0, request), RETURN.KILL_PROCESS);
    });

    test(`${arch}: of a bucket's daemon connections are allowed, a server is not, and what libraries try by themselves fails`, () => {
      const EACCES = RETURN.ERRNO | 13;
      const [bucket, withSyslog] = [false, true].map((unixSockets) => filterProgram('kill', arch, PID, { fileHandles: false, unixSockets, network: true }));
      const said = (nr: number, args: readonly number[] = [], of = bucket): number => evaluate(of, AUDIT_ARCH[arch], nr, args);
      for (const family of [2, 10]) for (const type of [1, 2]) assert.equal(said(EXAMINED.socket[index], [family, type]), RETURN.ALLOW);
      assert.equal(said(EXAMINED.socket[index], [16, 3, 0]), RETURN.ALLOW, 'the addresses of this machine');
      assert.equal(said(EXAMINED.socket[index], [16, 3, 12]), RETURN.KILL_PROCESS, 'netfilter');
      for (const family of [0, 17, 38, 40]) assert.equal(said(EXAMINED.socket[index], [family, 1]), RETURN.KILL_PROCESS, `socket ${family}`);
      assert.deepEqual([said(EXAMINED.socket[index], [1, 1]), said(EXAMINED.socket[index], [1, 1], withSyslog)], [EACCES, RETURN.ALLOW]);
      for (const of of [bucket, withSyslog]) for (const [type, expected] of [[0x80801, RETURN.ALLOW], [2, EACCES], [0x80002, EACCES], [5, EACCES]] as const) assert.equal(said(EXAMINED.socketpair[index], [1, type], of), expected);
      assert.equal(said(EXAMINED.socketpair[index], [30, 1]), RETURN.KILL_PROCESS);
      assert.deepEqual([SOCKETS.connect, SOCKETS.bind, SOCKETS.listen].map((numbers) => said(numbers[index])), [RETURN.ALLOW, RETURN.ALLOW, RETURN.KILL_PROCESS]);
      assert.deepEqual([said(EXAMINED.clone[index], [0x3d0f00]), said(EXAMINED.clone[index], [0x1200011])], [RETURN.ALLOW, EACCES]);
      for (const nr of numbers({ ...FORBIDDEN, ...FILE_HANDLES })) assert.equal(said(nr), RETURN.KILL_PROCESS, `call ${nr}`);
      assert.deepEqual([said(EXAMINED.kill[index], [PID, 15]), said(EXAMINED.kill[index], [1, 15])], [RETURN.ALLOW, RETURN.KILL_PROCESS]);
    });

    test(`${arch}: another architecture or ABI is refused, whatever the call`, () => {
      for (const other of [0x40000003, 0x40000028, AUDIT_ARCH[arch === 'x64' ? 'arm64' : 'x64']]) assert.equal(evaluate(program, other, 0), RETURN.KILL_PROCESS);
      if (arch === 'x64') for (const nr of [0x40000000, 0x40000001, 0xffffffff]) assert.equal(answer(nr), RETURN.KILL_PROCESS);
    });

    test(`${arch}: log and trap differ in what they answer only`, () => {
      for (const [action, value] of [['log', RETURN.LOG], ['trap', RETURN.TRAP]] as const) {
        const other = filterProgram(action, arch as Architecture, PID, NOTHING);
        assert.equal(evaluate(other, AUDIT_ARCH[arch], FORBIDDEN.execve[index]), value);
        assert.equal(evaluate(other, AUDIT_ARCH[arch], 0), RETURN.ALLOW);
      }
    });
  }

  for (const [index, header, prefix] of [[0, '/usr/include/x86_64-linux-gnu/asm/unistd_64.h', '__NR_'], [1, '/usr/include/asm-generic/unistd.h', '__NR(?:3264)?_']] as const) {
    test(`the numbers are those of ${header}`, { skip: !existsSync(header) && 'no kernel headers' }, () => {
      const text = readFileSync(header, 'utf8');
      const known = new Map([...text.matchAll(new RegExp(`^#define ${prefix}(\\w+)\\s+(\\d+)`, 'gm'))].map((match) => [match[1], Number(match[2])]));
      for (const [name, numbers] of Object.entries({ ...FORBIDDEN, ...FILE_HANDLES, ...SOCKETS, ...ABSENT, ...EXAMINED }) as [string, readonly [number, number | null]][]) {
        assert.equal(numbers[index], known.get(name) ?? null, name);
      }
    });
  }
});

describe('filter in the kernel', () => {
  const run = (action: string, deed: string): { signal: string | null; stdout: string; stderr: string } =>
    spawnSync(process.execPath, [CHILD, action, deed], { encoding: 'utf8', timeout: 60_000, input: '' });
  const deeds = ['unix', 'connect', 'bind', 'listen', 'handle', 'setown', 'setsig', 'setownex', 'fiosetown', 'limits', 'unshare', 'setns', 'bpf', 'spawn', 'inet', 'thread', 'tiocsti', 'signal', ...(process.arch === 'x64' ? ['x32'] : [])];

  for (const action of ['kill', 'trap']) {
    test(`${action}: what is forbidden ends the process, in any thread`, () => {
      for (const deed of deeds) {
        const { signal, stdout } = run(action, deed);
        assert.deepEqual([signal, stdout], [SIGSYS, ''], deed);
      }
    });
  }

  test('log: it is let pass', () => {
    for (const deed of ['unshare', 'spawn', 'inet', 'thread']) {
      const { signal, stdout, stderr } = run('log', deed);
      assert.equal(signal, null, stderr);
      assert.match(stdout, /^done: /, deed);
    }
  });

  test('kill: what the daemon does goes on', () => {
    assert.equal(run('kill', 'reconnect').stdout, 'done: opened\n');
    assert.equal(run('kill', 'ownLimits').stdout, 'done: 0\n');
    assert.equal(run('kill', 'priority').stdout, 'done: 38\n');
    assert.equal(run('kill', 'clone3').stdout, 'done: 38\n');
    assert.equal(run('kill', 'worker').stdout, 'done: 0\n');
    assert.equal(run('kill', 'network').stdout, 'done: EACCES 127.0.0.1\n', 'a library that tries a program goes on');
    assert.equal(run('kill', 'abort').signal, 'SIGABRT', 'a crash is its own');
  });

  test('kill: pool workers start, die and are replaced', () => {
    const { stdout, stderr } = run('kill', 'pool');
    assert.equal(stdout, 'done: 0 -5 -5 7 7\n', stderr);
  });
});

describe('--modcaps', () => {
  const names = (list: string | null): string[] => [...parseCapabilities(list, ALL).kept].sort((a, b) => a - b).map((number) => CAPABILITIES[number]);
  const ALL = { readonly: false, xattr: true, fileHandles: true };
  const BASE = ['CHOWN', 'DAC_OVERRIDE', 'DAC_READ_SEARCH', 'FOWNER', 'FSETID', 'SETGID', 'SETUID', 'MKNOD', 'SETFCAP'];

  test('changes the set that files need, in order, by names with or without CAP_ in either case', () => {
    assert.deepEqual(names(null), BASE);
    assert.deepEqual(names('-mknod:-CAP_SETFCAP'), BASE.slice(0, -2));
    assert.deepEqual(names('+Sys_Admin:-cap_chown'), ['DAC_OVERRIDE', 'DAC_READ_SEARCH', 'FOWNER', 'FSETID', 'SETGID', 'SETUID', 'SYS_ADMIN', 'MKNOD', 'SETFCAP']);
    assert.deepEqual(names('+sys_admin:-sys_admin'), BASE);
    assert.deepEqual(parseCapabilities('+kill:+bpf:-kill', ALL).named, [39]);
  });

  test('what the options do not need is not kept', () => {
    const kept = (needs: Partial<typeof ALL>): string[] => BASE.filter((name) => parseCapabilities(null, { ...ALL, ...needs }).kept.has(CAPABILITIES.indexOf(name as 'CHOWN')));
    assert.deepEqual(kept({}), BASE);
    assert.deepEqual(kept({ fileHandles: false }), BASE.filter((name) => name !== 'DAC_READ_SEARCH'));
    assert.deepEqual(kept({ xattr: false }), BASE.filter((name) => name !== 'SETFCAP'));
    assert.deepEqual(kept({ readonly: true, fileHandles: false }), ['DAC_OVERRIDE', 'FOWNER', 'SETGID', 'SETUID']);
  });

  test('what is no such list is refused', () => {
    for (const list of ['', 'mknod', '+', '+nope', '+mknod:', ':', '+cap_cap_mknod', '-mknod+chown']) refused(() => parseCapabilities(list, ALL), /--modcaps takes names of capabilities/);
  });

  test('the numbers are those of the kernel', { skip: !existsSync('/usr/include/linux/capability.h') && 'no kernel headers' }, () => {
    const text = readFileSync('/usr/include/linux/capability.h', 'utf8');
    const known = [...text.matchAll(/^#define CAP_([A-Z_]+)\s+(\d+)$/gm)].filter((match) => match[1] !== 'LAST_CAP');
    assert.deepEqual(known.map((match) => CAPABILITIES[Number(match[2])]), known.map((match) => match[1]));
    assert.ok(known.length > 35);
  });
});

describe('id maps', () => {
  const range = (inside: number, host: number, count: number): object => ({ inside, host, count });

  test(':namespace_id:host_id:count: with any separator, as often as needed', () => {
    assert.deepEqual(parseIdRanges('--uid-map', [':0:1000:1:', ',1,100000,65536,']), [range(0, 1000, 1), range(1, 100000, 65536)]);
    assert.deepEqual(parseIdRanges('--gid-map', ['/0/0/4294967295/']), [range(0, 0, 4294967295)]);
    assert.equal(parseIdMaps([], []), null);
  });

  test('what is malformed, out of range, doubled, or without the id 0 is refused', () => {
    for (const map of ['0:1000:1', ':0:1000:1', ':0:1000:', ':0:1000:0:', ':-1:0:1:', ':0:x:1:', ':0:4294967295:1:', ':1:0:4294967295:', ':0:1:2:3:', '10001', ':0,1000:1:', ':0:1:1: ', ':']) {
      refused(() => parseIdRanges('--uid-map', [map]), /--uid-map takes :namespace_id:host_id:count:/);
    }
    refused(() => parseIdRanges('--gid-map', [':0:1000:10:', ':9:5000:1:']), /--gid-map names an id twice/);
    refused(() => parseIdRanges('--uid-map', [':0:1000:10:', ':10:1009:1:']), /names an id twice/);
    refused(() => parseIdRanges('--uid-map', [':1:1000:1:']), /must give the id 0/);
    refused(() => parseIdRanges('--uid-map', Array.from({ length: 341 }, (_, i) => `:${i}:${i}:1:`)), /340 times/);
    refused(() => parseIdMaps([':0:1000:1:'], []), /together or not at all/);
  });

  test("the user's own ids need nobody's help", () => {
    const maps = (uid: number, gid: number, count = 1): Parameters<typeof isOwnIds>[0] => parseIdMaps([`:0:${uid}:${count}:`], [`:0:${gid}:1:`])!;
    const [uid, gid] = [process.geteuid!(), process.getegid!()];
    assert.deepEqual([maps(uid, gid), maps(uid + 1, gid), maps(uid, gid + 1), maps(uid, gid, 2)].map(isOwnIds), [true, false, false, false]);
  });
});

describe('what is to be done', () => {
  const NONE: ConfineOptions = { sandbox: 'none', inodeFileHandles: 'auto', xattr: false, seccomp: 'none', modcaps: null, uidMap: [], gidMap: [], readonly: false };

  test('nothing unless it is asked for', () => {
    assert.equal(confinementOf(NONE), null);
    assert.equal(confinementOf({ ...NONE, sandbox: 'namespace' })?.namespace, true);
    assert.deepEqual([confinementOf({ ...NONE, sandbox: 'namespace' })?.optional, confinementOf({ ...NONE, sandbox: 'namespace' })?.fileHandles], [false, false]);
    const root = process.geteuid!() === 0;
    const auto = confinementOf({ ...NONE, sandbox: 'auto', seccomp: 'auto' });
    assert.deepEqual([auto?.namespace, auto?.optional], root ? [true, true] : [undefined, undefined]);
    const [uidMap, gidMap] = [[':0:1:1:'], [':0:1:1:']];
    assert.deepEqual([confinementOf({ ...NONE, sandbox: 'auto', uidMap, gidMap })?.optional], [false], 'ids that are asked for are not left out');
    const action = (sandbox: 'auto' | 'none', ...uidMap: string[]): string => seccompAction({ seccomp: 'auto', sandbox, uidMap });
    assert.deepEqual([action('auto'), action('none')], [root ? 'kill' : 'none', 'none']);
    assert.equal(confinementOf({ ...NONE, modcaps: '-mknod' })?.namespace, false);
    refused(() => confinementOf({ ...NONE, uidMap: [':0:1:1:'], gidMap: [':0:1:1:'] }), /need --sandbox=namespace/);
    refused(() => confinementOf({ ...NONE, modcaps: '+x' }), /--modcaps takes/);
  });

  test('an image that has no ids of its user namespace yet decides as the one that has them', () => {
    const own = process.geteuid!();
    if (own === 0) process.seteuid!(65534);
    try {
      const options = { ...NONE, sandbox: 'auto', seccomp: 'auto', uidMap: [':0:1:1:'], gidMap: [':0:1:1:'] } as const;
      assert.equal(seccompAction(options), 'kill');
      assert.equal(seccompAction({ ...options, uidMap: [] }), 'none');
    } finally {
      if (own === 0) process.seteuid!(0);
    }
  });

  test('a handover counts for the process that it names, once', () => {
    const file = join(mkdtempSync(join(tmpdir(), 'handover-')), 'file');
    const envWith = (text: string): { BUCKETFSD_HANDOVER?: string } => {
      writeFileSync(file, text);
      return { BUCKETFSD_HANDOVER: `7:${openSync(file, 'r')}` };
    };
    const env = envWith('{"stage":"confined"}');
    assert.equal(takeHandover({ ...env }, 8), null);
    assert.equal(takeHandover(env, 7)?.stage, 'confined');
    assert.deepEqual(env, {});
    for (const text of ['', 'null', '{', '[]', '7', '"x"']) assert.equal(takeHandover(envWith(text), 7), null, text);
    for (const text of ['', '7', '7:', '7:999999', '7:x', ':0', '-7:0']) assert.equal(takeHandover({ BUCKETFSD_HANDOVER: text }, 7), null, text);
    rmSync(dirname(file), { recursive: true });
  });

  test('the plan of a root puts no mount below another of the program, the share writable and without devices', () => {
    const { trees } = planRoot({ share: '/srv', readonly: false, socketDirectory: null });
    const program = trees.filter(({ source, target }) => source === target && source !== '/dev/null').map(({ target }) => target);
    for (const path of program) assert.deepEqual(program.filter((other) => other.startsWith(`${path}/`)), [], path);
    assert.equal(trees.find(({ target }) => target === '/.share')?.attributes, 2 | 4);
    assert.equal(trees.find(({ target }) => target === '/.socket'), undefined);
    assert.equal(planRoot({ share: '/srv', readonly: true, socketDirectory: '/run' }).trees.find(({ target }) => target === '/.share')?.attributes, 1 | 2 | 4);
  });
});

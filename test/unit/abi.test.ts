// Constants and structure layouts against the headers of the C library and the kernel: each fact becomes a _Static_assert,
// and the compiler says which do not hold. For this machine's architecture with gcc, for the other one where its cross
// compiler is installed (Debian: gcc-aarch64-linux-gnu and libc6-dev-arm64-cross).
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { E } from '../../src/base/errno.js';
import { syscallNumber } from '../../src/ffi/libc.js';
import * as abi from '../../src/fuse/abi.js';
import { OPERATIONS } from '../../src/fuse/ops.js';
import * as fuseFlags from '../../src/storage/fuse-flags.js';
import * as statx from '../../src/storage/statx.js';

const SOURCES = fileURLToPath(new URL('../../../src/', import.meta.url));
const COMPILERS = { x64: 'x86_64-linux-gnu-gcc', arm64: 'aarch64-linux-gnu-gcc' } as const;
type Arch = keyof typeof COMPILERS;

const HEADERS = `
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/fuse.h>
#include <linux/magic.h>
#include <linux/virtio_config.h>
#include <linux/virtio_fs.h>
#include <linux/virtio_ring.h>
`;

/** A C expression and the value that it must have; `minor`: only where the headers know that version of FUSE. */
interface Fact {
  expression: string;
  value: number | bigint;
  minor?: number | undefined;
}

function compile(compiler: string, options: readonly string[], input: string): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(compiler, ['-std=gnu17', ...options, '-xc', '-'], { input, encoding: 'utf8', timeout: 60_000, maxBuffer: 1 << 24 });
}

/** Fails with the compiler's words on each fact that does not hold. */
function check(compiler: string, facts: readonly Fact[]): void {
  assert.ok(facts.length > 0);
  const lines = facts.map(({ expression, value, minor }) => {
    const what = JSON.stringify(`${expression} is not ${value}`);
    return `#if FUSE_KERNEL_MINOR_VERSION >= ${minor ?? 0}\n_Static_assert((long long)(${expression}) == ${value}LL, ${what});\n#endif`;
  });
  const { status, stderr } = compile(compiler, ['-fsyntax-only', '-fmax-errors=0', '-fno-diagnostics-show-caret'], `${HEADERS}\n${lines.join('\n')}\n`);
  assert.deepEqual({ stderr, status }, { stderr: '', status: 0 });
}

/** Names that the headers define by #define. */
function macros(compiler: string): Set<string> {
  const { stdout, stderr } = compile(compiler, ['-E', '-dM'], HEADERS);
  assert.equal(stderr, '');
  return new Set([...stdout.matchAll(/^#define (\w+) /gm)].map((match) => match[1]));
}

/** Runs `body` with another process.arch. Not to be nested. */
async function asIfOn<T>(arch: Arch, body: () => T | Promise<T>): Promise<T> {
  const original = Object.getOwnPropertyDescriptor(process, 'arch')!;
  Object.defineProperty(process, 'arch', { ...original, value: arch });
  try {
    return await body();
  } finally {
    Object.defineProperty(process, 'arch', original);
  }
}

/** Numeric constants by name, wherever in src/ they are; those of ffi/constants.ts apart, since some depend on the architecture. */
function namedConstants(): { name: string; value: number; file: string }[] {
  const pattern = /^(?:export )?const ([A-Z][A-Z0-9_]*)(?:: number)? = (0x[\da-f_]+|0o[0-7_]+|[\d_]+)(?: << (\d+))?;/gm;
  return readdirSync(SOURCES, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts') && file !== 'ffi/constants.ts')
    .flatMap((file) => [...readFileSync(join(SOURCES, file), 'utf8').matchAll(pattern)].map((match) => ({
      name: match[1], value: Number(match[2].replaceAll('_', '')) * 2 ** Number(match[3] ?? 0), file,
    })));
}

/** The one constant of that name in src/. */
function named(name: string): number {
  const found = NAMED.filter((constant) => constant.name === name);
  assert.equal(found.length, 1, name);
  return found[0].value;
}

const NAMED = namedConstants();
const snake = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/**
 * struct fuse_*: our layout, and what differs from our names in snake case: a member's name, or the version of FUSE that
 * brought it. `bytes` names the member before which a layout ends that is not the whole structure.
 */
type Differences = Readonly<Record<string, string | number>>;
const FUSE_STRUCTS: readonly (readonly [layout: Readonly<Record<string, number>>, struct: string, differences: Differences, minor?: number])[] = [
  [abi.InHeader, 'fuse_in_header', { totalExtlen: 39, padding: 39 }],
  [abi.OutHeader, 'fuse_out_header', {}],
  [abi.Attr, 'fuse_attr', {}],
  [abi.EntryOut, 'fuse_entry_out', { bytes: 'attr' }],
  [abi.AttrOut, 'fuse_attr_out', { bytes: 'attr' }],
  [abi.ForgetIn, 'fuse_forget_in', {}],
  [abi.BatchForgetIn, 'fuse_batch_forget_in', {}],
  [abi.ForgetOne, 'fuse_forget_one', {}],
  [abi.GetattrIn, 'fuse_getattr_in', { flags: 'getattr_flags' }],
  [abi.SetattrIn, 'fuse_setattr_in', {}],
  [abi.MknodIn, 'fuse_mknod_in', {}],
  [abi.MkdirIn, 'fuse_mkdir_in', {}],
  [abi.RenameIn, 'fuse_rename_in', {}],
  [abi.Rename2In, 'fuse_rename2_in', {}],
  [abi.LinkIn, 'fuse_link_in', {}],
  [abi.OpenIn, 'fuse_open_in', {}],
  [abi.CreateIn, 'fuse_create_in', {}],
  [abi.OpenOut, 'fuse_open_out', { backingId: 40 }],
  [abi.ReleaseIn, 'fuse_release_in', {}],
  [abi.FlushIn, 'fuse_flush_in', {}],
  [abi.ReadIn, 'fuse_read_in', {}],
  [abi.WriteIn, 'fuse_write_in', {}],
  [abi.WriteOut, 'fuse_write_out', {}],
  [abi.StatfsOut, 'fuse_kstatfs', { s0: 'spare[0]', s1: 'spare[2]', s2: 'spare[4]' }],
  [abi.FsyncIn, 'fuse_fsync_in', { flags: 'fsync_flags' }],
  [abi.SetxattrIn, 'fuse_setxattr_in', {}],
  [abi.GetxattrIn, 'fuse_getxattr_in', {}],
  [abi.GetxattrOut, 'fuse_getxattr_out', {}],
  [abi.LkIn, 'fuse_lk_in', { start: 'lk.start', end: 'lk.end', type: 'lk.type', pid: 'lk.pid' }],
  [abi.LkOut, 'fuse_file_lock', {}],
  [abi.AccessIn, 'fuse_access_in', {}],
  [abi.InitIn, 'fuse_init_in', { bytes: 'unused' }],
  [abi.InitOut, 'fuse_init_out', { maxStackDepth: 40, u0: 99, u1: 99, u2: 99 }],
  [abi.InterruptIn, 'fuse_interrupt_in', {}],
  [abi.IoctlIn, 'fuse_ioctl_in', {}],
  [abi.IoctlOut, 'fuse_ioctl_out', {}],
  [abi.FallocateIn, 'fuse_fallocate_in', {}],
  [abi.LseekIn, 'fuse_lseek_in', {}],
  [abi.LseekOut, 'fuse_lseek_out', {}],
  [abi.CopyFileRangeIn, 'fuse_copy_file_range_in', {}],
  [abi.CopyFileRangeOut, 'fuse_copy_file_range_out', {}, 45],
  [abi.StatxIn, 'fuse_statx_in', {}, 39],
  [abi.StatxOut, 'fuse_statx_out', { s0: 'spare[0]', s1: 'spare[1]', bytes: 'stat' }, 39],
  [abi.ExtHeader, 'fuse_ext_header', {}, 39],
  [abi.Dirent, 'fuse_dirent', { bytes: 'name' }],
];

function fuseStructs(): Fact[] {
  return FUSE_STRUCTS.flatMap(([layout, struct, differences, since]) =>
    Object.entries(layout).map(([field, value]) => {
      const difference = differences[field];
      const member = typeof difference === 'string' ? difference : snake(field);
      const whole = field === 'bytes' && difference === undefined;
      return {
        expression: whole ? `sizeof(struct ${struct})` : `offsetof(struct ${struct}, ${member})`,
        value,
        minor: typeof difference === 'number' ? difference : since,
      };
    }));
}

/** Opcodes and flags that are younger than FUSE 7.37, the version of Debian 12's headers. */
const OPCODE_MINOR: Readonly<Record<string, number>> = { STATX: 39, COPY_FILE_RANGE_64: 45 };

function statxWords(): Fact[] {
  const { WORDS, ...fields } = statx.STATX;
  assert.equal(WORDS * 4, statx.STATX_BYTES);
  return Object.entries(fields).map(([field, word]) => {
    const member = `stx_${field.toLowerCase()}`.replace(/_nsec$/, '.tv_nsec');
    return { expression: `offsetof(struct statx, ${member})`, value: word * 4 };
  });
}

/** Layouts that the code uses by numbers without a name, in the files said. */
const LAYOUTS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  // ffi/socket.ts
  msghdr: { msg_iov: 16, msg_iovlen: 24, msg_control: 32, msg_controllen: 40, msg_flags: 48 },
  iovec: { iov_base: 0, iov_len: 8 },
  cmsghdr: { cmsg_len: 0, cmsg_level: 8, cmsg_type: 12, __cmsg_data: 16 },
  sockaddr_un: { sun_family: 0, sun_path: 2 },
  pollfd: { fd: 0, events: 4 },
  // ffi/limits.ts
  rlimit: { rlim_cur: 0, rlim_max: 8 },
  // fuse/reply.ts
  statvfs: { f_bsize: 0, f_frsize: 8, f_blocks: 16, f_bfree: 24, f_bavail: 32, f_files: 40, f_ffree: 48, f_namemax: 80 },
  // storage/local
  flock: { l_type: 0, l_whence: 2, l_start: 8, l_len: 16, l_pid: 24 },
  file_handle: { handle_bytes: 0, handle_type: 4, f_handle: 8 },
  timespec: { tv_sec: 0, tv_nsec: 8 },
  __user_cap_header_struct: { version: 0, pid: 4 },
  __user_cap_data_struct: { effective: 0 },
  // vhost, VIRTIO 1.3 §2.7
  vring_desc: { addr: 0, len: 8, flags: 12, next: 14 },
  vring_avail: { flags: 0, idx: 2, ring: 4 },
  vring_used: { flags: 0, idx: 2, ring: 4 },
  vring_used_elem: { id: 0, len: 4 },
  // main.ts
  virtio_fs_config: { tag: 0, num_request_queues: 36 },
};
const SIZES: Readonly<Record<string, number>> = {
  msghdr: 56, iovec: 16, sockaddr_un: 110, rlimit: 16, timespec: 16, statvfs: 112, vring_desc: 16, vring_used_elem: 8, virtio_fs_config: 40, fsxattr: 28,
};

function layouts(): Fact[] {
  const members = Object.entries(LAYOUTS).flatMap(([name, fields]) =>
    Object.entries(fields).map(([field, value]) => ({ expression: `offsetof(struct ${name}, ${field})`, value })));
  const sizes = Object.entries(SIZES).map(([name, value]) => ({ expression: `sizeof(struct ${name})`, value }));
  return [
    ...members, ...sizes,
    ...['off', 'reclen', 'type', 'name'].map((field) => ({ expression: `offsetof(struct dirent64, d_${field})`, value: named(`D_${field.toUpperCase()}`) })),
    { expression: 'offsetof(struct group, gr_gid)', value: named('GR_GID') },
    { expression: 'sizeof(((struct virtio_fs_config *)0)->tag)', value: named('TAG_BYTES') },
  ];
}

/** The numbers of the ioctls, by name. */
function ioctls(): Fact[] {
  const text = readFileSync(join(SOURCES, 'storage/local/inode-flags.ts'), 'utf8');
  const facts = [...text.matchAll(/^const (FS_IOC_\w+) = (0x[\da-f]+);/gm)].map((match) => ({ expression: match[1], value: Number(match[2]) }));
  assert.equal(facts.length, 4);
  return facts;
}

const host = process.arch as Arch;

for (const arch of Object.keys(COMPILERS) as Arch[]) {
  const compiler = arch === host ? 'gcc' : COMPILERS[arch];
  const missing = spawnSync(compiler, ['--version']).status !== 0;
  // The other architecture is looked at where it can be, and not missed where it cannot.
  if (missing && arch !== host) continue;

  describe(`${arch}: the headers have`, { skip: missing && `no ${compiler}` }, () => {
    test('every constant of ffi/constants.ts', async () => {
      const url = `${new URL('../../src/ffi/constants.js', import.meta.url).href}?${arch}`;
      // The query makes it a module of its own, evaluated anew.
      const constants = await asIfOn(arch, () => import(url) as Promise<Record<string, number>>);
      check(compiler, Object.entries(constants).map(([expression, value]) => ({ expression, value })));
    });

    test('every error number, and the numbers of system calls', async () => {
      const errors = Object.entries(E).map(([name, value]) => ({ expression: name === 'BIG' ? 'E2BIG' : `E${name}`, value }));
      const calls = await asIfOn(arch, () =>
        (['setgroups', 'capget', 'capset'] as const).map((name) => ({ expression: `SYS_${name}`, value: syscallNumber(name) })));
      check(compiler, [...errors, ...calls]);
    });

    test('every other constant of src/ that has the name of one of theirs', () => {
      const theirs = macros(compiler);
      const facts = NAMED.filter(({ name }) => theirs.has(name)).map(({ name, value }) => ({ expression: name, value }));
      for (const name of ['CAP_FSETID', 'VRING_AVAIL_F_NO_INTERRUPT', 'STATX_MNT_ID']) {
        assert.ok(facts.some(({ expression }) => expression === name), name);
      }
      check(compiler, facts);
    });

    test("FUSE's structures, opcodes and flags", () => {
      const theirs = macros(compiler);
      const opcodes = OPERATIONS.map(({ name, code }) => ({ expression: `FUSE_${name}`, value: code, minor: OPCODE_MINOR[name] }));
      const flags = Object.entries(abi.INIT).filter(([name]) => theirs.has(`FUSE_${name}`))
        .map(([name, bit]) => ({ expression: `FUSE_${name}`, value: 1n << BigInt(bit) }));
      assert.ok(flags.length >= 20);
      check(compiler, [
        ...fuseStructs(), ...opcodes, ...flags,
        ...Object.entries(fuseFlags.FATTR).map(([name, value]) => ({ expression: `FATTR_${name}`, value })),
        ...Object.entries(fuseFlags.FOPEN).map(([name, value]) => ({ expression: `FOPEN_${name}`, value, minor: name === 'PARALLEL_DIRECT_WRITES' ? 39 : undefined })),
        ...(['ATTR_SUBMOUNT', 'OPEN_KILL_SUIDGID', 'WRITE_KILL_SUIDGID', 'SETXATTR_ACL_KILL_SGID'] as const)
          .map((name) => ({ expression: `FUSE_${name}`, value: fuseFlags[name] })),
        { expression: 'FUSE_GETATTR_FH', value: abi.GETATTR_FH },
        { expression: 'FUSE_EXT_GROUPS', value: abi.EXT_GROUPS, minor: 39 },
        { expression: 'FUSE_COMPAT_SETXATTR_IN_SIZE', value: abi.SETXATTR_COMPAT_BYTES },
      ]);
    });

    test('the structures of system calls, virtqueues and ioctls', () => check(compiler, [...statxWords(), ...layouts(), ...ioctls()]));
  });
}

/**
 * The mounts of the daemon's namespace, as /proc/self/mountinfo lists them (proc_pid_mountinfo(5)): which are served by another machine or process, and by
 * which names one comes to those below the shared directory. The kernel lists them without asking any file system, so that one that does not answer stops
 * nobody here. poll(2) of the list tells of every change; between a change that cannot be read at once and its reading, every name may lead to such a mount.
 */
import { closeSync, openSync, readlinkSync, readSync } from 'node:fs';
import type { Log } from '../../base/log.js';
import { TMPFS_MAGIC } from '../../ffi/constants.js';
import { copyMemory, NativeMemory } from '../../ffi/memory.js';
import { ChangePoller } from '../../ffi/poll.js';
import type { Name } from '../filesystem.js';

/** Who has a mount's files: a disk or the kernel of this machine, its memory, or another machine or process, which may stop to answer. */
export const MOUNT_KIND = { DISK: 0, MEMORY: 1, REMOTE: 2 } as const;
export type MountKind = (typeof MOUNT_KIND)[keyof typeof MOUNT_KIND];

/** File systems in memory. None of them has RWF_NOWAIT. */
const IN_MEMORY: ReadonlySet<string> = new Set(['tmpfs', 'ramfs', 'hugetlbfs', 'devtmpfs', 'rootfs']);
/** Others without a block device of their own (major number 0) that ask nobody; whoever else has none asks somebody. */
const OF_THIS_KERNEL: ReadonlySet<string> = new Set([
  'btrfs', 'zfs', 'bcachefs', 'ubifs', 'overlay', 'proc', 'sysfs', 'devpts', 'cgroup', 'cgroup2', 'mqueue', 'debugfs', 'tracefs', 'securityfs', 'selinuxfs',
  'smackfs', 'pstore', 'bpf', 'configfs', 'efivarfs', 'binfmt_misc', 'nsfs',
]);
/** On a block device of their own, and yet served by a process, or with locks of other machines. */
const REMOTE_ON_DISK: ReadonlySet<string> = new Set(['fuseblk', 'gfs2', 'ocfs2', 'gpfs', 'lustre']);

/** statfs(2) f_type of file systems in memory, and of those that ask another machine or process (include/uapi/linux/magic.h). */
const IN_MEMORY_TYPES: ReadonlySet<number> = new Set([TMPFS_MAGIC, 0x858458f6, 0x958458f6]);
const REMOTE_TYPES: ReadonlySet<number> = new Set([
  0x6969, // NFS
  0xff534d42, // CIFS
  0xfe534d42, // SMB2
  0x517b, // SMB
  0x00c36400, // Ceph
  0x01021997, // 9p
  0x5346414f, // AFS
  0x65735546, // FUSE
  0x0bd00bd0, // Lustre
  0x01161970, // GFS2
  0x7461636f, // OCFS2
  0x47504653, // GPFS
]);

/** By f_type of statfs(2). */
export function kindOfType(fsType: number): MountKind {
  return REMOTE_TYPES.has(fsType) ? MOUNT_KIND.REMOTE : IN_MEMORY_TYPES.has(fsType) ? MOUNT_KIND.MEMORY : MOUNT_KIND.DISK;
}

const LIST = '/proc/self/mountinfo';
/** A list that is longer is not read: some 20,000 mounts. */
const LIST_MAX_BYTES = 4 << 20;
const CHUNK_BYTES = 1 << 16;
/** A reading may take a 50th of the time, however often the host mounts something. */
const REST = 50;
const NAME_MAX = 255;

const scratch = NativeMemory.allocate(4096);

export interface MountTableOptions {
  /** Descriptor of the shared directory: where it is now is asked for with each reading. */
  readonly rootFd: number;
  readonly log: Log;
  /** Called after each reading, and when names have become uncertain. */
  readonly onChange: () => void;
  /** Another file than LIST, and another bound, for tests. */
  readonly list?: string;
  readonly maxBytes?: number;
}

export class MountTable {
  readonly #options: MountTableOptions;
  readonly #fd: number;
  #kinds = new Map<number, MountKind>();
  /** Last components of remote mount points below the share, and the lengths that they have. */
  #names: Uint8Array[] = [];
  readonly #lengths = new Uint8Array(NAME_MAX + 1);
  /** Any name may be one: the list could not be read, or has changed since. */
  #anyName = false;
  /** It is not read any more. */
  #failed = false;
  #restUntil = 0;
  #due: NodeJS.Timeout | null = null;
  /** Kept from the garbage collector. */
  readonly #poller: ChangePoller | null = null;

  /** Reads the list, and again after each change. One that cannot be read is a line in the log: then all mounts are remote. */
  constructor(options: MountTableOptions) {
    this.#options = options;
    let fd = -1;
    try {
      fd = openSync(options.list ?? LIST, 'r');
      this.#poller = new ChangePoller(fd, () => this.#changed(), () => this.#read());
    } catch (error) {
      this.#fail((error as Error).message);
    }
    this.#fd = fd;
    if (this.#poller !== null) this.#read();
  }

  /** Of a mount by its id (stx_mnt_id of statx(2), the first field of the list). One that is not listed, since it was unmounted lazily, is remote. */
  kindOf(id: number): MountKind {
    const listed = this.listedKind(id);
    if (listed !== undefined) return listed;
    if (!this.#failed && performance.now() >= this.#restUntil) this.#read();
    return this.listedKind(id) ?? MOUNT_KIND.REMOTE;
  }

  /** As it was at the last reading; undefined if it was not listed. */
  listedKind(id: number): MountKind | undefined {
    return this.#kinds.get(id);
  }

  /** Whether any name leads to a remote mount. */
  get hasNames(): boolean {
    return this.#anyName || this.#names.length > 0;
  }

  /** Whether the name may be a remote mount point's. The same name elsewhere is taken for it as well. */
  isName({ address, length }: Name): boolean {
    if (this.#anyName) return true;
    if (length > NAME_MAX || this.#lengths[length] === 0) return false;
    copyMemory(scratch.address, address, length);
    for (const name of this.#names) if (isScratch(name, length)) return true;
    return false;
  }

  close(): void {
    if (this.#due !== null) clearTimeout(this.#due);
    this.#poller?.close();
    if (this.#fd >= 0) closeSync(this.#fd);
  }

  #changed(): void {
    if (this.#due !== null || this.#failed) return;
    const rest_ms = this.#restUntil - performance.now();
    if (rest_ms <= 0) return this.#read();
    this.#anyName = true;
    this.#options.onChange();
    this.#due = setTimeout(() => {
      this.#due = null;
      this.#read();
    }, rest_ms);
    this.#due.unref();
  }

  #read(): void {
    if (this.#failed) return;
    const before = performance.now();
    try {
      this.#take(this.#text());
    } catch (error) {
      this.#fail((error as Error).message);
    }
    const now = performance.now();
    this.#restUntil = now + (now - before) * REST;
    this.#options.onChange();
  }

  /** For good: whoever has so many mounts does not get rid of them while a daemon runs. */
  #fail(reason: string): void {
    this.#failed = true;
    this.#anyName = true;
    this.#kinds.clear();
    this.#options.log.warn({}, `the mounts below the share are not known (${reason}): look-ups, and all that is done to files on them, go to the thread pool`);
  }

  #text(): string {
    const { maxBytes = LIST_MAX_BYTES } = this.#options;
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    const parts: string[] = [];
    for (let at = 0; ; ) {
      const bytes = readSync(this.#fd, chunk, 0, CHUNK_BYTES, at);
      if (bytes === 0) return parts.join('');
      at += bytes;
      if (at > maxBytes) throw new Error(`the list of mounts is longer than ${maxBytes} bytes`);
      parts.push(chunk.toString('latin1', 0, bytes));
    }
  }

  #take(text: string): void {
    const directory = this.#directory();
    const kinds = new Map<number, MountKind>();
    const names = new Set<string>();
    for (const { id, point, kind } of parseMounts(text)) {
      kinds.set(id, kind);
      if (kind === MOUNT_KIND.REMOTE && (directory === null || point.startsWith(directory))) names.add(point.slice(point.lastIndexOf('/') + 1));
    }
    this.#kinds = kinds;
    this.#names = [...names].map((name) => Buffer.from(name, 'latin1'));
    this.#lengths.fill(0);
    for (const { length } of this.#names) if (length <= NAME_MAX) this.#lengths[length] = 1;
    this.#anyName = false;
  }

  /** The share's path as the list has it, with a slash at its end; null if it has none there. */
  #directory(): string | null {
    const path = readlinkSync(`/proc/self/fd/${this.#options.rootFd}`, 'latin1');
    if (!path.startsWith('/')) return null;
    return path === '/' ? path : `${path}/`;
  }
}

/** Whether `name` is what the first `length` bytes of the scratch memory are. */
function isScratch(name: Uint8Array, length: number): boolean {
  if (name.length !== length) return false;
  for (let i = 0; i < length; i++) if (name[i] !== scratch.u8[i]) return false;
  return true;
}

export interface ListedMount {
  readonly id: number;
  /** Absolute, in latin1. */
  readonly point: string;
  readonly kind: MountKind;
}

/** Lines of id, parent, major:minor, root, mount point, options, any number of optional fields, "-", type, source, options. */
export function parseMounts(text: string): ListedMount[] {
  return text.split('\n').flatMap((line) => {
    const fields = line.split(' ');
    const dash = fields.indexOf('-', 6);
    return dash < 0 ? [] : { id: Number(fields[0]), point: unescaped(fields[4]), kind: kindOf(fields[dash + 1] ?? '', fields[2].startsWith('0:')) };
  });
}

function kindOf(type: string, anonymous: boolean): MountKind {
  if (IN_MEMORY.has(type)) return MOUNT_KIND.MEMORY;
  const local = anonymous ? OF_THIS_KERNEL.has(type) : !REMOTE_ON_DISK.has(type);
  return local ? MOUNT_KIND.DISK : MOUNT_KIND.REMOTE;
}

/** Space, tab, newline and backslash are written as three octal digits. */
const unescaped = (path: string): string => path.replace(/\\([0-7]{3})/g, (_all, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

/**
 * Mounts seen below the share: (device, mount id) ↔ a small number that serves as the third word of a node's
 * identity, and a readable descriptor on each for open_by_handle_at(2). The descriptor keeps the host from
 * unmounting, from the first directory that the guest knows there to the last node.
 */
import { O_CLOEXEC, O_DIRECTORY, O_RDONLY, TMPFS_MAGIC } from '../../ffi/constants.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import { STATX } from '../statx.js';

const dot = NativeMemory.allocate(4096).putString(0, '.');

interface Mount {
  major: number;
  minor: number;
  idLow: number;
  idHigh: number;
  nodes: number;
  fd: number;
  /** Its files are in memory: reading one waits for no storage. */
  readonly inMemory: boolean;
}

/** statfs(2) f_type of tmpfs, ramfs and hugetlbfs (include/uapi/linux/magic.h). None of them has RWF_NOWAIT. */
const IN_MEMORY: ReadonlySet<number> = new Set([TMPFS_MAGIC, 0x858458f6, 0x958458f6]);
const statfs = NativeMemory.allocate(4096);

export class Mounts {
  #mounts: (Mount | null)[] = [];
  #last = 0;

  /** Number of the mount that `statx` names, or −1 if it was not seen. */
  find(statx: Int32Array): number {
    const last = this.#mounts[this.#last];
    if (last && same(last, statx)) return this.#last;
    for (let i = 0; i < this.#mounts.length; i++) {
      const mount = this.#mounts[i];
      if (mount && same(mount, statx)) return (this.#last = i);
    }
    return -1;
  }

  /** The same, noting a new mount. `fd` is of the inode; a directory serves to reach the mount again. */
  index(statx: Int32Array, fd: number, directory: boolean): number {
    let i = this.find(statx);
    if (i < 0) {
      i = this.#mounts.findIndex((m) => m === null);
      if (i < 0) i = this.#mounts.length;
      this.#mounts[i] = {
        major: statx[STATX.DEV_MAJOR],
        minor: statx[STATX.DEV_MINOR],
        idLow: statx[STATX.MNT_ID],
        idHigh: statx[STATX.MNT_ID + 1],
        nodes: 0,
        fd: -1,
        inMemory: isInMemory(fd),
      };
    }
    const mount = this.#mounts[i]!;
    if (mount.fd < 0 && directory) mount.fd = reopenDirectory(fd);
    return i;
  }

  /** A readable directory descriptor on the mount, or negative. */
  fd(index: number): number {
    return this.#mounts[index]?.fd ?? -1;
  }

  inMemory(index: number): boolean {
    return this.#mounts[index]?.inMemory === true;
  }

  ref(index: number): void {
    this.#mounts[index]!.nodes++;
  }

  unref(index: number): void {
    const mount = this.#mounts[index]!;
    if (--mount.nodes > 0) return;
    if (mount.fd >= 0) c.close(mount.fd);
    this.#mounts[index] = null;
  }

  /** Forget all but one, which no node is on any more. */
  clear(keep: number): void {
    const kept = this.#mounts[keep]!;
    for (const mount of this.#mounts) if (mount && mount !== kept && mount.fd >= 0) c.close(mount.fd);
    this.#mounts = new Array<Mount | null>(keep).fill(null);
    this.#mounts.push(kept);
    kept.nodes = 0;
    this.#last = keep;
  }
}

function same(m: Mount, statx: Int32Array): boolean {
  return (
    m.idLow === statx[STATX.MNT_ID] && m.idHigh === statx[STATX.MNT_ID + 1] &&
    m.minor === statx[STATX.DEV_MINOR] && m.major === statx[STATX.DEV_MAJOR]
  );
}

/** A readable descriptor of the directory behind an O_PATH one, as open_by_handle_at(2) wants for its mount; −errno. */
function reopenDirectory(fd: number): number {
  return c.neg(c.openat(fd, dot, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0));
}

const isInMemory = (fd: number): boolean => c.statfs(fd, statfs.address) === 0 && IN_MEMORY.has(statfs.u32[0]);

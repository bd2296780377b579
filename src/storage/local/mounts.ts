/**
 * Mounts seen below the share: (device, mount id) ↔ a small number that serves as the third word of a node's
 * identity, and a readable descriptor on each for open_by_handle_at(2). The descriptor keeps the host from
 * unmounting, from the first directory that the guest knows there to the last node.
 */
import { O_CLOEXEC, O_DIRECTORY, O_RDONLY } from '../../ffi/constants.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import type { Name } from '../filesystem.js';
import { STATX } from '../statx.js';
import { MOUNT_KIND, type MountKind, type MountTable } from './mount-table.js';
import { RemoteCloser } from './remote-closer.js';

const dot = NativeMemory.allocate(4096).putString(0, '.');

interface Mount {
  major: number;
  minor: number;
  idLow: number;
  idHigh: number;
  nodes: number;
  fd: number;
  kind: MountKind;
}

export class Mounts {
  #mounts: (Mount | null)[] = [];
  #last = 0;
  #root = -1;
  #table: MountTable | null = null;
  /** Whether any request may come to a remote mount: one is known, or a name leads to one. Looked at before anything else is. */
  hasRemote = false;

  /** `heedsRemote`: whether remote mounts are told from others; else none is one. `rootCloser`: for the share's own mount, if that is remote. */
  constructor(
    readonly heedsRemote = false,
    readonly rootCloser = new RemoteCloser(null),
    readonly closer = rootCloser,
  ) {}

  /** What kinds of mounts there are; without it all are disks. Its onChange() is to call update(). */
  consult(table: MountTable): void {
    this.#table = table;
    this.update();
  }

  /** The table has changed: what it did not list when it was met, it may list now. */
  update(): void {
    for (const [i, mount] of this.#mounts.entries()) {
      if (mount !== null && i !== this.#root) mount.kind = this.#table?.listedKind(idOf(mount)) ?? mount.kind;
    }
    this.#look();
  }

  #look(): void {
    this.hasRemote = this.heedsRemote && (this.#table?.hasNames === true || this.#mounts.some((mount) => mount?.kind === MOUNT_KIND.REMOTE));
  }

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

  /** Note the mount of the share's root, of which `fd` is. */
  indexRoot(statx: Int32Array, fd: number, kind: MountKind): number {
    this.#root = this.#add(statx, kind);
    this.#mounts[this.#root]!.fd = reopenDirectory(fd);
    return this.#root;
  }

  /**
   * As find(), noting a new mount. `fd` is of the inode; a directory serves to reach the mount again, by `directoryFd` if that was opened already (≥ 0), which
   * is taken over. A remote mount is not asked for one here.
   */
  index(statx: Int32Array, fd: number, directory: boolean, directoryFd = -1): number {
    let i = this.find(statx);
    if (i < 0) i = this.#add(statx, this.#kindOf(statx));
    const mount = this.#mounts[i]!;
    if (mount.fd < 0 && directoryFd >= 0) mount.fd = directoryFd;
    else if (directoryFd >= 0) this.close(i, directoryFd);
    else if (mount.fd < 0 && directory && !this.isRemote(i)) mount.fd = reopenDirectory(fd);
    return i;
  }

  #add(statx: Int32Array, kind: MountKind): number {
    let i = this.#mounts.findIndex((m) => m === null);
    if (i < 0) i = this.#mounts.length;
    this.#mounts[i] = {
      major: statx[STATX.DEV_MAJOR],
      minor: statx[STATX.DEV_MINOR],
      idLow: statx[STATX.MNT_ID],
      idHigh: statx[STATX.MNT_ID + 1],
      nodes: 0,
      fd: -1,
      kind,
    };
    this.#look();
    return i;
  }

  #kindOf(statx: Int32Array): MountKind {
    return this.#table?.kindOf(idOf({ idLow: statx[STATX.MNT_ID], idHigh: statx[STATX.MNT_ID + 1] })) ?? MOUNT_KIND.DISK;
  }

  /** Whether a directory of the mount of `statx` is to be opened, for index(). */
  wantsDirectory(statx: Int32Array): boolean {
    const i = this.find(statx);
    return i < 0 || this.#mounts[i]!.fd < 0;
  }

  /** A readable directory descriptor on the mount, or negative. */
  fd(index: number): number {
    return this.#mounts[index]?.fd ?? -1;
  }

  inMemory(index: number): boolean {
    return this.#mounts[index]?.kind === MOUNT_KIND.MEMORY;
  }

  /** Whether its files are another machine's or process's, so that whoever asks for one may wait for ever. */
  isRemote(index: number): boolean {
    return this.hasRemote && this.#mounts[index]?.kind === MOUNT_KIND.REMOTE;
  }

  /** Whether it is remote, and another mount than the share's own. */
  isRemoteSubmount(index: number): boolean {
    return index !== this.#root && this.isRemote(index);
  }

  /** Whether the name may lead to a remote mount. */
  leadsToRemote(name: Name): boolean {
    return this.hasRemote && this.#table?.isName(name) === true;
  }

  /** Close a descriptor of a file of the mount. */
  close(index: number, fd: number): void {
    if (!this.isRemote(index)) c.close(fd);
    else if (index === this.#root) this.rootCloser.close(fd);
    else this.closer.close(fd);
  }

  ref(index: number): void {
    this.#mounts[index]!.nodes++;
  }

  unref(index: number): void {
    const mount = this.#mounts[index]!;
    if (--mount.nodes > 0) return;
    if (mount.fd >= 0) this.close(index, mount.fd);
    this.#mounts[index] = null;
    this.#look();
  }

  /** Forget all but that of the root, which no node is on any more. */
  clear(): void {
    const kept = this.#mounts[this.#root]!;
    for (const [i, mount] of this.#mounts.entries()) if (mount && mount !== kept && mount.fd >= 0) this.close(i, mount.fd);
    this.#mounts = new Array<Mount | null>(this.#root).fill(null);
    this.#mounts.push(kept);
    kept.nodes = 0;
    this.#last = this.#root;
    this.#look();
  }
}

const idOf = ({ idLow, idHigh }: Pick<Mount, 'idLow' | 'idHigh'>): number => (idLow >>> 0) + (idHigh >>> 0) * 2 ** 32;

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

/**
 * The guest's memory as this process sees it: regions mapped from the frontend's descriptors.
 *
 * A region is cut into *slices* of at most 1 GiB, each with one DataView that is made when it is first used, because a single view may not be
 * larger and costs time. Translation gives a host address (for iovecs) and, where bytes are read here, a slice and an offset.
 */
import { assert } from '../base/assert.js';
import * as c from '../ffi/libc.js';
import { NativeMemory, VIEW_MAX_BYTES, viewOf } from '../ffi/memory.js';
import {
  AT_EMPTY_PATH, F_ADD_SEALS, F_GET_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, MADV_DONTDUMP, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE,
} from '../ffi/constants.js';
import { ProtocolError } from './errors.js';

/** Memory slots that we offer (VHOST_USER_GET_MAX_MEM_SLOTS); what QEMU's ACPI hotplug can use at most. */
export const MAX_REGIONS = 509;
const PAGE_BYTES = 4096;
/** Addresses stay exact as JavaScript numbers; also beyond any CPU's guest-physical width. */
const ADDRESS_MAX = 2 ** 52;

export interface RegionRequest {
  /** Guest-physical address of the first byte. */
  gpa: number;
  /** Bytes. */
  size: number;
  /** Where the frontend has the region mapped in its own address space; ring addresses use these. */
  userAddress: number;
  /** Where the region starts in the file, bytes. */
  fileOffset: number;
}

export interface Region extends RegionRequest {
  hostAddress: number;
  mappingAddress: number;
  mappingBytes: number;
  /** Device and inode of the file, which is the same one for as long as it is mapped. */
  file: string;
  slices: readonly Slice[];
}

export class Slice {
  readonly end: number;
  #view: DataView | null = null;

  constructor(
    readonly gpa: number,
    bytes: number,
    readonly hostAddress: number,
  ) {
    this.end = gpa + bytes;
  }

  get view(): DataView {
    return (this.#view ??= new DataView(viewOf(this.hostAddress, this.end - this.gpa)));
  }
}

export class GuestMemory {
  readonly regions: Region[] = [];
  /** Ordered by gpa; replaced as a whole when a region comes or goes. */
  slices: Slice[] = [];
  #last = 0;

  /** `former`: mappings that the same regions may go on with, until one replaces the other. */
  constructor(
    readonly files: MemoryFiles = 'shared-memory',
    readonly former: GuestMemory | null = null,
  ) {}

  /** Another table, of which regions that are here are not mapped anew. */
  successor(): GuestMemory {
    return new GuestMemory(this.files, this);
  }

  /** Map a region. The descriptor stays the caller's to close. Throws ProtocolError. */
  add(request: RegionRequest, fd: number): void {
    const file = this.#validate(request, fd);
    const same = this.former?.regions.find((r) =>
      r.file === file && r.gpa === request.gpa && r.size === request.size && r.userAddress === request.userAddress && r.fileOffset === request.fileOffset);
    if (same !== undefined) {
      this.regions.push(same);
      this.#rebuild();
      return;
    }
    // mmap offsets are in pages; the region may start inside one
    const lead = request.fileOffset % PAGE_BYTES;
    const mappingBytes = lead + request.size;
    // SAFETY: this object owns the mapping until remove(); its owner drains every queue before that
    const mappingAddress = c.mmap(0, mappingBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, request.fileOffset - lead);
    if (mappingAddress === -1) throw new ProtocolError('region', `cannot map a memory region of ${request.size} bytes: errno ${c.errno()}`);
    c.madvise(mappingAddress, mappingBytes, MADV_DONTDUMP);
    const hostAddress = mappingAddress + lead;
    this.regions.push({ ...request, hostAddress, mappingAddress, mappingBytes, file, slices: slicesOf(request, hostAddress) });
    this.#rebuild();
  }

  /** The region that equals `request` in all but its file offset. Throws ProtocolError when there is none. */
  region(request: RegionRequest): Region {
    const found = this.regions.find((r) => r.gpa === request.gpa && r.size === request.size && r.userAddress === request.userAddress);
    if (found === undefined) throw new ProtocolError('region', `no memory region at 0x${request.gpa.toString(16)} of ${request.size} bytes to remove`);
    return found;
  }

  /** Unmap one of the regions. Nothing may be in flight. */
  remove(region: Region): void {
    const at = this.regions.indexOf(region);
    assert(at >= 0, 'a region of this memory');
    this.regions.splice(at, 1);
    this.#rebuild();
    c.check(c.munmap(region.mappingAddress, region.mappingBytes), 'munmap');
  }

  /** Unmap everything but what belongs to the former table, too. Nothing may be in flight. */
  clear(): void {
    this.#unmap(this.regions.splice(0), this.former?.regions ?? []);
  }

  /** Take over the regions of a successor, which is left empty, and unmap the others. Nothing may be in flight. */
  replace(successor: GuestMemory): void {
    const regions = this.regions.splice(0, this.regions.length, ...successor.regions.splice(0));
    successor.#rebuild();
    this.#unmap(regions, this.regions);
  }

  #unmap(regions: readonly Region[], kept: readonly Region[]): void {
    this.#rebuild();
    for (const region of regions) if (!kept.includes(region)) c.check(c.munmap(region.mappingAddress, region.mappingBytes), 'munmap');
  }

  /** Index of the slice that holds the address, or −1. */
  find(gpa: number): number {
    const slices = this.slices;
    const last = this.#last;
    if (last < slices.length && gpa >= slices[last].gpa && gpa < slices[last].end) return last;
    let low = 0;
    let high = slices.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      if (gpa < slices[middle].gpa) high = middle - 1;
      else if (gpa >= slices[middle].end) low = middle + 1;
      else return (this.#last = middle);
    }
    return -1;
  }

  /** Host address of [gpa, gpa + bytes) if one region holds all of it, else −1. */
  hostAddress(gpa: number, bytes: number): number {
    for (const r of this.regions) {
      if (gpa >= r.gpa && gpa + bytes <= r.gpa + r.size) return r.hostAddress + (gpa - r.gpa);
    }
    return -1;
  }

  /** The same for an address of the frontend's own address space. */
  hostAddressOfUser(userAddress: number, bytes: number): number {
    for (const r of this.regions) {
      if (userAddress >= r.userAddress && userAddress + bytes <= r.userAddress + r.size) return r.hostAddress + (userAddress - r.userAddress);
    }
    return -1;
  }

  /** @returns the file's identity */
  #validate(request: RegionRequest, fd: number): string {
    const { gpa, size, userAddress, fileOffset } = request;
    for (const value of [gpa, userAddress, fileOffset, size]) {
      if (!Number.isSafeInteger(value) || value < 0 || value > ADDRESS_MAX) throw new ProtocolError('region', 'a memory region has an address out of range');
    }
    if (size === 0 || size % 8 !== 0) throw new ProtocolError('region', `a memory region has a size of ${size} bytes`);
    if (this.regions.length >= MAX_REGIONS) throw new ProtocolError('region', `more than ${MAX_REGIONS} memory regions`);
    for (const r of this.regions) {
      if (gpa < r.gpa + r.size && r.gpa < gpa + size) throw new ProtocolError('region', 'memory regions overlap in guest-physical addresses');
      if (userAddress < r.userAddress + r.size && r.userAddress < userAddress + size) {
        throw new ProtocolError('region', 'memory regions overlap in frontend addresses');
      }
    }
    return guardFile(fd, fileOffset + size, 'region', this.files);
  }

  #rebuild(): void {
    this.slices = [...this.regions].sort((a, b) => a.gpa - b.gpa).flatMap(({ slices }) => slices);
    this.#last = 0;
  }
}

function slicesOf({ gpa, size }: RegionRequest, hostAddress: number): Slice[] {
  const slices: Slice[] = [];
  for (let at = 0; at < size; at += VIEW_MAX_BYTES) slices.push(new Slice(gpa + at, Math.min(VIEW_MAX_BYTES, size - at), hostAddress + at));
  return slices;
}

const statxBuffer = NativeMemory.allocate(4096);
const STATX_SIZE_AND_INO = 0x300;
/** Of struct statx: stx_ino, stx_size, stx_dev_major, stx_dev_minor. */
const INO_AT = 32;
const SIZE_AT = 40;
const DEV_AT = 136;

/** What may be mapped: files of shared memory (memfd, tmpfs, hugetlbfs), or any. */
export type MemoryFiles = 'shared-memory' | 'any';

/**
 * Rule: memory that is shared with a frontend is of the kernel's own shared memory. A page of another file is fetched when it is touched: on a file system
 * that the frontend serves itself (FUSE) that never ends, and a thread that waits for it hears no signal. F_GET_SEALS tells, and asks no file system.
 *
 * Make sure besides that the file can be mapped up to `end` bytes: touching a page beyond the end of a file is a SIGBUS.
 * A memfd that can still be sealed is sealed against shrinking, which keeps nobody from growing it or punching holes
 * into it (balloons do). Files that cannot be sealed (tmpfs or hugetlbfs by path) stay the frontend's promise, as for
 * every vhost-user backend. Throws ProtocolError.
 * @returns device and inode of the file
 */
export function guardFile(fd: number, end: number, what: 'region' | 'log' | 'inflight', files: MemoryFiles = 'shared-memory'): string {
  // Before the size is looked at: it could shrink in between
  const seals = c.fcntl(fd, F_GET_SEALS, 0);
  if (seals < 0 && files !== 'any') {
    throw new ProtocolError(what, `shared memory (${what}) in a file that is neither a memfd nor on tmpfs or hugetlbfs (--allow-memory-files allows guest memory there)`);
  }
  if (seals >= 0 && (seals & (F_SEAL_SEAL | F_SEAL_SHRINK)) === 0 && c.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0) {
    throw new ProtocolError(what, `cannot seal shared memory (${what}) against shrinking: errno ${c.errno()}`);
  }
  const empty = statxBuffer.address + 2048; // a NUL byte: the descriptor itself
  if (c.statx(fd, empty, AT_EMPTY_PATH, STATX_SIZE_AND_INO, statxBuffer.address) < 0) {
    throw new ProtocolError(what, `cannot stat the file of shared memory (${what}): errno ${c.errno()}`);
  }
  const bytes = statxBuffer.dv.getBigUint64(SIZE_AT, true);
  if (BigInt(end) > bytes) throw new ProtocolError(what, `shared memory (${what}) ends at ${end}, but its file has ${bytes} bytes`);
  return `${statxBuffer.dv.getBigUint64(DEV_AT, true)}:${statxBuffer.dv.getBigUint64(INO_AT, true)}`;
}

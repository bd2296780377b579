/**
 * The guest's memory as this process sees it: regions mapped from the frontend's descriptors.
 *
 * A region is cut into *slices* of at most 1 GiB, each with one DataView, because a single view may not be
 * larger. Translation gives a host address (for iovecs) and, where bytes are read here, a slice and an offset.
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
}

export interface Slice {
  gpa: number;
  end: number;
  hostAddress: number;
  view: DataView;
  u8: Uint8Array;
}

export class GuestMemory {
  readonly regions: Region[] = [];
  /** Ordered by gpa; replaced as a whole when a region comes or goes. */
  slices: Slice[] = [];
  #last = 0;

  /** Map a region. The descriptor stays the caller's to close. Throws ProtocolError. */
  add(request: RegionRequest, fd: number): void {
    this.#validate(request, fd);
    // mmap offsets are in pages; the region may start inside one
    const lead = request.fileOffset % PAGE_BYTES;
    const mappingBytes = lead + request.size;
    // SAFETY: this object owns the mapping until remove(); its owner drains every queue before that
    const mappingAddress = c.mmap(0, mappingBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, request.fileOffset - lead);
    if (mappingAddress === -1) throw new ProtocolError('region', `cannot map a memory region of ${request.size} bytes: errno ${c.errno()}`);
    c.madvise(mappingAddress, mappingBytes, MADV_DONTDUMP);
    this.regions.push({ ...request, hostAddress: mappingAddress + lead, mappingAddress, mappingBytes });
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

  /** Unmap everything. Nothing may be in flight. */
  clear(): void {
    this.replace(new GuestMemory());
  }

  /** Unmap everything and take over the mappings of another, which is left empty. Nothing may be in flight. */
  replace(other: GuestMemory): void {
    const regions = this.regions.splice(0, this.regions.length, ...other.regions.splice(0));
    other.#rebuild();
    this.#rebuild();
    for (const region of regions) c.check(c.munmap(region.mappingAddress, region.mappingBytes), 'munmap');
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

  #validate(request: RegionRequest, fd: number): void {
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
    guardFile(fd, fileOffset + size, 'region');
  }

  #rebuild(): void {
    const slices: Slice[] = [];
    for (const r of [...this.regions].sort((a, b) => a.gpa - b.gpa)) {
      for (let at = 0; at < r.size; at += VIEW_MAX_BYTES) {
        const bytes = Math.min(VIEW_MAX_BYTES, r.size - at);
        const buffer = viewOf(r.hostAddress + at, bytes);
        slices.push({ gpa: r.gpa + at, end: r.gpa + at + bytes, hostAddress: r.hostAddress + at, view: new DataView(buffer), u8: new Uint8Array(buffer) });
      }
    }
    this.slices = slices;
    this.#last = 0;
  }
}

const statxBuffer = NativeMemory.allocate(4096);
const STATX_SIZE = 0x200;
const STX_SIZE_OFFSET = 40;

/**
 * Make sure that a shared file can be mapped up to `end` bytes: touching a page beyond the end of a file is a SIGBUS.
 * A memfd that can still be sealed is sealed against shrinking, which keeps nobody from growing it or punching holes
 * into it (balloons do). Files that cannot be sealed (tmpfs or hugetlbfs by path) stay the frontend's promise, as for
 * every vhost-user backend. Throws ProtocolError.
 */
export function guardFile(fd: number, end: number, what: 'region' | 'log' | 'inflight'): void {
  // Before the size is looked at: it could shrink in between
  const seals = c.fcntl(fd, F_GET_SEALS, 0);
  if (seals >= 0 && (seals & (F_SEAL_SEAL | F_SEAL_SHRINK)) === 0 && c.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0) {
    throw new ProtocolError(what, `cannot seal shared memory (${what}) against shrinking: errno ${c.errno()}`);
  }
  const empty = statxBuffer.address + 2048; // a NUL byte: the descriptor itself
  if (c.statx(fd, empty, AT_EMPTY_PATH, STATX_SIZE, statxBuffer.address) < 0) {
    throw new ProtocolError(what, `cannot stat the file of shared memory (${what}): errno ${c.errno()}`);
  }
  const bytes = statxBuffer.dv.getBigUint64(STX_SIZE_OFFSET, true);
  if (BigInt(end) > bytes) throw new ProtocolError(what, `shared memory (${what}) ends at ${end}, but its file has ${bytes} bytes`);
}

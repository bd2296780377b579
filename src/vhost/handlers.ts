/**
 * What each vhost-user message does. Handlers check what the table in messages.ts cannot say, change the rings, the
 * memory or the state of the connection, and return their own reply or null; a ProtocolError refuses the message.
 */
import { readlinkSync } from 'node:fs';
import { F_GETFL, F_SETFL, O_NONBLOCK } from '../ffi/constants.js';
import { closeForeign } from '../ffi/foreign-descriptors.js';
import * as c from '../ffi/libc.js';
import type { Device } from './device.js';
import { DirtyLog } from './dirty-log.js';
import { ProtocolError } from './errors.js';
import { MAX_REGIONS, type GuestMemory, type RegionRequest } from './guest-memory.js';
import { InflightRegion } from './inflight.js';
import { PF, TABLE_REGIONS_MAX, VRING_INDEX_MASK, VRING_NOFD, encodeU64, type Header, type MessageName } from './messages.js';
import type { Rings } from './rings.js';
import { QUEUE_SIZE_MAX } from './virtqueue.js';

const F_LOG_ALL = 1n << 26n;
const F_PROTOCOL_FEATURES = 1n << 30n;
/** VERSION_1, RING_EVENT_IDX, RING_INDIRECT_DESC. */
const DEVICE_FEATURES = (1n << 32n) | (1n << 29n) | (1n << 28n) | F_LOG_ALL | F_PROTOCOL_FEATURES;
const REGION_BYTES = 32;

/** A message with its payload and the descriptors that came along; a handler takes out those that it keeps. */
export interface Incoming {
  header: Header;
  name: MessageName | undefined;
  payload: DataView;
  fds: number[];
}

/** Own reply, or null: acknowledge if asked. */
export type Reply = { payload: Uint8Array; fds?: number[] } | null;
export type Handler = (m: Incoming) => Reply | Promise<Reply>;

/** What the messages of one connection work on. */
export class HandlerState {
  protocolFeatures = 0n;
  backendFd = -1;
  status = 0n;

  constructor(
    readonly device: Device,
    readonly memory: GuestMemory,
    readonly rings: Rings,
  ) {}

  /** Whether a protocol feature has been negotiated. */
  has(bit: number): boolean {
    return ((this.protocolFeatures >> BigInt(bit)) & 1n) !== 0n;
  }

  offered(): bigint {
    const bits = [
      PF.MQ, PF.LOG_SHMFD, PF.REPLY_ACK, PF.BACKEND_REQ, PF.BACKEND_SEND_FD, PF.INFLIGHT_SHMFD, PF.RESET_DEVICE, PF.CONFIGURE_MEM_SLOTS, PF.STATUS,
    ];
    let offered = this.device.config === null ? 0n : 1n << BigInt(PF.CONFIG);
    for (const bit of bits) offered |= 1n << BigInt(bit);
    return offered;
  }

  close(): void {
    if (this.backendFd >= 0) closeForeign(this.backendFd);
    this.backendFd = -1;
  }
}

export function messageHandlers(state: HandlerState): Record<MessageName, Handler> {
  const { rings, memory, device } = state;
  const value = (v: bigint): Reply => ({ payload: encodeU64(v) });
  const index = (m: Incoming): number => m.payload.getUint32(0, true);
  const vring = (m: Incoming): { index: number; fd: number } => {
    const word = m.payload.getUint32(0, true);
    const none = (word & VRING_NOFD) !== 0;
    if (none !== (m.fds.length === 0)) throw new ProtocolError('fds', `${m.name} whose descriptor and flag disagree`);
    rings.get(word & VRING_INDEX_MASK);
    if (!none) prepareEventfd(m.fds[0]);
    return { index: word & VRING_INDEX_MASK, fd: none ? -1 : m.fds.shift()! };
  };
  const resetDevice = async (): Promise<Reply> => {
    await rings.stopAll();
    rings.disableAll();
    device.reset();
    return null;
  };
  return {
    GET_FEATURES: () => value(DEVICE_FEATURES),
    SET_FEATURES: (m) => {
      const features = m.payload.getBigUint64(0, true);
      if ((features & ~DEVICE_FEATURES) !== 0n) throw new ProtocolError('feature', `features ${features.toString(16)} were not offered`);
      rings.features = features;
      rings.applyLogAll();
      if ((features & F_PROTOCOL_FEATURES) === 0n) {
        rings.enableAll();
        rings.startAll();
      }
      return null;
    },
    SET_OWNER: () => null,
    RESET_OWNER: async () => {
      await rings.stopAll();
      rings.disableAll();
      return null;
    },
    GET_PROTOCOL_FEATURES: () => value(state.offered()),
    SET_PROTOCOL_FEATURES: (m) => {
      const features = m.payload.getBigUint64(0, true);
      if ((features & ~state.offered()) !== 0n) {
        throw new ProtocolError('feature', `protocol features ${features.toString(16)} were not offered`);
      }
      state.protocolFeatures = features;
      return null;
    },
    GET_QUEUE_NUM: () => value(BigInt(device.maxQueues)),
    GET_MAX_MEM_SLOTS: () => value(BigInt(MAX_REGIONS)),
    SET_MEM_TABLE: (m) => setMemTable(state, m),
    ADD_MEM_REG: (m) => {
      memory.add(decodeRegion(m.payload, 8), m.fds[0]);
      rings.startReady();
      return null;
    },
    REM_MEM_REG: async (m) => {
      const region = memory.region(decodeRegion(m.payload, 8));
      // A frontend takes away memory that the guest has given up; a ring in it means that it has not
      const ring = rings.runningIn(region.userAddress, region.size);
      if (ring >= 0) throw new ProtocolError('region', `the memory region at 0x${region.gpa.toString(16)} holds queue ${ring}, which runs`);
      await rings.stopAll();
      memory.remove(region);
      rings.startReady();
      return null;
    },
    SET_LOG_BASE: async (m) => {
      const bytes = safe(m.payload.getBigUint64(0, true), 'log size');
      const log = new DirtyLog(m.fds[0], safe(m.payload.getBigUint64(8, true), 'log offset'), bytes);
      const old = rings.log;
      rings.log = log;
      rings.applyLogAll();
      old?.close();
      return value(0n);
    },
    SET_LOG_FD: (m) => {
      if (m.fds.length > 0) prepareEventfd(m.fds[0]);
      rings.setLogCall(m.fds.shift() ?? -1);
      return null;
    },
    SET_VRING_NUM: (m) => {
      const size = m.payload.getUint32(4, true);
      if (size === 0 || size > QUEUE_SIZE_MAX || (size & (size - 1)) !== 0) throw new ProtocolError('ring', `a ring of ${size} descriptors`);
      const ring = rings.get(index(m));
      if (ring.queue !== null) throw new ProtocolError('ring', 'the size of a running ring cannot change');
      ring.size = size;
      return null;
    },
    SET_VRING_ADDR: (m) => setVringAddr(state, m),
    SET_VRING_BASE: (m) => {
      const ring = rings.get(index(m));
      if (ring.queue !== null) throw new ProtocolError('ring', 'the base of a running ring cannot change');
      ring.base = m.payload.getUint32(4, true) & 0xffff;
      return null;
    },
    GET_VRING_BASE: async (m) => {
      const base = await rings.stop(index(m));
      rings.setKick(index(m), -1, false);
      const payload = new Uint8Array(8);
      new DataView(payload.buffer).setUint32(0, index(m), true);
      new DataView(payload.buffer).setUint32(4, base, true);
      return { payload };
    },
    SET_VRING_KICK: async (m) => {
      const { index: i, fd } = vring(m);
      await rings.stop(i);
      rings.setKick(i, fd, true);
      rings.start(i);
      return null;
    },
    SET_VRING_CALL: (m) => {
      const { index: i, fd } = vring(m);
      rings.setCall(i, fd);
      return null;
    },
    SET_VRING_ERR: (m) => {
      const { index: i, fd } = vring(m);
      rings.setErr(i, fd);
      return null;
    },
    SET_VRING_ENABLE: async (m) => {
      const enabled = m.payload.getUint32(4, true);
      if (enabled > 1) throw new ProtocolError('ring', `SET_VRING_ENABLE ${enabled}`);
      const ring = rings.get(index(m));
      ring.enabled = enabled === 1;
      if (ring.enabled) rings.start(index(m));
      else await rings.stop(index(m));
      return null;
    },
    SET_BACKEND_REQ_FD: (m) => {
      if (state.backendFd >= 0) closeForeign(state.backendFd);
      state.backendFd = m.fds.shift()!;
      return null;
    },
    GET_CONFIG: (m) => getConfig(device, m),
    SET_CONFIG: () => {
      throw new ProtocolError('message', 'the configuration space is read-only');
    },
    GET_INFLIGHT_FD: (m) => {
      const queues = m.payload.getUint16(16, true);
      const size = m.payload.getUint16(18, true);
      if (queues < 1 || queues > device.maxQueues || size < 1 || size > QUEUE_SIZE_MAX) {
        throw new ProtocolError('inflight', `an inflight region for ${queues} queues of ${size}`);
      }
      const region = InflightRegion.create(queues, size);
      const payload = new Uint8Array(m.payload.buffer.slice(0));
      new DataView(payload.buffer).setBigUint64(0, BigInt(region.bytes), true);
      new DataView(payload.buffer).setBigUint64(8, 0n, true);
      return { payload, fds: [region.fd] };
    },
    SET_INFLIGHT_FD: async (m) => {
      const bytes = safe(m.payload.getBigUint64(0, true), 'inflight size');
      const offset = safe(m.payload.getBigUint64(8, true), 'inflight offset');
      const region = new InflightRegion(m.fds[0], offset, bytes, m.payload.getUint16(16, true), m.payload.getUint16(18, true));
      // Running rings write to the old record until they are drained
      await rings.stopAll();
      rings.inflight?.close();
      rings.inflight = region;
      rings.startAll();
      return null;
    },
    RESET_DEVICE: resetDevice,
    SET_STATUS: async (m) => {
      state.status = m.payload.getBigUint64(0, true) & 0xffn;
      return state.status === 0n ? resetDevice() : null;
    },
    GET_STATUS: () => value(state.status),
  };
}

async function setMemTable(state: HandlerState, m: Incoming): Promise<Reply> {
  const count = m.payload.getUint32(0, true);
  if (count > TABLE_REGIONS_MAX || m.header.size !== 8 + count * REGION_BYTES) throw new ProtocolError('region', `SET_MEM_TABLE of ${count} regions in ${m.header.size} bytes`);
  if (m.fds.length !== count) throw new ProtocolError('fds', `SET_MEM_TABLE of ${count} regions with ${m.fds.length} descriptors`);
  // A table that is refused changes nothing
  const table = state.memory.successor();
  try {
    for (let i = 0; i < count; i++) table.add(decodeRegion(m.payload, 8 + i * REGION_BYTES), m.fds[i]);
    const ring = state.rings.runningOutside(table);
    if (ring >= 0) throw new ProtocolError('region', `SET_MEM_TABLE without the memory of queue ${ring}, which runs`);
  } catch (error) {
    table.clear();
    throw error;
  }
  await state.rings.stopAll();
  state.memory.replace(table);
  state.rings.startReady();
  return null;
}

function setVringAddr(state: HandlerState, m: Incoming): Reply {
  const { payload } = m;
  const index = payload.getUint32(0, true);
  const at = (offset: number): number => safe(payload.getBigUint64(offset, true), 'ring address');
  const addresses = { flags: payload.getUint32(4, true), descriptors: at(8), used: at(16), avail: at(24), log: at(32) };
  const ring = state.rings.get(index);
  if (ring.queue !== null && ring.addresses !== null) {
    // Sent again while running, to switch logging; the ring itself cannot move
    const { descriptors, used, avail } = ring.addresses;
    if (descriptors !== addresses.descriptors || used !== addresses.used || avail !== addresses.avail) {
      throw new ProtocolError('ring', 'the addresses of a running ring cannot change');
    }
  }
  ring.addresses = addresses;
  state.rings.applyLog(index);
  state.rings.start(index);
  return null;
}

function getConfig(device: Device, m: Incoming): Reply {
  const config = device.config!;
  const offset = m.payload.getUint32(0, true);
  const size = m.payload.getUint32(4, true);
  // A request that makes no sense is answered with an empty payload (vhost-user.rst, GET_CONFIG)
  if (size > 256 || offset + size > config.length || m.header.size < 12 + size) return { payload: new Uint8Array(0) };
  const payload = new Uint8Array(m.payload.buffer.slice(0));
  payload.set(config.subarray(offset, offset + size), 12);
  return { payload };
}

/** Kicks and calls are eventfds (vhost-user.rst); with anything else, or a blocking one, a frontend could stop us. */
function prepareEventfd(fd: number): void {
  if (readlinkSync(`/proc/self/fd/${fd}`) !== 'anon_inode:[eventfd]') throw new ProtocolError('fds', 'a descriptor to be signalled that is no eventfd');
  const flags = c.fcntl(fd, F_GETFL, 0);
  if (flags < 0 || c.fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) throw new ProtocolError('fds', `an eventfd cannot be made non-blocking: errno ${c.errno()}`);
}

function decodeRegion(payload: DataView, at: number): RegionRequest {
  const field = (offset: number, what: string): number => safe(payload.getBigUint64(at + offset, true), what);
  return { gpa: field(0, 'region address'), size: field(8, 'region size'), userAddress: field(16, 'region address'), fileOffset: field(24, 'region offset') };
}

/** A u64 that must be exact as a number; what is larger is no address of any machine. */
function safe(value: bigint, what: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new ProtocolError('message', `${what} 0x${value.toString(16)}`);
  return Number(value);
}

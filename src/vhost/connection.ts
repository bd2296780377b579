/**
 * One frontend's connection: vhost-user messages in order, each in five steps: known and negotiated → size and
 * descriptors → decoded → effect → reply or acknowledgement. A message that must wait for a ring to drain holds the
 * ones behind it, never the requests.
 *
 * A descriptor that arrives belongs to the message; whoever keeps it takes it out of the list, the rest is closed
 * when the message is done, however it ends.
 */
import { readlinkSync } from 'node:fs';
import { E, errnoName } from '../base/errno.js';
import * as c from '../ffi/libc.js';
import { F_GETFL, F_SETFL, O_NONBLOCK } from '../ffi/constants.js';
import { FdPoller } from '../ffi/poll.js';
import { receive, send } from '../ffi/socket.js';
import type { Device } from './device.js';
import { DirtyLog } from './dirty-log.js';
import { ProtocolError } from './errors.js';
import { GuestMemory, MAX_REGIONS, type RegionRequest } from './guest-memory.js';
import { InflightRegion } from './inflight.js';
import {
  FLAG_NEED_REPLY, HEADER_BYTES, MESSAGES, PAYLOAD_MAX_BYTES, PF, TABLE_REGIONS_MAX, VERSION, VERSION_MASK, VRING_INDEX_MASK, VRING_NOFD,
  decodeHeader, encodeReply, encodeU64, messageName, type Header, type MessageName,
} from './messages.js';
import { QueueRunner } from './queue-runner.js';
import { Rings } from './rings.js';
import { QUEUE_SIZE_MAX } from './virtqueue.js';

export interface VhostLog {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  guest(key: string, fields: object, message: string): unknown;
}

const F_LOG_ALL = 1n << 26n;
const F_PROTOCOL_FEATURES = 1n << 30n;
/** VERSION_1, RING_EVENT_IDX, RING_INDIRECT_DESC. */
const DEVICE_FEATURES = (1n << 32n) | (1n << 29n) | (1n << 28n) | F_LOG_ALL | F_PROTOCOL_FEATURES;
const ACK_OK = 0n;
const ACK_FAILED = 1n;
const REGION_BYTES = 32;

/** A message with its payload and the descriptors that came along. */
interface Incoming {
  header: Header;
  name: MessageName | undefined;
  payload: DataView;
  fds: number[];
}

/** Own reply, or null: acknowledge if asked. */
type Reply = { payload: Uint8Array; fds?: number[] } | null;
type Handler = (m: Incoming) => Reply | Promise<Reply>;

export class Connection {
  readonly memory = new GuestMemory();
  readonly rings: Rings;
  readonly runner: QueueRunner;
  #poller: FdPoller | null = null;
  #protocolFeatures = 0n;
  #backendFd = -1;
  #status = 0n;
  #closing = false;
  #busy = false;
  /** Bytes of the message so far; header first, then its payload. */
  #input = new Uint8Array(HEADER_BYTES + PAYLOAD_MAX_BYTES);
  #have = 0;
  #fds: number[] = [];
  readonly #handlers: Record<MessageName, Handler>;

  constructor(
    readonly fd: number,
    readonly device: Device,
    pollUs: number,
    readonly log: VhostLog,
    readonly onClosed: () => void,
  ) {
    this.runner = new QueueRunner(
      device, pollUs,
      (queue, error) => this.#ringBroken(queue.index, error),
      (queue, why) => log.guest('chain', { queue: queue.index }, `a request was refused: ${why}`),
    );
    this.rings = new Rings(device, this.memory, this.runner);
    this.#handlers = this.#makeHandlers();
    device.connected();
    this.#listen();
  }

  /** Take no more from the frontend, finish or fail what is in flight, let go of everything. */
  async close(why: string): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    this.#poller?.close();
    this.#poller = null;
    this.log.info({}, `frontend disconnected: ${why}`);
    await this.rings.stopAll();
    this.rings.reset();
    this.memory.clear();
    for (const fd of this.#fds.splice(0)) c.close(fd);
    if (this.#backendFd >= 0) c.close(this.#backendFd);
    c.close(this.fd);
    this.device.reset();
    this.onClosed();
  }

  #listen(): void {
    this.#poller = new FdPoller(this.fd, () => this.#readable(), true);
  }

  #readable(): void {
    while (!this.#closing && !this.#busy) {
      const want = this.#wanted() - this.#have;
      const received = want === 0 ? null : receive(this.fd, want);
      if (received !== null) {
        this.#fds.push(...received.fds);
        if (received.length === -E.AGAIN || received.length === -E.INTR) return;
        if (received.length <= 0) {
          void this.close(received.length === 0 ? 'it closed the socket' : errnoName(received.length));
          return;
        }
        this.#input.set(received.data, this.#have);
        this.#have += received.length;
        if (received.truncated) return this.#drop('more descriptors than fit into a message');
      }
      if (this.#have < HEADER_BYTES) continue;
      const header = this.#header();
      if ((header.flags & VERSION_MASK) !== VERSION) return this.#drop(`message ${header.code} of version ${header.flags & VERSION_MASK}`);
      if (header.size > PAYLOAD_MAX_BYTES) return this.#drop(`message ${header.code} of ${header.size} bytes`);
      if (this.#have === HEADER_BYTES + header.size) this.#dispatch(header);
    }
  }

  #wanted(): number {
    return this.#have < HEADER_BYTES ? HEADER_BYTES : HEADER_BYTES + this.#header().size;
  }

  #header(): Header {
    return decodeHeader(new DataView(this.#input.buffer, 0, HEADER_BYTES));
  }

  #drop(why: string): void {
    this.log.warn({}, `the frontend broke the vhost-user protocol: ${why}`);
    void this.close('protocol error');
  }

  #dispatch(header: Header): void {
    const message: Incoming = {
      header,
      name: messageName(header.code),
      payload: new DataView(this.#input.slice(HEADER_BYTES, HEADER_BYTES + header.size).buffer),
      fds: this.#fds,
    };
    this.#fds = [];
    this.#have = 0;
    try {
      const reply = this.#handle(message);
      if (reply instanceof Promise) {
        this.#wait(message, reply);
        return;
      }
      this.#finish(message, reply);
    } catch (error) {
      this.#failed(message, error);
    }
  }

  /** Later messages wait; the socket is not looked at, since it would be ready all the time. */
  #wait(message: Incoming, reply: Promise<Reply>): void {
    this.#busy = true;
    this.#poller?.close();
    this.#poller = null;
    reply
      .then(
        (value) => this.#finish(message, value),
        (error: unknown) => this.#failed(message, error),
      )
      .finally(() => {
        this.#busy = false;
        if (this.#closing) return;
        this.#listen();
        this.#readable();
      });
  }

  #handle(message: Incoming): Reply | Promise<Reply> {
    const { name, header, fds } = message;
    if (name === undefined) throw new ProtocolError('message', `unknown message ${header.code}`);
    const spec = MESSAGES[name];
    if (spec.feature >= 0 && ((this.#protocolFeatures >> BigInt(spec.feature)) & 1n) === 0n) {
      throw new ProtocolError('feature', `${name} without its protocol feature`);
    }
    if (header.size < spec.bytes[0] || header.size > spec.bytes[1]) throw new ProtocolError('message', `${name} of ${header.size} bytes`);
    if (fds.length < spec.fds[0] || fds.length > spec.fds[1]) throw new ProtocolError('fds', `${name} with ${fds.length} descriptors`);
    this.log.debug({ message: name, size: header.size, fds: fds.length }, 'vhost-user');
    return this.#handlers[name](message);
  }

  #finish(message: Incoming, reply: Reply): void {
    for (const fd of message.fds.splice(0)) c.close(fd);
    if (this.#closing) {
      for (const fd of reply?.fds ?? []) c.close(fd);
      return;
    }
    if (reply !== null) this.#reply(message, reply.payload, reply.fds);
    else this.#acknowledge(message, ACK_OK);
  }

  #failed(message: Incoming, error: unknown): void {
    for (const fd of message.fds.splice(0)) c.close(fd);
    if (!(error instanceof ProtocolError)) throw error;
    if (this.#closing) return;
    const own = message.name !== undefined && MESSAGES[message.name].reply;
    if (!own && this.#wantsAck(message)) {
      this.log.warn({ code: error.code }, `refused: ${error.message}`);
      this.#acknowledge(message, ACK_FAILED);
    } else {
      this.#drop(error.message);
    }
  }

  #wantsAck(message: Incoming): boolean {
    return (message.header.flags & FLAG_NEED_REPLY) !== 0 && ((this.#protocolFeatures >> BigInt(PF.REPLY_ACK)) & 1n) !== 0n;
  }

  #acknowledge(message: Incoming, value: bigint): void {
    if (this.#wantsAck(message)) this.#reply(message, encodeU64(value));
  }

  #reply(message: Incoming, payload: Uint8Array, fds: number[] = []): void {
    const error = send(this.fd, encodeReply(message.header.code, payload), fds);
    for (const fd of fds) c.close(fd);
    if (error < 0) void this.close(`cannot reply: ${errnoName(error)}`);
  }

  #ringBroken(index: number, error: ProtocolError): void {
    this.log.guest('ring', { queue: index }, `${error.message}; the queue is stopped`);
    const { errFd } = this.rings.get(index);
    if (errFd >= 0) this.rings.signal(errFd);
  }

  #protocolFeaturesOffered(): bigint {
    const bits = [
      PF.MQ, PF.LOG_SHMFD, PF.REPLY_ACK, PF.BACKEND_REQ, PF.BACKEND_SEND_FD, PF.INFLIGHT_SHMFD, PF.RESET_DEVICE, PF.CONFIGURE_MEM_SLOTS, PF.STATUS,
    ];
    let offered = this.device.config === null ? 0n : 1n << BigInt(PF.CONFIG);
    for (const bit of bits) offered |= 1n << BigInt(bit);
    return offered;
  }

  #makeHandlers(): Record<MessageName, Handler> {
    const { rings, memory, device } = this;
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
        if ((features & F_PROTOCOL_FEATURES) === 0n) rings.enableAll();
        rings.applyLogAll();
        return null;
      },
      SET_OWNER: () => null,
      RESET_OWNER: async () => {
        await rings.stopAll();
        return null;
      },
      GET_PROTOCOL_FEATURES: () => value(this.#protocolFeaturesOffered()),
      SET_PROTOCOL_FEATURES: (m) => {
        const features = m.payload.getBigUint64(0, true);
        if ((features & ~this.#protocolFeaturesOffered()) !== 0n) {
          throw new ProtocolError('feature', `protocol features ${features.toString(16)} were not offered`);
        }
        this.#protocolFeatures = features;
        return null;
      },
      GET_QUEUE_NUM: () => value(BigInt(device.maxQueues)),
      GET_MAX_MEM_SLOTS: () => value(BigInt(MAX_REGIONS)),
      SET_MEM_TABLE: (m) => this.#setMemTable(m),
      ADD_MEM_REG: (m) => {
        memory.add(decodeRegion(m.payload, 8), m.fds[0]);
        rings.startAll();
        return null;
      },
      REM_MEM_REG: async (m) => {
        await rings.stopAll();
        memory.remove(decodeRegion(m.payload, 8));
        rings.startAll();
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
      SET_LOG_FD: () => null, // an eventfd to be told of each logged page; no frontend waits on it
      SET_VRING_NUM: (m) => {
        const size = m.payload.getUint32(4, true);
        if (size === 0 || size > QUEUE_SIZE_MAX || (size & (size - 1)) !== 0) throw new ProtocolError('ring', `a ring of ${size} descriptors`);
        const ring = rings.get(index(m));
        if (ring.queue !== null) throw new ProtocolError('ring', 'the size of a running ring cannot change');
        ring.size = size;
        return null;
      },
      SET_VRING_ADDR: (m) => this.#setVringAddr(m),
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
        if (this.#backendFd >= 0) c.close(this.#backendFd);
        this.#backendFd = m.fds.shift()!;
        return null;
      },
      GET_CONFIG: (m) => this.#getConfig(m),
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
      SET_INFLIGHT_FD: (m) => {
        const bytes = safe(m.payload.getBigUint64(0, true), 'inflight size');
        const offset = safe(m.payload.getBigUint64(8, true), 'inflight offset');
        const region = new InflightRegion(m.fds[0], offset, bytes, m.payload.getUint16(16, true), m.payload.getUint16(18, true));
        rings.inflight?.close();
        rings.inflight = region;
        return null;
      },
      RESET_DEVICE: resetDevice,
      SET_STATUS: async (m) => {
        this.#status = m.payload.getBigUint64(0, true) & 0xffn;
        return this.#status === 0n ? resetDevice() : null;
      },
      GET_STATUS: () => value(this.#status),
    };
  }

  async #setMemTable(m: Incoming): Promise<Reply> {
    const count = m.payload.getUint32(0, true);
    if (count > TABLE_REGIONS_MAX || m.header.size !== 8 + count * REGION_BYTES) throw new ProtocolError('region', `SET_MEM_TABLE of ${count} regions in ${m.header.size} bytes`);
    if (m.fds.length !== count) throw new ProtocolError('fds', `SET_MEM_TABLE of ${count} regions with ${m.fds.length} descriptors`);
    await this.rings.stopAll();
    this.memory.clear();
    for (let i = 0; i < count; i++) this.memory.add(decodeRegion(m.payload, 8 + i * REGION_BYTES), m.fds[i]);
    this.rings.startAll();
    return null;
  }

  #setVringAddr(m: Incoming): Reply {
    const { payload } = m;
    const index = payload.getUint32(0, true);
    const at = (offset: number): number => safe(payload.getBigUint64(offset, true), 'ring address');
    const addresses = { flags: payload.getUint32(4, true), descriptors: at(8), used: at(16), avail: at(24), log: at(32) };
    const ring = this.rings.get(index);
    if (ring.queue !== null && ring.addresses !== null) {
      // Sent again while running, to switch logging; the ring itself cannot move
      const { descriptors, used, avail } = ring.addresses;
      if (descriptors !== addresses.descriptors || used !== addresses.used || avail !== addresses.avail) {
        throw new ProtocolError('ring', 'the addresses of a running ring cannot change');
      }
    }
    ring.addresses = addresses;
    this.rings.applyLog(index);
    this.rings.start(index);
    return null;
  }

  #getConfig(m: Incoming): Reply {
    const config = this.device.config!;
    const offset = m.payload.getUint32(0, true);
    const size = m.payload.getUint32(4, true);
    // A request that makes no sense is answered with an empty payload (vhost-user.rst, GET_CONFIG)
    if (size > 256 || offset + size > config.length || m.header.size < 12 + size) return { payload: new Uint8Array(0) };
    const payload = new Uint8Array(m.payload.buffer.slice(0));
    payload.set(config.subarray(offset, offset + size), 12);
    return { payload };
  }
}

/** Kicks and calls are eventfds (vhost-user.rst); with anything else, or a blocking one, a frontend could stop us. */
function prepareEventfd(fd: number): void {
  if (readlinkSync(`/proc/self/fd/${fd}`) !== 'anon_inode:[eventfd]') throw new ProtocolError('fds', 'a kick, call or error descriptor that is no eventfd');
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

/**
 * One frontend's connection: vhost-user messages in order, each in five steps: known and negotiated → size and
 * descriptors → decoded → effect → reply or acknowledgement. A message that must wait for a ring to drain holds the
 * ones behind it, never the requests.
 *
 * A descriptor that arrives belongs to the message; whoever keeps it takes it out of the list, the rest is closed
 * when the message is done, however it ends.
 */
import { E, errnoName } from '../base/errno.js';
import { SysError } from '../ffi/errors.js';
import { closeForeign } from '../ffi/foreign-descriptors.js';
import * as c from '../ffi/libc.js';
import { FdPoller } from '../ffi/poll.js';
import { SCM_MAX_FD, isHungUp, receive, send } from '../ffi/socket.js';
import type { Device } from './device.js';
import { ProtocolError } from './errors.js';
import { GuestMemory, type MemoryFiles } from './guest-memory.js';
import { HandlerState, messageHandlers, type Handler, type Incoming, type Reply } from './handlers.js';
import {
  FLAG_NEED_REPLY, HEADER_BYTES, MESSAGES, PAYLOAD_MAX_BYTES, PF, VERSION, VERSION_MASK, decodeHeader, encodeReply, encodeU64, messageName,
  type Header, type MessageName,
} from './messages.js';
import { QueueRunner } from './queue-runner.js';
import { Rings } from './rings.js';

export interface VhostLog {
  debug(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  /** Rate-limited: for what a frontend or a guest can bring about. */
  guest(key: string, fields: object, message: string, level?: 'warn' | 'info'): unknown;
}

const ACK_OK = 0n;
const ACK_FAILED = 1n;
/** A frontend that sends without pause leaves other events of the process their turn after so many messages. */
const TURN_MESSAGES = 64;
/** One that does not read its replies is waited for so long, without being listened to. The rings go on. */
const REPLY_TIMEOUT_MS = 5000;
const REPLY_RETRY_MS = 10;

interface Unsent {
  bytes: Uint8Array;
  fds: number[];
  /** Date.now() after which the frontend is given up. */
  deadline: number;
}

export class Connection {
  readonly memory: GuestMemory;
  readonly rings: Rings;
  readonly runner: QueueRunner;
  #poller: FdPoller | null = null;
  readonly #state: HandlerState;
  #closed: Promise<void> | null = null;
  /** The message that waits for rings to drain, if one does. */
  #pending: Promise<void> | null = null;
  /** The reply that found no room in the socket. */
  #unsent: Unsent | null = null;
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
    memoryFiles: MemoryFiles,
    readonly onClosed: () => void,
  ) {
    this.memory = new GuestMemory(memoryFiles);
    this.runner = new QueueRunner(
      device, pollUs,
      (queue, error) => this.#ringBroken(queue.index, error),
      (queue, why) => log.guest('chain', { queue: queue.index }, `a request was refused: ${why}`),
    );
    this.rings = new Rings(device, this.memory, this.runner, (index, error) => this.#ringBroken(index, error));
    this.#state = new HandlerState(device, this.memory, this.rings);
    this.#handlers = messageHandlers(this.#state);
    device.connected();
    this.#listen();
  }

  /** Take no more from the frontend, finish or fail what is in flight, let go of everything. Once, however often called. */
  close(why: string): Promise<void> {
    this.#closed ??= this.#close(why);
    return this.#closed;
  }

  /** The frontend has closed its end, or broken the protocol: what is left is to finish its requests. */
  get isGone(): boolean {
    return this.#closed !== null || isHungUp(this.fd);
  }

  async #close(why: string): Promise<void> {
    this.#pause();
    this.log.guest('disconnected', {}, `frontend disconnected: ${why}`, 'info');
    this.rings.retire();
    // A message that waits for the same requests changes rings and memory when they are done: let it, then clean up
    await this.#pending;
    await this.rings.stopAll();
    this.rings.reset();
    this.memory.clear();
    for (const fd of this.#fds.splice(0)) closeForeign(fd);
    for (const fd of this.#unsent?.fds.splice(0) ?? []) c.close(fd);
    this.#state.close();
    c.close(this.fd);
    this.device.reset();
    this.onClosed();
  }

  #listen(): void {
    this.#poller = new FdPoller(this.fd, () => this.#readable(), true);
  }

  /** The socket is not looked at: it would be ready all the time. */
  #pause(): void {
    this.#poller?.close();
    this.#poller = null;
  }

  #resume(): void {
    if (!this.#listening()) return;
    if (this.#poller === null) this.#listen();
    this.#readable();
  }

  /** Messages are taken one after the other: not while one waits, or its reply does. */
  #listening(): boolean {
    return this.#closed === null && this.#pending === null && this.#unsent === null;
  }

  #readable(): void {
    for (let messages = 0; messages < TURN_MESSAGES && this.#listening(); ) {
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
        if (received.truncated || this.#fds.length > SCM_MAX_FD) return this.#drop('more descriptors than fit into a message');
      }
      if (this.#have < HEADER_BYTES) continue;
      const header = this.#header();
      if ((header.flags & VERSION_MASK) !== VERSION) return this.#drop(`message ${header.code} of version ${header.flags & VERSION_MASK}`);
      if (header.size > PAYLOAD_MAX_BYTES) return this.#drop(`message ${header.code} of ${header.size} bytes`);
      if (this.#have < HEADER_BYTES + header.size) continue;
      this.#dispatch(header);
      messages++;
    }
  }

  #wanted(): number {
    return this.#have < HEADER_BYTES ? HEADER_BYTES : HEADER_BYTES + this.#header().size;
  }

  #header(): Header {
    return decodeHeader(new DataView(this.#input.buffer, 0, HEADER_BYTES));
  }

  #drop(why: string): void {
    this.log.guest('protocol', {}, `the frontend broke the vhost-user protocol: ${why}`);
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

  /** Later messages wait. */
  #wait(message: Incoming, reply: Promise<Reply>): void {
    this.#pause();
    this.#pending = reply
      .then(
        (value) => this.#finish(message, value),
        (error: unknown) => this.#failed(message, error),
      )
      .finally(() => {
        this.#pending = null;
        this.#resume();
      });
  }

  #handle(message: Incoming): Reply | Promise<Reply> {
    const { name, header, fds } = message;
    if (name === undefined) throw new ProtocolError('message', `unknown message ${header.code}`);
    const spec = MESSAGES[name];
    if (spec.feature >= 0 && !this.#state.has(spec.feature)) {
      throw new ProtocolError('feature', `${name} without its protocol feature`);
    }
    if (header.size < spec.bytes[0] || header.size > spec.bytes[1]) throw new ProtocolError('message', `${name} of ${header.size} bytes`);
    if (fds.length < spec.fds[0] || fds.length > spec.fds[1]) throw new ProtocolError('fds', `${name} with ${fds.length} descriptors`);
    this.log.debug({ message: name, size: header.size, fds: fds.length }, 'vhost-user');
    return this.#handlers[name](message);
  }

  #finish(message: Incoming, reply: Reply): void {
    for (const fd of message.fds.splice(0)) closeForeign(fd);
    if (this.#closed !== null) {
      for (const fd of reply?.fds ?? []) c.close(fd);
      return;
    }
    if (reply !== null) this.#reply(message, reply.payload, reply.fds);
    else this.#acknowledge(message, ACK_OK);
  }

  #failed(message: Incoming, error: unknown): void {
    for (const fd of message.fds.splice(0)) closeForeign(fd);
    // A SysError: no descriptors or memory left for what was asked
    if (!(error instanceof ProtocolError || error instanceof SysError)) throw error;
    if (this.#closed !== null) return;
    const own = message.name !== undefined && MESSAGES[message.name].reply;
    if (!own && this.#wantsAck(message)) {
      this.log.guest('refused', { code: error.code }, `refused: ${error.message}`);
      this.#acknowledge(message, ACK_FAILED);
    } else {
      this.#drop(error.message);
    }
  }

  #wantsAck(message: Incoming): boolean {
    return (message.header.flags & FLAG_NEED_REPLY) !== 0 && this.#state.has(PF.REPLY_ACK);
  }

  #acknowledge(message: Incoming, value: bigint): void {
    if (this.#wantsAck(message)) this.#reply(message, encodeU64(value));
  }

  #reply(message: Incoming, payload: Uint8Array, fds: number[] = []): void {
    this.#unsent = { bytes: encodeReply(message.header.code, payload), fds, deadline: Date.now() + REPLY_TIMEOUT_MS };
    this.#flush();
  }

  /** A reply is small enough for the socket to take it as a whole or not at all. */
  #flush(): void {
    const unsent = this.#unsent;
    if (unsent === null || this.#closed !== null) return;
    const error = send(this.fd, unsent.bytes, unsent.fds, 0);
    if (error === -E.AGAIN && Date.now() < unsent.deadline) {
      this.#pause();
      setTimeout(() => {
        this.#flush();
        this.#resume();
      }, REPLY_RETRY_MS);
      return;
    }
    this.#unsent = null;
    for (const fd of unsent.fds) c.close(fd);
    if (error < 0) void this.close(`cannot reply: ${errnoName(error)}`);
  }

  #ringBroken(index: number, error: ProtocolError): void {
    this.log.guest('ring', { queue: index }, `${error.message}; the queue is stopped`);
    const { errFd } = this.rings.get(index);
    if (errFd >= 0) this.rings.signal(errFd);
  }
}

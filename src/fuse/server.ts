/**
 * The FUSE server: one message in, one reply out, by the table in ops.ts.
 *
 * Every request leaves by one of three ways: a reply with its result, a reply with an error, or no reply where
 * the protocol has none (FORGET, an INTERRUPT that was understood). Nothing a guest sends makes this throw.
 */
import { AssertionError } from '../base/assert.js';
import { E, ERRNO_MAX } from '../base/errno.js';
import { PENDING as FS_PENDING, ROOT_NODE, type DetachedRequest, type FileSystem } from '../storage/filesystem.js';
import * as abi from './abi.js';
import { Admission } from './admission.js';
import type { Timeouts } from './encode.js';
import { BY_CODE, mostOf } from './ops.js';
import { putHeader } from './header.js';
import { putReply } from './reply.js';
import type { OperationTable, RequestLog } from './request-log.js';
import { FuseRequest, GATHER_MAX_BYTES, OUT_HEADER_BYTES, type Message, type Responder } from './request.js';
import { INIT_IN_MIN_BYTES, negotiate, putInitOut, type Session } from './session.js';

/** handle() has no answer yet; message.finish() follows. */
export const PENDING = -1;

/** What the server tells about guests; rate-limited by the implementation. */
export interface ServerLog {
  guest(key: string, fields: object, message: string, level?: 'warn' | 'info'): unknown;
}

const OP = { FORGET: 2, INIT: 26, INTERRUPT: 36, DESTROY: 38, BATCH_FORGET: 42 } as const;

/** Arguments of what has no row in the table; nothing else is read. */
const SPECIAL_MAX_BYTES: Record<number, number> = {
  [OP.FORGET]: abi.ForgetIn.bytes, [OP.INIT]: abi.InitIn.bytes, [OP.INTERRUPT]: abi.InterruptIn.bytes, [OP.BATCH_FORGET]: GATHER_MAX_BYTES,
};
/** Request objects that are kept for the next ones; those of a burst beyond it go with their memory. */
const IDLE_MAX = 64;
/** One with longer arguments or results has touched pages that most do not need: they are given back with it. */
const IDLE_TOUCHED_BYTES = 8192;

export class FuseServer implements Responder {
  /** What INIT agreed on; null before it, and after DESTROY or a reset. */
  #session: Session | null = null;
  #request: FuseRequest;
  readonly #idle: FuseRequest[] = [];
  readonly #timeouts: Timeouts;
  /** Deferred requests not completed yet, in no order. */
  readonly #deferred: FuseRequest[] = [];
  /** Those that wait without their request object. */
  #detached = 0;
  /** An INIT or DESTROY that waits for all of them. */
  #afterPending: (() => void)[] = [];

  readonly #operations: OperationTable;

  constructor(
    readonly fs: FileSystem,
    readonly log: ServerLog,
    /** null: requests are not written down. */
    readonly requestLog: RequestLog | null = null,
    readonly admission = new Admission(),
  ) {
    this.#operations = requestLog === null ? BY_CODE : requestLog.around(BY_CODE);
    this.#request = new FuseRequest(this);
    this.#timeouts = {
      entrySeconds: Math.floor(fs.entryTimeout),
      entryNanoseconds: Math.round((fs.entryTimeout % 1) * 1e9),
      attrSeconds: Math.floor(fs.attrTimeout),
      attrNanoseconds: Math.round((fs.attrTimeout % 1) * 1e9),
    };
  }

  /** Serve one message. @returns bytes of the reply, 0 for none, or PENDING. */
  handle(message: Message): number {
    const r = this.#request;
    try {
      return this.#serve(r, message);
    } catch (error) {
      if (error instanceof AssertionError || r.isDeferred) throw error;
      // A defect of ours that a guest has found must not take its other requests, or other guests, down
      this.log.guest('defect', { err: error, opcode: r.opcode }, 'a request failed inside the daemon: please report this');
      r.message = message;
      return this.#error(r, -E.IO);
    }
  }

  #serve(r: FuseRequest, message: Message): number {
    if (!r.readHeader(message)) return this.#malformed(r, message, 'a request shorter than its header');
    const session = this.#session;
    if (session === null) return this.#beforeInit(r);
    r.session = session;
    const op = this.#operations[r.opcode & 63];
    if (op === undefined || op.code !== r.opcode) return this.#special(r);
    if (r.argBytes < op.in || r.argBytes + abi.InHeader.bytes > message.readBytes) {
      this.log.guest('length', { opcode: op.name, argBytes: r.argBytes, readable: message.readBytes }, 'request length and buffers disagree');
      return this.#error(r, -E.INVAL);
    }
    if (message.writeBytes < OUT_HEADER_BYTES + op.out) return this.#tooLittleRoom(r, op.name);
    r.op = op;
    r.hasFh = false;
    let result = r.bound(op);
    if (result === 0) result = op.decode(r);
    if (result === 0 && op.reply === 'entries') result = this.#beginEntries(r);
    if (result === 0) result = op.run(this.fs, r);
    if (result === FS_PENDING) return PENDING;
    return this.#answer(r, result);
  }

  #keep(r: FuseRequest, touched: number): void {
    if (this.#idle.length < IDLE_MAX && touched <= IDLE_TOUCHED_BYTES) this.#idle.push(r);
    else r.discard();
  }

  /** The guest has gone: forget it. Nothing may be pending. */
  reset(): void {
    this.fs.reset();
    this.#session = null;
  }

  deferred(r: FuseRequest): void {
    r.deferredAt = this.#deferred.push(r) - 1;
    r.heldBytes = this.admission.add(argumentBytes(r), r.message);
    if (r === this.#request) this.#request = this.#idle.pop() ?? new FuseRequest(this);
  }

  completed(r: FuseRequest, result: number): void {
    const { message } = r;
    this.requestLog?.completed(r, result);
    const bytes = this.#answer(r, result);
    r.isDeferred = false;
    this.#keep(r, Math.max(argumentBytes(r), r.op.result === 'reply' ? result : 0));
    const deferred = this.#deferred;
    const last = deferred.pop()!;
    if (last !== r) deferred[(last.deferredAt = r.deferredAt)] = last;
    message.finish(bytes);
    this.admission.remove(r.heldBytes);
    this.#settled();
  }

  /** The request object is free as soon as its handler returns. */
  detached(r: FuseRequest): DetachedRequest {
    const { uniqueLow, uniqueHigh } = r;
    const line = this.requestLog?.later(r);
    const message = r.message.detach(OUT_HEADER_BYTES);
    this.#detached++;
    const complete = (result: number): void => {
      line?.(result);
      this.#detached--;
      message.finish(putHeader({ message, uniqueLow, uniqueHigh }, OUT_HEADER_BYTES, result));
      this.#settled();
    };
    return { uniqueLow, uniqueHigh, complete };
  }

  #settled(): void {
    if (this.#deferred.length + this.#detached === 0) for (const next of this.#afterPending.splice(0)) next();
  }

  /**
   * Rule: a result of the file system is checked here, where it leaves it. Below zero it is an errno that a reply can carry, else no more than the
   * guest has asked for; any other would tell the guest of bytes that nobody has written, so it is EIO and a line about our defect.
   */
  #answer(r: FuseRequest, result: number): number {
    if ((result | 0) !== result || result > mostOf(r) || result < -ERRNO_MAX) return this.#defect(r, result);
    if (result < 0) return this.#error(r, result);
    const bytes = putReply(r, result, this.#timeouts);
    return bytes < 0 ? this.#error(r, bytes) : bytes;
  }

  #defect(r: FuseRequest, result: number): number {
    const fields = { opcode: r.op.name, result, most: mostOf(r) };
    this.log.guest('defect', fields, 'a file system answered what nobody had asked for, and the request failed: please report this');
    return this.#error(r, -E.IO);
  }

  /** An error reply: the header alone. */
  #error(r: FuseRequest, error: number): number {
    return putHeader(r, OUT_HEADER_BYTES, error);
  }

  /** The same for what has no row in the table. */
  #refused(r: FuseRequest, opcode: string, error: number): number {
    this.requestLog?.special(opcode, {}, error);
    return this.#error(r, error);
  }

  #tooLittleRoom(r: FuseRequest, name: string): number {
    this.log.guest('room', { opcode: name, room: r.message.writeBytes }, 'the guest left too little room for the reply');
    return this.#error(r, -E.INVAL);
  }

  #malformed(_r: FuseRequest, message: Message, why: string): number {
    this.log.guest('malformed', { readable: message.readBytes }, why);
    return 0;
  }

  #beginEntries(r: FuseRequest): number {
    const { message } = r;
    if (r.size <= 0) return -E.INVAL;
    const plus = r.op.name === 'READDIRPLUS';
    // In the guest's own page when it lies together; else in the reply block, to be scattered
    if (message.locateWrite(OUT_HEADER_BYTES, r.size)) r.sink.begin(r, message.view, message.offset, r.size, plus, this.#timeouts);
    else r.sink.begin(r, r.reply.dv, 0, r.size, plus, this.#timeouts);
    return 0;
  }

  /** No session: EIO, as libfuse has it, but for INIT and what can do no harm or has no reply. */
  #beforeInit(r: FuseRequest): number {
    switch (r.opcode) {
      case OP.INIT:
      case OP.DESTROY:
        return this.#special(r);
      case OP.FORGET:
      case OP.BATCH_FORGET:
      case OP.INTERRUPT:
        return 0; // there is no node to forget and no request to interrupt
      default:
        this.log.guest('before-init', { opcode: r.opcode }, 'a request before INIT');
        return this.#error(r, -E.IO);
    }
  }

  /** Requests that concern the session rather than a file; and unknown ones. */
  #special(r: FuseRequest): number {
    const bytes = Math.max(0, Math.min(r.argBytes, r.message.readBytes - abi.InHeader.bytes, SPECIAL_MAX_BYTES[r.opcode] ?? 0));
    r.argBytes = bytes;
    const located = r.locateArgs(bytes);
    switch (r.opcode) {
      case OP.FORGET:
        if (located === 0 && bytes >= abi.ForgetIn.bytes) this.#forget(r.nodeLow, r.nodeHigh, r, 0);
        return 0;
      case OP.BATCH_FORGET:
        if (located === 0) this.#batchForget(r, bytes);
        return 0;
      case OP.INTERRUPT:
        return located === 0 && bytes >= abi.InterruptIn.bytes ? this.#interrupt(r) : 0;
      case OP.INIT:
        if (located !== 0 || bytes < INIT_IN_MIN_BYTES) return this.#refused(r, 'INIT', -E.INVAL);
        return this.#whenIdle(r, () => this.#init(r));
      case OP.DESTROY:
        return this.#whenIdle(r, () => {
          this.reset();
          this.requestLog?.special('DESTROY', {}, 0);
          return putHeader(r, OUT_HEADER_BYTES, 0);
        });
      default:
        this.log.guest(`opcode ${r.opcode}`, { opcode: r.opcode }, 'operation not supported');
        return this.#refused(r, `opcode ${r.opcode}`, -E.NOSYS);
    }
  }

  /**
   * "Interrupting filesystem operations" (Documentation/filesystems/fuse.rst): an INTERRUPT has no reply of its own, but
   * for EAGAIN, which says that its request is not known. The kernel sends it again if that request is not
   * answered yet (the two may have overtaken each other), and ignores the reply otherwise.
   */
  #interrupt(r: FuseRequest): number {
    const low = r.u32(abi.InterruptIn.unique);
    const high = r.u32(abi.InterruptIn.unique + 4);
    // One in the pool is known and goes on: to be asked again and again would not end it
    const isKnown = this.fs.interrupt(low, high) || this.#deferred.some((d) => d.uniqueLow === low && d.uniqueHigh === high);
    this.requestLog?.special('INTERRUPT', { unique: high * 2 ** 32 + low }, isKnown ? null : -E.AGAIN);
    return isKnown ? 0 : this.#error(r, -E.AGAIN);
  }

  #forget(nodeLow: number, nodeHigh: number, r: FuseRequest, at: number): void {
    const lookups = r.u32(at + 4) * 2 ** 32 + r.u32(at);
    this.requestLog?.special('FORGET', { node: nodeHigh * 2 ** 32 + nodeLow, lookups }, null);
    if (nodeLow === ROOT_NODE && nodeHigh === 0) return; // the root is never forgotten
    this.fs.forget(nodeLow, nodeHigh, lookups);
  }

  #batchForget(r: FuseRequest, bytes: number): void {
    const count = bytes >= abi.BatchForgetIn.bytes ? r.u32(abi.BatchForgetIn.count) : 0;
    const fits = Math.floor((bytes - abi.BatchForgetIn.bytes) / abi.ForgetOne.bytes);
    if (count > fits) this.log.guest('batch-forget', { count, fits }, 'BATCH_FORGET counts more entries than it has');
    for (let i = 0, at = abi.BatchForgetIn.bytes; i < count && i < fits; i++, at += abi.ForgetOne.bytes) {
      this.#forget(r.u32(at), r.u32(at + 4), r, at + abi.ForgetOne.nlookup);
    }
  }

  /** Session changes wait until no request of the old session runs in another thread. */
  #whenIdle(r: FuseRequest, act: () => number): number {
    if (this.#deferred.length + this.#detached === 0) return act();
    this.fs.cancelWaiting();
    if (this.#deferred.length + this.#detached === 0) return act();
    this.#request = this.#idle.pop() ?? new FuseRequest(this);
    const held = this.admission.add(0, r.message);
    this.#afterPending.push(() => {
      const bytes = act();
      this.#keep(r, 0);
      r.message.finish(bytes);
      this.admission.remove(held);
    });
    return PENDING;
  }

  #init(r: FuseRequest): number {
    const agreed = negotiate(r, this.fs.capabilities);
    if ('refused' in agreed) {
      this.log.guest('init', {}, `INIT refused: ${agreed.refused}`);
      return this.#refused(r, 'INIT', -E.PROTO);
    }
    if (r.message.writeBytes < OUT_HEADER_BYTES + abi.InitOut.bytes) return this.#tooLittleRoom(r, 'INIT');
    const none = { flags: 0, flags2: 0, maxReadahead: 0 };
    const bytes = OUT_HEADER_BYTES + abi.InitOut.bytes;
    const { dv, u8 } = r.reply;
    if ('majorOnly' in agreed) {
      putInitOut(dv, 0, abi.MINOR_MAX, none);
    } else {
      this.reset();
      this.#session = agreed.session;
      putInitOut(dv, 0, agreed.session.minor, agreed);
      const fields = { minor: agreed.session.minor, granted: agreed.session.granted.join(' ') };
      this.log.guest('session', fields, `FUSE 7.${agreed.session.minor} session`, 'info');
    }
    this.requestLog?.special('INIT', { minor: r.u32(abi.InitIn.minor) }, 0);
    r.message.copyOut(OUT_HEADER_BYTES, u8, 0, abi.InitOut.bytes);
    return putHeader(r, bytes, 0);
  }
}

/** Of those that are copied. */
const argumentBytes = (r: FuseRequest): number => (r.op.rest > 0 ? r.argBytes : 0);

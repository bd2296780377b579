/** What a guest's program does on a disk that fails: it goes on after errors, and tells what was answered. */
import { E } from '../../../src/base/errno.js';
import { concat, u32, u64 } from '../../support/frontend.js';
import { name, OP, type Reply } from '../../support/guest.js';
import type { ObjectGuest } from '../../support/object-guest.js';
import type { Change, Given, NodeId, Request, Told } from '../power/history.js';

const ROOT = 1n;
const O_RDWR = 2;
const FATTR = { MODE: 1, SIZE: 8, FH: 64 } as const;
const PUNCH_HOLE_KEEP_SIZE = 3;
const STEP_BYTES = 32 << 10;

interface ScriptFile {
  readonly id: NodeId;
  node: bigint;
  fh: bigint | null;
}

/** Bytes that say what wrote them: of the n-th write, no zeros. */
export function text(n: number, bytes: number): Uint8Array {
  const out = Buffer.alloc(bytes, `${n}-written.`);
  for (let at = 0; at < bytes; at += 512) out.write(`<${at / 512}>`, at);
  return out;
}

export class Script {
  readonly #files = new Map<string, ScriptFile>();
  #ids = 0;
  #nextNode: number;
  /** Requests and what they were answered with, if that was an error. */
  readonly errors: { readonly label: string; readonly errno: number }[] = [];

  constructor(
    readonly told: Told[],
    given: readonly Given[],
  ) {
    for (const { path, node } of given) this.#files.set(path, { id: node, node: 0n, fh: null });
    const made = told.flatMap((one) => (one.t === 'asked' && one.request.change?.does === 'make' ? [one.request.change.node] : []));
    this.#nextNode = 1 + Math.max(given.length, ...made);
    this.#ids = told.length;
  }

  #guest!: ObjectGuest;

  /** Another session of the guest. */
  begin(guest: ObjectGuest): void {
    this.#guest = guest;
    for (const file of this.#files.values()) {
      file.node = 0n;
      file.fh = null;
    }
  }

  async #ask(label: string, request: Request | null, opcode: number, node: bigint, args: Uint8Array, room?: number): Promise<Reply> {
    const id = this.#ids++;
    if (request !== null) this.told.push({ t: 'asked', id, request });
    const reply = await this.#guest.call(opcode, node, args, room);
    if (request !== null) this.told.push({ t: reply.error === 0 ? 'answered' : 'failed', id });
    if (reply.error !== 0) this.errors.push({ label, errno: -reply.error });
    return reply;
  }

  async create(path: string): Promise<number> {
    const file: ScriptFile = { id: this.#nextNode++, node: 0n, fh: null };
    const change: Change = { does: 'make', node: file.id, path, kind: 'file', mode: 0o644 };
    const reply = await this.#ask(`create ${path}`, { change }, OP.CREATE, ROOT, concat(u32(O_RDWR | 0o100, 0o100644, 0o22, 0), name(path)), 144);
    if (reply.error !== 0) return -reply.error;
    file.node = reply.data.getBigUint64(0, true);
    file.fh = reply.data.getBigUint64(128, true);
    this.#files.set(path, file);
    return 0;
  }

  /** @returns null if it cannot be opened */
  async #open(path: string): Promise<(ScriptFile & { fh: bigint }) | null> {
    const file = this.#files.get(path);
    if (file === undefined) return null;
    if (file.node === 0n) {
      const reply = await this.#ask(`lookup ${path}`, null, OP.LOOKUP, ROOT, name(path), 128);
      if (reply.error !== 0) return null;
      file.node = reply.data.getBigUint64(0, true);
    }
    if (file.fh === null) {
      let reply = await this.#ask(`open ${path}`, null, OP.OPEN, file.node, u32(O_RDWR, 0), 16);
      if (reply.error === -E.STALE) {
        // As Linux does
        this.errors.pop();
        await this.#ask(`lookup ${path}`, null, OP.LOOKUP, ROOT, name(path), 128);
        reply = await this.#ask(`open ${path}`, null, OP.OPEN, file.node, u32(O_RDWR, 0), 16);
      }
      if (reply.error !== 0) return null;
      file.fh = reply.data.getBigUint64(0, true);
    }
    return file as ScriptFile & { fh: bigint };
  }

  async write(path: string, offset: number, data: Uint8Array): Promise<void> {
    const file = await this.#open(path);
    if (file === null) return;
    for (let at = 0; at < data.length; ) {
      const part = data.subarray(at, at + STEP_BYTES);
      const id = this.#ids++;
      const change: Change = { does: 'write', node: file.id, offset: offset + at, data: part };
      this.told.push({ t: 'asked', id, request: { change } });
      const args = concat(u64(file.fh, offset + at), u32(part.length, 0), u64(0), u32(0, 0), part);
      const reply = await this.#guest.call(OP.WRITE, file.node, args, 8);
      if (reply.error !== 0) {
        this.told.push({ t: 'failed', id });
        this.errors.push({ label: `write ${path}`, errno: -reply.error });
        return;
      }
      const n = reply.data.getUint32(0, true);
      if (n === 0) throw new Error(`a write to ${path} is 0`);
      if (n === part.length) {
        this.told.push({ t: 'answered', id });
      } else {
        const shorter = this.#ids++;
        this.told.push({ t: 'asked', id: shorter, request: { change: { ...change, data: part.subarray(0, n) } } }, { t: 'answered', id: shorter }, { t: 'failed', id });
      }
      at += n;
    }
  }

  async truncate(path: string, size: number): Promise<void> {
    const file = await this.#open(path);
    if (file === null) return;
    const args = concat(u32(FATTR.SIZE | FATTR.FH, 0), u64(file.fh, size, 0, 0, 0, 0), u32(0, 0, 0, 0, 0, 0, 0, 0));
    await this.#ask(`truncate ${path}`, { change: { does: 'size', node: file.id, size } }, OP.SETATTR, file.node, args, 104);
  }

  async punch(path: string, from: number, bytes: number): Promise<void> {
    const file = await this.#open(path);
    if (file === null) return;
    const change: Change = { does: 'zero', node: file.id, from, to: from + bytes };
    await this.#ask(`punch ${path}`, { change }, OP.FALLOCATE, file.node, concat(u64(file.fh, from, bytes), u32(PUNCH_HOLE_KEEP_SIZE, 0)), 0);
  }

  async chmod(path: string, mode: number): Promise<void> {
    const file = this.#files.get(path);
    if (file === undefined) return;
    const { node } = (await this.#open(path)) ?? file;
    const args = concat(u32(FATTR.MODE, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, mode | 0o100000, 0, 0, 0, 0));
    await this.#ask(`chmod ${path}`, { change: { does: 'mode', node: file.id, mode } }, OP.SETATTR, node, args, 104);
  }

  /** @returns the errno */
  async fsync(path: string): Promise<number> {
    const file = await this.#open(path);
    if (file === null) return 0;
    return -(await this.#ask(`fsync ${path}`, { confirms: file.id }, OP.FSYNC, file.node, concat(u64(file.fh), u32(0, 0)), 0)).error;
  }

  async close(path: string): Promise<void> {
    const file = this.#files.get(path);
    if (file === undefined || file.fh === null) return;
    const { fh, node, id } = file;
    file.fh = null;
    await this.#ask(`close ${path}`, { confirms: id }, OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)), 0);
    await this.#ask(`release ${path}`, null, OP.RELEASE, node, concat(u64(fh), u32(O_RDWR, 0), u64(0)), 0);
  }

  async rename(from: string, to: string): Promise<void> {
    const file = this.#files.get(from);
    if (file === undefined) return;
    const { error } = await this.#ask(`rename ${from} ${to}`, { change: { does: 'rename', from, to } }, OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name(from), name(to)), 0);
    if (error !== 0) return;
    this.#files.delete(from);
    this.#files.set(to, file);
  }

  async unlink(path: string): Promise<void> {
    if (!this.#files.has(path)) return;
    const { error } = await this.#ask(`unlink ${path}`, { change: { does: 'remove', path } }, OP.UNLINK, ROOT, name(path), 0);
    if (error === 0) this.#files.delete(path);
  }

  async mkdir(path: string): Promise<void> {
    await this.#ask(`mkdir ${path}`, { change: { does: 'make', node: this.#nextNode++, path, kind: 'directory', mode: 0o755 } }, OP.MKDIR, ROOT, concat(u32(0o755, 0o22), name(path)), 128);
  }

  async symlink(path: string, target: string): Promise<void> {
    const change: Change = { does: 'make', node: this.#nextNode++, path, kind: 'link', mode: 0o777, target };
    await this.#ask(`symlink ${path}`, { change }, OP.SYMLINK, ROOT, concat(name(path), name(target)), 128);
  }

  async syncNames(): Promise<void> {
    const opened = await this.#ask('opendir', null, OP.OPENDIR, ROOT, u32(0, 0), 16);
    if (opened.error !== 0) return;
    const fh = opened.data.getBigUint64(0, true);
    await this.#ask('fsyncdir', { confirms: 'names' }, OP.FSYNCDIR, ROOT, concat(u64(fh), u32(0, 0)), 0);
    await this.#ask('releasedir', null, OP.RELEASEDIR, ROOT, concat(u64(fh), u32(0, 0), u64(0)), 0);
  }

  /** What is open and was changed is synced; then closed. */
  async closeAll(): Promise<void> {
    for (const [path, file] of this.#files) if (file.fh !== null) await this.close(path);
  }
}

/** Requests for open files of a guest, each with its effect on the model. */
import { E } from '../../src/base/errno.js';
import { O_CREAT, O_EXCL, O_RDWR, O_TRUNC } from '../../src/ffi/constants.js';
import { FATTR } from '../../src/storage/fuse-flags.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name as nameBytes, OP } from '../support/guest.js';
import type { Revision } from './bucket.js';
import type { Chance } from './chance.js';
import { ATTR_BYTES, baseOf, ENTRY_BYTES, errnoText, type Guest } from './guest.js';
import { between, exactly, GuestFile } from './model/guest-file.js';
import { named } from './model/wording.js';
import type { Reply } from './ring.js';

export interface Handle {
  readonly file: GuestFile;
  readonly node: bigint;
  readonly fh: bigint;
}

const READ_BYTES = 72 << 10;

export class Files {
  constructor(readonly guest: Guest) {}

  /** Make a file. @returns null: it exists, or cannot be made */
  async create(path: string): Promise<Handle | null> {
    const key = this.guest.key(path);
    const parent = await this.guest.parentOf(path);
    if (typeof parent === 'number') return null;
    const base = baseOf(path);
    const since = this.guest.now(key);
    const found = await this.guest.lookup(parent, base);
    if (typeof found === 'bigint') return null;
    if (found !== -E.NOENT) {
      this.guest.unexpected(`looking up ${path}`, found);
      return null;
    }
    this.guest.checkAbsent(key, since, `looking up ${path}`);
    const made: { file: GuestFile | null } = { file: null };
    const begin = (): GuestFile => this.guest.book.add(key, null, since);
    const flags = O_RDWR | O_CREAT | O_EXCL;
    const reply = await this.guest.daemon.call(OP.CREATE, parent, concat(u32(flags, 0o100644, 0o22, 0), nameBytes(base)), 144, {
      deferred: () => (made.file = begin()),
      answered: ({ error }) => {
        made.file ??= begin();
        if (error === 0) return void (made.file.data.acknowledged = made.file.attributes.acknowledged = 0);
        made.file.loses(key, this.guest.bucket.changes.length);
      },
      lost: () => {
        if (made.file === null) return;
        made.file.uncertain = true;
      },
    });
    this.guest.note(`create ${path}: ${errnoText(reply.error)}`);
    if (reply.error !== 0) {
      if (reply.error !== -E.EXIST && reply.error !== -E.NOENT) this.guest.unexpected(`creating ${path}`, reply.error);
      return null;
    }
    const node = this.guest.entry(reply);
    made.file!.handles++;
    made.file!.node = node as bigint;
    return { file: made.file!, node: node as bigint, fh: reply.data.getBigUint64(ENTRY_BYTES, true) };
  }

  /** @returns null: there is no such file, or the model cannot tell which version was opened */
  async open(path: string, truncates = false): Promise<Handle | null> {
    const file = this.guest.book.current(this.guest.key(path));
    if (!truncates || file === null) return this.#open(path, truncates);
    if (file.changing > 0) return this.#open(path, false);
    const opened = this.#open(path, true);
    file.emptied = opened.catch(() => undefined);
    return opened;
  }

  async #open(path: string, truncates: boolean): Promise<Handle | null> {
    const key = this.guest.key(path);
    const since = this.guest.now(key);
    const before = this.guest.book.current(key);
    // The daemon may not know yet that it was put aside
    const emptied = before ?? this.guest.book.at(key).findLast((one) => one.data.kept >= 0 && !one.stale) ?? null;
    const wasDirty = before !== null && before.data.committed < before.data.last;
    let opened: Reply | null = null;
    let node: bigint | number = 0;
    let candidates: (GuestFile | Revision)[] = [];
    const adopted: { file: GuestFile | null } = { file: null };
    let asked = -1;
    for (let attempt = 1; attempt <= 2; attempt++) {
      node = await this.guest.walk(path);
      if (typeof node === 'number') {
        if (node === -E.NOENT) this.guest.checkAbsent(key, since, `looking up ${path}`);
        else if (node !== -E.NOTDIR) this.guest.unexpected(`looking up ${path}`, node);
        return null;
      }
      opened = await this.guest.daemon.call(OP.OPEN, node, u32(O_RDWR | (truncates ? O_TRUNC : 0), 0), 16, {
        deferred: () => {
          if (truncates) asked = emptied?.asks(Buffer.alloc(0)) ?? -1;
        },
        answered: ({ error }) => {
          if (error !== 0) return emptied?.withdraw(asked);
          candidates = this.#candidates(key, since, before, wasDirty, node as bigint);
          if (candidates.length !== 1) {
            if (truncates) this.#blur(key, 'others have changed it while it was opened with O_TRUNC');
            // Who has one of them open may find it cut
            if (truncates) for (const one of candidates) if (one instanceof GuestFile) one.uncertain = true;
            return;
          }
          adopted.file = this.adopt(key, candidates[0], since);
          adopted.file.handles++;
          adopted.file.node = node as bigint;
          if (truncates && (asked < 0 || adopted.file !== emptied)) adopted.file.data.push(Buffer.alloc(0));
          if (adopted.file === emptied) emptied.answered(asked, true);
          else emptied?.withdraw(asked);
        },
        lost: () => {
          if (truncates) this.#blur(key, 'a daemon that was killed was opening it with O_TRUNC');
        },
      });
      if (opened.error !== -E.STALE) break;
    }
    this.guest.note(`open ${path}${truncates ? ' O_TRUNC' : ''}: ${errnoText(opened!.error)}, ${candidates.map((one) => (one instanceof GuestFile ? `file ${one.id}` : named(one))).join(' or ')}`);
    if (opened!.error !== 0) {
      if (opened!.error === -E.NOENT) this.guest.checkAbsent(key, since, `opening ${path}`);
      else if (opened!.error === -E.STALE && this.guest.oracle.others(this.guest.book.guest, key, since)) return null;
      else if (opened!.error !== -E.ISDIR) this.guest.unexpected(`opening ${path}`, opened!.error);
      return null;
    }
    const fh = opened!.data.getBigUint64(0, true);
    if (adopted.file !== null) return { file: adopted.file, node: node as bigint, fh };
    return this.#identified(path, node as bigint, fh, candidates, since, truncates);
  }

  /** Versions that an OPEN since then may have found: the guest's uncommitted file, and states of the bucket. */
  #candidates(key: string, since: number, before: GuestFile | null, wasDirty: boolean, node: bigint): (GuestFile | Revision)[] {
    const current = this.guest.book.current(key);
    const isOf = (one: GuestFile): boolean => one.mayBeOf(node) || !this.guest.oracle.hasConflict(this.guest.book, one);
    const file = current !== null && isOf(current) ? current : null;
    // The daemon may not know yet that a file was put aside; after a restart the name may be that of any file that is not committed
    const found: (GuestFile | Revision)[] = this.guest.book.at(key).filter((one) => isOf(one) && ((one.data.kept >= 0 && !one.stale) || one.mayBeDirty));
    if (file !== null && file === before && wasDirty && file.data.committed < file.visible) return file.node === node ? [file] : found;
    for (const revision of this.guest.bucket.statesSince(key, since)) {
      if (revision === null) continue;
      const isOwn = file?.versions.has(revision.version) === true && (revision.by === this.guest.book.guest || exactly(file.data, revision.content, file.data.committed) >= 0);
      const known = isOwn ? file! : revision;
      if (!found.some((one) => one === known || (!(one instanceof GuestFile) && !(known instanceof GuestFile) && one.version === known.version))) found.push(known);
    }
    return found;
  }

  /** The model's file for an opened version. */
  adopt(key: string, opened: GuestFile | Revision, since: number): GuestFile {
    if (opened instanceof GuestFile) return opened;
    // Its attributes were set while it was opened
    const same = this.guest.book.at(key).find((one) => one.handles === 0 && !one.isPutAside && one.versions.has(opened.version) && one.versions.size > 1 && exactly(one.data, opened.content, one.data.committed) >= 0);
    if (same !== undefined) return same;
    const before = this.guest.book.current(key);
    if (before !== null && before.handles === 0 && !before.isDirty) before.loses(key, this.guest.bucket.changes.length);
    return this.guest.book.add(key, opened, since);
  }

  async #identified(path: string, node: bigint, fh: bigint, candidates: (GuestFile | Revision)[], since: number, truncates: boolean): Promise<Handle | null> {
    const key = this.guest.key(path);
    if (candidates.length === 0 && !this.guest.book.isUnclear(key)) this.guest.oracle.fail('name', `${this.guest.daemon.name}: opening ${path} has succeeded, and nothing was there (${this.guest.book.files.filter((one) => one.hasHad(key)).map(String).join('; ')})`);
    if (truncates) this.#blur(key, 'others have changed it while it was opened with O_TRUNC');
    let chosen: (GuestFile | Revision)[] = [];
    if (candidates.length > 0 && !truncates) {
      await this.guest.daemon.call(OP.READ, node, concat(u64(fh, 0), u32(READ_BYTES, 0), u64(0), u32(0, 0)), READ_BYTES, {
        answered: ({ error, data }) => {
          if (error !== 0) return;
          const content = bytesOf(data);
          chosen = candidates.filter((one) => (one instanceof GuestFile ? exactly(one.data, content, one.data.committed) >= 0 : one.content.equals(content)));
          if (chosen.length === 0 && !this.guest.book.isUnclear(key)) this.guest.oracle.fail('read', `${this.guest.daemon.name}: ${path} was opened, and has ${content.length} bytes of none of ${candidates.map(String).join(' or ')}`);
        },
      });
    }
    if (chosen.length === 1) {
      const file = this.adopt(key, chosen[0], since);
      file.handles++;
      file.node = node;
      return { file, node, fh };
    }
    await this.guest.daemon.call(OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)), 0);
    await this.guest.daemon.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0);
    return null;
  }

  #blur(key: string, why: string): void {
    this.guest.note(`nobody can tell any more what has to be at ${key}: ${why}`);
    this.guest.book.blur(key, why);
  }

  /** Check an ESTALE or ENOENT of an open file. @returns whether it is one */
  #overtaken({ file }: Handle, error: number, what: string): boolean {
    if (error !== -E.STALE && error !== -E.NOENT) return false;
    this.guest.oracle.isOvertaken(this.guest.book, file, `${this.guest.daemon.name}: ${what} is ${errnoText(error)}`);
    return true;
  }

  async read(handle: Handle, offset: number, size: number): Promise<void> {
    const { file, node, fh } = handle;
    const what = `reading ${size} at ${offset} of file ${file.id}`;
    let from = 0;
    await this.guest.daemon.call(OP.READ, node, concat(u64(fh, offset), u32(size, 0), u64(0), u32(0, 0)), size, {
      given: () => (from = file.visible),
      answered: ({ error, data }) => {
        this.guest.note(`${what}: ${error === 0 ? `${data.byteLength} bytes` : errnoText(error)}`);
        if (error !== 0) return this.#overtaken(handle, error, what) ? undefined : this.guest.unexpected(what, error);
        if (between(file.data, bytesOf(data), from, file.data.last, offset, size) || file.uncertain) return;
        const value = file.data.value.subarray(offset, offset + size);
        this.guest.oracle.fail('read', `${this.guest.daemon.name}: ${what} gives ${data.byteLength} bytes that are not in it (${String(file)}): ${differing(bytesOf(data), value)}`);
      },
    });
  }

  /** @returns whether it was done */
  async write(handle: Handle, offset: number, bytes: Uint8Array): Promise<boolean> {
    const { file, fh } = handle;
    const what = `writing ${bytes.length} at ${offset} of file ${file.id}`;
    const apply = (value: Buffer): Buffer => {
      const after = Buffer.alloc(Math.max(value.length, offset + bytes.length));
      value.copy(after);
      after.set(bytes, offset);
      return after;
    };
    const { error } = await this.#change(handle, OP.WRITE, concat(u64(fh, offset), u32(bytes.length, 0), u64(0), u32(0, 0), bytes), 8, what, apply);
    return error === 0;
  }

  async truncate(handle: Handle, size: number): Promise<void> {
    const args = new DataView(new ArrayBuffer(88));
    args.setUint32(0, FATTR.SIZE | (1 << 6), true);
    args.setBigUint64(8, handle.fh, true);
    args.setBigUint64(16, BigInt(size), true);
    await this.#change(handle, OP.SETATTR, new Uint8Array(args.buffer), ATTR_BYTES, `cutting file ${handle.file.id} to ${size}`, (value) => {
      const after = Buffer.alloc(size);
      value.copy(after, 0, 0, Math.min(size, value.length));
      return after;
    });
  }

  /** A request that changes data. */
  async #change(handle: Handle, opcode: number, args: Uint8Array, room: number, what: string, apply: (value: Buffer) => Buffer): Promise<Reply> {
    const { file, node } = handle;
    await file.emptied;
    file.changing++;
    let asked = -1;
    return this.guest.daemon.call(opcode, node, args, room, {
      deferred: () => {
        asked = file.asks(apply(file.data.value));
        file.changed_ms = this.guest.daemon.machine.now_ms();
      },
      answered: ({ error }) => {
        this.guest.note(`${what}: ${errnoText(error)}`);
        if (error === 0) {
          file.changed_ms = this.guest.daemon.machine.now_ms();
          if (asked < 0) file.data.push(apply(file.data.value));
        } else if (!this.#overtaken(handle, error, what)) {
          this.guest.unexpected(what, error);
        }
        file.answered(asked, error === 0);
      },
    }).finally(() => file.changing--);
  }

  /** FSYNC or FLUSH. @returns 0 or −errno */
  async sync(handle: Handle, opcode: number = OP.FSYNC): Promise<number> {
    const { file, node, fh } = handle;
    const what = `${opcode === OP.FLUSH ? 'close' : 'fsync'} of file ${file.id}`;
    const args = opcode === OP.FLUSH ? concat(u64(fh), u32(0, 0), u64(0)) : concat(u64(fh), u32(0, 0));
    let [data, attributes, given_ms] = [0, 0, 0];
    const { error } = await this.guest.daemon.call(opcode, node, args, 0, {
      given: () => void ([data, attributes, given_ms] = [file.visible, file.attributes.acknowledged, this.guest.daemon.machine.now_ms()]),
      answered: (reply) => {
        this.guest.note(`${what}: ${errnoText(reply.error)}`);
        if (reply.error === 0) {
          if (!this.guest.options.waits) return;
          this.guest.oracle.isDurable(this.guest.book, file, data, attributes);
          if (data === file.data.last && file.described_ms < given_ms) file.isDataAnswered = file.isAttributesAnswered = () => true;
        } else if (this.#overtaken(handle, reply.error, what)) {
          file.stale = true;
        } else {
          this.guest.unexpected(what, reply.error);
        }
      },
    });
    return error;
  }

  async close(handle: Handle): Promise<number> {
    const { file, node, fh } = handle;
    const error = await this.sync(handle, OP.FLUSH);
    file.handles--;
    await this.guest.daemon.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0);
    return error;
  }

  /** Write single bytes all over the file, as a database does, within a moment. */
  async scatter(handle: Handle, count: number, chance: Chance): Promise<void> {
    const writes: Promise<unknown>[] = [];
    const bytes = 2 * count + 10;
    if (handle.file.data.value.length < bytes) await this.truncate(handle, bytes);
    for (let i = 0; i < count && handle.file.data.value.length >= bytes; i++) {
      writes.push(this.write(handle, 2 * i, Uint8Array.of(65 + chance.below(26))));
      if (writes.length === 50) await Promise.all(writes.splice(0));
    }
    await Promise.all(writes);
  }
}

const bytesOf = (data: DataView): Buffer => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

function differing(there: Buffer, wanted: Buffer): string {
  let at = 0;
  while (at < there.length && at < wanted.length && there[at] === wanted[at]) at++;
  return `${wanted.length} bytes wanted, other ones from ${at}: ${JSON.stringify(there.subarray(at, at + 24).toString('latin1'))} instead of ${JSON.stringify(wanted.subarray(at, at + 24).toString('latin1'))}`;
}

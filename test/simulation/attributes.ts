/** Attributes of files, as a guest changes them by name. */
import { E } from '../../src/base/errno.js';
import { FATTR } from '../../src/storage/fuse-flags.js';
import { concat, u32 } from '../support/frontend.js';
import { name as nameBytes, OP } from '../support/guest.js';
import type { Files } from './files.js';
import { ATTR_BYTES, errnoText, type Guest } from './guest.js';
import { sameAttributes, type Attributes, type GuestFile } from './model/guest-file.js';

export class AttributeRequests {
  constructor(
    readonly guest: Guest,
    readonly files: Files,
  ) {}

  async chmod(path: string, mode: number): Promise<void> {
    const args = new DataView(new ArrayBuffer(88));
    args.setUint32(0, FATTR.MODE, true);
    args.setUint32(68, 0o100000 | mode, true);
    await this.#describe(path, (before) => ({ ...before, mode }), OP.SETATTR, new Uint8Array(args.buffer), ATTR_BYTES);
  }

  async setTag(path: string, tag: string): Promise<void> {
    const value = new TextEncoder().encode(tag);
    await this.#describe(path, (before) => ({ ...before, tag }), OP.SETXATTR, concat(u32(value.length, 0, 0, 0), nameBytes('user.tag'), value), 0);
  }

  /** As Linux, which looks a name up once more where its node is another file's by now (ESTALE). */
  async #describe(path: string, change: (before: Attributes) => Attributes, opcode: number, args: Uint8Array, room: number): Promise<void> {
    for (let attempt = 1; attempt <= 2; attempt++) if ((await this.#attempt(path, change, opcode, args, room, attempt)) !== -E.STALE) break;
  }

  /** @returns 0 or −errno */
  async #attempt(path: string, change: (before: Attributes) => Attributes, opcode: number, args: Uint8Array, room: number, attempt: number): Promise<number> {
    const key = this.guest.key(path);
    const since = this.guest.now(key);
    const node = await this.guest.walk(path);
    if (typeof node === 'number') return node;
    this.guest.note(`attributes of ${path} become ${JSON.stringify(change({ mode: 0, tag: null }))}`);
    const one = { key, change, begunAt: since, seen: false, result: 'under way' as 'under way' | 'done' | 'failed' | 'lost' };
    const given = { file: null as GuestFile | null, last: undefined as number | undefined, clean: false };
    const { error } = await this.guest.daemon.call(opcode, node, args, room, {
      given: () => {
        this.guest.book.attributeChanges.push(one);
        const file = this.guest.book.current(key);
        Object.assign(given, { file, last: file?.data.last, clean: file === null || !file.mayBeDirty });
      },
      answered: ({ error }) => {
        this.guest.note(`attributes of ${path}: ${errnoText(error)}`);
        one.result = error === 0 ? 'done' : 'failed';
        // What is changed meanwhile takes them along
        if (error === 0) return this.#described(one, since, given.clean && given.file?.data.last === given.last, node);
        if (error === -E.NOENT) this.guest.checkAbsent(key, since, `attributes of ${path}`);
        else if (error !== -E.STALE || !this.guest.oracle.others(this.guest.book.guest, key, attempt === 1 ? 0 : since)) this.guest.unexpected(`attributes of ${path}`, error);
      },
      lost: () => (one.result = 'lost'),
    });
    return error;
  }

  #described(one: { key: string; change: (before: Attributes) => Attributes; seen: boolean }, since: number, wasClean: boolean, node: bigint): void {
    const { key } = one;
    for (const file of this.guest.book.at(key)) file.described_ms = this.guest.daemon.machine.now_ms();
    if (this.guest.book.isUnclear(key)) return;
    // Nobody can tell of which object they are; the daemon may commit them later
    const isUnclear = (): void => {
      for (const file of this.guest.book.at(key)) file.mayBeDescribed(one.change);
    };
    // It may be of another object by now, or go along with what was set of a former one
    if (this.guest.oracle.others(this.guest.book.guest, key, this.guest.options.waits ? since : this.#waitingSince(key, since))) return isUnclear();
    // Or of one that is being put aside
    if (this.guest.book.at(key).some((file) => file.data.kept >= 0 && !file.isKeptAnswered())) return isUnclear();
    const there = this.guest.bucket.at(key);
    const known = this.guest.book.current(key);
    // Or of another one of that name that is not committed
    if (this.guest.book.at(key).some((file) => file !== known && file.mayBeDirty && file.mayBeOf(node))) return isUnclear();
    const file = known !== null && (known.mayBeDirty || there === null || known.versions.has(there.version)) ? known : there === null ? null : this.files.adopt(key, there, since);
    if (one.seen) {
      if (file !== null) file.attributes.acknowledged = Math.max(file.attributes.acknowledged, file.attributes.committed);
      return;
    }
    if (file !== null && sameAttributes(one.change(file.attributes.value), file.attributes.value)) {
      // That changes nothing, but the daemon may commit it later
      file.isAttributesAnswered = () => false;
      return;
    }
    if (file !== null && (!wasClean || !this.guest.options.waits)) {
      one.seen = true;
      file.attributes.push(one.change(file.attributes.value));
      return;
    }
    if (this.guest.options.waits) this.guest.oracle.fail('lost', `${this.guest.daemon.name}: attributes of ${key} are set, and not in the bucket (${String(file)})`);
  }

  /** The change of the bucket after which the oldest waiting attributes were set. */
  #waitingSince(key: string, since: number): number {
    const own = this.guest.bucket.history.get(key)?.findLast(({ change }) => this.guest.bucket.changes[change - 1].call.client === this.guest.daemon.name)?.change ?? 0;
    return Math.min(since, ...this.guest.book.attributeChanges.filter((one) => one.key === key && one.begunAt > own).map((one) => one.begunAt));
  }
}

/**
 * A file system that does not answer: run as a process of its own (HeldFileSystem starts it), it mounts FUSE on a directory
 * and serves the files of NODES; whoever looks up a name that begins with "held", or closes
 * "unclosable", waits until release(). After die() everybody does who asks it anything.
 */
import { fork, spawnSync, type ChildProcess } from 'node:child_process';
import { openSync, read, writeSync } from 'node:fs';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

const LOOKUP = 1;
const FORGET = 2;
const GETATTR = 3;
const STATFS = 17;
const FLUSH = 25;
const INIT = 26;
const INTERRUPT = 36;
const BATCH_FORGET = 42;
const IN_HEADER_BYTES = 40;
/** FUSE_PARALLEL_DIROPS: else the kernel asks for one name of a directory at a time. */
const PARALLEL_DIROPS = 1 << 18;
const ENOENT = 2;
const ENOSYS = 38;

/** The mounted file system, seen from the test. */
export class HeldFileSystem {
  #held = 0;

  private constructor(
    readonly directory: string,
    readonly child: ChildProcess,
  ) {
    child.on('message', () => this.#held++);
  }

  static async mount(directory: string): Promise<HeldFileSystem> {
    const child = fork(fileURLToPath(import.meta.url), [directory]);
    const [message] = (await once(child, 'message')) as [string];
    if (message !== 'mounted') throw new Error(message);
    return new HeldFileSystem(directory, child);
  }

  /** Wait until so many wait, of those that came since the last release(). */
  async held(count: number): Promise<void> {
    while (this.#held < count) await once(this.child, 'message');
  }

  /** Nothing is answered any more. */
  async die(): Promise<void> {
    this.child.send('die');
    await once(this.child, 'message');
    this.#held = 0;
  }

  /** Answer everybody who waits with ENOENT. */
  release(): void {
    this.#held = 0;
    this.child.send('release');
  }

  /** End it; requests that wait fail with ENOTCONN or ECONNABORTED. */
  async unmount(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const ended = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await ended;
    spawnSync('umount', ['-l', this.directory]);
  }
}

/** Names of nodes; "directory" is one. */
const NODES = [null, null, 'file', 'large', 'unclosable', 'other', 'directory'];
/** Bytes of all but the first, of which nobody can read any. */
const LARGE_BYTES = 1 << 30;

/** struct fuse_attr (include/uapi/linux/fuse.h), 88 bytes, of node 1 (the root) or one of NODES. */
function attributes(node: number): Buffer {
  const attr = Buffer.alloc(88);
  attr.writeBigUInt64LE(BigInt(node), 0);
  if (node > 2) attr.writeBigUInt64LE(BigInt(LARGE_BYTES), 8);
  attr.writeUInt32LE(node === 1 || NODES[node] === 'directory' ? 0o40755 : 0o100644, 60);
  attr.writeUInt32LE(1, 64);
  return attr;
}

/** The results of a request that is answered at once, −errno, or null for one that is held. */
function answer(opcode: number, node: number, text: string): Buffer | number | null {
  switch (opcode) {
    case INIT: {
      const out = Buffer.alloc(64);
      out.writeUInt32LE(7, 0);
      out.writeUInt32LE(31, 4);
      out.writeUInt32LE(PARALLEL_DIROPS, 12);
      out.writeUInt32LE(4096, 20);
      return out;
    }
    case GETATTR:
      return Buffer.concat([Buffer.alloc(16), attributes(node)]);
    case FLUSH:
      return node === NODES.indexOf('unclosable') ? null : -ENOSYS;
    case STATFS:
      return Buffer.alloc(80);
    case LOOKUP: {
      if (text.startsWith('held')) return null;
      const node = NODES.indexOf(text);
      if (node < 0) return -ENOENT;
      const entry = Buffer.alloc(40);
      entry.writeUInt32LE(node, 0);
      return Buffer.concat([entry, attributes(node)]);
    }
    default:
      return -ENOSYS;
  }
}

function serve(directory: string): void {
  const device = openSync('/dev/fuse', 'r+');
  const options = 'fd=3,rootmode=40000,user_id=0,group_id=0';
  const mounted = spawnSync('mount', ['-i', '-t', 'fuse', '-o', options, 'held', directory], { stdio: ['ignore', 'ignore', 'pipe', device] });
  if (mounted.status !== 0) {
    process.send!(`mount: ${String(mounted.stderr)}`);
    process.exit(1);
  }
  const held: bigint[] = [];
  const reply = (unique: bigint, result: Buffer | number): void => {
    const body = typeof result === 'number' ? Buffer.alloc(0) : result;
    const header = Buffer.alloc(16);
    header.writeUInt32LE(16 + body.length, 0);
    header.writeInt32LE(typeof result === 'number' ? result : 0, 4);
    header.writeBigUInt64LE(unique, 8);
    writeSync(device, Buffer.concat([header, body]));
  };
  let dead = false;
  process.on('message', (message) => {
    if (message === 'die') {
      dead = true;
      process.send!('dead');
      return;
    }
    for (const unique of held.splice(0)) reply(unique, -ENOENT);
  });
  const buffer = Buffer.alloc(1 << 17);
  const next = (): void =>
    read(device, buffer, 0, buffer.length, null, (error, bytes) => {
      if (error !== null) process.exit(0); // unmounted
      const opcode = buffer.readUInt32LE(4);
      const unique = buffer.readBigUInt64LE(8);
      const text = buffer.subarray(IN_HEADER_BYTES, bytes).toString('latin1').replace(/\0.*/s, '');
      if (opcode !== FORGET && opcode !== BATCH_FORGET && !(dead && opcode === INTERRUPT)) {
        const result = dead ? null : answer(opcode, buffer.readUInt32LE(16), text);
        if (result === null) {
          held.push(unique);
          process.send!('held');
        } else {
          reply(unique, result);
        }
      }
      next();
    });
  next();
  process.send!('mounted');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) serve(process.argv[2]);

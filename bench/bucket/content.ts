/** What the objects of the bench hold, as bench/vufs/guest.c writes and expects it: a block over and over, each page stamped. */

const BLOCK_BYTES = 1 << 20;
const PAGE_BYTES = 4096;
const BLOCK = makeBlock();

function makeBlock(): Uint8Array {
  const words = new Uint32Array(BLOCK_BYTES / 4);
  let x = 1;
  for (let i = 0; i < words.length; i++) words[i] = x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
  return new Uint8Array(words.buffer);
}

/** Bytes from `offset` (at a page) of the file with this seed. */
export function content(offset: number, bytes: number, seed: number): Uint8Array {
  const out = new Uint8Array(bytes);
  const view = new DataView(out.buffer);
  for (let at = 0; at < bytes; at += BLOCK_BYTES - ((offset + at) % BLOCK_BYTES)) out.set(BLOCK.subarray((offset + at) % BLOCK_BYTES).subarray(0, bytes - at), at);
  for (let at = 0; at + 8 <= bytes; at += PAGE_BYTES) {
    view.setUint32(at, (offset + at) / PAGE_BYTES, true);
    view.setUint32(at + 4, seed, true);
  }
  return out;
}

/** The sizes of the files of the source tree, one after the other and again. */
export const SOURCE_BYTES = [300, 14000, 1800, 60000, 900, 4200, 25000, 3000, 9000, 6000] as const;
export const SMALL_FILE_BYTES = 4096;

const number = (value: number, digits: number): string => String(value).padStart(digits, '0');

/** A file in a flat directory. */
export const flatName = (index: number): string => `f${number(index, 6)}`;

/** A file of the tree that is searched: a hundred in each directory. */
export const treeName = (index: number): string => `d${number(Math.floor(index / 100), 4)}/f${number(index % 100, 3)}`;

/** A file of the source tree. */
export const sourceName = (index: number): string => `part${Math.floor(index / 40)}/module${Math.floor(index / 8) % 5}/source${index}.c`;

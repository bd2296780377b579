/** The contents of a file as the model has them: pages that were written, zeros between them. */
const PAGE_BYTES = 4096;

export class SparseBytes {
  size = 0;
  readonly #pages = new Map<number, Uint8Array>();

  /** What read(2) gives: fewer bytes at the end of the file. */
  read(offset: number, bytes: number): Uint8Array {
    const result = new Uint8Array(Math.max(0, Math.min(bytes, this.size - offset)));
    this.#each(offset, result.length, (page, at, from, count) => {
      const written = this.#pages.get(page);
      if (written !== undefined) result.set(written.subarray(at, at + count), from);
    });
    return result;
  }

  write(offset: number, data: Uint8Array): void {
    this.#each(offset, data.length, (page, at, from, count) => {
      let target = this.#pages.get(page);
      if (target === undefined) this.#pages.set(page, (target = new Uint8Array(PAGE_BYTES)));
      target.set(data.subarray(from, from + count), at);
    });
    if (data.length > 0) this.size = Math.max(this.size, offset + data.length);
  }

  /** Zeros from `offset` on; the size stays. */
  punch(offset: number, bytes: number): void {
    for (const [page, data] of this.#pages) {
      const start = Math.max(0, offset - page * PAGE_BYTES);
      const end = Math.min(PAGE_BYTES, offset + bytes - page * PAGE_BYTES);
      if (start < end) data.fill(0, start, end);
    }
  }

  truncate(size: number): void {
    if (size < this.size) this.punch(size, this.size - size);
    this.size = size;
  }

  /** Where there may be something else than zeros: offset and length of pieces within the size. */
  pieces(): { offset: number; bytes: number }[] {
    return [...this.#pages.keys()]
      .map((page) => ({ offset: page * PAGE_BYTES, bytes: Math.min(PAGE_BYTES, this.size - page * PAGE_BYTES) }))
      .filter((piece) => piece.bytes > 0);
  }

  /** Whether all is zero from `from` up to `to`. */
  isZero(from: number, to: number): boolean {
    return this.pieces().every(({ offset, bytes }) => {
      const start = Math.max(from, offset);
      const end = Math.min(to, offset + bytes);
      return start >= end || this.read(start, end - start).every((byte) => byte === 0);
    });
  }

  #each(offset: number, bytes: number, piece: (page: number, at: number, from: number, count: number) => void): void {
    for (let done = 0; done < bytes; ) {
      const page = Math.floor((offset + done) / PAGE_BYTES);
      const at = (offset + done) % PAGE_BYTES;
      const count = Math.min(PAGE_BYTES - at, bytes - done);
      piece(page, at, done, count);
      done += count;
    }
  }
}

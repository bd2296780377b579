/** What requests send: headers, pieces of memory, ranges of files. */
import { read } from 'node:fs';
import type { Socket } from 'node:net';
import { promisify } from 'node:util';
import { CheckedFile } from '../disk-errors.js';
import { StorageError } from '../errors.js';
import type { Body } from '../store.js';

const readFd = promisify(read);

/** The bytes of a file that are read, and sent, at once. */
export const STEP = 1 << 18;

/** A name in lower case, and its value. */
export type Header = readonly [name: string, value: string];

export type FileRange = Exclude<Body, Uint8Array>;

/** Pieces of memory, one after the other, or a range of a file that is read while it is sent. */
export type Content = readonly Uint8Array[] | FileContent | null;

export interface FileContent {
  readonly range: FileRange;
  /** Made anew each time the range is sent. */
  readonly framing?: () => Framing;
}

/** What comes before and behind a piece of STEP bytes; the last one may be shorter. */
export type Framing = (piece: Uint8Array, isLast: boolean) => readonly [before: string, behind: string];

export const isFile = (content: Content): content is FileContent => content !== null && 'range' in content;

/**
 * Reads the next piece while the last one is sent, in two pieces of memory in turns.
 *
 * @param wanted whether to go on
 * @returns whether all of it was sent
 */
export async function sendFile(socket: Socket, { range, framing }: FileContent, operation: string, wanted: () => boolean): Promise<boolean> {
  const file = new CheckedFile(range.fd, operation);
  try {
    return await sendPieces(socket, file, range, framing?.(), wanted);
  } finally {
    file.close();
  }
}

async function sendPieces(socket: Socket, file: CheckedFile, range: FileRange, frame: Framing | undefined, wanted: () => boolean): Promise<boolean> {
  const memory = [Buffer.allocUnsafe(STEP), Buffer.allocUnsafe(STEP)];
  const pieceAt = (at: number): Promise<Buffer> => {
    const piece = memory[(at / STEP) & 1].subarray(0, Math.min(STEP, range.bytes - at));
    return filled(piece, range, at, file);
  };
  let piece = await pieceAt(0);
  for (let at = 0; wanted(); ) {
    at += piece.length;
    const isLast = at === range.bytes;
    if (isLast) file.check();
    const sent = sendPiece(socket, piece, frame?.(piece, isLast) ?? ['', '']);
    if (isLast) return true;
    const next = pieceAt(at);
    next.catch(() => undefined); // until it is waited for
    await sent;
    // Also where nobody wants it any more: it is read into memory that is used again
    piece = await next;
  }
  return false;
}

async function filled(piece: Buffer, { offset, bytes }: FileRange, at: number, { fd, operation }: CheckedFile): Promise<Buffer> {
  for (let have = 0; have < piece.length; ) {
    const { bytesRead } = await readFd(fd, piece, have, piece.length - have, offset + at + have);
    if (bytesRead === 0) throw new StorageError('short-body', operation, { providerMessage: `the file ends ${bytes - at - have} bytes early` });
    have += bytesRead;
  }
  return piece;
}

/** @returns when the piece is sent, and its memory may be used again */
function sendPiece(socket: Socket, piece: Buffer, [before, behind]: readonly [string, string]): Promise<void> {
  return new Promise((resolve) => {
    // An error ends the exchange by the event
    const done = (): void => resolve();
    socket.cork();
    if (before !== '') socket.write(before);
    socket.write(piece, behind === '' ? done : undefined);
    if (behind !== '') socket.write(behind, done);
    socket.uncork();
  });
}

/** The beginning of a request. @throws StorageError `invalid` where a value would become more than one, or part of the path another request */
export function requestHead(method: string, target: string, headers: readonly Header[], operation: string): string {
  let head = `${method} ${target} HTTP/1.1\r\n`;
  if (/[^!-~]/.test(target)) throw new StorageError('invalid', operation, { providerMessage: 'this cannot be put into a URL' });
  for (const [name, value] of headers) {
    if (/[^\t -~\x80-\xff]/.test(value)) throw new StorageError('invalid', operation, { providerMessage: `${name} cannot have this value` });
    head += `${name}: ${value}\r\n`;
  }
  return `${head}\r\n`;
}

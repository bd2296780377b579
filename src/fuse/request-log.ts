/**
 * A line for each request, for --log-level=trace: another table of operations, so that a server without it does nothing for it. What has no row there (FORGET,
 * BATCH_FORGET, INIT, INTERRUPT, DESTROY and unknown ones) the server tells of. Lines are not limited: whoever wants to see every request is told of every request.
 */
import type { Logger } from '../base/log.js';
import { errnoName } from '../base/errno.js';
import { PENDING, type FileSystem } from '../storage/filesystem.js';
import type { Operation } from './ops.js';
import type { FuseRequest } from './request.js';

export type OperationTable = readonly (Operation | undefined)[];

/** Names of the guest are shown up to here. */
const NAME_MAX_BYTES = 255;
const decoder = new TextDecoder();

export class RequestLog {
  /** When a request began whose answer comes later. */
  readonly #began_ms = new WeakMap<FuseRequest, number>();

  constructor(readonly log: Pick<Logger, 'trace'>) {}

  /** The same operations, each of which writes a line when its result is known. */
  around(operations: OperationTable): OperationTable {
    return operations.map((operation) => (operation === undefined ? undefined : { ...operation, decode: this.#decode(operation), run: this.#run(operation) }));
  }

  /** A request that has no row in the table. `fields`: what it asks for. `result`: 0 or −errno; null: it has no answer. */
  special(opcode: string, fields: object, result: number | null): void {
    this.log.trace({ opcode, ...fields, ...(result === null ? {} : said(result)) }, result === null ? opcode : `${opcode}: ${result < 0 ? errnoName(result) : result}`);
  }

  /** A request whose result was PENDING. */
  completed(r: FuseRequest, result: number): void {
    const began_ms = this.#began_ms.get(r) ?? performance.now();
    this.#began_ms.delete(r);
    this.#line(r, result, began_ms);
  }

  /** For a request whose object is used for others before its result is known: what is to be told then. */
  later(r: FuseRequest): (result: number) => void {
    const began_ms = this.#began_ms.get(r) ?? performance.now();
    const fields = fieldsOf(r);
    return (result) => this.#write(fields, result, began_ms);
  }

  #decode(operation: Operation): Operation['decode'] {
    return (r) => {
      // A request object is used again, and most operations have no names
      r.name.length = 0;
      r.name2.length = 0;
      const result = operation.decode(r);
      if (result !== 0) this.#line(r, result, performance.now());
      return result;
    };
  }

  #run(operation: Operation) {
    return (fs: FileSystem, r: FuseRequest): number => {
      const began_ms = performance.now();
      this.#began_ms.set(r, began_ms);
      const result = operation.run(fs, r);
      if (result !== PENDING) {
        this.#began_ms.delete(r);
        this.#line(r, result, began_ms);
      }
      return result;
    };
  }

  #line(r: FuseRequest, result: number, began_ms: number): void {
    this.#write(fieldsOf(r), result, began_ms);
  }

  #write(asked: Asked, result: number, began_ms: number): void {
    const fields = { ...asked, ...said(result), us: Math.round((performance.now() - began_ms) * 1000) };
    this.log.trace(fields, `${asked.opcode}: ${result < 0 ? errnoName(result) : result}`);
  }
}

interface Asked {
  readonly opcode: string;
  readonly node: number;
  readonly name?: string;
  readonly name2?: string;
}

function fieldsOf(r: FuseRequest): Asked {
  const { op, nodeLow, nodeHigh } = r;
  return {
    opcode: op.name,
    node: nodeHigh * 2 ** 32 + nodeLow,
    ...(r.name.length > 0 ? { name: textOf(r, r.name) } : {}),
    ...(r.name2.length > 0 ? { name2: textOf(r, r.name2) } : {}),
  };
}

const said = (result: number): object => (result < 0 ? { error: errnoName(result) } : { result });

function textOf(r: FuseRequest, { at, length }: { readonly at: number; readonly length: number }): string {
  return decoder.decode(r.block.u8.subarray(at, at + Math.min(length, NAME_MAX_BYTES)));
}

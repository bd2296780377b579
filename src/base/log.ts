/**
 * The one logger: pino's lines on standard error, synchronous and in this thread (a transport thread would cost memory
 * and lose the last lines of a crash). Plain ones are written without it (plain-line.ts). JSON lines, or the pretty form when a person looks at a terminal.
 *
 * What a guest or a frontend can provoke goes through guest(): limited per key and overall, so that a hostile
 * guest can neither fill a disk nor hide another guest's lines for ever.
 */
import { fstatSync } from 'node:fs';
import { createRequire } from 'node:module';
import type { Logger as Pino } from 'pino';
import { LOG_LEVELS, type LogLevel } from './log-level.js';
import { GuestLimiter } from './log-limiter.js';
import { isPlain, LEVEL_NUMBERS, plainLine, type PlainValue, type WrittenLevel } from './plain-line.js';
import { isJournal, severityOf } from './severity.js';

/** Fields of a line; `err` is written with its type and stack. */
export type LogFields = Record<string, unknown>;

export interface Logger {
  error(fields: LogFields, message: string): void;
  warn(fields: LogFields, message: string): void;
  info(fields: LogFields, message: string): void;
  debug(fields: LogFields, message: string): void;
  trace(fields: LogFields, message: string): void;
  /**
   * A line that the other side of a socket or ring caused, a warning unless told otherwise. `key` names the kind of event: a constant of the
   * code, or one with a connection's number, never bytes of the guest. Returns whether the line was written.
   */
  guest(key: string, fields: LogFields, message: string, level?: 'warn' | 'info'): boolean;
  /** Is this level written? For callers that would build costly fields. */
  enabled(level: LogLevel): boolean;
  /** The same logger with more fields in each line; shares the limits of guest(). */
  child(fields: LogFields): Logger;
}

/** The same, for those who name their parameter so. */
export type Log = Logger;

export interface LogDestination {
  write(line: string): void;
}

export interface LogSettings {
  level: LogLevel;
  /** Default: pretty when standard error is a terminal. */
  pretty?: boolean;
  /** Another place than standard error. */
  destination?: LogDestination;
  /** What writes to standard error. Default: descriptor 2, written before the call returns, and so waiting for its reader. */
  standardError?: LogDestination;
}

/** Loaded for a terminal, and with the first line that is not plain. */
const library = (): typeof import('pino') => createRequire(import.meta.url)('pino') as typeof import('pino');

/** Makes the root logger, once for each thread. */
export function createLogger(settings: LogSettings): Logger {
  const { level } = settings;
  const pretty = settings.pretty ?? isTerminal(2);
  const stream = pretty
    ? prettyStream(settings.destination ?? settings.standardError, settings.destination === undefined)
    : settings.destination ?? forJournal(settings.standardError ?? synchronous());
  const make = (): Pino => {
    const { pino } = library();
    const formatters = pretty ? { log: escapeHeadFields } : {};
    return pino({ level: level === 'off' ? 'silent' : level, base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime, formatters }, stream);
  };
  const limiter = new GuestLimiter((count, keys) => root.warn({ suppressed: count, keys }, 'lines caused by guests were suppressed'));
  const root = new LineLogger({ level, stream, limiter, plain: !pretty }, [{ pid: process.pid }], make);
  return root;
}

/** As process.stderr.isTTY, which takes 2 ms to load the streams that nothing here writes to. */
function isTerminal(fd: number): boolean {
  if (!fstatSync(fd).isCharacterDevice()) return false;
  const { isatty } = createRequire(import.meta.url)('node:tty') as typeof import('node:tty');
  return isatty(fd);
}

/** Descriptor 2, synchronously. A reader that went away must not take the process with it. */
function synchronous(): LogDestination {
  const destination = library().pino.destination({ dest: 2, sync: true });
  destination.on('error', () => undefined);
  return destination;
}

/** Lines to the journal say how severe they are. */
function forJournal(destination: LogDestination): LogDestination {
  return isJournal(process.env['JOURNAL_STREAM'], fstatSync(2)) ? withSeverity(destination) : destination;
}

/** sd-daemon(3): `<N>` before each line. pino tells the level of a line to who asks for its metadata. */
export function withSeverity(destination: LogDestination): LogDestination {
  const prefixed = {
    [Symbol.for('pino.metadata')]: true,
    lastLevel: 30,
    write: (line: string) => void destination.write(`<${severityOf(prefixed.lastLevel)}>${line}`),
  };
  return prefixed;
}

/** The pretty form writes these fields as they are in its first line; all others it quotes. */
const HEAD_FIELDS = ['name', 'hostname', 'caller'] as const;

/** A guest must not reach the terminal with control characters. */
function escapeHeadFields(fields: LogFields): LogFields {
  const escaped = { ...fields };
  for (const key of HEAD_FIELDS) {
    if (typeof escaped[key] === 'string') escaped[key] = JSON.stringify(escaped[key]);
  }
  return escaped;
}

function prettyStream(destination: LogDestination | undefined, colorize: boolean): LogDestination {
  // Loaded only on a terminal: a service does not pay for it.
  const load = createRequire(import.meta.url)('pino-pretty') as (options: object) => LogDestination;
  const target = destination === undefined ? 2 : writableOf(destination);
  return load({
    destination: target,
    sync: true,
    colorize,
    ignore: 'pid',
    translateTime: 'SYS:HH:MM:ss.l',
  });
}

function writableOf(destination: LogDestination): object {
  const { Writable } = createRequire(import.meta.url)('node:stream') as typeof import('node:stream');
  return new Writable({
    write(chunk: Buffer, _encoding, done) {
      destination.write(chunk.toString());
      done();
    },
  });
}

/** What all loggers of a root have in common. */
interface Output {
  readonly level: LogLevel;
  readonly stream: LogDestination & { lastLevel?: number };
  readonly limiter: GuestLimiter;
  /** Plain lines may go without pino. */
  readonly plain: boolean;
}

class LineLogger implements Logger {
  readonly #output: Output;
  /** Those of each line, of the root first. */
  readonly #bindings: readonly LogFields[];
  readonly #plain: boolean;
  readonly #make: () => Pino;
  #pino: Pino | null = null;

  constructor(output: Output, bindings: readonly LogFields[], make: () => Pino) {
    this.#output = output;
    this.#bindings = bindings;
    this.#plain = output.plain && bindings.every(isPlain);
    this.#make = make;
  }

  error(fields: LogFields, message: string): void {
    if (this.enabled('error')) this.#write('error', fields, message);
  }

  warn(fields: LogFields, message: string): void {
    if (this.enabled('warn')) this.#write('warn', fields, message);
  }

  info(fields: LogFields, message: string): void {
    if (this.enabled('info')) this.#write('info', fields, message);
  }

  debug(fields: LogFields, message: string): void {
    if (this.enabled('debug')) this.#write('debug', fields, message);
  }

  trace(fields: LogFields, message: string): void {
    if (this.enabled('trace')) this.#write('trace', fields, message);
  }

  guest(key: string, fields: LogFields, message: string, level: 'warn' | 'info' = 'warn'): boolean {
    if (!this.enabled(level) || !this.#output.limiter.admit(key)) return false;
    this.#write(level, { ...fields, event: key }, message);
    return true;
  }

  enabled(level: LogLevel): boolean {
    return level !== 'off' && LOG_LEVELS.indexOf(level) <= LOG_LEVELS.indexOf(this.#output.level);
  }

  child(fields: LogFields): Logger {
    return new LineLogger(this.#output, [...this.#bindings, fields], () => this.#library().child(fields));
  }

  #write(level: WrittenLevel, fields: LogFields, message: string): void {
    if (this.#plain && isPlain(fields)) {
      this.#writePlain(level, [...(this.#bindings as Record<string, PlainValue>[]), fields], message);
      return;
    }
    let pino: Pino;
    try {
      pino = this.#library();
    } catch {
      // Its files have gone since the start: the line is worth more than its form
      this.#writePlain(level, [...this.#bindings, fields].map(asText), message);
      return;
    }
    pino[level](fields, message);
  }

  #writePlain(level: WrittenLevel, sets: readonly Record<string, PlainValue>[], message: string): void {
    const { stream } = this.#output;
    if (stream.lastLevel !== undefined) stream.lastLevel = LEVEL_NUMBERS[level];
    stream.write(plainLine(level, sets, message));
  }

  #library(): Pino {
    this.#pino ??= this.#make();
    return this.#pino;
  }
}

function asText(fields: LogFields): Record<string, PlainValue> {
  const text = (value: unknown): PlainValue => (value instanceof Error ? (value.stack ?? value.message) : isPlain({ value }) ? (value as PlainValue) : String(value));
  return Object.fromEntries(Object.entries(fields).map(([key, value]) => [key, text(value)]));
}

/** Writes nothing: for tests and for parts that run without a daemon. */
export const SILENT_LOG: Logger = {
  error: () => undefined,
  warn: () => undefined,
  info: () => undefined,
  debug: () => undefined,
  trace: () => undefined,
  guest: () => false,
  enabled: () => false,
  child: () => SILENT_LOG,
};

/** Text of the command line to checked values; what does not fit is a UsageError with one sentence. */
import { UsageError } from '../lifecycle/errors.js';
import type { OptionSpec } from './option-spec.js';
import { OPTION_ENTRIES, type OptionKey, type OptionValues } from './options.js';

/** Longest string where the table says nothing: PATH_MAX. */
const STRING_MAX_BYTES = 4096;
/** With fewer descriptors the daemon itself cannot run. */
export const RLIMIT_NOFILE_MIN = 256;

export type Collected = Map<OptionKey, boolean | number | string | string[]>;

function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}

function integer(name: string, spec: OptionSpec, text: string): number {
  const { min = 0, max = Number.MAX_SAFE_INTEGER } = spec;
  const value = /^\d{1,15}$/.test(text) ? Number(text) : NaN;
  if (!(value >= min && value <= max)) throw new UsageError(`${name} takes a whole number from ${min} to ${max}, not ${quote(text)}`);
  return value;
}

function mode(name: string, spec: OptionSpec, text: string): number {
  const value = /^[0-7]{1,5}$/.test(text) ? parseInt(text, 8) : NaN;
  if (!(value <= (spec.max ?? 0o7777))) throw new UsageError(`${name} takes permissions in octal, such as 644, not ${quote(text)}`);
  return value;
}

function string(name: string, spec: OptionSpec, text: string): string {
  const { min = 1, max = STRING_MAX_BYTES } = spec;
  const bytes = Buffer.byteLength(text);
  if (bytes === 0 && min > 0) throw new UsageError(`${name} needs a value`);
  if (bytes > max) throw new UsageError(`${name} takes at most ${max} bytes, and this value has ${bytes}: ${quote(text)}`);
  if (text.includes('\0')) throw new UsageError(`${name} takes no value with a NUL byte`);
  return text;
}

function choice(name: string, spec: OptionSpec, text: string): string {
  const choices = spec.choices ?? [];
  // --log-level=DEBUG is good for virtiofsd, too
  const spelled = choices.includes(text) ? text : text.toLowerCase();
  const value = spec.synonyms?.[spelled] ?? spelled;
  if (!choices.includes(value)) throw new UsageError(`${name} takes one of ${choices.join(', ')}, not ${quote(text)}`);
  return value;
}

/** Takes one option with its text as `name` (what the user wrote) says; later ones win, lists grow. */
export function collect(into: Collected, key: OptionKey, spec: OptionSpec, name: string, text: string): void {
  switch (spec.type) {
    case 'int':
      into.set(key, integer(name, spec, text));
      return;
    case 'mode':
      into.set(key, mode(name, spec, text));
      return;
    case 'string':
      into.set(key, string(name, spec, text));
      return;
    case 'choice':
    case 'negotiated':
      into.set(key, choice(name, spec, text));
      return;
    case 'list':
      into.set(key, [...((into.get(key) as string[] | undefined) ?? []), string(name, spec, text)]);
      return;
    case 'refused':
      throw new UsageError(spec.refusal ?? `${name} is not available`);
    default:
      throw new UsageError(`${name} takes no value, but has ${quote(text)}`);
  }
}

/** The defaults of the table with what was collected over them. */
export function withDefaults(collected: Collected): OptionValues {
  const values: Record<string, unknown> = {};
  for (const [key, spec] of OPTION_ENTRIES) {
    if (spec.type === 'refused' || spec.type === 'print' || spec.type === 'ignored') continue;
    const value = collected.get(key);
    if (spec.type === 'list') values[key] = Object.freeze(value ?? []);
    else values[key] = value ?? spec.default;
  }
  return values as unknown as OptionValues;
}

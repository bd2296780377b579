/**
 * Plain command lines, as programs write them: every word is the long name of an option, with its value behind = or as the next word, or -o with its list.
 * The rule: what is read here means the same to commander, which reads every other command line, and takes a tenth of a start to load.
 */
import type { OptionSpec } from './option-spec.js';
import { OPTION_ENTRIES } from './options.js';

/** Hears each option in the order of the command line: its row of the table, the name that was used, its value. */
export type OnOption = (spec: OptionSpec, index: number, name: string, text: string | null) => void;

type Reading = Parameters<OnOption>;

/** The spelling that changes something: --no-readdirplus where readdirplus is the default. */
export function mainName(spec: OptionSpec): string {
  return spec.type === 'toggle' && spec.default === true ? `no-${spec.flag}` : spec.flag;
}

export function otherNames(spec: OptionSpec): string[] {
  const names = spec.alias === undefined ? [] : [spec.alias];
  if (spec.type === 'toggle') names.push(spec.default === true ? spec.flag : `no-${spec.flag}`);
  if (spec.type === 'negotiated') names.push(`no-${spec.flag}`);
  return names;
}

/** Without effect, and false, if the command line is not plain. */
export function readPlain(args: readonly string[], onOption: OnOption): boolean {
  const read: Reading[] = [];
  for (let at = 0; at < args.length; at++) {
    const equals = args[at].indexOf('=');
    const name = equals < 0 ? args[at] : args[at].slice(0, equals);
    const index = OPTION_ENTRIES.findIndex(([, spec]) => isNamed(spec, name));
    if (index < 0) return false;
    const [, spec] = OPTION_ENTRIES[index];
    if (!takesValue(spec)) {
      if (equals >= 0) return false;
      read.push([spec, index, name, null]);
    } else if (equals >= 0 && name.startsWith('--')) {
      read.push([spec, index, name, args[at].slice(equals + 1)]);
    } else {
      const next = args[++at];
      if (equals >= 0 || next === undefined || next.startsWith('-')) return false;
      read.push([spec, index, name, next]);
    }
  }
  for (const one of read) onOption(...one);
  return true;
}

/** Rows that print, refuse or negotiate are commander's. */
function isNamed(spec: OptionSpec, name: string): boolean {
  if (spec.type === 'print' || spec.type === 'refused' || spec.type === 'negotiated') return false;
  if (spec.flag === '') return spec.type === 'list' && name === `-${spec.short}`;
  return name.startsWith('--') && (name === `--${mainName(spec)}` || otherNames(spec).includes(name.slice(2)));
}

function takesValue(spec: OptionSpec): boolean {
  return spec.value !== undefined;
}

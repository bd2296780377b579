/** The -o list of the C virtiofsd, which libvirt still writes: `-o source=/dir,cache=always,no_xattr`. */
import { UsageError } from '../lifecycle/errors.js';
import type { OptionSpec } from './option-spec.js';
import { OPTION_ENTRIES, type OptionKey } from './options.js';
import { collect, type Collected } from './values.js';

interface Target {
  key: OptionKey;
  spec: OptionSpec;
  /** For a flag or toggle: what naming it means. */
  on: boolean;
}

function targets(): Map<string, Target> {
  const map = new Map<string, Target>();
  for (const [key, spec] of OPTION_ENTRIES) {
    if (spec.legacy === undefined) continue;
    map.set(spec.legacy, { key, spec, on: true });
    if (spec.legacyAlias !== undefined) map.set(spec.legacyAlias, { key, spec, on: true });
    if (spec.type === 'toggle' || spec.type === 'negotiated') map.set(`no_${spec.legacy}`, { key, spec, on: false });
  }
  return map;
}

const TARGETS = targets();

/** Keys of libfuse without a meaning here. */
const IGNORED = new Set(['allow_root', 'allow_other', 'max_idle_threads', 'default_permissions', 'norace']);

/**
 * Items of the list. A comma inside of an item is written `\,` (libfuse) or `,,` (libvirt, as for QEMU);
 * a backslash before anything else stands for itself.
 */
export function splitList(list: string): string[] {
  const items: string[] = [];
  let item = '';
  for (let i = 0; i < list.length; i++) {
    const escaped = (list[i] === ',' || list[i] === '\\') && list[i + 1] === ',';
    if (escaped) {
      item += ',';
      i++;
    } else if (list[i] === ',') {
      items.push(item);
      item = '';
    } else {
      item += list[i];
    }
  }
  items.push(item);
  return items.filter((text) => text !== '');
}

/** Takes over every item of one -o list. */
export function collectLegacy(into: Collected, list: string): void {
  for (const item of splitList(list)) {
    const equals = item.indexOf('=');
    const key = equals < 0 ? item : item.slice(0, equals);
    if (IGNORED.has(key)) continue;
    if (key === 'timeout') {
      throw new UsageError('-o timeout is not available: choose how long the guest may cache with --cache=never, auto or always');
    }
    const target = TARGETS.get(key);
    if (target === undefined) throw new UsageError(`-o does not know ${JSON.stringify(key)}`);
    collectItem(into, target, `-o ${key}`, equals < 0 ? null : item.slice(equals + 1));
  }
}

function collectItem(into: Collected, { key, spec, on }: Target, name: string, value: string | null): void {
  if (spec.type === 'flag' || spec.type === 'toggle') {
    if (value !== null) throw new UsageError(`${name} takes no value`);
    into.set(key, on);
  } else if (spec.type === 'negotiated' && (value === null || !on)) {
    if (value !== null) throw new UsageError(`${name} takes no value`);
    into.set(key, on ? 'always' : 'never');
  } else {
    if (value === null && spec.type !== 'refused') throw new UsageError(`${name} needs a value: ${name}=${spec.value ?? 'VALUE'}`);
    collect(into, key, spec, name, value ?? '');
  }
}

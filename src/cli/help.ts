/** What the options table looks like for people: --help, and the options section of docs/OPERATIONS.md. */
import { createRequire } from 'node:module';
import type { Command, Option } from 'commander';
import { GROUPS, type OptionSpec } from './option-spec.js';
import { OPTION_ENTRIES } from './options.js';
import { mainName, otherNames, type OnOption } from './plain.js';

const SUMMARY = 'Shares a host directory or a bucket into a virtual machine: a virtiofs daemon that speaks vhost-user.';
/** Columns of the narrowest terminal that people use. */
const WIDTH = 80;

function flags(spec: OptionSpec, long: string): string {
  const names = [spec.short === undefined ? '' : `-${spec.short}`, long === '' ? '' : `--${long}`];
  const value = spec.value === undefined ? '' : ` <${spec.value}>`;
  return names.filter((name) => name !== '').join(', ') + value;
}

/** As people read it. */
function shown(spec: OptionSpec, long: string): string {
  return spec.type === 'negotiated' ? `--${long}[=<${spec.value}>]` : flags(spec, long);
}

function helpOf(spec: OptionSpec): string {
  return spec.helpOff ?? spec.help;
}

function defaultOf(spec: OptionSpec): string | null {
  if (spec.defaultText !== undefined) return spec.defaultText;
  const value = spec.default;
  return value === undefined || value === null || typeof value === 'boolean' ? null : String(value);
}

function details(spec: OptionSpec): string {
  const parts: string[] = [];
  if (spec.choices !== undefined) parts.push(spec.choices.join(', '));
  if (spec.type === 'int' && spec.min !== undefined && spec.max !== undefined) parts.push(`${spec.min} to ${spec.max}`);
  const byDefault = defaultOf(spec);
  if (byDefault !== null) parts.push(`default: ${byDefault}`);
  if (spec.type === 'list') parts.push('may be repeated');
  const others = otherNames(spec).map((name) => `--${name}`);
  if (others.length > 0) parts.push(`also: ${others.join(', ')}`);
  return parts.join('; ');
}

function description(spec: OptionSpec): string {
  const more = details(spec);
  return more === '' ? helpOf(spec) : `${helpOf(spec)} (${more})`;
}

/** Loaded for what is not plain: that is help, and mistakes. */
const commander = (): typeof import('commander') => createRequire(import.meta.url)('commander') as typeof import('commander');

/** One option of commander for each spelling; only the first is shown. */
function spellings(spec: OptionSpec): Option[] {
  const { Option } = commander();
  const main = new Option(flags(spec, mainName(spec)), description(spec));
  const others = otherNames(spec).map((name) => {
    const { short: _short, value: _value, ...bare } = spec;
    const same = name === spec.alias && spec.value !== undefined ? { ...bare, value: spec.value } : bare;
    return new Option(flags(same, name)).hideHelp();
  });
  return [main, ...others];
}

/** The command with all options of the table; `onOption` hears each one in the order of the command line. */
export function buildCommand(onOption: OnOption): Command {
  const { Command } = commander();
  const terms = new Map<Option, string>();
  const command = new Command('bucketfsd')
    .usage('--socket-path PATH --source SOURCE [options]\n       bucketfsd check --source BUCKET [options of buckets]\n       bucketfsd recover --cache-dir DIR [--dry-run] [options of buckets]')
    .description(SUMMARY)
    .helpOption(false)
    .allowExcessArguments(true)
    .exitOverride()
    .configureHelp({ optionTerm: (option) => terms.get(option) ?? option.flags })
    .configureOutput({ writeErr: () => undefined, outputError: () => undefined, getOutHelpWidth: () => WIDTH, getOutHasColors: () => false });
  OPTION_ENTRIES.forEach(([, spec], index) => {
    for (const option of spellings(spec)) {
      terms.set(option, shown(spec, option.long?.slice(2) ?? ''));
      command.addOption(option.helpGroup(`${GROUPS[spec.group]}:`));
      command.on(`option:${option.name()}`, (text: string | null | undefined) => {
        onOption(spec, index, option.long ?? option.short ?? '', text ?? null);
      });
    }
  });
  return command;
}

/** What is wrong with a command line, in commander's words; null: `error` is something else. */
export function complaintOf(error: unknown): string | null {
  return error instanceof commander().CommanderError ? error.message : null;
}

export function helpText(): string {
  return buildCommand(() => undefined).helpInformation();
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|');
}

/** The options section of docs/OPERATIONS.md, from the same table as --help. */
export function optionsMarkdown(): string {
  const lines: string[] = [];
  for (const [group, title] of Object.entries(GROUPS)) {
    lines.push(`### ${title}`, '', '| option | meaning | default | `-o` key | virtiofsd |', '|---|---|---|---|---|');
    for (const [, spec] of OPTION_ENTRIES) {
      if (spec.group !== group) continue;
      lines.push(`| ${[optionCell(spec), cell(meaning(spec)), cell(defaultCell(spec)), legacyCell(spec), code(spec.virtiofsd)].join(' | ')} |`);
    }
    lines.push('');
  }
  return lines.join('\n');
}

function optionCell(spec: OptionSpec): string {
  const names = [cell(shown(spec, spec.flag)), ...(spec.alias === undefined ? [] : [`--${spec.alias}`])];
  if (spec.type === 'toggle' || spec.type === 'negotiated') names.push(`--no-${spec.flag}`);
  return names.map((name) => `\`${name}\``).join(', ');
}

function meaning(spec: OptionSpec): string {
  const bounds = spec.type === 'int' ? ` (${spec.min} to ${spec.max})` : '';
  const choices = spec.choices === undefined ? '' : ` (${spec.choices.map((choice) => `\`${choice}\``).join(', ')})`;
  const repeat = spec.type === 'list' ? ' (may be repeated)' : '';
  return spec.help + bounds + choices + repeat;
}

function defaultCell(spec: OptionSpec): string {
  if (spec.type === 'flag' || spec.type === 'toggle') return spec.default === true ? 'on' : 'off';
  return defaultOf(spec) ?? '';
}

function legacyCell(spec: OptionSpec): string {
  if (spec.legacy === undefined) return '';
  return spec.type === 'toggle' || spec.type === 'negotiated' ? `\`${spec.legacy}\`, \`no_${spec.legacy}\`` : `\`${spec.legacy}\``;
}

function code(text: string | null): string {
  return text === null ? '' : `\`${text}\``;
}

/**
 * What an option is, for the one table of them in options.ts.
 *
 * Types: `flag` is on when named; `toggle` also has --no-NAME; `int`, `string` and `choice` take a value; `list`
 * may be repeated; `mode` takes permissions in octal; `negotiated` is never, auto or always, and takes its value with = only:
 * without one it is always, with --no- never; `refused` is known from virtiofsd but answered with a sentence that says what to do instead;
 * `print` prints something and exits; `ignored` has no effect.
 */
export const GROUPS = {
  socket: 'Where to listen (exactly one of --socket-path, --fd, or a socket from systemd)',
  share: 'What to share',
  bucket: 'Buckets (--source s3://BUCKET[/PREFIX] or gs://BUCKET[/PREFIX])',
  cache: 'What the guest may cache',
  attributes: 'Owners, attributes and locks',
  speed: 'Speed and resources',
  process: 'Process and log',
  legacy: 'For callers that know virtiofsd',
} as const;

export interface OptionSpec {
  /** Long name without the dashes. */
  flag: string;
  short?: string;
  alias?: string;
  type: 'flag' | 'toggle' | 'int' | 'string' | 'choice' | 'list' | 'mode' | 'negotiated' | 'refused' | 'print' | 'ignored';
  group: keyof typeof GROUPS;
  /** What stands for the value in the help. */
  value?: string;
  default?: boolean | number | string | null;
  /** Said instead of a default that depends on the machine. */
  defaultText?: string;
  choices?: readonly string[];
  /** Other spellings of a choice that virtiofsd knows. */
  synonyms?: Readonly<Record<string, string>>;
  /** Bounds of a number, both inclusive; for a string, of its length in bytes (default 1..4096). */
  min?: number;
  max?: number;
  help: string;
  /** For a toggle that is on by default: what --no-NAME does. */
  helpOff?: string;
  /** For `refused`: the sentence of the usage error. */
  refusal?: string;
  /** The key of the legacy -o list; a flag or toggle also has no_KEY. */
  legacy?: string;
  /** Another spelling of that key. */
  legacyAlias?: string;
  /** Means something for one kind of source only; absent: for all. */
  only?: 'directory' | 'bucket' | 's3' | 'gcs';
  /** The option of virtiofsd 1.14 that this one equals; null: it has none. */
  virtiofsd: string | null;
}

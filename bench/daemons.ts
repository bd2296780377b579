/** The daemons that are compared, as commands with `{SOCK}` and `{DIR}` in them. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from './vufs.js';

export interface Daemon {
  readonly name: string;
  readonly command: string;
}

/** Where Debian's QEMU had the C virtiofsd. */
export const C_VIRTIOFSD = '/usr/lib/qemu/virtiofsd';

/** Our own daemon's name in tables and options. */
export const OURS = 'bucketfsd';

export interface DaemonChoice {
  /** Names to be taken; empty: all that are there. */
  readonly names: readonly string[];
  /** Path of the C virtiofsd. */
  readonly cVirtiofsd: string;
  /** Command prefix of the Rust virtiofsd, `undefined` if there is none. */
  readonly rustVirtiofsd: string | undefined;
  /** Appended to our own command line. */
  readonly ourArgs: string;
  /** `NAME=COMMAND` of further daemons. */
  readonly extra: readonly string[];
}

function quote(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}

/** The command line of our daemon; `args` is appended unquoted. */
export function ourCommand(args: string): string {
  const main = join(projectRoot, 'build/src/main.js');
  const fixed = '--socket-path {SOCK} --shared-dir {DIR} --thread-pool-size 0 --cache auto';
  return `exec ${quote(process.execPath)} ${quote(main)} ${fixed} ${args}`.trimEnd();
}

/**
 * Every daemon runs without a thread pool: for the C and the Rust one that is their default, and pools of 64 and 4
 * threads made them slower, small requests by a third to three quarters. The Rust one also goes without its sandbox
 * and seccomp filter, which makes no measurable difference; the C one cannot be had without.
 */
function knownDaemons(choice: DaemonChoice): { daemon: Daemon; missing: string | undefined }[] {
  const c = {
    name: 'c',
    command: `exec ${choice.cVirtiofsd} --socket-path={SOCK} -o source={DIR} -o cache=auto --thread-pool-size=0 -f`,
  };
  const rust = {
    name: 'rust',
    command:
      `exec ${choice.rustVirtiofsd ?? ''} --socket-path {SOCK} --shared-dir {DIR} ` +
      '--sandbox none --seccomp none --cache auto --thread-pool-size 0',
  };
  const ours = { name: OURS, command: ourCommand(choice.ourArgs) };
  return [
    { daemon: c, missing: existsSync(choice.cVirtiofsd) ? undefined : `${choice.cVirtiofsd} is not there` },
    { daemon: rust, missing: choice.rustVirtiofsd ? undefined : 'VIRTIOFSD does not name one' },
    {
      daemon: ours,
      missing: existsSync(join(projectRoot, 'build/src/main.js')) ? undefined : 'build/src/main.js is not built',
    },
  ];
}

/** The daemons to run, and a sentence for each that had to be left out. */
export function chooseDaemons(choice: DaemonChoice): { daemons: Daemon[]; leftOut: string[] } {
  const daemons: Daemon[] = [];
  const leftOut: string[] = [];
  for (const { daemon, missing } of knownDaemons(choice)) {
    if (choice.names.length > 0 && !choice.names.includes(daemon.name)) continue;
    if (missing === undefined) daemons.push(daemon);
    else leftOut.push(`without ${daemon.name}: ${missing}`);
  }
  for (const text of choice.extra) {
    const at = text.indexOf('=');
    if (at < 1) throw new Error(`--daemon takes NAME=COMMAND, not ${text}`);
    daemons.push({ name: text.slice(0, at), command: text.slice(at + 1) });
  }
  return { daemons, leftOut };
}

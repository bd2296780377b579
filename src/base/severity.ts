/** Severities of syslog(3), which the journal and syslog daemons sort lines by. */
import { fstatSync } from 'node:fs';

/** Of a level of pino: LOG_CRIT, LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG. */
export function severityOf(level: number): number {
  if (level >= 60) return 2;
  if (level >= 50) return 3;
  if (level >= 40) return 4;
  return level >= 30 ? 6 : 7;
}

/** LOG_ERR. */
const ERROR_SEVERITY = 3;

/** Is a descriptor the journal's, which takes `<N>` before a line as its severity? JOURNAL_STREAM of systemd.exec(5): device and inode. */
export function isJournal(journalStream: string | undefined, found: { readonly dev: number; readonly ino: number }): boolean {
  return journalStream === `${found.dev}:${found.ino}`;
}

/** The last words of a start that fails, on standard error. */
export function writeFailure(text: string): void {
  process.stderr.write(isJournal(process.env['JOURNAL_STREAM'], fstatSync(2)) ? `<${ERROR_SEVERITY}>${text}` : text);
}

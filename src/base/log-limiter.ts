/** Lines of one key in one window. */
export const GUEST_LINES_PER_KEY = 10;
/** Lines of all keys together in one window. */
export const GUEST_LINES_TOTAL = 50;
export const GUEST_WINDOW_MS = 10_000;
/** Keys that are counted apart in one window; the others share one count. */
const KEYS_MAX = 256;
const OTHER_KEYS = 'other';

/** What was held back in a window: the number of lines, and by key. */
export type SuppressedReport = (count: number, keys: Record<string, number>) => void;

/**
 * Admits the first lines of each window of 10 s and counts the rest. The count is reported when the window
 * ends, at the latest with the next line after it. Memory is bounded whatever keys come.
 */
export class GuestLimiter {
  readonly #report: SuppressedReport;
  readonly #now_ms: () => number;
  readonly #seen = new Map<string, number>();
  readonly #suppressed = new Map<string, number>();
  #windowEnd_ms = 0;
  #admitted = 0;
  #timer: NodeJS.Timeout | null = null;

  /** `now_ms` is a clock that does not jump; tests bring their own. */
  constructor(report: SuppressedReport, now_ms: () => number = () => performance.now()) {
    this.#report = report;
    this.#now_ms = now_ms;
  }

  /** May a line of this key be written now? */
  admit(key: string): boolean {
    const now = this.#now_ms();
    if (now >= this.#windowEnd_ms) this.#startWindow(now);
    const counted = this.#seen.has(key) || this.#seen.size < KEYS_MAX ? key : OTHER_KEYS;
    const count = (this.#seen.get(counted) ?? 0) + 1;
    this.#seen.set(counted, count);
    if (count <= GUEST_LINES_PER_KEY && this.#admitted < GUEST_LINES_TOTAL) {
      this.#admitted++;
      return true;
    }
    this.#suppressed.set(counted, (this.#suppressed.get(counted) ?? 0) + 1);
    // The report must come even when the guest falls silent; the timer keeps no process alive.
    this.#timer ??= setTimeout(() => this.#startWindow(this.#now_ms()), this.#windowEnd_ms - now).unref();
    return false;
  }

  #startWindow(now_ms: number): void {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    this.#windowEnd_ms = now_ms + GUEST_WINDOW_MS;
    this.#admitted = 0;
    this.#seen.clear();
    if (this.#suppressed.size === 0) return;
    const keys = Object.fromEntries(this.#suppressed);
    this.#suppressed.clear();
    this.#report(Object.values(keys).reduce((sum, n) => sum + n, 0), keys);
  }
}

/**
 * Failures that are known and not mended yet. A seed that ends with one is counted, and does not fail the test. Each entry says what the mend has to
 * make true; the mend removes the entry.
 */
import type { Violation } from './model/oracle.js';

interface Known {
  readonly what: string;
  readonly kinds: readonly Violation['kind'][];
  readonly pattern: RegExp;
}

export const KNOWN: readonly Known[] = [];

export const isKnown = ({ kind, message }: Violation): Known | null => KNOWN.find(({ kinds, pattern }) => kinds.includes(kind) && pattern.test(message)) ?? null;

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

export const KNOWN: readonly Known[] = [
  { what: 'a removal names the version that it is to remove', kinds: ['overwritten'], pattern: /^overwritten: g\d removes / },
  { what: 'a rename names the version that it is to replace', kinds: ['overwritten'], pattern: /^overwritten: g\d writes .*a copy of / },
  { what: 'a read that is overtaken by the removal of its file goes on with what was kept', kinds: ['false conflict'], pattern: /: reading .* is (ESTALE|ENOENT), and nobody else has changed/ },
  { what: 'a commit that conflicts when its file has lost its name is over', kinds: ['defect'], pattern: /reading 'slice'/ },
  { what: 'nothing is committed of a file that was put aside', kinds: ['body', 'start', 'errno', 'defect'], pattern: /^body|is missing, which has data|is (EBADF|EIO)$|value of "fd" is out of range/ },
  { what: 'a commit in doubt is known by more than its id, which others keep', kinds: ['attributes', 'overwritten'], pattern: /is not what the guest has set|is no state of this file/ },
  { what: 'a part that cannot be copied is one of an object that has changed', kinds: ['left behind'], pattern: /files are not in the bucket/ },
  { what: 'a conflict is kept as it was found, also when it is kept again', kinds: ['content', 'read', 'lost'], pattern: /^content: g\d keeps|^read: .*(\\u0000)+|^lost: content that was acknowledged is nowhere .* kept/ },
  { what: 'a file that is cut while it is sent is not sent with zeros', kinds: ['content'], pattern: /zeros instead of|instead of "(\\u0000)+/ },
  { what: 'a change of attributes that was done is not taken for somebody else\'s', kinds: ['errno'], pattern: /attributes of \S+ is ESTALE$/ },
  { what: 'a rename over a file waits for its commits', kinds: ['false conflict'], pattern: /keeps .* and nobody else has changed/ },
  { what: 'a rename that was answered with an error is not finished later', kinds: ['nobody'], pattern: /removes .*, which nobody has asked for/ },
];

export const isKnown = ({ kind, message }: Violation): Known | null => KNOWN.find(({ kinds, pattern }) => kinds.includes(kind) && pattern.test(message)) ?? null;

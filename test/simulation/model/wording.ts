/** Changes, objects and content in words, for whoever reads of a complaint. */
import type { Change, Revision } from '../bucket.js';
import { attributesOf, type Attributes, type Log } from './guest-file.js';

export const named = ({ key, version, by, content }: Revision): string => `${key}@${version.slice(0, 8)} of ${by} (${content.length} bytes)`;

export function described({ key, before, after, call }: Change): string {
  const did = after === null ? 'removed' : before === null ? 'made' : 'replaced';
  return `${call.client} #${call.number} ${call.operation}: ${did} ${key}${before === null ? '' : ` ${before.version.slice(0, 8)} of ${before.by}`}${after === null ? '' : ` -> ${after.version.slice(0, 8)} ${after.content.length} bytes ${describedAttributes(attributesOf(after.metadata))}`}`;
}

const describedAttributes = ({ mode, tag }: Attributes): string => `${mode.toString(8)} ${tag ?? '-'}`;

/** Describes how content differs from the states of a file. */
export function explained(content: Uint8Array, log: Log<Buffer>): string {
  const texts = log.values.slice(Math.max(0, log.committed)).map((value, i) => {
    if (value.equals(content)) return `it is the ${i}th`;
    let at = 0;
    while (at < content.length && at < value.length && content[at] === value[at]) at++;
    let end = Math.min(content.length, value.length);
    while (end > at && content[end - 1] === value[end - 1]) end--;
    const zeros = content.subarray(at, end).every((byte) => byte === 0) && end > at;
    const shown = (bytes: Uint8Array): string => JSON.stringify(Buffer.from(bytes.subarray(at, at + 20)).toString('latin1'));
    return `${content.length} instead of ${value.length} bytes, ${zeros ? 'zeros' : shown(content)} instead of ${shown(value)} from ${at} to ${end}`;
  });
  return `${nowhere(content, log)}; ${texts.slice(-3).join(' | ')}`;
}

/** Names the first bytes that are in no state. */
function nowhere(content: Uint8Array, log: Log<Buffer>): string {
  const at = content.findIndex((byte, i) => !log.values.some((value) => value[i] === byte));
  if (at < 0) return 'each byte is of some state';
  return `in no state from ${at} on: ${JSON.stringify(Buffer.from(content.subarray(at, at + 20)).toString('latin1'))}`;
}

/**
 * Metadata that was asked for once is not asked for again while a listing shows the same object. A listing has no metadata on S3, but version and time: when the
 * provider told the metadata, the object had been there for a while (ObjectInfo.isSettled). Whatever replaces it, also with the same content and so with the same
 * ETag, is stored later; so an object of the same version and second is the same one. Tags and locks can change without that: who changes a file asks.
 */
import type { ObjectNode } from './nodes.js';
import type { ObjectInfo } from './store.js';

const SECONDS_MAX = 2 ** 32 - 1;

const secondOf = ({ modified_ms }: ObjectInfo): number => Math.floor(modified_ms / 1000);

/** What is kept with the facts of an object, see ObjectNode.proof_s; 0: a listing cannot prove them. */
export function proofOf(info: ObjectInfo): number {
  const second = secondOf(info);
  return info.isSettled === true && info.metadata !== null && second > 0 && second <= SECONDS_MAX ? second : 0;
}

/** Whether an entry of a listing shows that the facts of a node still hold. The listing has to be younger than what was changed here. */
export const proves = (listed: ObjectInfo, { proof_s, facts, unlinked, replaced, staged }: ObjectNode): boolean =>
  proof_s !== 0 && proof_s === secondOf(listed) && facts.version === listed.version && !unlinked && !replaced && staged?.dirty !== true;

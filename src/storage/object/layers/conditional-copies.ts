/** Copies and new metadata, of any size, are on condition of what is at the destination, also where the provider's own copy does not look there. */
import { conditionalCopy, conditionalSetMetadata, copyHonours, withConditionalCopy, type ConditionalCopyOptions } from '../conditional-copy.js';
import { StorageError } from '../errors.js';
import type { ObjectStore, Version } from '../store.js';
import { intercept } from './intercept.js';

/**
 * The outermost layer: each call that a copy is made of is tried again, limited and timed by itself. Where the provider honours no condition of puts
 * either, nothing changes about conditions: its capabilities say so.
 */
export function withConditionalCopies(store: ObjectStore, how: ConditionalCopyOptions): ObjectStore {
  const { capabilities } = store;
  const whole = withConditionalCopy(capabilities);
  const own = { absent: copyHonours(capabilities, { absent: true }), version: copyHonours(capabilities, { version: '' }) };
  const copiesParts = capabilities.copyPart === 'range';
  if (own.absent && own.version && !copiesParts) return store;
  return {
    ...intercept(store, (call, attempt) => attempt(call.signal)), capabilities: whole,
    copy: (from, to, options = {}) => {
      const { condition } = options;
      const emulated = condition !== undefined && !copyHonours(capabilities, condition) && copyHonours(whole, condition);
      if (emulated) return conditionalCopy(store, from, to, { ...options, condition }, how);
      return copiesParts ? unlessTooLarge(store.copy(from, to, { ...options, inOne: true }), () => conditionalCopy(store, from, to, options, how)) : store.copy(from, to, options);
    },
    setMetadata: (key, version, metadata, options = {}) => {
      const emulated = !own.version && whole.copyIfVersion && !capabilities.metadataInPlace;
      const inParts = (): Promise<Version> => conditionalSetMetadata(store, key, version, metadata, options, how);
      if (emulated) return inParts();
      return copiesParts ? unlessTooLarge(store.setMetadata(key, version, metadata, { ...options, inOne: true }), inParts) : store.setMetadata(key, version, metadata, options);
    },
  };
}

async function unlessTooLarge(inOne: Promise<Version>, inParts: () => Promise<Version>): Promise<Version> {
  try {
    return await inOne;
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'too-large') throw error;
    return inParts();
  }
}

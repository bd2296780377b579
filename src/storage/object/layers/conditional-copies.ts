/** Copies and new metadata are on condition of what is at the destination, also where the provider's own copy does not look there. */
import { conditionalCopy, conditionalSetMetadata, copyHonours, withConditionalCopy, type ConditionalCopyOptions } from '../conditional-copy.js';
import type { ObjectStore } from '../store.js';
import { intercept } from './intercept.js';

/**
 * The outermost layer: each call that a copy is made of is tried again, limited and timed by itself. Where the provider honours no condition of puts
 * either, nothing changes: its capabilities say so.
 */
export function withConditionalCopies(store: ObjectStore, how: ConditionalCopyOptions): ObjectStore {
  const { capabilities } = store;
  const whole = withConditionalCopy(capabilities);
  const own = { absent: copyHonours(capabilities, { absent: true }), version: copyHonours(capabilities, { version: '' }) };
  if (own.absent && own.version) return store;
  return {
    ...intercept(store, (call, attempt) => attempt(call.signal)), capabilities: whole,
    copy: (from, to, options = {}) => {
      const { condition } = options;
      const emulated = condition !== undefined && !copyHonours(capabilities, condition) && copyHonours(whole, condition);
      return emulated ? conditionalCopy(store, from, to, { ...options, condition }, how) : store.copy(from, to, options);
    },
    setMetadata: (key, version, metadata, options = {}) => {
      const emulated = !own.version && whole.copyIfVersion && !capabilities.metadataInPlace;
      return emulated ? conditionalSetMetadata(store, key, version, metadata, options, how) : store.setMetadata(key, version, metadata, options);
    },
  };
}

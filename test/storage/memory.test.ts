import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { contract } from './contract.js';

contract('memory', { open: async () => new MemoryStore() });
contract('memory, as little as S3', {
  open: async () =>
    new MemoryStore({ capabilities: { copyIfAbsent: false, copyIfVersion: false, deleteIfVersion: false, copyPart: 'none', listingHasMetadata: false } }),
});

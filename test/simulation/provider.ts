/** Providers, as far as our code can tell them apart. */
import type { Capabilities, Limits, ObjectStore } from '../../src/storage/object/store.js';

export interface Provider {
  readonly name: string;
  readonly kind: ObjectStore['kind'];
  readonly capabilities: Capabilities;
  readonly limits: Limits;
  /** ETags are of the content: with it they come back. Generations never do. */
  readonly versions: 'etag' | 'generation';
  /** Whether the copy of an object has the ETag that it had; else it is that of the content sent at once. */
  readonly copyKeepsEtag: boolean;
  /** It honours conditions. Elsewhere late requests would replace newer objects, so requests are not delayed there. */
  readonly guarded: boolean;
}

const KIB = 1 << 10;

/** So that some kilobytes are an upload in parts. */
const LIMITS: Limits = {
  keyBytes: 1024, metadataBytes: 2048, putBytes: 1 << 30, objectBytes: 1 << 30, partMinBytes: 4 * KIB, partMaxBytes: 64 * KIB, parts: 100,
};

/** Amazon's: src/storage/object/stores/s3.ts. */
const S3: Capabilities = {
  putIfAbsent: true, putIfVersion: true, completeIfAbsent: true, completeIfVersion: true, copyIfAbsent: true, copyIfVersion: true, deleteIfVersion: true,
  atomicDelete: true, copyPart: 'range', copyPartIfVersion: true, rename: false, listingHasMetadata: false, metadataInPlace: false, fetch: true,
};

const AWS: Provider = { name: 'aws', kind: 's3', capabilities: S3, limits: LIMITS, versions: 'etag', copyKeepsEtag: false, guarded: true };

/** As the probe finds Ceph RGW: conditions of copies are not looked at, and those of removals before, not when it is done. */
const CEPH: Provider = {
  ...AWS, name: 'ceph', capabilities: { ...S3, copyIfAbsent: false, copyIfVersion: false, copyPartIfVersion: false, atomicDelete: false }, copyKeepsEtag: true,
};

const GCS: Provider = {
  name: 'gcs', kind: 'gcs', limits: { ...LIMITS, metadataBytes: 8192 }, versions: 'generation', copyKeepsEtag: false, guarded: true,
  capabilities: { ...S3, copyPart: 'whole', rename: true, listingHasMetadata: true, metadataInPlace: true, fetch: false },
};

/** One that honours no condition, which needs --on-conflict=overwrite. */
const PLAIN: Provider = {
  ...AWS, name: 'plain', guarded: false,
  capabilities: {
    ...S3, putIfAbsent: false, putIfVersion: false, completeIfAbsent: false, completeIfVersion: false, copyIfAbsent: false, copyIfVersion: false, deleteIfVersion: false,
    copyPartIfVersion: false, atomicDelete: false,
  },
};

export const PROVIDERS = { aws: AWS, ceph: CEPH, gcs: GCS, plain: PLAIN } as const;

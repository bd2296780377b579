/** What a new object of S3 is sent with, of what is attached to the object that it replaces or is a copy of. */
import { GetObjectLockConfigurationCommand, GetObjectTaggingCommand, type Tag } from '@aws-sdk/client-s3';
import { HEADERS, hasUnknownTags, inherited, LOCK_MODE, STORAGE_CLASS, TAG_COUNT, TAGS } from '../attachments.js';
import { ifThere } from '../asking.js';
import { StorageError } from '../errors.js';
import type { CallOptions, ObjectHeaders } from '../store.js';
import type { S3Connection } from './s3-connection.js';
import type { S3Options } from './s3-options.js';
import { commonOf, obeying, type Common } from './s3-sdk.js';

const ENCRYPTED = /^x-amz-server-side-encryption/;
const LOCK_UNTIL = 'x-amz-object-lock-retain-until-date';
const LEGAL_HOLD = 'x-amz-object-lock-legal-hold';

/** https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html; services of others allow a few more. */
const TAGS_MAX = 50;
const TAG_NAME_MAX = 128;
const TAG_VALUE_MAX = 256;
/** Headers of a request have 8 KiB in all, of which user metadata takes 2. */
const TAGGING_MAX_BYTES = 5 << 10;
/** What a bucket says of locks is believed for so long. */
const LOCK_DEFAULT_MS = 60_000;
const DAY_MS = 86_400_000;
/** A hundred years. */
const LOCK_DAYS_MAX = 36_600;

/** What new objects of a bucket get that say nothing of locks themselves. */
interface LockDefault {
  readonly mode: string;
  readonly days: number;
}

/** Makes a call of the store, with what is done in every one of them. */
export type Caller = <T>(what: string, subject: string, options: CallOptions, attempt: (signal: AbortSignal | undefined) => Promise<T>) => Promise<T>;

export class S3Attachments {
  readonly #common: Common;
  #lockDefault: { readonly asked: Promise<LockDefault | null>; readonly until_ms: number } | null = null;

  constructor(
    readonly options: S3Options,
    readonly connection: S3Connection,
    readonly call: Caller,
  ) {
    this.#common = commonOf(options);
  }

  /** `headers` with the tags of that object, where they only say how many it has. @throws StorageError `denied` where they may not be read */
  async withTags(key: string, headers: ObjectHeaders, options: CallOptions): Promise<ObjectHeaders> {
    return hasUnknownTags(headers) ? { ...headers, [TAGS]: await this.#tags(key, options) } : headers;
  }

  /**
   * What a new object is sent with. `from`: where the tags are that `headers` only count; null: nowhere.
   * @throws StorageError, also where what is attached cannot be read: it is not lost silently
   */
  async sendable(from: string | null, given: ObjectHeaders, options: CallOptions): Promise<ObjectHeaders> {
    const headers = inherited(from === null ? given : await this.withTags(from, given, options));
    const sent = Object.entries(headers).filter(([name, value]) => {
      if (!HEADERS.includes(name)) return false;
      if (name === STORAGE_CLASS) return this.options.storageClass === undefined;
      if (ENCRYPTED.test(name)) return this.options.serverSideEncryption === undefined && this.options.kmsKeyId === undefined;
      return name !== LOCK_MODE && name !== LOCK_UNTIL && (name !== LEGAL_HOLD || value === 'ON');
    });
    return { ...Object.fromEntries(sent), ...(await this.#lock(headers, options)) };
  }

  /** A lock that holds for the old object holds for the new one, no shorter and no weaker than those that the bucket gives. */
  async #lock(headers: ObjectHeaders, options: CallOptions): Promise<ObjectHeaders> {
    const [mode, until] = [headers[LOCK_MODE], headers[LOCK_UNTIL]];
    const now = Date.now();
    const until_ms = Date.parse(until ?? '');
    if (mode === undefined || until === undefined || until_ms <= now) return {};
    if (Number.isNaN(until_ms)) throw new StorageError('unexpected', `lock of an object in s3://${this.options.bucket}`, { providerMessage: `${until} is no date` });
    const given = await this.#lockGiven(options);
    if (given === null) return { [LOCK_MODE]: mode, [LOCK_UNTIL]: until };
    const given_ms = now + given.days * DAY_MS;
    if (given_ms >= until_ms && (given.mode === mode || given.mode === 'COMPLIANCE')) return {};
    return { [LOCK_MODE]: given.mode === 'COMPLIANCE' ? given.mode : mode, [LOCK_UNTIL]: given_ms >= until_ms ? new Date(given_ms).toISOString() : until };
  }

  /** API_GetObjectTagging.html; of an object that is not there, none. */
  async #tags(key: string, options: CallOptions): Promise<string> {
    const asked = this.call('read the tags of', key, options, (signal) => this.connection.client.send(new GetObjectTaggingCommand({ ...this.#common, Key: key }), obeying(signal)));
    const out = await ifThere(asked).catch((error: unknown) => {
      throw explained(error, `the object has tags, which a change would lose: to read them takes s3:GetObjectTagging`);
    });
    return tagging(out?.TagSet ?? [], `read the tags of s3://${this.options.bucket}/${key}`);
  }

  /** API_GetObjectLockConfiguration.html */
  #lockGiven(options: CallOptions): Promise<LockDefault | null> {
    const now = performance.now();
    if (this.#lockDefault === null || this.#lockDefault.until_ms <= now) {
      const asked = this.#askForLock(options).catch((error: unknown) => {
        this.#lockDefault = null;
        throw error;
      });
      this.#lockDefault = { asked, until_ms: now + LOCK_DEFAULT_MS };
    }
    return this.#lockDefault.asked;
  }

  async #askForLock({ signal: _callers, ...options }: CallOptions): Promise<LockDefault | null> {
    const asked = this.call('read the object lock configuration of', '', options, (signal) =>
      this.connection.client.send(new GetObjectLockConfigurationCommand(this.#common), obeying(signal)));
    const out = await ifThere(asked).catch((error: unknown) => {
      throw explained(error, 'the object is locked, and what replaces it must be no less: to know takes s3:GetBucketObjectLockConfiguration');
    });
    const { Mode, Days, Years } = out?.ObjectLockConfiguration?.Rule?.DefaultRetention ?? {};
    if (Mode === undefined) return null;
    const days = Days ?? (Years ?? 0) * 365;
    if (!['GOVERNANCE', 'COMPLIANCE'].includes(Mode) || !Number.isInteger(days) || days < 1 || days > LOCK_DAYS_MAX) {
      throw new StorageError('unexpected', `read the object lock configuration of s3://${this.options.bucket}`, { providerMessage: `a default of ${Mode} for ${days} days` });
    }
    return { mode: Mode, days };
  }
}

const explained = (error: unknown, why: string): unknown =>
  error instanceof StorageError && error.code === 'denied' ? new StorageError('denied', error.operation, { ...error.detail, providerMessage: why }) : error;

/** As the header has it. @throws StorageError for what cannot be tags, or cannot be sent */
function tagging(tags: readonly Tag[], operation: string): string {
  if (tags.length > TAGS_MAX) throw new StorageError('unexpected', operation, { providerMessage: `${tags.length} tags` });
  const text = tags.map(({ Key = '', Value = '' }) => {
    if (Key === '' || Key.length > TAG_NAME_MAX || Value.length > TAG_VALUE_MAX || /\p{Surrogate}/u.test(Key + Value)) throw new StorageError('unexpected', operation, { providerMessage: `a name of ${Key.length} and a value of ${Value.length} characters are no tag` });
    return `${encodeURIComponent(Key)}=${encodeURIComponent(Value)}`;
  }).join('&');
  if (text.length > TAGGING_MAX_BYTES) throw new StorageError('too-large', operation, { providerMessage: `the tags take ${text.length} bytes, and can be sent with an object up to ${TAGGING_MAX_BYTES}` });
  return text;
}

/** CopyObject with the metadata of its source: what the copy has only if it is sent again. API_CopyObject.html */
export function notCopied(headers: ObjectHeaders): ObjectHeaders {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => name.startsWith('x-amz-') && name !== TAGS && name !== TAG_COUNT));
}

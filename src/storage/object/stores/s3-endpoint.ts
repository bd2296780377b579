/** The SDK's client, and where and how it would ask for a bucket's objects. */
import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import { pipeline, Readable, Transform } from 'node:stream';
import { HeadObjectCommand, S3Client, type S3ClientConfig } from '@aws-sdk/client-s3';
import { boundedRequests } from './credential-requests.js';
import { CONNECT_MS, Connections } from './http-connections.js';
import { hasChecksums, type S3Options } from './s3-options.js';
import { regionOf } from './s3-region.js';

type AwsCredentialIdentityProvider = Exclude<S3Client['config']['credentials'], undefined>;

const SOCKETS = 256;
/** A page of 1000 entries, see s3-lean.ts, is the longest. */
const ANSWER_MAX_BYTES = 8 << 20;

export interface Agents {
  /** The SDK's. */
  readonly http: HttpAgent;
  readonly https: HttpsAgent;
  /** Those of our own requests. */
  readonly own: Connections;
}

export function agentsOf(options: S3Options): Agents {
  const agent = { keepAlive: true, maxSockets: SOCKETS };
  return { http: new HttpAgent(agent), https: new HttpsAgent({ ...agent, ...(options.ca === undefined ? {} : { ca: options.ca }) }), own: new Connections(options.ca) };
}

/** @param credentials of another client with the same options, which need not be looked for again */
export function sdkClient(options: S3Options, agents: Agents, credentials: S3ClientConfig['credentials'] = options.credentials): S3Client {
  const checksums = hasChecksums(options) ? 'WHEN_SUPPORTED' : 'WHEN_REQUIRED';
  const config: S3ClientConfig = {
    // Attempts are counted by the layer above, which knows what may be tried again
    maxAttempts: 1,
    requestHandler: { httpAgent: agents.http, httpsAgent: agents.https, connectionTimeout: CONNECT_MS },
    requestChecksumCalculation: checksums,
    responseChecksumValidation: checksums,
    followRegionRedirects: true,
    ...(options.endpoint === undefined ? {} : { endpoint: options.endpoint }),
    region: regionOf(options),
    ...(options.pathStyle === true ? { forcePathStyle: true } : {}),
    ...(options.profile === undefined ? {} : { profile: options.profile }),
    ...(options.unsigned === true ? { signer: { sign: async (request) => request } } : {}),
  };
  const known = options.unsigned === true ? { accessKeyId: '', secretAccessKey: '' } : credentials;
  const client = new S3Client({ ...config, credentials: known ?? chainOf(config, options.credentialsWithin_ms) });
  boundAnswers(client);
  return client;
}

/** The SDK's chain of providers, as a client with this configuration has it; what they ask for is bounded. */
function chainOf(config: S3ClientConfig, within_ms: number | undefined): AwsCredentialIdentityProvider {
  // The SDK reads the files of profiles once in a process, unless its chain of providers is told this (SourceProfileInit)
  const { credentials } = new S3Client({ ...config, ignoreCache: true } as S3ClientConfig).config;
  return (...args) => boundedRequests(() => credentials(...args), within_ms);
}

/** The SDK keeps whole answers in memory, however long they are; content of objects it passes on as it comes. */
function boundAnswers(client: S3Client): void {
  client.middlewareStack.add(
    (next, context) => async (args) => {
      const result = await next(args);
      const response = result.response as { body?: unknown };
      const { commandName } = context as { commandName?: string };
      if (commandName !== 'GetObjectCommand' && response.body instanceof Readable) response.body = bounded(response.body, ANSWER_MAX_BYTES);
      return result;
    },
    { step: 'deserialize', priority: 'low', name: 'boundAnswers' },
  );
}

function bounded(body: Readable, max: number): Readable {
  let bytes = 0;
  const counted = new Transform({
    transform: (chunk: Buffer, _encoding, done) => {
      bytes += chunk.length;
      if (bytes > max) done(new Error(`the answer has more than ${max} bytes`));
      else done(null, chunk);
    },
  });
  // An error of either end is the reader's
  pipeline(body, counted, () => undefined);
  return counted;
}

export interface Endpoint {
  /** Says protocol, host and port. */
  readonly url: URL;
  /** The bucket's path, without a slash at its end. */
  readonly base: string;
  readonly region: string;
}

interface AuthScheme {
  readonly name?: string;
  readonly signingName?: string;
  readonly signingRegion?: string;
}

/**
 * What the SDK finds for this bucket, by all its rules (style, endpoints of options, environment and files, dual stack, FIPS, access
 * points), and whether credentials are there: a request is prepared up to the point where it would be signed. Rejects as the SDK does.
 *
 * @returns null when it is not simply signed with Signature Version 4 for S3: directory buckets have sessions, and access points of several
 *   regions another signature. https://docs.aws.amazon.com/AmazonS3/latest/API/s3-express-authenticating-authorizing.html
 */
export async function endpointOf(client: S3Client, bucket: string): Promise<Endpoint | null> {
  let found: Endpoint | null = null;
  const command = new HeadObjectCommand({ Bucket: bucket, Key: 'key' });
  command.middlewareStack.add(
    (_next, context) => async () => {
      const { url, properties = {}, headers = {} } = context.endpointV2!;
      const schemes = (properties['authSchemes'] ?? []) as readonly AuthScheme[];
      const [{ name = 'sigv4', signingName = 's3', signingRegion = await client.config.region() }] = schemes.length === 0 ? [{}] : schemes;
      if (schemes.length <= 1 && name === 'sigv4' && signingName === 's3' && url.search === '' && Object.keys(headers).length === 0) {
        found = { url, base: url.pathname.replace(/\/$/, ''), region: signingRegion };
      }
      return { response: {}, output: { $metadata: {} } };
    },
    { step: 'build', priority: 'high', name: 'endpointOnly' },
  );
  await client.send(command);
  return found;
}

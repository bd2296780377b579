/** Where the bucket is, and who does its calls: requests of our own where the SDK would sign as they do, the SDK otherwise. */
import type { S3Client } from '@aws-sdk/client-s3';
import { regionIn } from './answer-reader.js';
import type { S3Calls } from './s3-calls.js';
import { agentsOf, endpointOf, sdkClient, type Agents } from './s3-endpoint.js';
import { S3Refusal } from './s3-errors.js';
import { LeanCalls } from './s3-lean.js';
import type { S3Options } from './s3-options.js';
import { SdkCalls } from './s3-sdk.js';

/** So many regions are tried: more than a bucket can move through. */
const REGIONS_MAX = 16;

interface Way {
  readonly client: S3Client;
  readonly calls: S3Calls;
  /** '' when the SDK does the calls, which finds the region itself. */
  readonly region: string;
}

export class S3Connection {
  readonly #options: S3Options;
  readonly #agents: Agents;
  readonly #clients: S3Client[];
  #client: S3Client;
  #way: Promise<Way> | null = null;
  /** A region that the provider has named, and nothing has come from yet. */
  #elsewhere: { readonly region: string; readonly way: Promise<Way> } | null = null;

  constructor(options: S3Options) {
    this.#options = options;
    this.#agents = agentsOf(options);
    this.#client = sdkClient(options, this.#agents);
    this.#clients = [this.#client];
  }

  /** For the calls that are not in S3Calls. */
  get client(): S3Client {
    return this.#client;
  }

  /**
   * The bucket may be in another region, which the answer names then: the call is made there, and if that was right all others are too.
   * https://docs.aws.amazon.com/AmazonS3/latest/API/RESTRedirect.html
   */
  async run<T>(call: (calls: S3Calls) => Promise<T>): Promise<T> {
    const here = await this.#here();
    try {
      return await call(here.calls);
    } catch (error) {
      const region = regionNamed(error);
      if (region === undefined || region === here.region || this.#clients.length > REGIONS_MAX) throw error;
      const there = await this.#there(region);
      const result = await call(there.calls);
      this.#client = there.client;
      this.#way = Promise.resolve(there);
      return result;
    }
  }

  close(): void {
    for (const client of this.#clients) client.destroy();
    this.#agents.own.close();
  }

  /** Credentials or a region that are missing may be there the next time. */
  #here(): Promise<Way> {
    return (this.#way ??= wayOf(this.#client, this.#options, this.#agents).catch((error: unknown) => {
      this.#way = null;
      throw error;
    }));
  }

  #there(region: string): Promise<Way> {
    if (this.#elsewhere?.region !== region) {
      const options = { ...this.#options, region };
      const client = sdkClient(options, this.#agents, this.#client.config.credentials);
      this.#clients.push(client);
      const way = wayOf(client, options, this.#agents).catch((error: unknown) => {
        this.#elsewhere = null;
        throw error;
      });
      this.#elsewhere = { region, way };
    }
    return this.#elsewhere.way;
  }
}

async function wayOf(client: S3Client, options: S3Options, agents: Agents): Promise<Way> {
  const endpoint = await endpointOf(client, options.bucket);
  const sdk = new SdkCalls(client, options);
  if (endpoint === null) return { client, calls: sdk, region: '' };
  return { client, calls: new LeanCalls(endpoint, options, agents, client, sdk), region: endpoint.region };
}

function regionNamed(error: unknown): string | undefined {
  if (!(error instanceof S3Refusal) || ![301, 307, 400].includes(error.$response.statusCode)) return undefined;
  return regionIn(error.$response.headers['x-amz-bucket-region']);
}

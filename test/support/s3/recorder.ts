/** An S3 server that answers everything as if it were there, and remembers what was asked. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Seen {
  readonly request: string;
  readonly headers: Record<string, unknown>;
  readonly body: Buffer;
}

export class Recorder {
  readonly seen: Seen[] = [];
  answer: ((request: IncomingMessage, response: ServerResponse) => void) | null = null;
  readonly server: Server = createServer((request, response) => void this.#serve(request, response));

  /** @returns the endpoint */
  async start(): Promise<string> {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.server.close();
    this.server.closeAllConnections();
    await once(this.server, 'close');
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (this.answer !== null) return this.answer(request, response);
    // By which requests of our own tell how old an object is, and the SDK does not
    response.sendDate = false;
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const target = String(request.url).replace(/([?&])x-id=\w+/, '$1').replace(/[?&]$/, '');
    this.seen.push({ request: `${request.method} ${target}`, headers: { ...request.headers }, body: Buffer.concat(chunks) });
    const told = { etag: '"tag-1"', 'last-modified': 'Thu, 01 Jan 2026 00:00:05 GMT', 'content-type': 'text/x-a', 'x-amz-meta-mode': '33188', 'x-amz-meta-t': '=?UTF-8?B?w7w=?=' };
    if (target.includes('list-type=2')) return void response.end(LISTING.replaceAll('>d/', `>${encodeURIComponent(new URLSearchParams(target.split('?')[1]).get('prefix') ?? '')}`));
    if (request.headers['x-amz-copy-source'] !== undefined) return void response.end('<CopyObjectResult><ETag>&quot;tag-2&quot;</ETag></CopyObjectResult>');
    if (request.method === 'GET') return void response.writeHead(206, { ...told, 'content-range': 'bytes 5-14/15', 'content-length': '10' }).end('0123456789');
    if (request.method === 'DELETE') return void response.writeHead(204).end();
    response.writeHead(200, { ...told, ...(request.method === 'HEAD' ? { 'content-length': '12345' } : {}) }).end();
  }
}

const LISTING = `<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>
<Contents><Key>d/a+b%26c%C3%BC</Key><LastModified>2026-01-01T00:00:05.678Z</LastModified><ETag>&quot;abc&quot;</ETag><Size>5368709120</Size>
<Owner><ID>x</ID></Owner><StorageClass>STANDARD</StorageClass></Contents><Contents><Key>d/%E6%97%A5</Key><LastModified>2026-01-01T00:00:05Z</LastModified>
<ETag>"def-3"</ETag><Size>0</Size></Contents><CommonPrefixes><Prefix>d/e%2Ff/</Prefix></CommonPrefixes><NextContinuationToken>1/+=&amp;</NextContinuationToken></ListBucketResult>`;

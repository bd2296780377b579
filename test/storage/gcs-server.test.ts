/**
 * The test server against Google's reference: plain HTTP, none of our store, so that both cannot be wrong in the same
 * way. Each group names the page that says so.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { GcsServer } from '../support/gcs/server.js';

interface Resource {
  [field: string]: unknown;
  generation: string;
  metageneration: string;
}

interface Refusal {
  error: { code: number; message: string; errors: { reason: string; domain: string; location?: string }[] };
}

let server: GcsServer;
let sequence = 0;
const fresh = (): string => `t${++sequence}/`;
before(async () => {
  server = await GcsServer.start();
  server.createBucket('b');
});
after(() => server.close());

const path = (name: string): string => `/storage/v1/b/b/o/${encodeURIComponent(name)}`;

interface Answer {
  status: number;
  headers: Headers;
  json: Resource & Refusal;
  text: string;
}

async function api(method: string, target: string, body?: unknown, headers: Record<string, string> = {}): Promise<Answer> {
  const sent = body === undefined ? {} : { body: typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body) };
  const response = await fetch(target.startsWith('http') ? target : server.url + target, { method, headers, ...sent });
  const text = await response.text();
  let json = {} as Resource & Refusal;
  if (text !== '' && (response.headers.get('content-type') ?? '').includes('json')) json = JSON.parse(text) as Resource & Refusal;
  return { status: response.status, headers: response.headers, json, text };
}

async function upload(name: string, content: string | Uint8Array, query = '', headers: Record<string, string> = {}): Promise<Resource> {
  const answer = await api('POST', `/upload/storage/v1/b/b/o?uploadType=media&name=${encodeURIComponent(name)}${query}`, content, headers);
  assert.equal(answer.status, 200, answer.text);
  return answer.json;
}

const reasonOf = (answer: { status: number; json: Refusal }): [number, string] => [answer.status, answer.json.error.errors[0].reason];

// https://cloud.google.com/storage/docs/json_api/v1/buckets/get and /objects#resource
describe('resources', () => {
  test('a bucket that is there is described, another is 404 notFound', async () => {
    assert.equal((await api('GET', '/storage/v1/b/b')).json.kind, 'storage#bucket');
    assert.deepEqual(reasonOf(await api('GET', '/storage/v1/b/other')), [404, 'notFound']);
    assert.deepEqual(reasonOf(await api('GET', '/storage/v1/b/other/o')), [404, 'notFound']);
  });

  test('an object has generation, metageneration and size as decimal strings, and its checksums in base64', async () => {
    const made = await upload(`${fresh()}a`, '123456789', '', { 'content-type': 'text/plain' });
    assert.match(made.generation, /^\d{16}$/);
    // The check values of CRC-32C (RFC 3720 B.4: 0xe3069283) and MD5 for "123456789".
    assert.deepEqual([made.metageneration, made.size, made.crc32c, made.md5Hash, made.contentType], ['1', '9', '4waSgw==', 'JfnnlDI7RTiF9RgfG2JNCw==', 'text/plain']);
    const seen = await api('GET', path(String(made.name)));
    assert.deepEqual(seen.json, made);
  });

  test('generations grow; each write begins with metageneration 1', async () => {
    const name = `${fresh()}a`;
    const generations: number[] = [];
    for (let i = 0; i < 20; i++) generations.push(Number((await upload(name, String(i))).generation));
    assert.deepEqual(generations, [...new Set(generations)].sort((a, b) => a - b));
  });

  test('fields selects parts of an answer', async () => {
    const name = `${fresh()}a`;
    await upload(name, 'x');
    assert.deepEqual((await api('GET', `${path(name)}?fields=name,size`)).json, { name, size: '1' } as unknown as Resource & Refusal);
  });

  // https://cloud.google.com/storage/docs/objects#naming
  test('names have at most 1,024 bytes of UTF-8, no line breaks, and are not dots', async () => {
    const insert = (name: string): Promise<{ status: number }> => api('POST', `/upload/storage/v1/b/b/o?uploadType=media&name=${encodeURIComponent(name)}`, 'x');
    const tail = fresh();
    assert.equal((await insert(`${'é'.repeat((1024 - tail.length) >> 1)}${tail}`)).status, 200);
    for (const bad of ['é'.repeat(513), 'a\nb', 'a\rb', '.', '..', '']) assert.equal((await insert(bad)).status, 400, JSON.stringify(bad));
  });
});

// https://cloud.google.com/storage/docs/json_api/v1/objects/insert and /uploads-downloads
describe('uploads', () => {
  const multipart = (resource: unknown, content: string): [string, Record<string, string>] => [
    `--xyz\r\nContent-Type: application/json\r\n\r\n${JSON.stringify(resource)}\r\n--xyz\r\nContent-Type: text/plain\r\n\r\n${content}\r\n--xyz--\r\n`,
    { 'content-type': 'multipart/related; boundary="xyz"' },
  ];

  test('multipart: the resource and the content, checked by its CRC-32C and MD5', async () => {
    const name = `${fresh()}a`;
    const post = (resource: unknown): Promise<Answer> => api('POST', '/upload/storage/v1/b/b/o?uploadType=multipart', ...multipart(resource, '123456789'));
    const made = await post({ name, crc32c: '4waSgw==', md5Hash: 'JfnnlDI7RTiF9RgfG2JNCw==', metadata: { k: 'v' } });
    assert.deepEqual([made.status, made.json.size, made.json.contentType, made.json.metadata], [200, '9', 'text/plain', { k: 'v' }]);
    assert.deepEqual(reasonOf(await post({ name: `${name}2`, crc32c: 'AAAAAA==' })), [400, 'invalid']);
    assert.equal((await api('GET', path(`${name}2`))).status, 404);
  });

  // https://cloud.google.com/storage/quotas#objects
  test('metadata has at most 8 KiB', async () => {
    const post = (bytes: number): Promise<Answer> =>
      api('POST', '/upload/storage/v1/b/b/o?uploadType=multipart', ...multipart({ name: `${fresh()}m`, metadata: { k: 'v'.repeat(bytes - 1) } }, 'x'));
    assert.equal((await post(8192)).status, 200);
    assert.equal((await post(8193)).status, 400);
  });

  // https://cloud.google.com/storage/docs/performing-resumable-uploads
  test('resumable: pieces of 256 KiB, 308 with the range that is kept, a question how far it has come, and then the object', async () => {
    const name = `${fresh()}r`;
    const quantum = 256 * 1024;
    const content = Buffer.alloc(2 * quantum + 100, 'abc');
    const start = await api('POST', `/upload/storage/v1/b/b/o?uploadType=resumable&name=${name}`, { metadata: { k: 'v' } }, { 'x-upload-content-type': 'text/plain' });
    const session = start.headers.get('location')!;
    const put = (range: string, body?: Uint8Array): Promise<Answer> => api('PUT', session, body, { 'content-range': range });
    const nothing = await put(`bytes */${content.length}`);
    assert.deepEqual([nothing.status, nothing.headers.get('range')], [308, null]);
    const first = await put(`bytes 0-${quantum - 1}/${content.length}`, content.subarray(0, quantum));
    assert.deepEqual([first.status, first.headers.get('range')], [308, `bytes=0-${quantum - 1}`]);
    assert.equal((await put(`bytes ${quantum}-${quantum + 9}/${content.length}`, content.subarray(quantum, quantum + 10))).status, 400);
    assert.equal((await put(`bytes ${2 * quantum}-${content.length - 1}/${content.length}`, content.subarray(2 * quantum))).status, 400);
    assert.equal((await put(`bytes */${content.length}`)).headers.get('range'), `bytes=0-${quantum - 1}`);
    assert.equal((await api('GET', path(name))).status, 404);
    const last = await put(`bytes ${quantum}-${content.length - 1}/${content.length}`, content.subarray(quantum));
    assert.deepEqual([last.status, last.json.size, last.json.contentType, last.json.metadata], [200, String(content.length), 'text/plain', { k: 'v' }]);
    assert.equal((await put(`bytes */${content.length}`)).json.generation, last.json.generation);
  });

  test('a resumable upload that is cancelled answers 499 and is no more', async () => {
    const start = await api('POST', `/upload/storage/v1/b/b/o?uploadType=resumable&name=${fresh()}r`, {});
    const session = start.headers.get('location')!;
    assert.equal((await api('DELETE', session)).status, 499);
    assert.equal((await api('PUT', session, 'x', { 'content-range': 'bytes 0-0/1' })).status, 404);
  });
});

// https://cloud.google.com/storage/docs/json_api/v1/objects/get, RFC 9110 §14
describe('downloads', () => {
  test('whole, and in ranges: 206 with Content-Range, 416 beyond the end', async () => {
    const name = `${fresh()}d`;
    const made = await upload(name, '0123456789');
    const get = (range?: string): Promise<Answer> => api('GET', `${path(name)}?alt=media`, undefined, range === undefined ? {} : { range });
    const whole = await get();
    assert.deepEqual([whole.status, whole.text, whole.headers.get('x-goog-generation')], [200, '0123456789', made.generation]);
    assert.equal(whole.headers.get('x-goog-hash'), `crc32c=${String(made.crc32c)},md5=${String(made.md5Hash)}`);
    for (const [range, content, said] of [
      ['bytes=2-4', '234', 'bytes 2-4/10'], ['bytes=8-', '89', 'bytes 8-9/10'], ['bytes=-3', '789', 'bytes 7-9/10'], ['bytes=5-100', '56789', 'bytes 5-9/10'],
    ]) {
      const part = await get(range);
      assert.deepEqual([part.status, part.text, part.headers.get('content-range')], [206, content, said]);
    }
    const beyond = await get('bytes=10-');
    assert.deepEqual([beyond.status, beyond.headers.get('content-range')], [416, 'bytes */10']);
  });

  // https://cloud.google.com/storage/docs/transcoding
  test('what is stored as gzip comes unpacked and whole, unless the caller takes gzip', async () => {
    const name = `${fresh()}z`;
    await upload(name, gzipSync('plain text'));
    await api('PATCH', path(name), { contentEncoding: 'gzip' });
    const unpacked = await fetch(`${server.url}${path(name)}?alt=media`, { headers: { range: 'bytes=0-3', 'accept-encoding': 'identity' } });
    assert.deepEqual([unpacked.status, await unpacked.text()], [200, 'plain text']);
    const packed = await fetch(`${server.url}${path(name)}?alt=media`, { headers: { range: 'bytes=0-3', 'accept-encoding': 'gzip' } });
    assert.equal(packed.status, 206);
    await packed.body?.cancel();
  });
});

// https://cloud.google.com/storage/docs/request-preconditions
describe('preconditions', () => {
  test('writes: generation 0 is for no object; another generation is 412 conditionNotMet, object or not', async () => {
    const name = `${fresh()}p`;
    const write = (condition: string): Promise<Answer> => api('POST', `/upload/storage/v1/b/b/o?uploadType=media&name=${name}&${condition}`, 'x');
    assert.deepEqual(reasonOf(await write('ifGenerationMatch=1')), [412, 'conditionNotMet']);
    const made = await write('ifGenerationMatch=0');
    assert.deepEqual(reasonOf(await write('ifGenerationMatch=0')), [412, 'conditionNotMet']);
    assert.equal((await write(`ifGenerationMatch=${made.json.generation}&ifMetagenerationMatch=2`)).status, 412);
    assert.equal((await write(`ifGenerationMatch=${made.json.generation}&ifMetagenerationMatch=1`)).status, 200);
    assert.equal((await write(`ifGenerationMatch=${made.json.generation}`)).status, 412);
    assert.equal((await write('ifGenerationMatch=soon')).status, 400);
  });

  test('reads: 412 for another generation, 304 for the same by NotMatch, 404 for a generation that is gone or no object', async () => {
    const name = `${fresh()}p`;
    const { generation } = await upload(name, 'x');
    const get = async (query: string): Promise<number> => (await api('GET', `${path(name)}?${query}`)).status;
    assert.equal(await get(`ifGenerationMatch=${generation}`), 200);
    assert.equal(await get(`ifGenerationMatch=${generation}1`), 412);
    assert.equal(await get(`alt=media&ifGenerationMatch=${generation}1`), 412);
    assert.equal(await get(`ifGenerationNotMatch=${generation}`), 304);
    assert.equal(await get(`generation=${generation}`), 200);
    assert.equal(await get(`generation=${generation}1`), 404);
    assert.deepEqual(reasonOf(await api('GET', `${path(`${name}none`)}?ifGenerationMatch=1`)), [404, 'notFound']);
  });

  test('deletes: only the generation that was named; 404 when there is none', async () => {
    const name = `${fresh()}p`;
    const { generation } = await upload(name, 'x');
    assert.equal((await api('DELETE', `${path(name)}?ifGenerationMatch=1`)).status, 412);
    assert.equal((await api('DELETE', `${path(name)}?ifGenerationMatch=${generation}`)).status, 204);
    assert.equal((await api('DELETE', `${path(name)}?ifGenerationMatch=${generation}`)).status, 404);
  });
});

// https://cloud.google.com/storage/docs/json_api/v1/objects/patch
describe('patch', () => {
  test('it merges, null removes, and only the metageneration grows', async () => {
    const name = `${fresh()}p`;
    const made = await upload(name, 'content', '', { 'content-type': 'text/plain' });
    const patch = (change: unknown, query = ''): Promise<Answer> => api('PATCH', `${path(name)}${query}`, change);
    await patch({ metadata: { a: '1', b: '2' } });
    const second = await patch({ metadata: { a: null, c: '3' }, cacheControl: 'no-store' }, '?ifMetagenerationMatch=2');
    assert.deepEqual([second.json.metadata, second.json.cacheControl, second.json.contentType], [{ b: '2', c: '3' }, 'no-store', 'text/plain']);
    assert.deepEqual([second.json.generation, second.json.metageneration, second.json.crc32c], [made.generation, '3', made.crc32c]);
    assert.notEqual(second.json.etag, made.etag);
    assert.equal((await patch({ metadata: {} }, '?ifMetagenerationMatch=2')).status, 412);
    assert.equal((await patch({ metadata: {} }, `?ifGenerationMatch=${made.generation}1`)).status, 412);
    assert.equal((await patch({ metadata: null })).json.metadata, undefined);
  });
});

// https://cloud.google.com/storage/docs/json_api/v1/objects/list
describe('listings', () => {
  const names = ['a', 'b/', 'b/1', 'b/2/x', 'c', 'd/x', 'é', '日'];
  const list = async (prefix: string, query: string): Promise<{ items: string[]; prefixes: string[]; next: string | undefined }> => {
    const { json } = await api('GET', `/storage/v1/b/b/o?prefix=${prefix}${query}`);
    const items = ((json.items ?? []) as { name: string }[]).map(({ name }) => name.slice(prefix.length));
    return { items, prefixes: ((json.prefixes ?? []) as string[]).map((name) => name.slice(prefix.length)), next: json.nextPageToken as string | undefined };
  };

  test('by UTF-8 bytes; a delimiter collapses; items and prefixes together fill a page', async () => {
    const prefix = fresh();
    for (const name of [...names].reverse()) await upload(prefix + name, 'x');
    assert.deepEqual((await list(prefix, '')).items, names);
    assert.deepEqual(await list(prefix, '&delimiter=/'), { items: ['a', 'c', 'é', '日'], prefixes: ['b/', 'd/'], next: undefined });
    assert.deepEqual(await list(prefix, '&delimiter=/&includeTrailingDelimiter=true'), { items: ['a', 'b/', 'c', 'é', '日'], prefixes: ['b/', 'd/'], next: undefined });
    assert.deepEqual((await list(`${prefix}b/`, '&delimiter=/')), { items: ['', '1'], prefixes: ['2/'], next: undefined });
    const page = await list(prefix, '&delimiter=/&maxResults=2');
    assert.deepEqual([page.items, page.prefixes], [['a'], ['b/']]);
    const rest = await list(prefix, `&delimiter=/&pageToken=${encodeURIComponent(page.next!)}`);
    assert.deepEqual([rest.items, rest.prefixes, rest.next], [['c', 'é', '日'], ['d/'], undefined]);
    assert.deepEqual((await list(prefix, `&startOffset=${prefix}b/1&endOffset=${prefix}d/`)).items, ['b/1', 'b/2/x', 'c']);
  });

  test('order is that of UTF-8 bytes, not of UTF-16 units; deleted and written again is listed once', async () => {
    const prefix = fresh();
    const sorted = ['~', 'é', '\ufffd', '\u{1f388}', '\u{1f388}a'];
    for (const name of [sorted[3], sorted[0], sorted[4], sorted[2], sorted[1]]) await upload(prefix + name, 'x');
    assert.deepEqual((await list(prefix, '')).items, sorted);
    await api('DELETE', path(prefix + sorted[1]));
    assert.deepEqual((await list(prefix, '')).items, [sorted[0], ...sorted.slice(2)]);
    await api('DELETE', path(prefix + sorted[0]));
    for (const name of sorted.slice(0, 2)) await upload(prefix + name, 'y');
    assert.deepEqual((await list(prefix, '')).items, sorted);
  });

  test('metadata comes with the items, and fields cuts it down', async () => {
    const prefix = fresh();
    await upload(`${prefix}a`, 'x');
    await api('PATCH', path(`${prefix}a`), { metadata: { k: 'v' } });
    assert.deepEqual((await api('GET', `/storage/v1/b/b/o?prefix=${prefix}&fields=items(metadata)`)).json.items, [{ metadata: { k: 'v' } }]);
  });
});

// https://cloud.google.com/storage/docs/json_api/v1/objects/compose and /composite-objects
describe('compose', () => {
  const compose = (target: string, sources: unknown[], query = '', destination: unknown = {}): Promise<Answer> =>
    api('POST', `${path(target)}/compose${query}`, { sourceObjects: sources, destination });

  test('it joins up to 32 objects; the result has no MD5, and counts its components', async () => {
    const prefix = fresh();
    const a = await upload(`${prefix}a`, '1234');
    await upload(`${prefix}b`, '56789');
    const sources = [{ name: a.name, objectPreconditions: { ifGenerationMatch: a.generation } }, { name: `${prefix}b` }];
    const made = await compose(`${prefix}c`, sources, '', { metadata: { k: 'v' } });
    assert.deepEqual([made.json.crc32c, made.json.md5Hash, made.json.componentCount, made.json.metadata], ['4waSgw==', undefined, 2, { k: 'v' }]);
    const again = await compose(`${prefix}c`, [{ name: `${prefix}c` }, { name: `${prefix}a` }], `?ifGenerationMatch=${made.json.generation}`);
    assert.deepEqual([again.json.componentCount, again.json.size], [3, '13']);
    assert.equal((await compose(`${prefix}d`, Array.from({ length: 32 }, () => ({ name: `${prefix}a` })))).status, 200);
    assert.equal((await compose(`${prefix}d`, Array.from({ length: 33 }, () => ({ name: `${prefix}a` })))).status, 400);
    assert.equal((await compose(`${prefix}d`, [])).status, 400);
  });

  test('generations of the sources and of the target are conditions; a missing source is 404', async () => {
    const prefix = fresh();
    const a = await upload(`${prefix}a`, '1');
    assert.equal((await compose(`${prefix}c`, [{ name: a.name, objectPreconditions: { ifGenerationMatch: '1' } }])).status, 412);
    assert.equal((await compose(`${prefix}c`, [{ name: a.name }], '?ifGenerationMatch=1')).status, 412);
    assert.equal((await compose(`${prefix}c`, [{ name: a.name }], '?ifGenerationMatch=0')).status, 200);
    assert.equal((await compose(`${prefix}c`, [{ name: `${prefix}none` }])).status, 404);
  });

  test('sources have one storage class', async () => {
    const prefix = fresh();
    const a = await upload(`${prefix}a`, '1');
    await upload(`${prefix}b`, '2');
    await api('POST', `${path(`${prefix}b`)}/rewriteTo/b/b/o/${encodeURIComponent(`${prefix}b`)}`, { storageClass: 'NEARLINE' });
    assert.equal((await compose(`${prefix}c`, [{ name: a.name }, { name: `${prefix}b` }])).status, 400);
  });
});

// https://cloud.google.com/storage/docs/json_api/v1/objects/rewrite and /copy
describe('rewrite and copy', () => {
  test('without a resource all is kept, with one all is replaced; conditions hold on both sides', async () => {
    const prefix = fresh();
    const a = await upload(`${prefix}a`, '1', '', { 'content-type': 'text/x-a' });
    await api('PATCH', path(`${prefix}a`), { metadata: { k: 'v' }, cacheControl: 'no-store' });
    for (const verb of ['rewriteTo', 'copyTo']) {
      const to = (query: string, body?: unknown): Promise<Answer> =>
        api('POST', `${path(`${prefix}a`)}/${verb}/b/b/o/${encodeURIComponent(`${prefix}${verb}`)}${query}`, body);
      const made = ((answer: Resource): Resource => (verb === 'rewriteTo' ? (answer.resource as Resource) : answer))((await to('?ifGenerationMatch=0')).json);
      assert.deepEqual([made.metadata, made.contentType, made.cacheControl, made.metageneration], [{ k: 'v' }, 'text/x-a', 'no-store', '1']);
      assert.equal((await to('?ifGenerationMatch=0')).status, 412);
      assert.equal((await to(`?ifSourceGenerationMatch=${a.generation}1`)).status, 412);
      assert.equal((await to('?ifSourceMetagenerationMatch=1')).status, 412);
      assert.equal((await to(`?sourceGeneration=${a.generation}1`)).status, 404);
      assert.equal((await to('', { metadata: { two: '2' } })).status, 200);
      const replaced = (await api('GET', path(`${prefix}${verb}`))).json;
      assert.deepEqual([replaced.metadata, replaced.cacheControl], [{ two: '2' }, undefined]);
    }
  });

  test('a long rewrite goes on with its token, and makes the object at its end', async () => {
    const prefix = fresh();
    await upload(`${prefix}a`, Buffer.alloc(3 << 20));
    const target = `${path(`${prefix}a`)}/rewriteTo/b/b/o/${encodeURIComponent(`${prefix}b`)}?maxBytesRewrittenPerCall=${1 << 20}`;
    const first = await api('POST', target);
    assert.deepEqual([first.json.done, first.json.totalBytesRewritten, first.json.objectSize], [false, String(1 << 20), String(3 << 20)]);
    assert.equal((await api('GET', path(`${prefix}b`))).status, 404);
    const second = await api('POST', `${target}&rewriteToken=${String(first.json.rewriteToken)}`);
    const third = await api('POST', `${target}&rewriteToken=${String(second.json.rewriteToken)}`);
    assert.deepEqual([second.json.done, third.json.done], [false, true]);
    assert.equal((await api('GET', path(`${prefix}b`))).json.size, String(3 << 20));
    assert.equal((await api('POST', `${target}&rewriteToken=nothing`)).status, 400);
  });
});

// https://cloud.google.com/storage/docs/json_api/v1/status-codes
describe('refusals', () => {
  test('401 without and with a wrong token, 403 without the permission, 429 and 503 when told so', async (t) => {
    const own = await GcsServer.start({ authenticate: true });
    t.after(() => own.close());
    own.createBucket('b');
    const get = (headers: Record<string, string> = {}): Promise<Answer> => api('GET', `${own.url}/storage/v1/b/b/o`, undefined, headers);
    assert.deepEqual(reasonOf(await get()), [401, 'required']);
    const wrong = await get({ authorization: 'Bearer wrong' });
    assert.deepEqual([reasonOf(wrong), wrong.json.error.errors[0].location], [[401, 'authError'], 'Authorization']);
    const good = { authorization: `Bearer ${own.issueToken()}` };
    assert.equal((await get(good)).status, 200);
    own.denied.add('objects.list');
    assert.deepEqual(reasonOf(await get(good)), [403, 'forbidden']);
    own.faults.inject(
      { operation: 'objects.list', harm: { kind: 'status', status: 429, headers: { 'retry-after': '7' } } },
      { operation: 'objects.list', harm: { kind: 'status', status: 503 } },
    );
    const slow = await get(good);
    assert.deepEqual([reasonOf(slow), slow.json.error.errors[0].domain, slow.headers.get('retry-after')], [[429, 'rateLimitExceeded'], 'usageLimits', '7']);
    assert.deepEqual(reasonOf(await get(good)), [503, 'backendError']);
    assert.equal(own.faults.pending, 0);
  });

  // https://cloud.google.com/storage/docs/requester-pays
  test('a requester-pays bucket wants a project to be named', async () => {
    server.createBucket('paid', { requesterPays: true });
    assert.deepEqual(reasonOf(await api('GET', '/storage/v1/b/paid/o')), [400, 'required']);
    assert.equal((await api('GET', '/storage/v1/b/paid/o?userProject=p')).status, 200);
  });

  test('what is no JSON is 400 parseError', async () => {
    const name = `${fresh()}j`;
    await upload(name, 'x');
    assert.deepEqual(reasonOf(await api('PATCH', path(name), '{')), [400, 'parseError']);
  });
});

/**
 * Requests that the providers' libraries make by themselves, for credentials: of a machine's or a container's metadata service, STS, SSO, an OAuth token endpoint.
 * Such a library keeps the whole answer in memory, however long it is, and some of them wait for it without end.
 *
 * Rule: an answer about credentials comes within a time, and has no more than so many bytes, or its request fails. It is enforced here for every request of node:http
 * that is made within boundedRequests(), whichever library makes it and whatever agent it uses. Heads are bounded by node:http itself (16 KiB).
 * https://nodejs.org/api/diagnostics_channel.html#http
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { subscribe } from 'node:diagnostics_channel';
import type { ClientRequest } from 'node:http';
import type { Socket } from 'node:net';

/** Tokens and keys are some KiB. */
const ANSWER_MAX_BYTES = 1 << 20;
/** Less than a call of the store may take: whoever waits for that is told what was not answered. */
const DEADLINE_MS = 10_000;

const deadlines = new AsyncLocalStorage<number>();

subscribe('http.client.request.start', (message) => {
  const deadline_ms = deadlines.getStore();
  if (deadline_ms !== undefined) bound((message as { readonly request: ClientRequest }).request, deadline_ms);
});

/** Runs `body`, whose requests and those that follow from it are bounded. @param deadline_ms of each request; in tests */
export function boundedRequests<T>(body: () => Promise<T>, deadline_ms = DEADLINE_MS): Promise<T> {
  return deadlines.run(deadline_ms, body);
}

type Fail = (why: string, code: 'ETIMEDOUT' | 'EMSGSIZE') => void;

function bound(request: ClientRequest, deadline_ms: number): void {
  let isAnswered = false;
  const fail: Fail = (why, code) => {
    const error = Object.assign(new Error(`${why} from ${request.host}, which was asked for credentials`), { code });
    request.destroy(error);
    // With an answer that has begun, node:http tells the answer only, which some libraries do not listen to
    if (isAnswered && request.listenerCount('error') > 0) request.emit('error', error);
  };
  const timer = setTimeout(() => fail(`no whole answer came within ${deadline_ms} ms`, 'ETIMEDOUT'), deadline_ms);
  request.prependOnceListener('response', () => (isAnswered = true));
  request.once('close', () => clearTimeout(timer));
  if (request.socket !== null) count(request, request.socket, fail);
  else request.once('socket', (socket) => count(request, socket, fail));
}

/** What a socket has read passes its push(). */
function count(request: ClientRequest, socket: Socket, fail: Fail): void {
  let bytes = 0;
  const push = socket.push.bind(socket);
  socket.push = (chunk: Uint8Array | null, encoding?: BufferEncoding): boolean => {
    bytes += chunk?.length ?? 0;
    if (bytes <= ANSWER_MAX_BYTES) return push(chunk, encoding);
    fail(`more than ${ANSWER_MAX_BYTES} bytes came`, 'EMSGSIZE');
    return false;
  };
  request.once('close', () => (socket.push = push));
}

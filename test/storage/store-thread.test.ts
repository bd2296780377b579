/** What is asked of a thread arrives there once, together with what is asked at the same time, and is answered whatever becomes of the thread. */
import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { storePool } from '../../src/pool/store-client.js';
import { StoreThread } from '../../src/pool/store-thread.js';

type What = 'count' | 'wait' | 'die';

function started(t: TestContext): { thread: StoreThread; ask: (what: What, signal?: AbortSignal) => Promise<unknown> } {
  const pool = storePool(new URL('./store-thread-worker.js', import.meta.url), { config: { kind: 'memory' }, threads: 1 });
  const thread = new StoreThread(pool);
  t.after(() => thread.close().then(() => pool.destroy()));
  const ask = async (what: What, signal?: AbortSignal): Promise<unknown> => {
    const answer = await thread.ask({ method: 'head', args: [what], optionsAt: -1 }, signal);
    assert.ok(answer.ok);
    return answer.value;
  };
  return { thread, ask };
}

test('calls of one turn of the event loop are one message', async (t) => {
  const { thread, ask } = started(t);
  const asked = Array.from({ length: 50 }, () => ask('count'));
  assert.equal(thread.load, 50);
  assert.deepEqual(await Promise.all(asked), Array.from({ length: 50 }, (_, i) => ({ messages: 1, calls: i + 1 })));
  assert.equal(thread.load, 0);
  assert.deepEqual(await ask('count'), { messages: 2, calls: 51 });
});

test('a call that is given up is told so, before it has been sent and afterwards', async (t) => {
  const { ask } = started(t);
  const callers = [new AbortController(), new AbortController()];
  const waiting = callers.map(({ signal }) => ask('wait', signal));
  callers[0].abort();
  assert.equal(await waiting[0], 'given up');
  assert.deepEqual(await ask('count'), { messages: 2, calls: 3 });
  callers[1].abort();
  assert.equal(await waiting[1], 'given up');
});

test('when the thread dies all that it was asked fails, and is not done by the next one', async (t) => {
  const { thread, ask } = started(t);
  const waiting = ask('wait');
  const dying = ask('die');
  // Of the port or of piscina, whoever is faster
  const ended = /thread has ended|worker exited with code: 3/;
  await assert.rejects(dying, ended);
  await assert.rejects(waiting, ended);
  assert.equal(thread.load, 0);
  // Until the dead thread is replaced there is none, and whoever asks may be told so
  for (let left = 100; ; left--) {
    const answer = await ask('count').catch((error: Error) => error);
    if (answer instanceof Error && left > 0) continue;
    assert.deepEqual(answer, { messages: 1, calls: 1 });
    break;
  }
});

test('close() gives up what is under way, and afterwards there is nothing to ask', async (t) => {
  const { thread, ask } = started(t);
  const waiting = ask('wait');
  await thread.close();
  assert.equal(await waiting, 'given up');
  await assert.rejects(ask('count'), /closed/);
});

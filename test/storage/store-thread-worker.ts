/** A thread for tests: says how many messages and calls it has had; some calls never end, or end it. */
import type { MessagePort } from 'node:worker_threads';
import type { StoreMessage, StoreReply } from '../../src/pool/store-messages.js';

export default function listen({ port }: { port: MessagePort }): void {
  let messages = 0;
  let calls = 0;
  port.on('message', (batch: readonly StoreMessage[]) => {
    messages++;
    const replies: StoreReply[] = [];
    for (const message of batch) {
      if (typeof message === 'number') {
        replies.push([message, { ok: true, value: 'given up' }]);
        continue;
      }
      calls++;
      const [id, { args }] = message;
      if (args[0] === 'die') process.exit(3);
      if (args[0] !== 'wait') replies.push([id, { ok: true, value: { messages, calls } }]);
    }
    port.postMessage(replies);
  });
}

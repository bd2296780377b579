/** What a frontend or a guest driver did against the protocol; ends the connection or the queue, never the daemon. */
export type ProtocolErrorCode = 'message' | 'region' | 'ring' | 'descriptor' | 'fds' | 'feature' | 'log' | 'inflight';

export class ProtocolError extends Error {
  override name = 'ProtocolError';

  constructor(
    readonly code: ProtocolErrorCode,
    message: string,
  ) {
    super(message);
  }
}

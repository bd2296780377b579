/**
 * The test server as a program: main.js BUCKET [PORT]. Prints its URL and serves one empty bucket until it is told to
 * end (SIGTERM, SIGINT), or its standard input does, so that it does not outlive whoever started it.
 */
import { GcsServer } from './server.js';

const [bucket = 'bucket', port] = process.argv.slice(2);
const server = await GcsServer.start(port === undefined ? {} : { port: Number(port) });
server.createBucket(bucket);
process.stdout.write(`${server.url}\n`);

const end = (): void => void server.close().then(() => process.exit(0));
process.once('SIGTERM', end);
process.once('SIGINT', end);
process.stdin.resume().once('end', end);

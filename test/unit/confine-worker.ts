/** A thread that makes one system call when told which. */
import { parentPort } from 'node:worker_threads';
import { syscall6 } from '../../src/ffi/libc.js';

parentPort!.on('message', (nr: number) => parentPort!.postMessage(syscall6(nr, 0, 0, 0, 0, 0, 0)));
parentPort!.postMessage('here');

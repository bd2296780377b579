/** The vhost-user codec against bytes written down by hand from vhost-user.rst, and its table against a second one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FLAG_NEED_REPLY, FLAG_REPLY, MESSAGES, PAYLOAD_MAX_BYTES, PF, VERSION, decodeHeader, encodeReply, encodeU64, messageName, type MessageName } from '../../src/vhost/messages.js';
import { EchoDevice, TestBackend } from '../support/backend.js';
import { Frontend } from '../support/frontend.js';

const bytes = (hex: string): Uint8Array => Uint8Array.from(Buffer.from(hex.replaceAll(' ', ''), 'hex'));
const hex = (b: Uint8Array): string => Buffer.from(b).toString('hex');

for (const [text, header] of [
  ['01000000 01000000 00000000', { code: 1, flags: VERSION, size: 0 }],
  ['05000000 09000000 28000000', { code: 5, flags: VERSION | FLAG_NEED_REPLY, size: 40 }],
  ['27000000 05000000 08000000', { code: 39, flags: VERSION | FLAG_REPLY, size: 8 }],
  ['ffffffff ffffffff ffffffff', { code: 0xffffffff, flags: 0xffffffff, size: 0xffffffff }],
] as const) {
  test(`the header ${text}`, () => assert.deepEqual(decodeHeader(new DataView(bytes(text).buffer)), header));
}

test('a reply has version 1, the reply flag and the size of its payload', () => {
  assert.equal(hex(encodeReply(11, bytes('03000000 05000000'))), '0b00000005000000080000000300000005000000');
  assert.equal(hex(encodeReply(24, new Uint8Array(0))), '180000000500000000000000');
});

test('a u64 is little-endian', () => {
  assert.equal(hex(encodeU64(0x0102030405060708n)), '0807060504030201');
  assert.equal(hex(encodeU64((1n << 64n) - 1n)), 'ffffffffffffffff');
});

/** code, least payload, most descriptors, has a reply of its own; "Front-end message types". */
const SPEC: Record<MessageName, readonly [number, number, number, boolean]> = {
  GET_FEATURES: [1, 0, 0, true], SET_FEATURES: [2, 8, 0, false], SET_OWNER: [3, 0, 0, false], RESET_OWNER: [4, 0, 0, false],
  SET_MEM_TABLE: [5, 8, 8, false], SET_LOG_BASE: [6, 16, 1, true], SET_LOG_FD: [7, 0, 1, false], SET_VRING_NUM: [8, 8, 0, false],
  SET_VRING_ADDR: [9, 40, 0, false], SET_VRING_BASE: [10, 8, 0, false], GET_VRING_BASE: [11, 8, 0, true], SET_VRING_KICK: [12, 8, 1, false],
  SET_VRING_CALL: [13, 8, 1, false], SET_VRING_ERR: [14, 8, 1, false], GET_PROTOCOL_FEATURES: [15, 0, 0, true],
  SET_PROTOCOL_FEATURES: [16, 8, 0, false], GET_QUEUE_NUM: [17, 0, 0, true], SET_VRING_ENABLE: [18, 8, 0, false],
  SET_BACKEND_REQ_FD: [21, 0, 1, false], GET_CONFIG: [24, 12, 0, true], SET_CONFIG: [25, 12, 0, false], GET_INFLIGHT_FD: [31, 20, 0, true],
  SET_INFLIGHT_FD: [32, 20, 1, false], RESET_DEVICE: [34, 0, 0, false], GET_MAX_MEM_SLOTS: [36, 0, 0, true], ADD_MEM_REG: [37, 40, 1, false],
  REM_MEM_REG: [38, 40, 1, false], SET_STATUS: [39, 8, 0, false], GET_STATUS: [40, 0, 0, true],
};

test('the table has the codes, sizes and descriptors of the specification', () => {
  assert.deepEqual(Object.keys(MESSAGES).sort(), Object.keys(SPEC).sort());
  for (const [name, [code, least, fds, reply]] of Object.entries(SPEC)) {
    const entry = MESSAGES[name as MessageName];
    assert.deepEqual([entry.code, entry.bytes[0], entry.fds[1], entry.reply], [code, least, fds, reply], name);
    assert.ok(entry.bytes[0] <= entry.bytes[1] && entry.bytes[1] <= PAYLOAD_MAX_BYTES && entry.fds[0] <= entry.fds[1], name);
    assert.equal(messageName(code), name);
  }
  assert.equal(messageName(0), undefined);
  assert.equal(messageName(22), undefined, 'no IOTLB');
});

test('no protocol feature that is not implemented has a name here', () => {
  assert.deepEqual(Object.values(PF).sort((a, b) => a - b), [0, 1, 3, 5, 9, 10, 12, 13, 15, 16]);
});

/** What is sent, and what comes back. */
const CONVERSATION: readonly (readonly [string, string, string])[] = [
  ['GET_FEATURES', '01000000 01000000 00000000', '01000000 05000000 08000000 00000074 01000000'],
  ['GET_PROTOCOL_FEATURES', '0f000000 01000000 00000000', '0f000000 05000000 08000000 2bb40100 00000000'],
  ['SET_PROTOCOL_FEATURES', '10000000 01000000 08000000 2bb40100 00000000', ''],
  ['SET_FEATURES, acknowledged', '02000000 09000000 08000000 00000070 01000000', '02000000 05000000 08000000 00000000 00000000'],
  ['GET_QUEUE_NUM', '11000000 01000000 00000000', '11000000 05000000 08000000 41000000 00000000'],
  ['GET_MAX_MEM_SLOTS', '24000000 01000000 00000000', '24000000 05000000 08000000 fd010000 00000000'],
  ['SET_VRING_BASE 7 of queue 2', '0a000000 01000000 08000000 02000000 07000000', ''],
  ['GET_VRING_BASE of queue 2', '0b000000 01000000 08000000 02000000 00000000', '0b000000 05000000 08000000 02000000 07000000'],
  ['SET_VRING_NUM 3, refused', '08000000 09000000 08000000 00000000 03000000', '08000000 05000000 08000000 01000000 00000000'],
  ['message 22, refused', '16000000 09000000 00000000', '16000000 05000000 08000000 01000000 00000000'],
  ['GET_STATUS with NEED_REPLY has one reply', '28000000 09000000 00000000', '28000000 05000000 08000000 00000000 00000000'],
];

test('a conversation, byte by byte', async () => {
  const backend = new TestBackend(new EchoDevice());
  const frontend = Frontend.connect(backend.path);
  for (const [what, request, wanted] of CONVERSATION) {
    frontend.raw(bytes(request));
    if (wanted === '') continue;
    const reply = await frontend.reply();
    assert.ok(reply, what);
    const header = Buffer.alloc(12);
    [reply.code, reply.flags, reply.payload.byteLength].forEach((word, i) => header.writeUInt32LE(word, i * 4));
    assert.equal(hex(header) + hex(new Uint8Array(reply.payload.buffer)), wanted.replaceAll(' ', ''), what);
  }
  frontend.close();
  await backend.close();
});

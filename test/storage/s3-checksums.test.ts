/** Checksums of answers: src/storage/object/stores/s3-checksums.ts. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { crc64nvme, verified } from '../../src/storage/object/stores/s3-checksums.js';
import { pattern } from './contract.js';

const DIGITS = Buffer.from('123456789');
const hex = (text: string): string => Buffer.from(text, 'hex').toString('base64');

/** Of "123456789": check values of the catalogue of CRC algorithms, and what sha1sum, sha256sum, sha512sum and md5sum say. */
const SUMS: Readonly<Record<string, string>> = {
  crc32: hex('cbf43926'), crc32c: hex('e3069283'), crc64nvme: hex('ae8b14860a799888'), sha1: hex('f7c3bc1d808e04732adf679965ccc34ca7ae3441'),
  sha256: hex('15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225'), md5: hex('25f9e794323b453885f5181f1b624d0b'),
  sha512: hex('d9e6762dd1c8eaf6d61b3c6192fc408d4d6d5f1176d0c29169bc24e71c3f274ad27fcd5811b313d681f7e55ec02d73d499c95455b6b5bb503acf574fba8ffe85'),
};

describe('an answer is compared by', () => {
  for (const [name, sum] of Object.entries(SUMS)) {
    test(name, () => {
      assert.equal(verified({ [`x-amz-checksum-${name}`]: sum }, DIGITS, 'op'), true);
      assert.throws(() => verified({ [`x-amz-checksum-${name}`]: sum }, Buffer.from('123456780'), 'op'), { code: 'checksum' });
      assert.equal(verified({ [`x-amz-checksum-${name}`]: `${sum}-12` }, Buffer.from('other'), 'op'), true, 'a checksum of checksums says nothing of bytes');
    });
  }
});

test('a checksum that is not known here is no comparison', () => {
  assert.equal(verified({ 'x-amz-checksum-xxhash3': 'AAAA' }, DIGITS, 'op'), false);
  assert.equal(verified({ 'x-amz-checksum-type': 'FULL_OBJECT', etag: '"x"' }, DIGITS, 'op'), true);
});

test('CRC-64/NVME of any length, bit by bit', () => {
  const slow = (bytes: Uint8Array): string => {
    let crc = 0xffffffffffffffffn;
    for (const byte of bytes) {
      crc ^= BigInt(byte);
      for (let bit = 0; bit < 8; bit++) crc = (crc & 1n) === 1n ? (crc >> 1n) ^ 0x9a6c9329ac4bc9b5n : crc >> 1n;
    }
    return hex((crc ^ 0xffffffffffffffffn).toString(16).padStart(16, '0'));
  };
  for (const length of [0, 1, 7, 8, 9, 15, 16, 1000, 1027]) assert.equal(crc64nvme(pattern(length, 3)), slow(pattern(length, 3)), String(length));
});

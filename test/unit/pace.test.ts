/** When operations go to the pool: see src/storage/local/pace.ts. */
import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { Pace } from '../../src/storage/local/pace.js';

const EXT4 = 0xef53;
const NFS = 0x6969;

/** A pace and a clock of our own, in milliseconds. */
function watched(body: (pace: Pace, advance: (ms: number) => void) => void, offload: 'auto' | 'never' = 'auto'): void {
  let now = 1000;
  const clock = mock.method(performance, 'now', () => now);
  try {
    body(new Pace(offload, EXT4), (ms) => (now += ms));
  } finally {
    clock.mock.restore();
  }
}

/** Operations of `ms` each, done as the file system does them, until one is to go to the pool; how many were inline. */
function inlineUntilSlow(pace: Pace, ms: number, most = 1000): number {
  for (let i = 0; i < most; i++) {
    if (pace.slow) return i;
    if (pace.sampled) pace.took(ms);
  }
  return most;
}

test('quick operations stay inline, and few of them are timed', () =>
  watched((pace) => {
    let timed = 0;
    for (let i = 0; i < 1000; i++) {
      assert.equal(pace.slow, false);
      if (!pace.sampled) continue;
      timed++;
      pace.took(0.01);
    }
    assert.ok(timed > 50 && timed < 200, `${timed} of 1000`);
  }));

test('slow operations go to the pool after a few', () => watched((pace) => assert.ok(inlineUntilSlow(pace, 20) <= 20)));

test('one slow operation among quick ones changes nothing', () =>
  watched((pace) => {
    for (let round = 0; round < 10; round++) {
      for (let i = 0; i < 300; i++) if (pace.sampled) pace.took(i === 150 ? 50 : 0.01);
      assert.equal(pace.slow, false);
    }
  }));

test('after a while one operation is tried inline; while it is slow the pool is kept for longer and longer', () =>
  watched((pace, advance) => {
    inlineUntilSlow(pace, 20);
    let held = 0;
    for (let round = 0; round < 8; round++) {
      let ms = 0;
      while (pace.slow) {
        advance(100);
        ms += 100;
      }
      assert.ok(ms >= held, 'no shorter than the time before');
      held = ms;
      assert.equal(inlineUntilSlow(pace, 20), 1, 'a single operation shows it');
    }
    assert.ok(held > 10_000);
    advance(held * 3);
    assert.equal(inlineUntilSlow(pace, 0.01), 1000, 'quick again: inline again');
  }));

test('a network file system is never trusted, and never means never', () => {
  assert.equal(new Pace('auto', NFS).slow, true);
  assert.equal(new Pace('always', EXT4).slow, true);
  assert.equal(new Pace('never', NFS).slow, false);
  watched((pace) => assert.equal(inlineUntilSlow(pace, 100), 1000), 'never');
});

/** Names and components of keys are one to one: see src/storage/object/names.ts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NAME_MAX_BYTES, isLong, nameOf, parseName } from '../../src/storage/object/names.js';

const text = (name: Uint8Array): string => Buffer.from(name).toString('latin1');
const component = (name: string | Uint8Array): string | null => {
  const named = parseName(typeof name === 'string' ? Buffer.from(name) : name);
  return named?.kind === 'component' && !named.object ? named.component : null;
};

/** A generator of its own, so that a failure can be repeated: 0 ≤ x < n. */
function generator(seed: number): (n: number) => number {
  let state = seed >>> 0 || 1;
  return (n) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
  };
}

const SEED = Number(process.env['SEED'] ?? Date.now() % 1_000_000);
const PIECES = ['%', '~', '%~', '%~~', '%~x', '%~xff', '%~xc3%~xa9', '%~xC3', '%~e', '%~d', '%~f', '%~l', 'x', 'f', 'e', 'é', '日', '🎈', '.', '..', 'a', '0', '\n', ' ', '\u{fffd}', '\0'];

test('ordinary components are names as they are', () => {
  for (const one of ['a', 'a b', 'ümlaut', '日本', '...', '.hidden', '%', '%20', '~', 'a\nb', 'x'.repeat(255)]) {
    assert.equal(Buffer.from(nameOf(one)).toString(), one);
    assert.equal(component(one), one);
  }
});

test('what cannot be a name has one that can be typed', () => {
  const table: [string, string][] = [['', '%~e'], ['.', '%~d'], ['..', '%~dd'], ['a%~b', 'a%~~b'], ['%~e', '%~~e'], ['%~', '%~~'], ['%~~', '%~~~']];
  for (const [key, name] of table) {
    assert.equal(text(nameOf(key)), name);
    assert.equal(component(name), key);
  }
});

test('the object beside a directory of its name has a suffix, and the name says that it is the object', () => {
  for (const one of ['foo', '', '.', '..', 'a%~b', 'é', '%~f', 'x'.repeat(253), 'y'.repeat(300)]) {
    const name = nameOf(one, true);
    const named = parseName(name);
    assert.ok(named !== null && named.object, JSON.stringify(one));
    if (named.kind === 'component') assert.equal(named.component, one);
    else assert.ok(isLong(one, named));
    assert.notDeepEqual(name, nameOf(one));
  }
});

test('a component that is too long has a name of at most 255 bytes that only it has', () => {
  const longs = ['x'.repeat(256), 'x'.repeat(257), '日'.repeat(100), '%~'.repeat(130), `${'x'.repeat(300)}%~l`, '🎈'.repeat(80)];
  const names = longs.map((one) => nameOf(one));
  assert.equal(new Set(names.map(text)).size, longs.length);
  names.forEach((name, i) => {
    assert.ok(name.length <= NAME_MAX_BYTES);
    const named = parseName(name);
    assert.ok(named?.kind === 'long' && isLong(longs[i], named));
    assert.ok(longs.every((other, j) => j === i || !isLong(other, named)));
  });
});

test('names that no key leads to are refused', () => {
  for (const name of ['', '.', '..', 'a/b', 'a\0', '%~', '%~z', 'a%~', '%~x41', '%~xff', '%~e%~', 'a%~e', '%~d.', '%~l123', `%~l${'0'.repeat(32)}`]) {
    assert.equal(parseName(Buffer.from(name)), null, JSON.stringify(name));
  }
});

test(`any component leads to a name and back, and different ones to different names (SEED=${SEED})`, () => {
  const random = generator(SEED);
  const seen = new Map<string, string>();
  for (let i = 0; i < 30_000; i++) {
    let key = '';
    for (let n = random(8); n > 0; n--) key += PIECES[random(PIECES.length)];
    if (random(50) === 0) key += 'z'.repeat(200 + random(200));
    for (const clash of [false, true]) {
      const name = nameOf(key, clash);
      assert.ok(name.length > 0 && name.length <= NAME_MAX_BYTES && !name.includes(0x2f) && !name.includes(0));
      const other = seen.get(text(name));
      assert.ok(other === undefined || other === `${key} ${clash}`, `${JSON.stringify(key)} and ${JSON.stringify(other)} are both ${text(name)}`);
      seen.set(text(name), `${key} ${clash}`);
      const named = parseName(name);
      assert.ok(named !== null && named.object === clash, `${JSON.stringify(key)} is ${text(name)}`);
      if (named.kind === 'component') assert.equal(named.component, key);
      else assert.ok(isLong(key, named));
    }
  }
});

test(`any bytes are a name that leads to a component and back, or are refused (SEED=${SEED})`, () => {
  const random = generator(SEED + 1);
  let accepted = 0;
  for (let i = 0; i < 30_000; i++) {
    const pieces: Buffer[] = [];
    for (let n = 1 + random(6); n > 0; n--) pieces.push(random(3) === 0 ? Buffer.from([1 + random(255)]) : Buffer.from(PIECES[random(PIECES.length)]));
    const name = Buffer.concat(pieces);
    const named = parseName(name);
    if (named === null || named.kind === 'long') continue;
    accepted++;
    assert.equal(Buffer.from(named.component).toString(), named.component, 'no lone surrogates');
    assert.deepEqual(Buffer.from(nameOf(named.component, named.object)), name, text(name));
  }
  assert.ok(accepted > 5000);
});

test('a name that is no UTF-8 is an object whose key says so, and an object of that key has that name', () => {
  const name = Buffer.from([0x61, 0xff, 0xc3, 0x28]);
  assert.equal(component(name), 'a%~xff%~xc3(');
  assert.deepEqual(Buffer.from(nameOf('a%~xff%~xc3(')), name);
});

/** What is staged below a directory is found, whatever is staged elsewhere, and wherever it is moved. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { describeObject } from '../../src/storage/object/facts.js';
import { ObjectNodes, type ObjectNode } from '../../src/storage/object/nodes.js';
import { Random } from '../model/random.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 1_000_000);
const INFO = { key: 'k', size: 0, version: '1', modified_ms: 0, metadata: null, headers: null };
const { facts } = describeObject(INFO, { uid: 0, gid: 0, fileMode: 0o644, directoryMode: 0o755, privileged: false }, false);

function nodesWithRoot(): ObjectNodes {
  const nodes = new ObjectNodes();
  nodes.put(true, '', facts, 0).refs = 1;
  return nodes;
}

function stagedAt(nodes: ObjectNodes, key: string): ObjectNode {
  const node = nodes.put(false, key, facts, 0);
  nodes.ref(node);
  nodes.staged.add(node);
  return node;
}

const keysBelow = (nodes: ObjectNodes, prefix: string): string[] => [...nodes.staged.below(prefix)].map(({ key }) => key).sort();

test('each directory above has it, others have not', () => {
  const nodes = nodesWithRoot();
  for (const key of ['a/b/c', 'a/bc', 'ab/c', 'd', '/e', 'a//f', 'g/']) stagedAt(nodes, key);
  assert.deepEqual(keysBelow(nodes, ''), ['/e', 'a//f', 'a/b/c', 'a/bc', 'ab/c', 'd', 'g/']);
  assert.deepEqual(keysBelow(nodes, 'a/'), ['a//f', 'a/b/c', 'a/bc']);
  assert.deepEqual(keysBelow(nodes, 'a/b/'), ['a/b/c']);
  assert.deepEqual(keysBelow(nodes, 'a//'), ['a//f']);
  assert.deepEqual(keysBelow(nodes, '/'), ['/e']);
  assert.deepEqual(keysBelow(nodes, 'g/'), ['g/']);
  assert.deepEqual(keysBelow(nodes, 'd/'), []);
});

test('what is renamed is below its new directories only, and what is not staged does not become so', () => {
  const nodes = nodesWithRoot();
  const node = stagedAt(nodes, 'from/x/f');
  nodes.rename(node, 'to/f');
  for (const prefix of ['from/', 'from/x/']) assert.deepEqual(keysBelow(nodes, prefix), []);
  assert.deepEqual(keysBelow(nodes, 'to/'), ['to/f']);
  nodes.staged.delete(node);
  nodes.rename(node, 'back/f');
  for (const prefix of ['', 'to/', 'back/']) assert.deepEqual(keysBelow(nodes, prefix), []);
});

test(`after any changes each directory has those whose keys begin with it (SEED=${SEED})`, () => {
  const random = new Random(SEED);
  const nodes = nodesWithRoot();
  const staged = new Set<ObjectNode>();
  const directories = ['', 'a/', 'b/', 'a/a/', 'a/b/', 'b/a/', 'a/a/a/'];
  for (let step = 0; step < 2_000; step++) {
    const key = `${random.pick(directories)}f${random.below(8)}`;
    const node = staged.size > 0 ? random.pick([...staged]) : null;
    if (node !== null && random.chance(30)) {
      staged.delete(node);
      nodes.staged.delete(node);
    } else if (node !== null && random.chance(40)) {
      nodes.rename(node, key);
    } else {
      staged.add(stagedAt(nodes, key));
    }
    const prefix = random.pick(directories);
    assert.deepEqual(new Set(nodes.staged.below(prefix)), new Set([...staged].filter((one) => one.key.startsWith(prefix))), `step ${step}`);
  }
});

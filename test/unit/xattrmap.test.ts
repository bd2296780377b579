import assert from 'node:assert/strict';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { parseXattrMap } from '../../src/storage/local/xattrmap.js';

/** A name, and the name it becomes, or the errno that refuses it (client), or null for one not shown (server). */
interface Row {
  readonly fact: string;
  readonly map: string;
  readonly client?: Readonly<Record<string, string | number>>;
  readonly server?: Readonly<Record<string, string | null>>;
}

/** Three ways to write down one map, and two to write another. */
const PREFIX_ALL = { client: { 'trusted.a': 'user.virtiofs.trusted.a', 'user.b': 'user.virtiofs.user.b' }, server: { 'user.virtiofs.trusted.a': 'trusted.a', 'trusted.a': null, 'user.virtiofs.': null } };
const PREFIX_TRUSTED = {
  client: { 'trusted.a': 'user.virtiofs.trusted.a', 'user.virtiofs.trusted.a': E.PERM, 'user.b': 'user.b' },
  server: { 'user.virtiofs.trusted.a': 'trusted.a', 'trusted.a': null, 'user.b': 'user.b' },
};

const VALID: readonly Row[] = [
  { fact: 'ok passes everything', map: ':ok:all:::', client: { 'user.a': 'user.a', 'trusted.b': 'trusted.b' }, server: { 'user.a': 'user.a' } },
  { fact: 'bad refuses with EPERM and hides', map: ':bad:all:::', client: { 'user.a': E.PERM }, server: { 'user.a': null } },
  { fact: 'unsupported refuses with ENOTSUP and hides', map: ':unsupported:all:::', client: { 'user.a': E.OPNOTSUPP }, server: { 'user.a': null } },
  { fact: 'prefix and a terminating bad put all names under one prefix', map: ':prefix:all::user.virtiofs.::bad:all:::', ...PREFIX_ALL },
  { fact: 'map without a key is short for that', map: ':map::user.virtiofs.:', ...PREFIX_ALL },
  { fact: 'four rules on four lines put trusted names under a prefix', map: '/prefix/all/trusted./user.virtiofs./\n /bad/server//trusted./\n\t/bad/client/user.virtiofs.//\n/ok/all///\n', ...PREFIX_TRUSTED },
  { fact: 'map with a key is short for that', map: '/map/trusted./user.virtiofs./', ...PREFIX_TRUSTED },
  { fact: 'map for one name', map: ':map:security.selinux:trusted.virtiofs.:', client: { 'security.selinux': 'trusted.virtiofs.security.selinux', 'security.capability': 'security.capability' }, server: { 'security.selinux': null, 'trusted.virtiofs.security.selinux': 'security.selinux' } },
  { fact: 'a map rule may follow others', map: ':ok:all:user.:user.: :map::user.virtiofs.:', client: { 'user.a': 'user.a', 'trusted.a': 'user.virtiofs.trusted.a' }, server: { 'user.a': 'user.a', 'trusted.a': null } },
  { fact: 'the first rule that applies decides', map: ':bad:client:user.secret.:: :ok:client:user.:: :unsupported:all:::', client: { 'user.secret.x': E.PERM, 'user.a': 'user.a', 'trusted.a': E.OPNOTSUPP } },
  { fact: 'a client rule says nothing about listings', map: ':bad:client:user.:user.::ok:all:::', client: { 'user.a': E.PERM }, server: { 'user.a': 'user.a' } },
  { fact: 'a server rule says nothing about use', map: ':bad:server:user.:user.::ok:all:::', client: { 'user.a': 'user.a' }, server: { 'user.a': null } },
  { fact: 'client rules look at the key, server rules at what is prepended', map: ':bad:all:a.:b.::ok:all:::', client: { 'a.x': E.PERM, 'b.x': 'b.x' }, server: { 'a.x': 'a.x', 'b.x': null } },
  { fact: 'a name that no server rule decides is not shown', map: ':ok:client:::', client: { 'user.a': 'user.a' }, server: { 'user.a': null } },
  { fact: 'each rule may have its own separator, even a letter', map: ':bad:client:user.a:: /ok/client/user.// xunsupportedxallxxx', client: { 'user.a': E.PERM, 'user.b': 'user.b', 'trusted.a': E.OPNOTSUPP } },
  { fact: 'white space around rules is ignored, inside a field it counts', map: '  :bad:client:user.a b::\n\n:ok:all:::  ', client: { 'user.a b': E.PERM, 'user.a': 'user.a' } },
];

for (const row of VALID) {
  test(`xattr map: ${row.fact}`, () => {
    const map = parseXattrMap(row.map);
    for (const [name, expected] of Object.entries(row.client ?? {})) {
      assert.deepEqual(map.toServer(name), typeof expected === 'number' ? { errno: expected } : { name: expected }, name);
    }
    for (const [name, expected] of Object.entries(row.server ?? {})) assert.equal(map.toClient(name), expected, name);
  });
}

const INVALID: readonly (readonly [fact: string, map: string, message: RegExp])[] = [
  ['no rule', '', /there is no rule in it/],
  ['only white space', ' \n ', /there is no rule in it/],
  ['an unknown type', ':okay:all:::', /rule 1: type "okay" is none of prefix, ok, bad, unsupported, map/],
  ['an unknown scope', ':ok:both:::', /rule 1: scope "both" is none of client, server, all/],
  ['a scope that every object has', ':ok:toString:::', /scope "toString"/],
  ['a missing separator at the end', ':ok:all::', /rule 1: the separator ":" is missing after its prepend ""/],
  ['a rule cut off in its key', ':prefix:client:trus', /rule 1: the separator ":" is missing after its key "trus"/],
  ['two separators in a rule', ':ok/all///', /the separator ":" is missing after its type "ok\/all\/\/\/"/],
  ['something that is no rule behind the rules', ':ok:all:::x', /rule 2: the separator "x" is missing after its type/],
  ['a map rule before another rule', ':map:a:b::ok:all:::', /rule 2: nothing may follow a map rule \(rule 1\)/],
  ['two map rules', ':map:a:b::map:c:d:', /rule 2: nothing may follow a map rule/],
  ['a map rule with a key that would map it to itself', ':map:trusted.::', /rule 1: a map rule for "trusted\." needs something to prepend/],
  ['rules that leave names of the guest undecided', ':prefix:client:trusted.:user.virtiofs.:', /no rule applies to every name of the guest/],
  ['a catch-all for the host only', ':ok:server:::', /no rule applies to every name of the guest/],
];

for (const [fact, map, message] of INVALID) {
  test(`xattr map refuses ${fact}`, () => assert.throws(() => parseXattrMap(map), message));
}

test('the map tells under which other name file capabilities are kept', () => {
  assert.equal(parseXattrMap(':map::user.virtiofs.:').securityCapability, 'user.virtiofs.security.capability');
  assert.equal(parseXattrMap(':map:security.selinux:user.v.:').securityCapability, null);
  assert.equal(parseXattrMap(':ok:all:::').securityCapability, null);
  assert.equal(parseXattrMap(':bad:all:::').securityCapability, null);
});

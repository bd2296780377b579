/**
 * Mapping of extended attribute names between guest (client) and host (server): `--xattrmap`.
 *
 * The rule language is virtiofsd's. Each rule begins with a separator of its own choice (its first character that is
 * not white space); white space may stand between rules, not inside them:
 *
 *   :TYPE:SCOPE:KEY:PREPEND:    TYPE prefix, ok, bad or unsupported; SCOPE client, server or all
 *   :map:KEY:PREPEND:           short for the usual set of rules; only as the last rule
 *
 * A `client` rule applies to names that the guest uses (set, get, remove) and that begin with KEY; a `server` rule to
 * names that the host lists and that begin with PREPEND. The first rule that applies decides.
 *
 * Every name a guest may use has to be decided, so some rule must apply to all of them (an empty KEY); both virtiofsd
 * daemons refuse to start otherwise, and so do we. A name listed by the host that no rule decides is not shown.
 */
import { E } from '../../base/errno.js';

const SCOPES = { client: { client: true, server: false }, server: { client: false, server: true }, all: { client: true, server: true } } as const;
const TYPES = ['prefix', 'ok', 'bad', 'unsupported'] as const;

type Scope = keyof typeof SCOPES;
type RuleType = (typeof TYPES)[number];

interface Rule {
  readonly type: RuleType;
  readonly scope: Scope;
  readonly key: string;
  readonly prepend: string;
}

export class XattrMap {
  readonly #client: readonly Rule[];
  readonly #server: readonly Rule[];
  /**
   * The host's name for the guest's `security.capability` where that is another one, else null. The host kernel removes
   * file capabilities on write and chown only under the real name; under this one the daemon has to.
   */
  readonly securityCapability: string | null;

  constructor(rules: readonly Rule[]) {
    this.#client = rules.filter((rule) => SCOPES[rule.scope].client);
    this.#server = rules.filter((rule) => SCOPES[rule.scope].server);
    const mapped = this.toServer('security.capability');
    this.securityCapability = 'name' in mapped && mapped.name !== 'security.capability' ? mapped.name : null;
  }

  /** The host's name for a name the guest wants to set, get or remove, or the (positive) errno to refuse it with. */
  toServer(name: string): { name: string } | { errno: number } {
    for (const rule of this.#client) {
      if (!name.startsWith(rule.key)) continue;
      switch (rule.type) {
        case 'prefix':
          return { name: rule.prepend + name };
        case 'ok':
          return { name };
        case 'bad':
          return { errno: E.PERM };
        case 'unsupported':
          return { errno: E.OPNOTSUPP };
      }
    }
    return { errno: E.PERM };
  }

  /** What the guest's listing shows for a name the host lists; null: nothing. */
  toClient(hostName: string): string | null {
    for (const rule of this.#server) {
      if (!hostName.startsWith(rule.prepend)) continue;
      switch (rule.type) {
        case 'prefix':
          // An attribute called like the bare prefix would be an empty entry, which ends a listing.
          return hostName.length > rule.prepend.length ? hostName.slice(rule.prepend.length) : null;
        case 'ok':
          return hostName;
        case 'bad':
        case 'unsupported':
          return null;
      }
    }
    return null;
  }
}

/** @throws Error whose message counts the rule from 1 and says what is wrong with it. */
export function parseXattrMap(text: string): XattrMap {
  const rules: Rule[] = [];
  let position = skipSpace(text, 0);
  let mapRule = 0;
  for (let number = 1; position < text.length; number++) {
    if (mapRule > 0) throw new Error(`--xattrmap rule ${number}: nothing may follow a map rule (rule ${mapRule})`);
    const fields = readRule(text, position, number);
    position = skipSpace(text, fields.end);
    if (fields.type === 'map') mapRule = number;
    addRule(rules, fields, number);
  }
  if (rules.length === 0) throw new Error('--xattrmap: there is no rule in it');
  if (!rules.some((rule) => SCOPES[rule.scope].client && rule.key === '')) {
    throw new Error('--xattrmap: no rule applies to every name of the guest; end it with one that does, such as :ok:all::: or :bad:all:::');
  }
  return new XattrMap(rules);
}

interface Fields {
  readonly type: string;
  readonly scope: string;
  readonly key: string;
  readonly prepend: string;
  /** Position behind the last separator. */
  readonly end: number;
}

/** The fields of the rule that starts with its separator at `start`. */
function readRule(text: string, start: number, number: number): Fields {
  const separator = text.charAt(start);
  let position = start + 1;
  const field = (name: string): string => {
    const end = text.indexOf(separator, position);
    if (end < 0) throw new Error(`--xattrmap rule ${number}: the separator "${separator}" is missing after its ${name} "${text.slice(position)}"`);
    const value = text.slice(position, end);
    position = end + 1;
    return value;
  };
  const type = field('type');
  const scope = type === 'map' ? 'all' : field('scope');
  const key = field('key');
  const prepend = field('prepend');
  return { type, scope, key, prepend, end: position };
}

function addRule(rules: Rule[], fields: Fields, number: number): void {
  const { type, scope, key, prepend } = fields;
  if (type === 'map') {
    addMapRule(rules, key, prepend, number);
    return;
  }
  if (!isType(type)) throw new Error(`--xattrmap rule ${number}: type "${type}" is none of ${TYPES.join(', ')}, map`);
  if (!isScope(scope)) throw new Error(`--xattrmap rule ${number}: scope "${scope}" is none of ${Object.keys(SCOPES).join(', ')}`);
  rules.push({ type, scope, key, prepend });
}

/** The long form of `:map:KEY:PREPEND:`. */
function addMapRule(rules: Rule[], key: string, prepend: string, number: number): void {
  rules.push({ type: 'prefix', scope: 'all', key, prepend });
  if (key === '') {
    rules.push({ type: 'bad', scope: 'all', key: '', prepend: '' });
    return;
  }
  if (prepend === '') throw new Error(`--xattrmap rule ${number}: a map rule for "${key}" needs something to prepend`);
  // The host's own attributes of that kind stay the host's, and the guest cannot reach the mapped ones by their real names.
  rules.push({ type: 'bad', scope: 'server', key: '', prepend: key });
  rules.push({ type: 'bad', scope: 'client', key: prepend, prepend: '' });
  rules.push({ type: 'ok', scope: 'all', key: '', prepend: '' });
}

function isType(type: string): type is RuleType {
  return (TYPES as readonly string[]).includes(type);
}

function isScope(scope: string): scope is Scope {
  return Object.hasOwn(SCOPES, scope);
}

function skipSpace(text: string, position: number): number {
  while (position < text.length && /\s/.test(text.charAt(position))) position++;
  return position;
}

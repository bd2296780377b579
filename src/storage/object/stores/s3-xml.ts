/**
 * The XML of S3's answers: elements with text or elements in them. Strict where a mistake could hide something: what is not well-formed,
 * or goes on behind its end, is refused as a whole. Attributes and namespaces say nothing that is asked for here, and are passed over.
 * https://www.w3.org/TR/xml/
 */

export interface Element {
  readonly name: string;
  /** What is in it besides elements; entities are resolved. */
  readonly text: string;
  readonly children: readonly Element[];
}

interface Open {
  readonly name: string;
  text: string;
  readonly children: Element[];
}

/** Deeper than anything that S3 answers. */
const DEPTH_MAX = 16;

const ENTITIES: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" };
const NAME = /^[A-Za-z_][\w.:-]*$/;
/** A tag with attributes: its name, and whether it is empty. Values may have ">" in them. */
const TAG = /<([A-Za-z_][\w.:-]*)(?:\s+[\w.:-]+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*\s*(\/?)>/y;

export class XmlError extends Error {
  override readonly name = 'XmlError';
}

/** @returns the one element that a document is. @throws XmlError */
export function parseXml(document: string): Element {
  const root: Open = { name: '', text: '', children: [] };
  const open: Open[] = [root];
  let at = document.startsWith('\ufeff') ? 1 : 0;
  for (;;) {
    const current = open[open.length - 1];
    const tag = document.indexOf('<', at);
    const text = document.slice(at, tag < 0 ? document.length : tag);
    if (text !== '') {
      if (open.length > 1) current.text += resolved(text);
      else if (text.trim() !== '') throw new XmlError('text outside of the document');
    }
    if (tag < 0) break;
    if (document.startsWith('<!--', tag)) at = past(document, '-->', tag + 4);
    else if (document.startsWith('<?', tag)) at = past(document, '?>', tag + 2);
    else if (document.startsWith('<![CDATA[', tag) && open.length > 1) {
      at = past(document, ']]>', tag + 9);
      current.text += document.slice(tag + 9, at - 3);
    } else if (document[tag + 1] === '/') {
      at = past(document, '>', tag + 2);
      const closes = document.startsWith(current.name, tag + 2) && document.slice(tag + 2 + current.name.length, at - 1).trim() === '';
      if (open.length === 1 || !closes) throw new XmlError(`${document.slice(tag, at)} closes nothing`);
      open.pop();
    } else {
      at = begin(document, tag, open);
    }
  }
  if (open.length > 1) throw new XmlError(`ends within ${open[open.length - 1].name}`);
  if (root.children.length !== 1) throw new XmlError(`${root.children.length} documents`);
  return root.children[0];
}

/** Most tags are a name and nothing else. @returns where it goes on */
function begin(document: string, tag: number, open: Open[]): number {
  const close = document.indexOf('>', tag);
  let name = close < 0 ? '' : document.slice(tag + 1, close);
  let end = close + 1;
  let empty = false;
  if (!NAME.test(name)) {
    TAG.lastIndex = tag;
    const parsed = TAG.exec(document);
    if (parsed === null) throw new XmlError(`no tag: ${document.slice(tag, tag + 40)}`);
    name = parsed[1];
    empty = parsed[2] === '/';
    end = TAG.lastIndex;
  }
  const element: Open = { name, text: '', children: [] };
  open[open.length - 1].children.push(element);
  if (!empty) open.push(element);
  if (open.length > DEPTH_MAX) throw new XmlError(`more than ${DEPTH_MAX} elements in each other`);
  return end;
}

function past(document: string, what: string, from: number): number {
  const found = document.indexOf(what, from);
  if (found < 0) throw new XmlError(`ends before ${what}`);
  return found + what.length;
}

function resolved(text: string): string {
  if (!text.includes('&')) return text;
  // Around every ETag; what is left has no new entities
  const rest = text.replaceAll('&quot;', '"');
  if (!rest.includes('&')) return rest;
  return rest.replace(/&(?:#(\d{1,7})|#x([0-9A-Fa-f]{1,6})|(\w+));?|&/g, (all, decimal?: string, hex?: string, name?: string) => {
    const code = decimal !== undefined ? Number(decimal) : hex !== undefined ? Number.parseInt(hex, 16) : -1;
    const known = name === undefined || !Object.hasOwn(ENTITIES, name) ? undefined : ENTITIES[name];
    if (!all.endsWith(';') || code > 0x10ffff || (code < 0 && known === undefined)) throw new XmlError(`no entity: ${all}`);
    return known ?? String.fromCodePoint(code);
  });
}

/** The text of a child, if there is one. */
export function childText(element: Element, name: string): string | undefined {
  for (const child of element.children) if (child.name === name) return child.text;
  return undefined;
}

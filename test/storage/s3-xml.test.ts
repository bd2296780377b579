/** The XML of S3's answers: src/storage/object/stores/s3-xml.ts. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { childText, parseXml, XmlError } from '../../src/storage/object/stores/s3-xml.js';

test('elements in elements, in order, with what else a document may have', () => {
  const document = parseXml(`\ufeff<?xml version="1.0" encoding="UTF-8"?>
    <!-- a <comment> -->
    <List xmlns="http://s3.amazonaws.com/doc/2006-03-01/" a='x>y' b = "/">
      <Item><Key>a</Key><Size>1</Size></Item><Item xsi:type="T"><Key/></Item>
      <Empty/><Empty x="1" /><Empty></Empty >
    </List>
    <?end?>`);
  assert.equal(document.name, 'List');
  assert.deepEqual(document.children.map(({ name }) => name), ['Item', 'Item', 'Empty', 'Empty', 'Empty']);
  assert.equal(childText(document.children[0], 'Key'), 'a');
  assert.equal(childText(document.children[1], 'Key'), '');
  assert.equal(childText(document.children[0], 'No'), undefined);
});

describe('text', () => {
  for (const [xml, text] of [
    ['&quot;abc&quot;', '"abc"'], ['&amp;&lt;&gt;&apos;&quot;', '&<>\'"'], ['&amp;quot;', '&quot;'], ['&amp;amp;lt;', '&amp;lt;'], ['&#65;&#x42;&#x1F388;&#10;', 'AB🎈\n'],
    ['a]]b', 'a]]b'], ['<![CDATA[<&amp;>]]]]>', '<&amp;>]]'], ['a<!-- & -->b', 'ab'], ['  a  ', '  a  '], ['日本', '日本'],
  ] as const) {
    test(JSON.stringify(xml), () => assert.equal(parseXml(`<k>${xml}</k>`).text, text));
  }
});

describe('what is no document is refused', () => {
  for (const xml of [
    '', ' ', 'text', '<a>', '<a', '<a></b>', '<a><b></a></b>', '</a>', '<a/><b/>', '<a></a>text', 'text<a/>', '<a>&nothing;</a>', '<a>&amp</a>', '<a>&</a>', '<a>&#x110000;</a>',
    '<a>&#;</a>', '<a><b></a>', '<a><!-- </a>', '<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', '<a b></a>', '<a b=c></a>', '<a b="x></a>', '<1/>', '<a><![CDATA[x</a>', '<![CDATA[x]]>',
    '<a>'.repeat(17) + '</a>'.repeat(17), '<html><br></html>', '{"Code":"x"}', '<a></ab>',
  ]) {
    test(JSON.stringify(xml.slice(0, 50)), () => assert.throws(() => parseXml(xml), XmlError));
  }
});

test('a listing that is cut off anywhere is no listing', () => {
  const listing = '<?xml version="1.0"?><List a="b"><Key>a&amp;b</Key><Empty/><X><![CDATA[y]]></X></List>';
  for (let length = 0; length < listing.length; length++) assert.throws(() => parseXml(listing.slice(0, length)), XmlError, listing.slice(0, length));
});

/** What the journal is to say and cannot, since the disk is full or fails. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { E, systemError } from '../../src/base/errno.js';
import type { Journal } from '../../src/storage/object/journal.js';
import { Ledger } from '../../src/storage/object/write/ledger.js';
import type { JournalRecord } from '../../src/storage/object/write/records.js';

/** Keeps records in memory, as long as its disk is good. */
class Records {
  errno = 0;
  records: JournalRecord[] = [];
  rewrites = 0;
  readonly failed = false;
  readonly bytes = 100;

  append(records: readonly JournalRecord[]): void {
    this.#check();
    this.records.push(...records);
  }

  rewrite(records: Iterable<JournalRecord>): void {
    this.#check();
    this.records = [...records];
    this.rewrites++;
  }

  async sync(): Promise<void> {
    this.#check();
  }

  #check(): void {
    if (this.errno !== 0) throw systemError(this.errno, 'write', 'test');
  }
}

function ledgerOn(journal: Records): Ledger {
  return new Ledger(journal as unknown as Journal<JournalRecord>, 0, { boot: 'boot' });
}

const UPLOAD = { key: 'k', id: 'u' };

for (const [what, errno] of [['is full', E.NOSPC], ['fails', E.IO]] as const) {
  test(`what is over on a disk that ${what} does not fail, and the journal is made anew before it says anything else`, async () => {
    const journal = new Records();
    const ledger = ledgerOn(journal);
    ledger.uploadBegun(UPLOAD);
    ledger.begin({ op: 1, kind: 'remove', from: 'a', to: '', tree: false, version: null, commit: '' });
    ledger.hide('h');
    journal.errno = errno;
    ledger.uploadEnded(UPLOAD);
    ledger.finish(ledger.operations.get(1)!);
    ledger.removed('h');
    assert.throws(() => ledger.uploadBegun({ key: 'other', id: 'v' }), { errno: -errno });
    await assert.rejects(ledger.syncSoon(), { errno: -errno });
    journal.errno = 0;
    ledger.uploadBegun({ key: 'next', id: 'w' });
    assert.deepEqual(journal.records, [{ t: 'boot', boot: 'boot' }, { t: 'upload', upload: { key: 'next', id: 'w' } }]);
    ledger.uploadEnded({ key: 'next', id: 'w' });
    assert.equal(journal.rewrites, 1);
  });
}

test('what waits until the journal says that something is over waits until it was made anew', async () => {
  const journal = new Records();
  const ledger = ledgerOn(journal);
  ledger.uploadBegun(UPLOAD);
  journal.errno = E.NOSPC;
  assert.equal(ledger.over({ t: 'uploaded', upload: UPLOAD }), false);
  ledger.uploads.clear();
  journal.errno = 0;
  const said = ledger.syncSoon();
  ledger.hurry();
  await said;
  assert.deepEqual(journal.records, [{ t: 'boot', boot: 'boot' }]);
});

// The POSIX facts of test/e2e/posix, in a real guest on a bucket. Those that objects cannot do are listed in posix/bucket-exceptions.ts, and
// what is listed has to fail as it says there.
// E2E_ONLY limits the facts to those whose name or file contains it.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { s3Provider } from '../support/providers.js'
import { Rgw } from '../support/rgw.js'
import { MAIN } from './daemon.js'
import { type Fact, parseFacts } from './facts.js'
import { BUCKET_EXCEPTIONS } from './posix/bucket-exceptions.js'
import { withGuest } from './session.js'

/** All but 'sparse': what is cut far beyond its end takes minutes to be sent. */
const FEATURES = ['xattr', 'acl', 'tmpfile', 'ioctl', 'killpriv', 'mmap', 'interrupt', 'writethrough', 'slow'].join()
/** Of the slowest one; of all together. */
const FACT_SECONDS = 150
const SUITE_TIMEOUT_MS = 400_000
const LEAST_FACTS = 200
const only = process.env['E2E_ONLY']

async function runFacts(): Promise<Fact[]> {
  const provider = await s3Provider('facts')
  const argv = [process.execPath, MAIN, '--socket-path', '{SOCK}', '--cache-dir', '{DIR}', '--privileged-metadata', '--source', provider.source, ...provider.options]
  try {
    return await withGuest({ argv, env: provider.env }, { kernel: '6.12' }, async (_daemon, guest) => {
      await guest.mount()
      await guest.sh('mkdir /mnt/facts')
      try {
        return parseFacts((await guest.run(`FACT_SECONDS=${FACT_SECONDS} posix /mnt/facts ${FEATURES} '${only ?? ''}'`, SUITE_TIMEOUT_MS)).output)
      } catch (error) {
        throw new Error(`${(error as Error).message}\nthe fact after this one did not end: ${guest.outputSoFar.split('\n').at(-1)}`)
      }
    })
  } finally {
    await provider.stop()
  }
}

test('POSIX facts on a bucket (S3, Ceph RGW)', { skip: Rgw.unavailable() }, async (context) => {
  const facts = await runFacts()
  for (const { name, outcome, detail } of facts) {
    const exception = BUCKET_EXCEPTIONS[name]
    await context.test(exception === undefined ? name : `not on a bucket: ${name}`, () => {
      if (exception === undefined) assert.equal(outcome, 'ok', detail)
      else {
        assert.notEqual(outcome, 'ok', 'it is listed in bucket-exceptions.ts, and works')
        assert.match(detail, exception.gives)
      }
    })
  }
  const count = (outcome: Fact['outcome']): number => facts.filter((fact) => fact.outcome === outcome).length
  context.diagnostic(`facts ${facts.length}: ok ${count('ok')}, exceptions ${facts.length - count('ok')}`)
  if (only !== undefined) return
  assert.ok(count('ok') >= LEAST_FACTS, `${count('ok')} facts`)
  const names = new Set(facts.map(({ name }) => name))
  assert.deepEqual(Object.keys(BUCKET_EXCEPTIONS).filter((name) => !names.has(name)), [], 'no such facts')
})

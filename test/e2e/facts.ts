// The lines that the fact program prints (test/e2e/posix/main.c), read back.

export interface Fact {
  readonly name: string
  readonly outcome: 'ok' | 'failed' | 'skipped'
  readonly detail: string
}

const OUTCOMES = { ok: 'ok', 'not ok': 'failed', skip: 'skipped' } as const

/** Throws when the last line with the totals is missing, or does not agree with the lines before. */
export function parseFacts(output: string): Fact[] {
  const facts: Fact[] = []
  let total: RegExpExecArray | null = null
  for (const line of output.split('\n')) {
    const match = /^(ok|not ok|skip) \d+ (.*?)(?: # (.*))?$/.exec(line)
    if (match !== null) facts.push({ outcome: OUTCOMES[match[1] as keyof typeof OUTCOMES], name: match[2]!, detail: match[3] ?? '' })
    total ??= /^total (\d+) ok (\d+) failed (\d+) skipped (\d+)$/.exec(line)
  }
  if (total === null) throw new Error(`the facts did not run to their end:\n${output.slice(-2000)}`)
  const count = (outcome: Fact['outcome']): number => facts.filter((fact) => fact.outcome === outcome).length
  const counted = `total ${facts.length} ok ${count('ok')} failed ${count('failed')} skipped ${count('skipped')}`
  if (counted !== total[0]) throw new Error(`"${total[0]}", but there were lines for: ${counted}`)
  return facts
}

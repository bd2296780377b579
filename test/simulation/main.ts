/**
 * Many seeds, for as long as somebody wants: node build/test/simulation/main.js --seeds 10000 [--seed N] [--alone] [--processes N]. With --trace, one seed and
 * all that happens in it; with --keep-going, each seed that fails in a line.
 */
import './builtins.js';
import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { emptySummary, play, playAll, summaryText, type Summary } from './seeds.js';
import { describedSettings, settingsOf } from './settings.js';

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' }, seeds: { type: 'string', default: '1' }, alone: { type: 'boolean', default: false }, trace: { type: 'boolean', default: false },
    'keep-going': { type: 'boolean', default: false }, processes: { type: 'string', default: '1' }, child: { type: 'boolean', default: false },
  },
});
const first = Number(values.seed);
const count = Number(values.seeds);
const { alone } = values;
/** Seeds of one child process. */
const PORTION = 250;
const MINIMISE_MS = 30_000;

if (values.trace) await trace();
else if (values['keep-going']) await keepGoing();
else if (values.child) await portion();
else await portions();

async function trace(): Promise<void> {
  const outcome = await play(settingsOf(first, alone), undefined, true);
  console.log(outcome.trace.join('\n'));
  console.log(describedSettings(settingsOf(first, alone)));
}

async function keepGoing(): Promise<void> {
  for (let seed = first; seed < first + count; seed++) {
    const { violation } = await play(settingsOf(seed, alone));
    if (violation !== null) console.log(`SEED=${seed} ${violation.message.split('\n').slice(0, 5).join('\n')}\n   ${describedSettings(settingsOf(seed, alone))}`);
  }
}

async function portion(): Promise<void> {
  const summary = emptySummary();
  const failure = await playAll(first, count, alone, summary, MINIMISE_MS);
  process.send!({ failure, summary });
}

interface Answer {
  readonly failure: string | null;
  readonly summary: Summary;
}

async function portions(): Promise<void> {
  const began = performance.now();
  const all = emptySummary();
  let next = first;
  let failed = false;
  const lane = async (): Promise<void> => {
    while (next < first + count && !failed) {
      const from = next;
      next += PORTION;
      const { failure, summary } = await inChild(from, Math.min(PORTION, first + count - from));
      for (const name of ['seeds', 'events', 'changes', 'faults', 'kills'] as const) all[name] += summary[name];
      if (failure === null) continue;
      failed = true;
      console.log(failure);
    }
  };
  await Promise.all(Array.from({ length: Number(values.processes) }, lane));
  console.log(`${summaryText(all)}\n  first seed ${first}, ${((performance.now() - began) / 1000).toFixed(0)} s${failed ? '; a seed has failed' : ''}`);
  process.exitCode = failed ? 1 : 0;
}

function inChild(seed: number, seeds: number): Promise<Answer> {
  const child = fork(fileURLToPath(import.meta.url), ['--child', '--seed', String(seed), '--seeds', String(seeds), ...(alone ? ['--alone'] : [])]);
  return new Promise((resolve, reject) => {
    child.once('message', (answer) => resolve(answer as Answer));
    child.once('exit', (code) => reject(new Error(`seeds from ${seed} on: the process has ended with ${code}`)));
  });
}

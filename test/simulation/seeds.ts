/** Plays seeds one after the other, and shortens one that fails. */
import { describedSettings, settingsOf, type Settings } from './settings.js';
import { NOTHING, World, type Omitted, type Outcome } from './world.js';

const TRACE_LINES = 150;

export interface Summary {
  seeds: number;
  events: number;
  /** Changes of buckets. */
  changes: number;
  faults: number;
  kills: number;
}

export const play = (settings: Settings, omitted: Omitted = NOTHING, verbose = false): Promise<Outcome> => new World(settings, omitted, verbose).play();

/** @returns a report on the first seed that fails; null: none does */
export async function playAll(first: number, count: number, alone: boolean, summary: Summary, minimise_ms: number): Promise<string | null> {
  for (let seed = first; seed < first + count; seed++) {
    const settings = settingsOf(seed, alone);
    const outcome = await play(settings);
    summary.seeds++;
    summary.events += outcome.events;
    summary.changes += outcome.changes;
    summary.faults += outcome.faults.length;
    summary.kills += outcome.counts.kills ?? 0;
    if (outcome.violation !== null) return report(settings, outcome, alone, minimise_ms);
  }
  return null;
}

export const emptySummary = (): Summary => ({ seeds: 0, events: 0, changes: 0, faults: 0, kills: 0 });

export const summaryText = ({ seeds, events, changes, faults, kills }: Summary): string =>
  `${seeds} seeds: ${events} events, ${changes} changes of buckets, ${faults} requests with another fate than a good one, ${kills} kills`;

async function report(settings: Settings, failed: Outcome, alone: boolean, minimise_ms: number): Promise<string> {
  const omitted = await minimised(settings, failed, performance.now() + minimise_ms);
  const { violation, trace, steps, faults } = await play(settings, omitted, true);
  const left = steps.filter((step) => !omitted.steps.has(step));
  return [
    `SEED=${settings.seed}${alone ? ' (alone)' : ''} ${failed.violation!.message}`,
    `  ${describedSettings(settings)}`,
    `  all of it: node build/test/simulation/main.js --seed ${settings.seed}${alone ? ' --alone' : ''} --trace`,
    `  enough of it: ${left.length} of ${steps.length} steps (${left.join(' ')}), ${faults.length} faults: ${violation?.message.split('\n')[0] ?? 'not any more'}`,
    ...trace.slice(-TRACE_LINES).map((line) => `    ${line}`),
  ].join('\n');
}

/** Leave out steps, then faults, as long as the seed fails in the same way. */
export async function minimised(settings: Settings, failed: Outcome, until_ms: number): Promise<Omitted> {
  let best: Omitted = NOTHING;
  const fails = async (omitted: Omitted): Promise<boolean> => {
    const { violation } = await play(settings, omitted);
    return violation?.kind === failed.violation!.kind;
  };
  const shrink = async <T>(all: readonly T[], with_: (left: ReadonlySet<T>) => Omitted): Promise<void> => {
    const gone = new Set<T>();
    for (let size = Math.ceil(all.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
      for (let at = 0; at < all.length && performance.now() < until_ms; at += size) {
        const chunk = all.slice(at, at + size).filter((one) => !gone.has(one));
        if (chunk.length === 0) continue;
        const omitted = with_(new Set([...gone, ...chunk]));
        if (!(await fails(omitted))) continue;
        for (const one of chunk) gone.add(one);
        best = omitted;
      }
    }
  };
  await shrink(failed.steps, (steps) => ({ faults: new Set(), steps }));
  const { faults } = await play(settings, best);
  const { steps } = best;
  await shrink(faults.map(({ number }) => number), (spared) => ({ faults: spared, steps }));
  return best;
}

/**
 * Virtual time: a queue of events, the earliest of which comes next, whatever real time it is. All microtasks of one event have run before the
 * next one. So an event is everything between two moments at which a process waits for something outside.
 */

/** A process: none of its events comes after it was killed. */
export class SimulatedProcess {
  alive = true;
  /** Events so far. */
  events = 0;
  /** The number of the event that it does not live to see. */
  diesAt = Infinity;
  /** Called instead of that event. */
  onDeath: () => void = () => undefined;

  constructor(readonly name: string) {}
}

export interface Planned {
  readonly at_ms: number;
  readonly number: number;
  readonly owner: SimulatedProcess | null;
  readonly label: string;
  run: (() => void) | null;
}

/** Gets a line for each event: time, process, label. */
export type Trace = (line: string) => void;

const realSetImmediate = setImmediate;
/** All that follows from what has happened has run. */
const turn = (): Promise<void> => new Promise((resolve) => void realSetImmediate(resolve));
const EVENTS_MAX = 400_000;

export class Scheduler {
  now_ms = 0;
  /** The process whose code runs now. */
  current: SimulatedProcess | null = null;
  /** Called with errors that nothing catches. */
  onError: (error: unknown, label: string) => void = (error) => {
    throw error;
  };
  #numbers = 0;
  #events = 0;
  /** A binary heap. */
  readonly #queue: Planned[] = [];

  constructor(readonly trace: Trace) {}

  get events(): number {
    return this.#events;
  }

  /** `owner`: the event does not come if that is dead by then. */
  after(owner: SimulatedProcess | null, delay_ms: number, label: string, run: () => void): Planned {
    const planned = { at_ms: this.now_ms + Math.max(0, delay_ms), number: ++this.#numbers, owner, label, run };
    this.#push(planned);
    return planned;
  }

  cancel(planned: Planned): void {
    planned.run = null;
  }

  /** Let time pass until `over`. @throws when nothing is left to happen before that, or it never comes */
  async run(over: () => boolean): Promise<void> {
    while (!over()) {
      const next = this.#pop();
      if (next === undefined) throw new Error('nothing is going to happen any more, and what was waited for has not happened');
      await this.#happen(next);
    }
  }

  /** All that is planned within this time comes. */
  async pass(ms: number): Promise<void> {
    let over = false;
    this.after(null, ms, '', () => (over = true));
    await this.run(() => over);
  }

  async #happen({ at_ms, owner, label, run }: Planned): Promise<void> {
    if (run === null || (owner !== null && !owner.alive)) return;
    if (++this.#events > EVENTS_MAX) throw new Error(`more than ${EVENTS_MAX} events: it never ends`);
    this.now_ms = Math.max(this.now_ms, at_ms);
    if (owner !== null && ++owner.events >= owner.diesAt) {
      owner.onDeath();
      return turn();
    }
    if (label !== '') this.trace(`${this.now_ms.toFixed(2)} ${owner === null ? '-' : owner.name} ${label}`);
    this.current = owner;
    try {
      run();
    } catch (error) {
      this.onError(error, label);
    }
    await turn();
    this.current = null;
  }

  #push(planned: Planned): void {
    const queue = this.#queue;
    let at = queue.push(planned) - 1;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (!isBefore(planned, queue[above])) break;
      queue[at] = queue[above];
      at = above;
    }
    queue[at] = planned;
  }

  #pop(): Planned | undefined {
    const queue = this.#queue;
    const first = queue[0];
    const last = queue.pop();
    if (last === undefined || queue.length === 0) return first;
    let at = 0;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= queue.length) break;
      if (below + 1 < queue.length && isBefore(queue[below + 1], queue[below])) below++;
      if (!isBefore(queue[below], last)) break;
      queue[at] = queue[below];
      at = below;
    }
    queue[at] = last;
    return first;
  }
}

const isBefore = (a: Planned, b: Planned): boolean => a.at_ms < b.at_ms || (a.at_ms === b.at_ms && a.number < b.number);

/** The operations that a sequence is made of, with how often each comes. */
import * as files from './files.js';
import * as host from './host.js';
import * as names from './names.js';
import type { World } from './world.js';

type Operation = (w: World) => Promise<void> | void;

const WEIGHTS: readonly (readonly [weight: number, run: Operation])[] = [
  [10, names.lookup], [12, names.make], [6, names.link], [9, names.remove], [10, names.rename], [2, names.readlink], [4, names.getattr],
  [7, names.setattr], [4, names.setxattr], [3, names.getxattr], [2, names.listxattr], [2, names.removexattr], [6, names.forget], [2, names.useDead],
  [4, (w) => names.list(w, host.changeIn)],
  [10, files.create], [2, files.tmpfile], [7, files.open], [4, files.release], [8, files.read], [2, files.readMany], [10, files.write], [6, files.truncate],
  [3, files.fgetattr], [5, files.fallocate], [3, files.seek], [5, files.copy], [2, files.sync],
  [12, host.changeOnHost],
];

const TABLE: readonly Operation[] = WEIGHTS.flatMap(([weight, run]) => new Array<Operation>(weight).fill(run));

export async function runOperation(w: World): Promise<void> {
  await w.random.pick(TABLE)(w);
}

/** A daemon that only lives: command line, log and lifecycle composed as in main.ts, with nothing to serve. */
import { parseCommandLine, type Options } from '../../src/cli.js';
import { createLogger } from '../../src/base/log.js';
import { FdPoller } from '../../src/ffi/poll.js';
import { EXIT, failureOf, type ExitCode } from '../../src/lifecycle/errors.js';
import { applyFileLimit } from '../../src/lifecycle/limits.js';
import { openListener } from '../../src/lifecycle/listen.js';
import { Shutdown } from '../../src/lifecycle/shutdown.js';
import { checkSource } from '../../src/lifecycle/source.js';
import { ServiceNotifier } from '../../src/lifecycle/systemd.js';

/** How draining goes: `done`, `hang` for ever, `fail`; or `crash`: an error nobody catches after the start. */
const behaviour = process.env.TEST_DRAIN ?? 'done';

function drain(): Promise<ExitCode> {
  if (behaviour === 'fail') return Promise.reject(new Error('drain failed'));
  return behaviour === 'hang' ? new Promise(() => undefined) : Promise.resolve(EXIT.OK);
}

function start(options: Options): void {
  const log = createLogger({ level: options.logLevel });
  const limit = applyFileLimit(options.rlimitNofile);
  checkSource(options.source.path);
  const notifier = ServiceNotifier.fromEnvironment();
  const listener = openListener(options.listen);
  const poller = new FdPoller(listener.fd, () => undefined);
  const cleanup = (): void => {
    poller.close();
    listener.close();
    notifier.close();
  };
  new Shutdown({ log, drain, cleanup, stopping: () => notifier.stopping(), limit_ms: Number(process.env.TEST_LIMIT_MS ?? 5000) }).install();
  notifier.ready(`Sharing ${options.source.path}`);
  log.info({ limit, name: listener.name }, 'ready');
  if (behaviour === 'crash') setImmediate(() => { throw new Error('a bug'); });
}

try {
  const command = parseCommandLine(process.argv.slice(2));
  if (command.action === 'print') process.stdout.write(command.text);
  else if (command.action === 'run') start(command.options);
} catch (error) {
  const failure = failureOf(error);
  process.stderr.write(failure.text);
  process.exit(failure.exitCode);
}

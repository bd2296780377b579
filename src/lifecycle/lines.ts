/** What the daemon hears and says, but for its files: the listening socket, the service manager, syslog. They go from one process image to the next. */
import { adoptListener, openListener, type Listener, type ListenSpec } from './listen.js';
import { SyslogDestination } from './syslog.js';
import { ServiceNotifier } from './systemd.js';

export interface Lines {
  readonly listener: Listener;
  readonly notifier: ServiceNotifier;
  readonly syslog: SyslogDestination | null;
  close(): void;
}

/** @throws StartError */
export function openLines(listen: ListenSpec, syslog: SyslogDestination | null): Lines {
  return linesOf(openListener(listen), ServiceNotifier.fromEnvironment(), syslog);
}

/** Those of the process image before this one. */
export function adoptLines({ listener, notifyFd, syslogFd }: { listener: Omit<Listener, 'close'>; notifyFd: number; syslogFd: number }): Lines {
  const syslog = syslogFd < 0 ? null : SyslogDestination.adopt(syslogFd);
  return linesOf(adoptListener(listener), ServiceNotifier.adopt(notifyFd), syslog);
}

/** What the next process image adopts them by. */
export function linesToPass({ listener: { fd, pidFd, name, path }, notifier, syslog }: Lines): Parameters<typeof adoptLines>[0] {
  return { listener: { fd, pidFd, name, path }, notifyFd: notifier.fd, syslogFd: syslog?.fd ?? -1 };
}

/** Nothing of them is left when one of `steps` fails. */
export async function closingOnFailure(lines: Lines, steps: () => Promise<void>): Promise<void> {
  try {
    await steps();
  } catch (error) {
    lines.close();
    throw error;
  }
}

function linesOf(listener: Listener, notifier: ServiceNotifier, syslog: SyslogDestination | null): Lines {
  const close = (): void => {
    listener.close();
    notifier.close();
  };
  return { listener, notifier, syslog, close };
}

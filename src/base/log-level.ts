/** Levels of the log, the least talkative first. In a file of its own: the command line needs them, and not the logger. */
export const LOG_LEVELS = ['off', 'error', 'warn', 'info', 'debug', 'trace'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

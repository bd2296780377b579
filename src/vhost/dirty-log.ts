/** Placeholder interface until the log is written by connection code. */
export interface DirtyLog {
  mark(gpa: number, bytes: number): void;
}

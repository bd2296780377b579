export interface InflightQueue {
  submit(head: number): void;
  beforeUsed(head: number): void;
  afterUsed(head: number, usedIdx: number): void;
}

/**
 * Bytes that are written to a file at once.
 *
 * Linux takes folios as large as what is written for the page cache. Large ones that are free have not been used for a while, so that a hypervisor
 * may have taken them back, and touching them costs many times the copying: measured on ext4, 0.6 to 1.5 s of CPU time for 512 MiB in pieces of 256 KiB
 * and more, 0.1 to 0.3 s in smaller ones.
 */
export const WRITE_BYTES = 64 << 10;

/** What of the host a request of each operation touches, as far as it may be on a remote mount. */
import type { FileSystemRequest } from '../filesystem.js';
import { HANDLE_DIRECTORY, HANDLE_FILE } from '../handles.js';
import type { Share } from './share.js';

/** Bits: the request's node and name, the second ones, and its open file or directory. */
export const TOUCHED = { NODE: 1, NAME: 2, NODE2: 4, NAME2: 8, FILE: 16, DIRECTORY: 32 } as const;

/**
 * Rule: the main thread asks nothing of a remote mount below the share, which may not answer. A request goes to the pool when a node or an open file that
 * it touches is on one, or a name leads to one. A name that is the same elsewhere, and a handle that the request only seems to have, send it there as well:
 * that is slower, and as right. To know it no file system is asked.
 */
export function touchesRemote(share: Share, r: FileSystemRequest, touched: number): boolean {
  const { mounts } = share.inodes;
  return (
    ((touched & TOUCHED.NODE) !== 0 && isRemoteNode(share, r.nodeLow, r.nodeHigh)) ||
    ((touched & TOUCHED.NAME) !== 0 && mounts.leadsToRemote(r.name)) ||
    ((touched & TOUCHED.NODE2) !== 0 && isRemoteNode(share, r.node2Low, r.node2High)) ||
    ((touched & TOUCHED.NAME2) !== 0 && mounts.leadsToRemote(r.name2)) ||
    ((touched & TOUCHED.FILE) !== 0 && isRemoteHandle(share, r, HANDLE_FILE)) ||
    ((touched & TOUCHED.DIRECTORY) !== 0 && isRemoteHandle(share, r, HANDLE_DIRECTORY))
  );
}

function isRemoteNode({ inodes }: Share, low: number, high: number): boolean {
  const slot = inodes.table.slotOf(low, high);
  return slot >= 0 && inodes.isRemoteSubmount(slot);
}

function isRemoteHandle({ inodes, handles }: Share, r: FileSystemRequest, kind: number): boolean {
  const handle = handles.slotOf(r.fhLow, r.fhHigh, kind);
  return handle >= 0 && inodes.isRemoteSubmount(handles.node(handle));
}

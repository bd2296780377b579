/**
 * Rule: what can never be committed is refused before it is acknowledged. An object may be there, and its metadata be read, and yet no
 * change of it be possible: its content is in an archive, it is held, or what is attached to it cannot be read and would be lost.
 */
import { E } from '../../base/errno.js';
import { hasUnknownTags, isArchived, isHeld, isLocked } from './attachments.js';
import { ifThere } from './asking.js';
import type { ObjectNode } from './nodes.js';
import type { ObjectHeaders, ObjectStore } from './store.js';
import { FileError, type Tree, type TreeLog } from './tree.js';
import { metadataFits, metadataOf } from './write/attributes.js';

/** What is in the way of a change that needs the content that is there, or only replaces it; null: nothing. */
export function obstacle(headers: ObjectHeaders, needsContent: boolean): string | null {
  if (needsContent && isArchived(headers)) return 'it is archived, and has to be restored before it can be read or changed';
  return isHeld(headers) ? 'it is under a hold, and can be neither replaced nor removed' : null;
}

/** @throws FileError EACCES: an open of it is refused, as each read would be */
export function requireReadable(tree: Tree, { key, facts }: ObjectNode): void {
  if (facts.headers !== null && isArchived(facts.headers)) requireNone(tree.store, tree.log, key, facts.headers, true);
}

/** @throws FileError EACCES, with a line in the log */
export function requireNone(store: ObjectStore, log: TreeLog, key: string, headers: ObjectHeaders | null, needsContent: boolean): void {
  const why = headers === null ? null : obstacle(headers, needsContent);
  if (why === null) return;
  log.guest('obstacle', { key }, `${store.location}/${key} cannot be changed: ${why}`);
  throw new FileError(E.ACCES);
}

/**
 * The object of a node, as it was asked for just now, is going to be replaced. What has to be sent along with its successor and is not known yet is asked for.
 * @returns null where there is nothing to wait for
 * @throws FileError EACCES; the promise, StorageError
 */
export function requireWritable(tree: Tree, node: ObjectNode, needsContent: boolean): Promise<void> | null {
  const { headers } = node.facts;
  // What was changed here was looked at then
  if (headers === null || node.unlinked || (node.staged?.dirty === true && !node.staged.onlyDescribed)) return null;
  requireNone(tree.store, tree.log, node.key, headers, needsContent);
  requireRoom(tree, node);
  return hasUnknownTags(headers) || isLocked(headers) ? askAttachments(tree, node) : null;
}

/** Others may have attached so much to an object that what a commit attaches has no room. @throws FileError ENOSPC, with a line in the log */
function requireRoom({ store, log, options }: Tree, { key, facts }: ObjectNode): void {
  if (facts.kept === null || metadataFits(metadataOf(facts, store, options.posix), store)) return;
  log.guest('obstacle', { key }, `${store.location}/${key} cannot be changed: with its metadata and what is added to it there would be more than ${store.limits.metadataBytes} bytes of it`);
  throw new FileError(E.NOSPC);
}

async function askAttachments(tree: Tree, node: ObjectNode): Promise<void> {
  const there = await ifThere(tree.store.head(node.key, { attachments: true }));
  if (there !== null && there.version === node.facts.version) node.facts = { ...node.facts, headers: there.headers };
}

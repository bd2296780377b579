/** INIT: what protocol version and which features the guest and we agree on. */
import type { Capabilities, SessionInfo } from '../storage/filesystem.js';
import { FUSE_KERNEL_VERSION, INIT, INIT_IN_COMPAT_BYTES, InitIn, InitOut, MINOR_MAX, MINOR_MIN } from './abi.js';
import type { FuseRequest } from './request.js';

/** 256 pages of 4 KiB: requests of 1 MiB. */
const MAX_PAGES = 256;
const MAX_WRITE_BYTES = MAX_PAGES * 4096;
/** Asynchronous requests (readahead, writeback) that the guest may have outstanding; the ring is the real bound. */
const MAX_BACKGROUND = 128;

export class Session implements SessionInfo {
  minor = MINOR_MAX;
  writeback = false;
  killprivV2 = false;
  dontMask = false;
  submounts = false;
  posixLocks = false;
  flockLocks = false;
  posixAcl = false;
  allowDirectIo = false;
  securityContexts = false;
  setxattrExt = false;
  /** Granted flags, for the log. */
  granted: string[] = [];
}

/** The outcome of INIT. */
export type Negotiated = { session: Session; flags: number; flags2: number; maxReadahead: number } | { majorOnly: true } | { refused: string };

/** Decide on an INIT request whose arguments are located. */
export function negotiate(r: FuseRequest, caps: Capabilities): Negotiated {
  const major = r.u32(InitIn.major);
  const minor = r.u32(InitIn.minor);
  if (major < FUSE_KERNEL_VERSION) return { refused: `the guest speaks FUSE ${major}.${minor}` };
  // A newer major: answer with ours, and the guest asks again (Documentation of FUSE_INIT)
  if (major > FUSE_KERNEL_VERSION) return { majorOnly: true };
  if (minor < MINOR_MIN) return { refused: `the guest speaks FUSE ${major}.${minor}; 7.${MINOR_MIN} (Linux 4.18) is the oldest served` };
  const offered = r.u32(InitIn.flags);
  const extended = r.argBytes >= InitIn.bytes && (offered & (1 << INIT.INIT_EXT)) !== 0;
  const offered2 = extended ? r.u32(InitIn.flags2) : 0;
  const session = new Session();
  session.minor = Math.min(minor, MINOR_MAX);
  let flags = 0;
  let flags2 = 0;
  const has = (name: keyof typeof INIT): boolean => {
    const bit = INIT[name];
    return bit < 32 ? (offered & (1 << bit)) !== 0 : (offered2 & (1 << (bit - 32))) !== 0;
  };
  const grant = (name: keyof typeof INIT, wanted: boolean): boolean => {
    const bit = INIT[name];
    if (!wanted || !has(name)) return false;
    if (bit < 32) flags |= 1 << bit;
    else flags2 |= 1 << (bit - 32);
    session.granted.push(name);
    return true;
  };
  for (const name of ALWAYS) grant(name, true);
  if (extended) grant('INIT_EXT', true);
  if (grant('DO_READDIRPLUS', caps.readdirplus)) grant('READDIRPLUS_AUTO', true);
  session.writeback = grant('WRITEBACK_CACHE', caps.writeback);
  session.killprivV2 = grant('HANDLE_KILLPRIV_V2', caps.killprivV2);
  session.submounts = grant('SUBMOUNTS', caps.submounts);
  session.posixLocks = grant('POSIX_LOCKS', caps.posixLocks);
  session.flockLocks = grant('FLOCK_LOCKS', caps.flockLocks);
  const missing = [
    ...(caps.posixAcl === 'always' && !has('POSIX_ACL') ? ['POSIX ACLs, which --posix-acl demands'] : []),
    ...(caps.securityContext === 'always' && !has('SECURITY_CTX') ? ['security labels at creation, which --security-label demands'] : []),
  ];
  if (missing.length > 0) return { refused: `the guest has no ${missing.join(', and no ')}; with =auto the share does without` };
  session.posixAcl = grant('POSIX_ACL', caps.posixAcl !== 'never');
  // A default ACL takes the umask's place, which only the host can decide
  session.dontMask = session.posixAcl && grant('DONT_MASK', true);
  session.securityContexts = grant('SECURITY_CTX', caps.securityContext !== 'never');
  grant('ALLOW_IDMAP', caps.idmap);
  grant('CREATE_SUPP_GROUP', caps.suppGroups);
  grant('DIRECT_IO_ALLOW_MMAP', caps.allowMmap);
  session.setxattrExt = (flags & (1 << INIT.SETXATTR_EXT)) !== 0;
  return { session, flags: flags >>> 0, flags2: flags2 >>> 0, maxReadahead: r.u32(InitIn.maxReadahead) };
}

const ALWAYS = [
  'ASYNC_READ', 'ATOMIC_O_TRUNC', 'BIG_WRITES', 'HAS_IOCTL_DIR', 'AUTO_INVAL_DATA', 'ASYNC_DIO', 'PARALLEL_DIROPS', 'MAX_PAGES',
  'SETXATTR_EXT',
] as const;

/** Write fuse_init_out; InitOut.bytes of it. */
export function putInitOut(dv: DataView, at: number, minor: number, agreed: { flags: number; flags2: number; maxReadahead: number }): void {
  for (let i = 0; i < InitOut.bytes; i += 4) dv.setUint32(at + i, 0, true);
  dv.setUint32(at + InitOut.major, FUSE_KERNEL_VERSION, true);
  dv.setUint32(at + InitOut.minor, minor, true);
  dv.setUint32(at + InitOut.maxReadahead, agreed.maxReadahead, true);
  dv.setUint32(at + InitOut.flags, agreed.flags, true);
  dv.setUint16(at + InitOut.maxBackground, MAX_BACKGROUND, true);
  dv.setUint16(at + InitOut.congestionThreshold, (MAX_BACKGROUND * 3) / 4, true);
  dv.setUint32(at + InitOut.maxWrite, MAX_WRITE_BYTES, true);
  dv.setUint32(at + InitOut.timeGran, 1, true);
  dv.setUint16(at + InitOut.maxPages, MAX_PAGES, true);
  dv.setUint32(at + InitOut.flags2, agreed.flags2, true);
}

export const INIT_IN_MIN_BYTES = INIT_IN_COMPAT_BYTES;

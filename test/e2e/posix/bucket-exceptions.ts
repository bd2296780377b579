// What of POSIX objects of a bucket cannot do: facts of this directory that do not hold there, and what the guest gets instead.
// test/e2e/posix-bucket.test.ts checks it in both directions: a fact that does not hold and is not here, and one that is here and holds.

export interface Exception {
  /** In what the fact says of its failure: the errno that the guest gets, or what differs. */
  readonly gives: RegExp
  readonly why: string
}

const LINK: Exception = { gives: /link(at)?\(.*\): EPERM$/, why: 'an object has one key: no hard links' }
const EXCHANGE: Exception = { gives: /^line \d+: renameat2\(.*\): EINVAL$/, why: 'no provider swaps two objects as one step' }
const TMPFILE: Exception = { gives: /^line \d+: open\(".", O_TMPFILE.*\): EOPNOTSUPP$/, why: 'an object has a key' }
const FLAGS: Exception = { gives: /^ioctl\(.*\): ENOTTY$/, why: "ext4's flags mean nothing to a bucket" }
const ACL: Exception = { gives: /^line \d+: setxattr\(.*"system\.posix_acl_(access|default)".*\): EOPNOTSUPP$/, why: 'nobody would check them' }
const XATTR: Exception = { gives: /^setxattr: EOPNOTSUPP$/, why: 'only user.* attributes are kept; the others mean something to a kernel' }
const NLINK: Exception = { gives: /^line \d+: s\.st_nlink is 1 \(01\), not [23] \(0[23]\)$/, why: 'to count subdirectories is to list them: 1 says "not counted"' }
const SEEK = 'an object has no holes: all of it is data'

export const BUCKET_EXCEPTIONS: Readonly<Record<string, Exception>> = {
  // data.c
  'a file with a hole reads as zeros there and takes little space': { gives: /^line \d+: not true: fstat_of\(fd\)\.st_blocks \* 512 < MIB$/, why: 'the zeros of a hole are sent' },
  'truncate to far beyond 4 GiB makes a sparse file': { gives: /^needs sparse$/, why: 'gigabytes of zeros would be sent, which takes minutes' },
  'fallocate with KEEP_SIZE keeps the size and takes blocks': { gives: /^fallocate\(fd, FALLOC_FL_KEEP_SIZE, 0, MIB\): EOPNOTSUPP$/, why: 'no room can be set aside in a bucket' },
  'SEEK_DATA and SEEK_HOLE find data and holes': { gives: /^line \d+: not true: data > 0 && data <= MIB$/, why: SEEK },
  'SEEK_DATA and SEEK_HOLE beyond the end are ENXIO; SEEK_DATA in a last hole too': { gives: /^line \d+: lseek\(fd, 512 \* KIB, SEEK_DATA\) gave 524288, not ENXIO$/, why: SEEK },
  'O_TMPFILE makes a file without a name that linkat gives one': TMPFILE,
  'O_TMPFILE with O_EXCL cannot be linked': TMPFILE,
  // links.c
  'a hard link shares inode, content and mode, and counts in nlink': LINK,
  'a write through one hard link is read through another': LINK,
  'link without AT_SYMLINK_FOLLOW links the symlink itself': LINK,
  '100 hard links to one file count and can be removed': LINK,
  'rename of a file to itself or to its own hard link does nothing': LINK,
  'RENAME2 with EXCHANGE swaps two files': EXCHANGE,
  'RENAME2 with EXCHANGE swaps a file and a directory': EXCHANGE,
  'RENAME2 with WHITEOUT leaves a character device 0:0 behind': { gives: /^renameat2: EINVAL$/, why: 'no provider does the two as one step' },
  // meta.c
  "making, renaming and removing a name moves the directory's mtime": {
    gives: /^line \d+: not true: lstat_of\("d"\)\.st_mtim\.tv_sec > 1000$/, why: 'a directory is a marker object or none, which changes of names do not touch',
  },
  "link and unlink move the file's ctime": LINK,
  'statx gives a birth time near now, where kernel and host have it': { gives: /^no birth time in the reply$/, why: 'providers say when a version was made, not the file' },
  'FS_IOC_GETFLAGS and FS_IOC_SETFLAGS round-trip NODUMP': FLAGS,
  'FS_IOC_SETFLAGS IMMUTABLE forbids writing, and can be taken back': FLAGS,
  'FS_IOC_GETFLAGS works on a directory': FLAGS,
  'FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR round-trip': FLAGS,
  // names.c, permissions.c, together.c
  'mkdir makes an empty directory with two links': NLINK,
  'a subdirectory adds a link to its parent and takes it away again': NLINK,
  'a supplementary group makes files, directories and links in a directory of mode 0770': LINK,
  'while two names are exchanged again and again, both always exist for 3 readers': EXCHANGE,
  // xattr.c
  'a value of 2,000 bytes is kept': { gives: /^line \d+: setxattr\("f", "user\.large", large, 2000, 0\): ENOSPC$/, why: 'S3 keeps 2 KB of metadata, names and all' },
  'an attribute survives rename and is shared by hard links': LINK,
  'a write by an ordinary user removes security.capability': XATTR,
  'trusted attributes are for root only': XATTR,
  'an access ACL lets a named user in and others not': ACL,
  "chmod changes an ACL's mask": ACL,
  'a default ACL is inherited by files and directories, and the umask does not count': ACL,
  'removing the access ACL leaves the mode bits': ACL,
}

/** Lines that may differ on a share. Each has the sentence of docs/SEMANTICS.md that says so; one that differs nowhere is as wrong as one that is missing. */
import type { Difference } from './recordings.js';
import { isBucket, isDirect, isOn, isWriteback, mapsNothing, type ShareKind } from './shares.js';

export interface Allowed {
  /** In "file: name" of the recording. */
  readonly recording: RegExp;
  /** The line on the share. */
  readonly got: RegExp;
  readonly where: (share: ShareKind) => boolean;
  /** A part of SEMANTICS, spaces as they come. */
  readonly sentence: string;
}

const everywhere = (): boolean => true;
const isDirectory = (share: ShareKind): boolean => !isBucket(share);
const onExt4 = (share: ShareKind): boolean => isBucket(share) || isOn('ext4')(share);
const isFarther = (share: ShareKind): boolean => isOn('xfs')(share) || isOn('tmpfs')(share);

/** Refused by the guest's kernel, or seen otherwise by it. */
const GUEST: readonly Allowed[] = [
  {
    recording: /far offsets/, got: /^at \d+: lseek\(fd, at, [012]\) = \d+$/, where: onExt4,
    sentence: 'lseek goes to any offset, also behind the largest that a file of the host can have',
  },
  {
    recording: /fallocate in every mode/, got: /^fallocate\((COLLAPSE_RANGE|INSERT_RANGE|UNSHARE_RANGE), .* = EOPNOTSUPP$|^f: 65536 bytes, sum 4079d5c5/, where: everywhere,
    sentence: 'fallocate with COLLAPSE_RANGE, INSERT_RANGE or UNSHARE_RANGE is EOPNOTSUPP',
  },
  { recording: /copies between files/, got: /^ioctls: ioctl\(clone, .* = EOPNOTSUPP$/, where: isOn('xfs'), sentence: 'as reflinks are (FICLONE' },
  { recording: /mmap: descriptors/, got: /^MAP_SHARED_VALIDATE\|MAP_SYNC of .*: EOPNOTSUPP$/, where: everywhere, sentence: 'Mappings go through the guest\'s page cache (there is no DAX)' },
  {
    recording: /mmap: descriptors/, got: /^MAP_SHARED.*: ENODEV$|^a far offset: ENODEV$/, where: mapsNothing,
    sentence: 'With `never` and `metadata` a shared mapping is refused by the guest (ENODEV) unless `--allow-mmap`',
  },
  { recording: /statx, statfs/, got: /^pathconf: .* FILESIZEBITS 32$/, where: everywhere, sentence: 'pathconf(3) knows no more of FUSE than that it may be 32 bits' },
  { recording: /watches, polls/, got: /^polls: epoll_ctl\(.* = 0$/, where: everywhere, sentence: 'epoll takes its files, which are always ready' },
  { recording: /extended attributes/, got: /^attributes of f: .*trusted\.t/, where: isDirectory, sentence: 'The names of `trusted.*` are listed to every user' },
];

/** Of a directory. */
const DIRECTORY: readonly Allowed[] = [
  { recording: /inode flags/, got: /^APPEND: fcntl\(append, 4, 0\) = 0$/, where: (share) => isDirectory(share) && !isWriteback(share), sentence: 'the guest\'s kernel does not know of it: fcntl clears O_APPEND' },
  { recording: /inode flags/, got: /^other ioctls: .* = ENOTTY$/, where: isDirectory, sentence: 'all others are ENOTTY' },
  {
    recording: /blocks that are not aligned/, got: /^direct: p(read|write)\(.*\) = \d+$|^fstat: .* size 4196/, where: (share) => !isDirect(share),
    sentence: 'O_DIRECT of a guest program always bypasses the guest\'s cache; the host\'s too only with `--allow-direct-io`',
  },
  {
    recording: /blocks that are not aligned/, got: /^direct: p(read|write)\(fd, page \+ 1, 4096, 0\) = 4096$/, where: isDirect,
    sentence: 'whether its memory is aligned as the host wants it is the guest\'s kernel\'s business',
  },
  { recording: /RWF_NOAPPEND/, got: /^f: 1[34] bytes, .* "0123456789abc!?"$/, where: (share) => isDirectory(share) && !isWriteback(share), sentence: 'FUSE does not tell of RWF_NOAPPEND (Linux 6.9): with O_APPEND such a write appends' },
  {
    recording: /far offsets/, got: /^at (9\d{15}|\d{17,}): p(write|read)\(.*\) = (EFBIG|0)$|^at (9\d{15}|\d{17,}): lseek\(fd, [01], 2\) = [01]$|^fstat: .* size 0 /, where: isFarther,
    sentence: '| file sizes and offsets | 2^53 − 1 | EFBIG',
  },
  { recording: /far sizes/, got: /^to (9\d{15}|\d{17,}): .* = EFBIG$/, where: isFarther, sentence: '| file sizes and offsets | 2^53 − 1 | EFBIG' },
  { recording: /fallocate in every mode/, got: /, 0, 9223372036854775807\) = EFBIG$/, where: isFarther, sentence: '| file sizes and offsets | 2^53 − 1 | EFBIG' },
  { recording: /leases/, got: /^others: fcntl\(writer, 103[34].* = EINVAL$/, where: isOn('tmpfs'), sentence: 'What only one kind of the host\'s file systems has, as tmpfs its seals, is not there' },
  { recording: /limit of the size/, got: /^fallocate\(fd, FALLOC_FL_KEEP_SIZE, 0, 20000\) = 0$/, where: isOn('tmpfs'), sentence: 'nor are its peculiar errnos' },
];

const WRITEBACK: readonly Allowed[] = [
  { recording: /times: before 1970/, got: /^times of f: /, where: isWriteback, sentence: 'A time is what the guest has set, also where the host\'s file system cuts it' },
  { recording: /which times/, got: /^truncate\("f", 5\) = 0 moves {2}of f$/, where: isWriteback, sentence: 'With `--writeback` the guest collects writes and places appends and mtime itself' },
  {
    recording: /inode flags/, got: /^APPEND: .* = (-1|EBADF|EPERM)$|^f: 10 bytes, sum f9808ff2/, where: isWriteback,
    sentence: 'with `--writeback` opening it for writing is EPERM',
  },
  {
    recording: /far offsets/, got: /^at \d{14,}: |^fstat: .* size \d{14,} /, where: isWriteback,
    sentence: 'An error of a write (ENOSPC, EFBIG) comes when it is written back: with fsync, close or syncfs',
  },
  { recording: /wrong kind/, got: /: syncfs\(fd\) = EFBIG$/, where: isWriteback, sentence: 'An error of a write (ENOSPC, EFBIG) comes when it is written back: with fsync, close or syncfs' },
  { recording: /holes: where|not every/, got: /^(at \d+ KiB|holes): lseek|^lseek/, where: isWriteback, sentence: 'SEEK_DATA and SEEK_HOLE take all for data' },
];

const BUCKET: readonly Allowed[] = [
  { recording: /times: before 1970/, got: /^times of f: /, where: isBucket, sentence: 'Times are kept to the nanosecond, of the years 1 to 9999' },
  { recording: /which times/, got: /moves {2}of d$/, where: isBucket, sentence: 'making, renaming and removing names does not move them' },
  { recording: /owners/, got: /^f: file 2767 /, where: isBucket, sentence: 'itself clears set-id bits (set-group-id where the group may execute)' },
  { recording: /statx, statfs/, got: /no birth time$/, where: isBucket, sentence: '| hard links, sparse blocks, birth time,' },
  { recording: /that is removed while it is open/, got: /^in it: .* = (ENOENT|EOPNOTSUPP)$|^fstat: directory 0755 /, where: isBucket, sentence: '| a directory that is removed | attributes of who is in it can be changed | they cannot (ENOENT)' },
  { recording: /links a directory has|not every/, got: /^nlink not counted$|^a directory of nothing has 1 links$/, where: isBucket, sentence: 'none: link count 1' },
  { recording: /far sizes|limit of the size|in every mode|wrong kind|not every/, got: /fallocate\((KEEP_SIZE|fd, (0x01|FALLOC_FL_KEEP_SIZE)), .* = EOPNOTSUPP$/, where: isBucket, sentence: 'No space is reserved, so KEEP_SIZE alone is EOPNOTSUPP' },
  { recording: /far sizes/, got: /fallocate\(fd, 0x02 \| 0x01, size, 100\) = 0$/, where: isBucket, sentence: 'punched holes and zeroed ranges' },
  {
    recording: /extended attributes/, got: /^a value of 2000: (setxattr.* = ENOSPC|getxattr.* = 1000)$/, where: ({ store }) => store === 's3',
    sentence: '| user.* attributes | `--xattr` | metadata; beyond 2 KiB in all ENOSPC',
  },
  { recording: /what readdir says/, got: /^types: .* file 0 /, where: (share) => share.options.includes('--posix-metadata=lazy'), sentence: 'a listing then tells no types but directories' },
  { recording: /names of every/, got: /^so named: .* = (EINVAL|ENOENT)$|^names in \.: \d+/, where: isBucket, sentence: 'A guest cannot give a file a name with `%~` that no key leads to (EINVAL)' },
  { recording: /flags that do not go/, got: /^rename\(file, missing, NOREPLACE\|WHITEOUT\) = EINVAL$|^names in \.: 9 /, where: isBucket, sentence: '| RENAME_EXCHANGE, WHITEOUT | the host\'s | EINVAL' },
  { recording: /record-open.c: open: /, got: /O_TMPFILE\) = EOPNOTSUPP$/, where: isBucket, sentence: '| O_TMPFILE, copy_file_range on the host | yes | EOPNOTSUPP' },
  { recording: /not every/, got: /^links: .* = EPERM$/, where: isBucket, sentence: '| link | yes | EPERM' },
  { recording: /not every/, got: /^files without a name: .* = EOPNOTSUPP$/, where: isBucket, sentence: '| O_TMPFILE, copy_file_range on the host | yes | EOPNOTSUPP' },
  { recording: /not every/, got: /^renames: .* = EINVAL$/, where: isBucket, sentence: '| RENAME_EXCHANGE, WHITEOUT | the host\'s | EINVAL' },
  { recording: /not every/, got: /^flags: .* = ENOTTY$/, where: isBucket, sentence: 'all others are ENOTTY' },
  { recording: /not every/, got: /^attributes: .* = (EOPNOTSUPP|ENODATA)$/, where: isBucket, sentence: '| other attributes, ACLs | by option | EOPNOTSUPP' },
  { recording: /not every/, got: /^holes: lseek/, where: isBucket, sentence: '| SEEK_HOLE, SEEK_DATA | the host\'s | one hole, at the end' },
];

export const ALLOWED: readonly Allowed[] = [...GUEST, ...DIRECTORY, ...WRITEBACK, ...BUCKET];

export const isAllowed = (allowed: Allowed, share: ShareKind, { recording, got }: Difference): boolean =>
  allowed.where(share) && allowed.recording.test(recording) && allowed.got.test(got);

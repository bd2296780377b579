// Attributes: times, owners, modes, statx, statfs, extended attributes, inode flags.
#include "record.h"
#include <linux/fs.h>
#include <sys/statvfs.h>

static void show_times(const char *path) {
	struct stat s;
	if (lstat(path, &s) < 0) line("times of %s: %s", path, strerrorname_np(errno));
	else line("times of %s: %lld.%09ld %lld.%09ld", path, (long long)s.st_atim.tv_sec, s.st_atim.tv_nsec, (long long)s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
}
RECORDING("times: before 1970, far from now, odd nanoseconds") {
	make("f", "x"), mkdir("d", 0755), symlink("f", "l"), mkfifo("p", 0644);
	static const long long seconds[] = {0, 1, -1, 1LL << 31, (1LL << 31) - 1, -(1LL << 31), -(1LL << 31) - 1, 1LL << 32, 1LL << 33, 1LL << 34, 15032385535, 15032385536, 1LL << 40, (1LL << 53) + 1, LLONG_MAX, LLONG_MIN};
	static const long nanoseconds[] = {0, 1, 999999999, 1000000000, -1, UTIME_OMIT};
	for (size_t i = 0; i < sizeof seconds / sizeof *seconds; i++) {
		struct timespec times[2] = {{seconds[i], 123456789}, {seconds[i], 987654321}};
		line("utimensat(%lld) = %s", seconds[i], R(utimensat(AT_FDCWD, "f", times, 0)));
		show_times("f");
	}
	for (size_t i = 0; i < sizeof nanoseconds / sizeof *nanoseconds; i++) {
		struct timespec times[2] = {{100, nanoseconds[i]}, {200, 5}};
		static const char *const all[] = {"f", "d", "l", "p"};
		for (int k = 0; k < 4; k++) {
			line("utimensat(%s, %ld ns) = %s", all[k], nanoseconds[i], R(utimensat(AT_FDCWD, all[k], times, AT_SYMLINK_NOFOLLOW)));
			show_times(all[k]);
		}
	}
	T(utimensat(AT_FDCWD, "missing", NULL, 0));
	T(utimensat(AT_FDCWD, "f", (struct timespec[]){{0, UTIME_OMIT}, {0, UTIME_OMIT}}, 0x4000));
	chmod("f", 0666), chown("f", 1001, 1001);
	CHILD {
		become(1000, 1000, -1);
		T(utimensat(AT_FDCWD, "f", (struct timespec[]){{5, 0}, {5, 0}}, 0));
		T(utimensat(AT_FDCWD, "f", (struct timespec[]){{0, UTIME_NOW}, {0, UTIME_NOW}}, 0));
		T(utimensat(AT_FDCWD, "f", (struct timespec[]){{0, UTIME_NOW}, {0, UTIME_OMIT}}, 0));
		T(utimensat(AT_FDCWD, "f", NULL, 0));
	}
}

static struct timespec mtime_of(const char *path) { return lstat_of(path).st_mtim; }
static struct timespec ctime_of(const char *path) { return lstat_of(path).st_ctim; }
static bool later(struct timespec a, struct timespec b) { return a.tv_sec > b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec > b.tv_nsec); }
// Which times a call moves.
#define MOVES(path, call)                                                                                          \
	do {                                                                                                           \
		utimensat(AT_FDCWD, path, (struct timespec[]){{1000, 0}, {1000, 0}}, AT_SYMLINK_NOFOLLOW);                 \
		struct timespec c_ = ctime_of(path);                                                                       \
		usleep(12000);                                                                                             \
		const char *r_ = R(call);                                                                                  \
		line("%s = %s moves %s%s of %s", #call, r_, mtime_of(path).tv_sec != 1000 ? "mtime " : "", later(ctime_of(path), c_) ? "ctime" : "", path); \
	} while (0)
RECORDING("which times a call moves") {
	make("f", "0123456789"), mkdir("d", 0755);
	int fd = FD(open("f", O_RDWR));
	MOVES("f", pwrite(fd, "x", 1, 0));
	MOVES("f", pwrite(fd, "", 0, 0));
	MOVES("f", ftruncate(fd, 5));
	MOVES("f", ftruncate(fd, 5));
	MOVES("f", truncate("f", 5));
	MOVES("f", truncate("f", 6));
	MOVES("f", fallocate(fd, 0, 0, 100));
	MOVES("f", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 10));
	MOVES("f", chmod("f", 0600));
	MOVES("f", chown("f", 1, 1));
	if (has_feature("links")) {
		MOVES("f", link("f", "g"));
		MOVES("f", unlink("g"));
	}
	MOVES("f", rename("f", "f"));
	MOVES("f", setxattr("f", "user.a", "v", 1, 0));
	MOVES("f", open("f", O_RDONLY | O_TRUNC) < 0 ? -1 : 0);
	MOVES("f", open("f", O_RDWR | O_CREAT, 0644) < 0 ? -1 : 0);
	MOVES("f", fsync(fd));
	MOVES("f", copy_file_range(fd, &(off_t){0}, fd, &(off_t){200}, 50, 0));
	MOVES("d", make("d/a", "x"));
	MOVES("d", rename("d/a", "d/b"));
	MOVES("d", mkdir("d/e", 0755));
	MOVES("d", rmdir("d/e"));
	MOVES("d", symlink("x", "d/s"));
	MOVES("d", chmod("d/b", 0600));
	MOVES("d", truncate("d/b", 0));
}
RECORDING("owners: far ids, -1, and by whom") {
	make("f", "x"), symlink("f", "l"), mkdir("d", 0755);
	static const unsigned ids[] = {0, 1, 65534, 65535, 65536, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
	for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
		EACH(text("%u", ids[i]), chown("f", ids[i], ids[i]), lchown("l", ids[i], 3), chown("d", 4, ids[i]));
		show_stat("f"), show_stat("l"), show_stat("d");
	}
	static const mode_t bits[] = {0755, 04755, 02755, 06755, 02745, 01755};
	for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
		chown("f", 1000, 1000), chmod("f", bits[i]);
		T(chown("f", -1, -1));
		show_stat("f");
		CHILD {
			become(1000, 1000, 2000, -1);
			EACH(text("%04o, its owner", bits[i]), chown("f", -1, 2000), chown("f", 1000, 1000), chown("f", 1001, -1), chown("f", -1, 3000), chown("f", -1, -1));
		}
		show_stat("f");
		chmod("f", bits[i]);
		T(chown("f", 7, 8));
		show_stat("f");
		chmod("f", bits[i]), chmod("d", bits[i]);
		T(chown("d", 1000, 1000));
		show_stat("d");
		chown("f", 1000, 1000), chmod("f", bits[i] | 0666);
		CHILD {
			become(1001, 1001, -1);
			int fd = FD(open("f", O_RDWR));
			T(pwrite(fd, "y", 1, 0));
		}
		show_stat("f");
		chmod("f", bits[i] | 0666);
		CHILD {
			become(1001, 1001, -1);
			T(truncate("f", 0));
		}
		show_stat("f");
	}
}
RECORDING("modes: every bit, umask, set-group-id directories") {
	make("f", "x"), mkdir("d", 0755), symlink("f", "l");
	for (int bit = 0; bit < 16; bit++) {
		EACH(text("%o", 1 << bit), chmod("f", 1 << bit), chmod("d", 1 << bit));
		show_stat("f"), show_stat("d");
	}
	T(fchmodat(AT_FDCWD, "l", 0600, 0));
	T(fchmodat(AT_FDCWD, "l", 0600, AT_SYMLINK_NOFOLLOW));
	T(chmod("missing", 0600));
	chown("d", 0, 2000), chmod("d", 02777);
	umask(027);
	T(mkdir("d/dir", 07777));
	T(mknod("d/node", S_IFREG | 07777, 0));
	T(close(open("d/file", O_CREAT | O_WRONLY, 07777)));
	T(symlink("t", "d/link"));
	CHILD {
		become(1000, 1000, -1);
		T(mkdir("d/users", 0777));
		T(close(open("d/users-file", O_CREAT | O_WRONLY, 06777)));
		T(chmod("d/users-file", 02777));
	}
	static const char *const all[] = {"d/dir", "d/node", "d/file", "d/link", "d/users", "d/users-file"};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) show_stat(all[i]);
	T(mknod("weird", 0170000 | 0644, 0));
	T(mknod("zero", 0644, 0));
	T(mknod("directory", S_IFDIR | 0755, 0));
	T(mknod("link", S_IFLNK | 0777, 0));
	show_stat("zero");
	CHILD {
		become(1000, 1000, -1);
		T(mknod("d/device", S_IFCHR | 0666, makedev(1, 3)));
		T(mknod("d/users-fifo", S_IFIFO | 0666, 0));
		T(mknod("d/white", S_IFCHR, 0));
	}
	show_names("d");
}
RECORDING("access: as other users, with flags") {
	make("f", "x"), chmod("f", 0640), chown("f", 1000, 2000);
	mkdir("closed", 0700), make("closed/f", "x");
	static const uid_t uids[] = {0, 1000, 1001};
	for (int u = 0; u < 3; u++) CHILD {
		become(uids[u], 2000, -1);
		EACH(text("user %u", uids[u]), access("f", F_OK), access("f", R_OK), access("f", W_OK), access("f", X_OK), access("f", R_OK | W_OK), access("closed/f", F_OK), access("closed", X_OK), access("f", 8));
		EACH(text("user %u", uids[u]), faccessat(AT_FDCWD, "f", R_OK, AT_EACCESS), faccessat(AT_FDCWD, "missing", F_OK, 0), faccessat(AT_FDCWD, "f", F_OK, 0x8000));
	}
}
RECORDING("statx, statfs and what they leave out") {
	make("f", "0123456789"), mkdir("d", 0755), symlink("f", "l");
	struct statx x;
	int fd = FD(open("f", O_RDWR));
	EACH("statx", statx(AT_FDCWD, "f", 0, STATX_BASIC_STATS, &x), statx(AT_FDCWD, "", 0, STATX_ALL, &x), statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &x), statx(AT_FDCWD, "l", AT_SYMLINK_NOFOLLOW, STATX_ALL, &x),
		statx(AT_FDCWD, "f", AT_STATX_FORCE_SYNC, STATX_ALL, &x), statx(AT_FDCWD, "f", AT_STATX_DONT_SYNC, STATX_ALL, &x), statx(AT_FDCWD, "f", AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC, STATX_ALL, &x),
		statx(AT_FDCWD, "f", 0, 0x80000000, &x), statx(AT_FDCWD, "f", 0, 0, &x));
	T(statx(AT_FDCWD, "f", 0, STATX_ALL, &x));
	line("mode %o nlink %u size %llu, asked for all: %s, %s", x.stx_mode, x.stx_nlink, x.stx_size, (x.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS ? "basic" : "less than basic", x.stx_mask & STATX_BTIME ? "birth time" : "no birth time");
	struct statfs s;
	struct statvfs v;
	EACH("statfs", statfs("f", &s), fstatfs(fd, &s), statfs("missing", &s), statvfs("d", &v));
	line("names up to %ld bytes, free %s, files %s", (long)s.f_namelen, s.f_bavail <= s.f_bfree && s.f_bfree <= s.f_blocks ? "makes sense" : "makes none", s.f_ffree <= s.f_files ? "make sense" : "make none");
	line("pathconf: NAME_MAX %ld, PATH_MAX %ld, LINK_MAX %s, PIPE_BUF %ld, FILESIZEBITS %ld", pathconf("f", _PC_NAME_MAX), pathconf("f", _PC_PATH_MAX), pathconf("f", _PC_LINK_MAX) > 0 ? "some" : "none", pathconf("d", _PC_PIPE_BUF), pathconf("f", _PC_FILESIZEBITS));
}

static void list_xattrs(const char *path) {
	char names[1024], *sorted[64], out[1024] = "";
	errno = 0;
	ssize_t length = llistxattr(path, names, sizeof names);
	if (length < 0) {
		line("attributes of %s: %s", path, strerrorname_np(errno));
		return;
	}
	size_t count = 0;
	for (char *at = names; at < names + length && count < 64; at += strlen(at) + 1) {
		size_t i = count++;
		for (; i > 0 && strcmp(sorted[i - 1], at) > 0; i--) sorted[i] = sorted[i - 1];
		sorted[i] = at;
	}
	for (size_t i = 0; i < count; i++) {
		strncat(out, " ", sizeof out - strlen(out) - 1);
		strncat(out, sorted[i], sizeof out - strlen(out) - 1);
	}
	line("attributes of %s:%s", path, out);
}
static void set_and_remove(const char *name, char *value) {
	EACH(text("\"%s\"", name), setxattr("f", name, "one", 3, 0), getxattr("f", name, value + 69000, 100), setxattr("f", name, "two", 3, XATTR_CREATE), setxattr("f", name, "three", 5, XATTR_REPLACE), removexattr("f", name), setxattr("f", name, "four", 4, XATTR_REPLACE),
		removexattr("f", name), getxattr("f", name, NULL, 0));
}
RECORDING("extended attributes: names, sizes, flags, kinds of files") {
	make("f", "x"), mkdir("d", 0755), symlink("f", "l"), mkfifo("p", 0644);
	static char value[70000], name[300];
	memset(value, 'v', sizeof value);
	static const char *const names[] = {"user.", "user.a", "user.a.b.c", "user.\303\244", "user. ", "user.virtiofsd.x"};
	static const char *const others[] = {"trusted.t", "trusted.", "security.s", "security.", "system.posix_acl_access", "system.posix_acl_default", "trusted.overlay.opaque"};
	static const char *const unknown[] = {"user", "", "a", "system.s", "User.a", "btrfs.compression", "overlay.opaque"};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) set_and_remove(names[i], value);
	for (size_t i = 0; i < sizeof others / sizeof *others && has_feature("xattrs"); i++) set_and_remove(others[i], value);
	for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) EACH(text("\"%s\"", unknown[i]), setxattr("f", unknown[i], "one", 3, 0), removexattr("f", unknown[i]));
	static const size_t sizes[] = {0, 1, 100, 1000, 2000};
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
		EACH(text("a value of %zu", sizes[i]), setxattr("f", "user.v", value, sizes[i], 0), getxattr("f", "user.v", value, sizeof value), getxattr("f", "user.v", value, 0), getxattr("f", "user.v", value, 50));
	EACH("a value that is too long", setxattr("f", "user.v", value, 65537, 0));
	for (int length = 254; length <= 257; length++) {
		memset(name, 'n', sizeof name);
		memcpy(name, "user.", 5);
		name[length] = '\0';
		EACH(text("a name of %d", length), setxattr("f", name, "v", 1, 0), getxattr("f", name, value, 10), removexattr("f", name));
	}
	EACH("flags", setxattr("f", "user.f", "v", 1, 3), setxattr("f", "user.f", "v", 1, 4), listxattr("f", value, 3), listxattr("f", NULL, 0) > 0 ? 1 : 0, llistxattr("l", value, 100) > 0 ? 1 : 0);
	static const char *const files[] = {"f", "d", "l", "p"};
	for (int i = 0; i < 4; i++) {
		EACH(files[i], lsetxattr(files[i], "user.u", "v", 1, 0));
		if (has_feature("xattrs")) EACH(files[i], lsetxattr(files[i], "trusted.t", "v", 1, 0), lsetxattr(files[i], "security.s", "v", 1, 0));
		list_xattrs(files[i]);
	}
	chmod("f", 0644), chmod("d", 01777);
	CHILD {
		become(1000, 1000, -1);
		static const char *const theirs[] = {"f", "d"};
		for (int i = 0; i < 2; i++)
			EACH(theirs[i], setxattr(theirs[i], "user.u", "v", 1, 0), getxattr(theirs[i], "user.u", value, 10), removexattr(theirs[i], "user.u"));
		for (int i = 0; i < 2 && has_feature("xattrs"); i++)
			EACH(theirs[i], setxattr(theirs[i], "trusted.t", "v", 1, 0), getxattr(theirs[i], "trusted.t", value, 10), setxattr(theirs[i], "security.s", "v", 1, 0), getxattr(theirs[i], "security.s", value, 10));
		list_xattrs("f");
	}
	EACH("a missing file", setxattr("missing", "user.a", "v", 1, 0), getxattr("missing", "user.a", value, 1), listxattr("missing", value, 1), removexattr("missing", "user.a"));
	T(rename("f", "g"));
	list_xattrs("g");
	if (!has_feature("links")) return;
	T(link("g", "h"));
	T(setxattr("h", "user.by-h", "v", 1, 0));
	list_xattrs("g");
}
RECORDING_NEEDS("flags", "inode flags: append-only, immutable and others") {
	make("f", "0123456789"), mkdir("d", 0755), make("d/in", "x");
	int fd = FD(open("f", O_RDWR)), dir = FD(open("d", O_RDONLY)), flags = 0;
	T(ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0 ? -1 : 0);
	int plain = flags;
	static const struct {
		const char *name;
		int flag;
	} all[] = {{"APPEND", FS_APPEND_FL}, {"IMMUTABLE", FS_IMMUTABLE_FL}, {"NODUMP", FS_NODUMP_FL}, {"NOATIME", FS_NOATIME_FL}};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		flags = plain | all[i].flag;
		line("%s: set %s", all[i].name, R(ioctl(fd, FS_IOC_SETFLAGS, &flags)));
		EACH(all[i].name, open("f", O_WRONLY) < 0 ? -1 : 0, open("f", O_RDONLY) < 0 ? -1 : 0, open("f", O_RDWR | O_TRUNC) < 0 ? -1 : 0, truncate("f", 5), chmod("f", 0600), link("f", "g"), unlink("g"), rename("f", "h"), rename("h", "f"));
		int append = open("f", O_WRONLY | O_APPEND);
		EACH(all[i].name, append < 0 ? -1 : 0, write(append, "a", 1), fcntl(append, F_SETFL, 0), fallocate(append, 0, 0, 100), utimensat(AT_FDCWD, "f", NULL, 0), setxattr("f", "user.a", "v", 1, 0), unlink("f"));
		show_content("f");
		flags = plain;
		line("%s: cleared %s", all[i].name, R(ioctl(fd, FS_IOC_SETFLAGS, &flags)));
		if (access("f", F_OK) < 0) make("f", "0123456789");
	}
	flags = FS_IMMUTABLE_FL;
	if (ioctl(dir, FS_IOC_GETFLAGS, &flags) == 0) {
		flags |= FS_IMMUTABLE_FL;
		T(ioctl(dir, FS_IOC_SETFLAGS, &flags));
		EACH("an immutable directory", make("d/new", "x"), unlink("d/in"), mkdir("d/dir", 0755), rename("d/in", "out"), truncate("d/in", 0), rmdir("d"));
		flags &= ~FS_IMMUTABLE_FL;
		T(ioctl(dir, FS_IOC_SETFLAGS, &flags));
	}
	CHILD {
		become(1000, 1000, -1);
		flags = plain | FS_APPEND_FL;
		T(ioctl(open("f", O_RDONLY), FS_IOC_SETFLAGS, &flags));
		flags = plain | FS_NODUMP_FL;
		T(ioctl(open("f", O_RDONLY), FS_IOC_SETFLAGS, &flags));
	}
	EACH("other ioctls", ioctl(fd, 0x1234), ioctl(dir, 0x1234), ioctl(fd, FS_IOC_GETVERSION, &flags) < 0 ? -1 : 0);
}

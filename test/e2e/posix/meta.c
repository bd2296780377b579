// Attributes: mode, owner, set-id bits, times, statfs, statx, ioctl.
#include "facts.h"
#include <linux/fs.h>
#include <sys/statvfs.h>

static void write_byte(const char *path) {
	int fd = (int)MUST(open(path, O_WRONLY));
	EQ(MUST(pwrite(fd, "x", 1, 0)), 1);
	MUST(close(fd));
}

FACT("chmod sets all twelve bits") {
	put("f", "");
	for (mode_t mode = 0; mode <= 07777; mode += 0123) {
		MUST(chmod("f", mode));
		EQ(mode_of("f"), mode);
	}
}
FACT("fchmod is seen by lstat and keeps the type") {
	int fd = open_new("f");
	MUST(fchmod(fd, 0751));
	EQ(lstat_of("f").st_mode, S_IFREG | 0751);
}
FACT("chmod of a missing name is ENOENT") { FAILS(ENOENT, chmod("missing", 0644)); }
FACT("chmod moves ctime and leaves mtime") {
	put("f", "");
	struct stat before = lstat_of("f");
	usleep(20000);
	MUST(chmod("f", 0600));
	struct stat after = lstat_of("f");
	CHECK(after.st_ctim.tv_sec != before.st_ctim.tv_sec || after.st_ctim.tv_nsec != before.st_ctim.tv_nsec);
	EQ(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
}
FACT("the umask takes bits from files, directories, FIFOs but not from chmod") {
	umask(027);
	MUST(open("f", O_CREAT | O_WRONLY, 0777));
	MUST(mkdir("d", 0777));
	MUST(mkfifo("p", 0666));
	EQ(mode_of("f"), 0750);
	EQ(mode_of("d"), 0750);
	EQ(mode_of("p"), 0640);
	MUST(chmod("f", 0777));
	EQ(mode_of("f"), 0777);
}
FACT("the umask 0 gives every bit that was asked for") {
	umask(0);
	MUST(open("f", O_CREAT | O_WRONLY, 0666));
	MUST(mkdir("d", 01777));
	EQ(mode_of("f"), 0666);
	EQ(mode_of("d"), 01777);
}
FACT("chown sets owner and group, -1 leaves either") {
	put("f", "");
	MUST(chown("f", 1234, 5678));
	MUST(chown("f", (uid_t)-1, 99));
	EQ(lstat_of("f").st_uid, 1234);
	EQ(lstat_of("f").st_gid, 99);
	MUST(chown("f", 77, (gid_t)-1));
	EQ(lstat_of("f").st_uid, 77);
	EQ(lstat_of("f").st_gid, 99);
}
FACT("chown to ids above 2^16 keeps them") {
	put("f", "");
	MUST(chown("f", 100000, 4000000000u));
	EQ(lstat_of("f").st_uid, 100000);
	EQ(lstat_of("f").st_gid, 4000000000u);
}
FACT("fchown of an open file works") {
	int fd = open_new("f");
	MUST(fchown(fd, 11, 12));
	EQ(fstat_of(fd).st_uid, 11);
	EQ(lstat_of("f").st_gid, 12);
}
FACT("what root makes belongs to root") {
	put("f", "");
	MUST(mkdir("d", 0755));
	MUST(symlink("x", "l"));
	EQ(lstat_of("f").st_uid | lstat_of("f").st_gid, 0);
	EQ(lstat_of("d").st_uid | lstat_of("d").st_gid, 0);
	EQ(lstat_of("l").st_uid | lstat_of("l").st_gid, 0);
}
FACT("what a user makes belongs to the user and the user's group") {
	IN_CHILD {
		become(1000, 2000, 3000, -1);
		put("f", "");
		MUST(mkdir("d", 0755));
		MUST(symlink("x", "l"));
		MUST(mkfifo("p", 0644));
	}
	const char *names[] = {"f", "d", "l", "p"};
	for (int i = 0; i < 4; i++) {
		EQ(lstat_of(names[i]).st_uid, 1000);
		EQ(lstat_of(names[i]).st_gid, 2000);
	}
}
FACT("a set-group-id directory gives its group to files and directories, and its bit to directories") {
	MUST(mkdir("d", 0777));
	MUST(chown("d", 0, 4321));
	MUST(chmod("d", 02777));
	put("d/f", "");
	MUST(mkdir("d/e", 0755));
	EQ(lstat_of("d/f").st_gid, 4321);
	EQ(lstat_of("d/e").st_gid, 4321);
	EQ(mode_of("d/e"), 02755);
	CHECK(!(mode_of("d/f") & S_ISGID));
}
FACT("a user outside the group makes a file in a set-group-id directory, with its group") {
	MUST(mkdir("d", 0777));
	MUST(chown("d", 0, 4321));
	MUST(chmod("d", 02777));
	IN_CHILD {
		become(1000, 1000, -1);
		put("d/f", "");
		MUST(open("d/g", O_CREAT | O_WRONLY, 02755));
	}
	EQ(lstat_of("d/f").st_uid, 1000);
	EQ(lstat_of("d/f").st_gid, 4321);
	EQ(mode_of("d/g") & S_ISGID, 0);
}
FACT("a write by an ordinary user clears set-user-id and set-group-id") {
	put("f", "content");
	MUST(chmod("f", 06777));
	IN_CHILD {
		become(1000, 1000, -1);
		write_byte("f");
		EQ(mode_of("f"), 0777);
	}
	EQ(mode_of("f"), 0777);
}
FACT("a write by an ordinary user leaves set-group-id without group execute or clears it, never set-user-id") {
	put("f", "content");
	MUST(chmod("f", 04666));
	IN_CHILD {
		become(1000, 1000, -1);
		write_byte("f");
	}
	EQ(mode_of("f"), 0666);
}
FACT("a write by root leaves set-user-id and set-group-id") {
	put("f", "content");
	MUST(chmod("f", 06755));
	write_byte("f");
	EQ(mode_of("f"), 06755);
}
FACT("chown clears set-user-id and set-group-id of an executable file") {
	put("f", "");
	MUST(chmod("f", 06755));
	MUST(chown("f", 1000, 1000));
	EQ(mode_of("f"), 0755);
}
FACT("chown leaves the bits of a directory") {
	MUST(mkdir("d", 0755));
	MUST(chmod("d", 02755));
	MUST(chown("d", 1000, 1000));
	EQ(mode_of("d"), 02755);
}
FACT("truncate by an ordinary user clears set-user-id and set-group-id") {
	put("f", "content");
	MUST(chmod("f", 06777));
	IN_CHILD {
		become(1000, 1000, -1);
		MUST(truncate("f", 3));
	}
	EQ(mode_of("f"), 0777);
}
FACT_NEEDS("killpriv", "O_TRUNC by an ordinary user clears set-user-id and set-group-id") {
	put("f", "content");
	MUST(chmod("f", 06777));
	IN_CHILD {
		become(1000, 1000, -1);
		MUST(open("f", O_WRONLY | O_TRUNC));
	}
	EQ(mode_of("f"), 0777);
}
FACT("fallocate by an ordinary user clears set-user-id and set-group-id") {
	put("f", "content");
	MUST(chmod("f", 06777));
	IN_CHILD {
		become(1000, 1000, -1);
		MAY_LACK(fallocate((int)MUST(open("f", O_WRONLY)), 0, 0, 10000));
	}
	EQ(mode_of("f"), 0777);
}
FACT("chmod by an owner outside the file's group drops set-group-id") {
	put("f", "");
	MUST(chown("f", 1000, 2000));
	IN_CHILD {
		become(1000, 1000, -1);
		MUST(chmod("f", 02755));
	}
	EQ(mode_of("f"), 0755);
}

FACT("utimensat sets both times to the nanosecond") {
	put("f", "");
	MUST(utimensat(AT_FDCWD, "f", (struct timespec[2]){{1111111111, 123456789}, {1222222222, 987654321}}, 0));
	struct stat s = lstat_of("f");
	EQ(s.st_atim.tv_sec, 1111111111);
	EQ(s.st_atim.tv_nsec, 123456789);
	EQ(s.st_mtim.tv_sec, 1222222222);
	EQ(s.st_mtim.tv_nsec, 987654321);
}
FACT("utimensat with UTIME_OMIT leaves a time") {
	put("f", "");
	MUST(utimensat(AT_FDCWD, "f", (struct timespec[2]){{1000, 1}, {2000, 2}}, 0));
	MUST(utimensat(AT_FDCWD, "f", (struct timespec[2]){{0, UTIME_OMIT}, {3000, 3}}, 0));
	EQ(lstat_of("f").st_atim.tv_sec, 1000);
	EQ(lstat_of("f").st_mtim.tv_sec, 3000);
	MUST(utimensat(AT_FDCWD, "f", (struct timespec[2]){{4000, 4}, {0, UTIME_OMIT}}, 0));
	EQ(lstat_of("f").st_atim.tv_sec, 4000);
	EQ(lstat_of("f").st_mtim.tv_sec, 3000);
}
FACT("utimensat with UTIME_NOW and with no times gives about now") {
	put("f", "");
	const struct timespec old[2] = {{1000, 1}, {2000, 2}};
	MUST(utimensat(AT_FDCWD, "f", old, 0));
	MUST(utimensat(AT_FDCWD, "f", (struct timespec[2]){{0, UTIME_NOW}, {0, UTIME_NOW}}, 0));
	CHECK(llabs((long long)lstat_of("f").st_mtim.tv_sec - time(NULL)) < 120);
	MUST(utimensat(AT_FDCWD, "f", old, 0));
	MUST(utimensat(AT_FDCWD, "f", NULL, 0));
	CHECK(llabs((long long)lstat_of("f").st_atim.tv_sec - time(NULL)) < 120);
}
FACT("times before 1970 and after 2038 are kept") {
	put("f", "");
	MUST(utimensat(AT_FDCWD, "f", (struct timespec[2]){{-1000, 5}, {5000000000, 6}}, 0));
	EQ(lstat_of("f").st_atim.tv_sec, -1000);
	EQ(lstat_of("f").st_mtim.tv_sec, 5000000000);
}
FACT("utimensat sets a directory's times") {
	MUST(mkdir("d", 0755));
	MUST(utimensat(AT_FDCWD, "d", (struct timespec[2]){{1000, 1}, {2000, 2}}, 0));
	EQ(lstat_of("d").st_mtim.tv_sec, 2000);
}
FACT("utimensat with given times by someone else is EPERM, with UTIME_NOW and write permission allowed") {
	put("f", "");
	MUST(chmod("f", 0666));
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EPERM, utimensat(AT_FDCWD, "f", (struct timespec[2]){{1000, 1}, {2000, 2}}, 0));
		MUST(utimensat(AT_FDCWD, "f", NULL, 0));
	}
}
FACT("a write moves mtime and ctime forward") {
	put("f", "x");
	MUST(utimensat(AT_FDCWD, "f", (struct timespec[2]){{1000, 0}, {1000, 0}}, 0));
	write_byte("f");
	CHECK(lstat_of("f").st_mtim.tv_sec > 1000);
}
FACT("making, renaming and removing a name moves the directory's mtime") {
	MUST(mkdir("d", 0755));
	const struct timespec old[2] = {{1000, 0}, {1000, 0}};
	MUST(utimensat(AT_FDCWD, "d", old, 0));
	put("d/f", "");
	sleep(1);
	CHECK(lstat_of("d").st_mtim.tv_sec > 1000);
	MUST(utimensat(AT_FDCWD, "d", old, 0));
	MUST(rename("d/f", "d/g"));
	sleep(1);
	CHECK(lstat_of("d").st_mtim.tv_sec > 1000);
	MUST(utimensat(AT_FDCWD, "d", old, 0));
	MUST(unlink("d/g"));
	sleep(1);
	CHECK(lstat_of("d").st_mtim.tv_sec > 1000);
}
FACT("link and unlink move the file's ctime") {
	put("f", "");
	struct stat before = lstat_of("f");
	usleep(20000);
	MUST(link("f", "g"));
	struct stat after = lstat_of("g");
	CHECK(after.st_ctim.tv_sec != before.st_ctim.tv_sec || after.st_ctim.tv_nsec != before.st_ctim.tv_nsec);
}

FACT("statfs tells virtiofs, a block size, free space and a name limit of 255") {
	struct statfs s;
	MUST(statfs(".", &s));
	EQ(s.f_type, 0x65735546);
	CHECK(s.f_bsize >= 512);
	CHECK(s.f_blocks > 0 && s.f_bfree <= s.f_blocks && s.f_bavail <= s.f_bfree);
	EQ(s.f_namelen, 255);
}
FACT("fstatvfs on a file agrees with statvfs on its directory") {
	struct statvfs a, b;
	MUST(fstatvfs(open_new("f"), &a));
	MUST(statvfs(".", &b));
	EQ(a.f_blocks, b.f_blocks);
	EQ(a.f_frsize, b.f_frsize);
}
FACT("statx agrees with stat") {
	put("f", "12345");
	struct statx x;
	MUST(statx(AT_FDCWD, "f", 0, STATX_BASIC_STATS, &x));
	struct stat s = lstat_of("f");
	EQ(x.stx_size, 5);
	EQ(x.stx_ino, s.st_ino);
	EQ(x.stx_mode, s.st_mode);
	EQ(x.stx_nlink, 1);
	EQ(x.stx_mtime.tv_nsec, s.st_mtim.tv_nsec);
}
FACT("statx gives a birth time near now, where kernel and host have it") {
	put("f", "");
	struct statx x;
	MUST(statx(AT_FDCWD, "f", AT_STATX_FORCE_SYNC, STATX_BASIC_STATS | STATX_BTIME, &x));
	if (!(x.stx_mask & STATX_BTIME)) skip("no birth time in the reply");
	CHECK(llabs((long long)x.stx_btime.tv_sec - time(NULL)) < 120);
}
FACT("inode numbers are stable and differ between files") {
	put("a", "");
	put("b", "");
	ino_t a = lstat_of("a").st_ino, b = lstat_of("b").st_ino;
	CHECK(a != b);
	MUST(rename("a", "c"));
	EQ(lstat_of("c").st_ino, a);
}
FACT("all files of the share have one device number") {
	put("f", "");
	MUST(mkdir("d", 0755));
	EQ(lstat_of("f").st_dev, lstat_of(".").st_dev);
	EQ(lstat_of("d").st_dev, lstat_of(".").st_dev);
}
// With writes collected in the guest, its kernel keeps the block count that it was told before for as long as attributes last.
FACT_NEEDS("writethrough", "st_blocks grows with the data") {
	int fd = open_new("f");
	static char block[65536];
	memset(block, 1, sizeof block);
	EQ(MUST(write(fd, block, sizeof block)), sizeof block);
	MUST(fsync(fd));
	CHECK(fstat_of(fd).st_blocks * 512 >= 65536);
}

FACT_NEEDS("ioctl", "FS_IOC_GETFLAGS and FS_IOC_SETFLAGS round-trip NODUMP") {
	int fd = open_new("f");
	int flags = 0;
	MAY_LACK(ioctl(fd, FS_IOC_GETFLAGS, &flags));
	flags |= FS_NODUMP_FL;
	MAY_LACK(ioctl(fd, FS_IOC_SETFLAGS, &flags));
	int again = 0;
	MUST(ioctl(fd, FS_IOC_GETFLAGS, &again));
	CHECK(again & FS_NODUMP_FL);
}
FACT_NEEDS("ioctl", "FS_IOC_SETFLAGS IMMUTABLE forbids writing, and can be taken back") {
	int fd = open_new("f");
	int flags = 0;
	MAY_LACK(ioctl(fd, FS_IOC_GETFLAGS, &flags));
	int immutable = flags | FS_IMMUTABLE_FL;
	errno = 0;
	if (ioctl(fd, FS_IOC_SETFLAGS, &immutable) < 0) skip("FS_IOC_SETFLAGS: %s", strerrorname_np(errno));
	int opened = open("f", O_WRONLY), code = errno;
	MUST(ioctl(fd, FS_IOC_SETFLAGS, &flags));
	CHECK(opened < 0 && code == EPERM);
	MUST(open("f", O_WRONLY));
}
FACT_NEEDS("ioctl", "FS_IOC_GETFLAGS works on a directory") {
	int flags = 0;
	MAY_LACK(ioctl((int)MUST(open(".", O_RDONLY | O_DIRECTORY)), FS_IOC_GETFLAGS, &flags));
}
FACT_NEEDS("ioctl", "FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR round-trip") {
	int fd = open_new("f");
	struct fsxattr attributes;
	MAY_LACK(ioctl(fd, FS_IOC_FSGETXATTR, &attributes));
	attributes.fsx_xflags |= FS_XFLAG_NODUMP;
	MAY_LACK(ioctl(fd, FS_IOC_FSSETXATTR, &attributes));
	MUST(ioctl(fd, FS_IOC_FSGETXATTR, &attributes));
	CHECK(attributes.fsx_xflags & FS_XFLAG_NODUMP);
}
FACT("an unknown ioctl is ENOTTY") { FAILS(ENOTTY, ioctl(open_new("f"), _IOR('Z', 77, int), &(int){0})); }

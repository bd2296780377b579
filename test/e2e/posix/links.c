// Hard links, symbolic links, rename, device nodes.
#include "facts.h"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE 2
#endif
#ifndef RENAME_WHITEOUT
#define RENAME_WHITEOUT 4
#endif

FACT("a hard link shares inode, content and mode, and counts in nlink") {
	put("a", "shared");
	MUST(link("a", "b"));
	EQ(lstat_of("a").st_ino, lstat_of("b").st_ino);
	EQ(lstat_of("b").st_nlink, 2);
	EQ(lstat_of("a").st_nlink, 2);
	holds("b", "shared");
	MUST(chmod("b", 0600));
	EQ(mode_of("a"), 0600);
	MUST(unlink("a"));
	EQ(lstat_of("b").st_nlink, 1);
	holds("b", "shared");
}
FACT("a write through one hard link is read through another") {
	put("a", "old");
	MUST(link("a", "b"));
	int fd = (int)MUST(open("a", O_WRONLY | O_TRUNC));
	EQ(MUST(write(fd, "newer", 5)), 5);
	MUST(close(fd));
	holds("b", "newer");
}
FACT("link onto an existing name is EEXIST") {
	put("a", "");
	put("b", "");
	FAILS(EEXIST, link("a", "b"));
}
FACT("link of a directory is EPERM, of a missing name ENOENT") {
	MUST(mkdir("d", 0755));
	FAILS(EPERM, link("d", "e"));
	FAILS(ENOENT, link("missing", "e"));
}
FACT("link without AT_SYMLINK_FOLLOW links the symlink itself") {
	put("f", "x");
	MUST(symlink("f", "l"));
	MUST(linkat(AT_FDCWD, "l", AT_FDCWD, "m", 0));
	CHECK(S_ISLNK(lstat_of("m").st_mode));
	MUST(linkat(AT_FDCWD, "l", AT_FDCWD, "n", AT_SYMLINK_FOLLOW));
	CHECK(S_ISREG(lstat_of("n").st_mode));
}
FACT("100 hard links to one file count and can be removed") {
	put("f", "x");
	char name[16];
	for (int i = 0; i < 100; i++) {
		snprintf(name, sizeof name, "l%d", i);
		MUST(link("f", name));
	}
	EQ(lstat_of("f").st_nlink, 101);
	for (int i = 0; i < 100; i++) {
		snprintf(name, sizeof name, "l%d", i);
		MUST(unlink(name));
	}
	EQ(lstat_of("f").st_nlink, 1);
}

FACT("readlink gives the target as it was written") {
	char buffer[64];
	MUST(symlink("../some where/../x", "l"));
	ssize_t length = MUST(readlink("l", buffer, sizeof buffer));
	EQ(length, 18);
	CHECK(memcmp(buffer, "../some where/../x", 18) == 0);
	EQ(lstat_of("l").st_size, 18);
	EQ(mode_of("l"), 0777);
}
FACT("a symlink target of 4,095 bytes is kept whole") {
	static char target[4096], buffer[4200];
	for (int i = 0; i < 4095; i++) target[i] = i % 200 == 199 ? '/' : (char)('a' + i % 26);
	MUST(symlink(target, "l"));
	EQ(MUST(readlink("l", buffer, sizeof buffer)), 4095);
	CHECK(memcmp(buffer, target, 4095) == 0);
	EQ(lstat_of("l").st_size, 4095);
}
FACT("a symlink target of 4,096 bytes is ENAMETOOLONG") {
	static char target[4097];
	memset(target, 't', 4096);
	FAILS(ENAMETOOLONG, symlink(target, "l"));
}
FACT("an empty symlink target is ENOENT") { FAILS(ENOENT, symlink("", "l")); }
FACT("opening a dangling symlink is ENOENT") {
	MUST(symlink("nowhere", "l"));
	FAILS(ENOENT, open("l", O_RDONLY));
}
FACT("symlinks that form a loop are ELOOP") {
	MUST(symlink("b", "a"));
	MUST(symlink("a", "b"));
	FAILS(ELOOP, open("a", O_RDONLY));
	FAILS(ELOOP, stat("a/x", &(struct stat){0}));
}
FACT("symlink on an existing name is EEXIST") {
	put("f", "");
	FAILS(EEXIST, symlink("x", "f"));
}
FACT("readlink of a file is EINVAL") {
	char buffer[8];
	put("f", "");
	FAILS(EINVAL, readlink("f", buffer, sizeof buffer));
}
FACT("a symlink to a directory leads into it, relative to where it is") {
	MUST(mkdir("d", 0755));
	MUST(mkdir("e", 0755));
	put("d/f", "inside");
	MUST(symlink("../d", "e/l"));
	holds("e/l/f", "inside");
}
FACT("an absolute symlink is followed in the guest, not on the host") {
	MUST(symlink("/proc/self/comm", "l"));
	holds("l", "posix\n");
}
FACT("lchown changes the symlink, not its target") {
	put("f", "");
	MUST(symlink("f", "l"));
	MUST(lchown("l", 7, 8));
	EQ(lstat_of("l").st_uid, 7);
	EQ(lstat_of("l").st_gid, 8);
	EQ(lstat_of("f").st_uid, 0);
}
FACT("utimensat with AT_SYMLINK_NOFOLLOW changes the symlink's times") {
	put("f", "");
	MUST(symlink("f", "l"));
	MUST(utimensat(AT_FDCWD, "l", (struct timespec[2]){{1000, 0}, {2000, 0}}, AT_SYMLINK_NOFOLLOW));
	EQ(lstat_of("l").st_mtim.tv_sec, 2000);
	CHECK(lstat_of("f").st_mtim.tv_sec != 2000);
}

FACT("rename moves a file, and it keeps inode and content") {
	put("a", "moved");
	ino_t inode = lstat_of("a").st_ino;
	MUST(rename("a", "b"));
	FAILS(ENOENT, access("a", F_OK));
	EQ(lstat_of("b").st_ino, inode);
	holds("b", "moved");
}
FACT("rename replaces an existing file") {
	put("a", "new");
	put("b", "old");
	int old = (int)MUST(open("b", O_RDONLY));
	MUST(rename("a", "b"));
	holds("b", "new");
	char buffer[4] = "";
	EQ(MUST(read(old, buffer, 3)), 3);
	CHECK(strcmp(buffer, "old") == 0);
	EQ(fstat_of(old).st_nlink, 0);
}
FACT("rename between directories works") {
	MUST(mkdir("d", 0755));
	MUST(mkdir("e", 0755));
	put("d/f", "x");
	MUST(rename("d/f", "e/g"));
	holds("e/g", "x");
	FAILS(ENOENT, access("d/f", F_OK));
	MUST(rmdir("d"));
}
FACT("rename of a directory takes its content along, also when open") {
	MUST(mkdir("d", 0755));
	put("d/f", "x");
	int fd = (int)MUST(open("d", O_RDONLY | O_DIRECTORY));
	MUST(rename("d", "e"));
	holds("e/f", "x");
	MUST(faccessat(fd, "f", F_OK, 0));
	int made = (int)MUST(openat(fd, "g", O_CREAT | O_WRONLY, 0644));
	MUST(close(made));
	MUST(access("e/g", F_OK));
}
FACT("rename of a directory to another parent moves '..'") {
	MUST(mkdir("a", 0755));
	MUST(mkdir("b", 0755));
	MUST(mkdir("a/d", 0755));
	put("b/f", "in b");
	MUST(rename("a/d", "b/d"));
	holds("b/d/../f", "in b");
}
FACT("rename of a directory onto an empty directory replaces it") {
	MUST(mkdir("a", 0755));
	MUST(mkdir("b", 0755));
	put("a/f", "x");
	MUST(rename("a", "b"));
	holds("b/f", "x");
}
FACT("rename of a directory onto one that is not empty is ENOTEMPTY") {
	MUST(mkdir("a", 0755));
	MUST(mkdir("b", 0755));
	put("b/f", "");
	errno = 0;
	CHECK(rename("a", "b") < 0 && (errno == ENOTEMPTY || errno == EEXIST));
}
FACT("rename of a directory onto a file is ENOTDIR, of a file onto a directory EISDIR") {
	MUST(mkdir("d", 0755));
	put("f", "");
	FAILS(ENOTDIR, rename("d", "f"));
	FAILS(EISDIR, rename("f", "d"));
}
FACT("rename of a directory into itself is EINVAL") {
	MUST(mkdir("d", 0755));
	MUST(mkdir("d/e", 0755));
	FAILS(EINVAL, rename("d", "d/e/x"));
}
FACT("rename of a missing name is ENOENT") { FAILS(ENOENT, rename("missing", "x")); }
FACT("rename of a file to itself or to its own hard link does nothing") {
	put("a", "x");
	MUST(rename("a", "a"));
	MUST(link("a", "b"));
	MUST(rename("a", "b"));
	holds("a", "x");
	holds("b", "x");
}
FACT("rename of a symlink moves the symlink") {
	put("f", "");
	MUST(symlink("f", "l"));
	MUST(rename("l", "m"));
	CHECK(S_ISLNK(lstat_of("m").st_mode));
}
FACT("rename of an open file leaves its descriptor usable") {
	put("a", "");
	int fd = (int)MUST(open("a", O_RDWR));
	MUST(rename("a", "b"));
	EQ(MUST(write(fd, "later", 5)), 5);
	holds("b", "later");
}
FACT("rename to another file system is EXDEV") {
	put("f", "");
	FAILS(EXDEV, rename("f", "/tmp/f"));
	FAILS(EXDEV, link("f", "/tmp/f"));
}
FACT("RENAME2 with NOREPLACE on an existing target is EEXIST") {
	put("a", "A");
	put("b", "B");
	FAILS(EEXIST, renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE));
	holds("a", "A");
	holds("b", "B");
}
FACT("RENAME2 with NOREPLACE on a free name renames") {
	put("a", "A");
	MUST(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE));
	holds("b", "A");
}
FACT("RENAME2 with EXCHANGE swaps two files") {
	put("a", "A");
	put("b", "B");
	MUST(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE));
	holds("a", "B");
	holds("b", "A");
}
FACT("RENAME2 with EXCHANGE swaps a file and a directory") {
	MUST(mkdir("d", 0755));
	put("d/in", "x");
	put("f", "F");
	MUST(renameat2(AT_FDCWD, "d", AT_FDCWD, "f", RENAME_EXCHANGE));
	holds("d", "F");
	holds("f/in", "x");
}
FACT("RENAME2 with EXCHANGE of a missing name is ENOENT") {
	put("a", "");
	FAILS(ENOENT, renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE));
}
FACT("RENAME2 with NOREPLACE and EXCHANGE together is EINVAL") {
	put("a", "");
	FAILS(EINVAL, renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE | RENAME_EXCHANGE));
}
FACT("RENAME2 with WHITEOUT leaves a character device 0:0 behind") {
	put("a", "A");
	int result = renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_WHITEOUT);
	if (result < 0 && errno == EINVAL) skip("renameat2: EINVAL");
	CHECK(result == 0);
	holds("b", "A");
	struct stat s = lstat_of("a");
	CHECK(S_ISCHR(s.st_mode));
	EQ(s.st_rdev, 0);
}

FACT("MKNOD of a FIFO works, and data passes through it") {
	MUST(mkfifo("p", 0640));
	struct stat s = lstat_of("p");
	CHECK(S_ISFIFO(s.st_mode));
	EQ(s.st_mode & 07777, 0640);
	int fd = (int)MUST(open("p", O_RDWR));
	EQ(MUST(write(fd, "through", 7)), 7);
	char buffer[8] = "";
	EQ(MUST(read(fd, buffer, 7)), 7);
	CHECK(strcmp(buffer, "through") == 0);
}
FACT("MKNOD of a character device keeps its numbers, and the guest's driver answers") {
	MUST(mknod("zero", S_IFCHR | 0666, makedev(1, 5)));
	struct stat s = lstat_of("zero");
	CHECK(S_ISCHR(s.st_mode));
	EQ(major(s.st_rdev), 1);
	EQ(minor(s.st_rdev), 5);
	char buffer[4] = "abcd";
	EQ(MUST(read((int)MUST(open("zero", O_RDONLY)), buffer, 4)), 4);
	CHECK(memcmp(buffer, "\0\0\0\0", 4) == 0);
}
FACT("MKNOD of a block device with large numbers keeps them") {
	MUST(mknod("b", S_IFBLK | 0600, makedev(259, 70000)));
	struct stat s = lstat_of("b");
	CHECK(S_ISBLK(s.st_mode));
	EQ(major(s.st_rdev), 259);
	EQ(minor(s.st_rdev), 70000);
}
FACT("MKNOD of a regular file works") {
	MUST(mknod("f", S_IFREG | 0640, 0));
	CHECK(S_ISREG(lstat_of("f").st_mode));
	EQ(mode_of("f"), 0640);
}
FACT("MKNOD on an existing name is EEXIST") {
	put("f", "");
	FAILS(EEXIST, mkfifo("f", 0644));
}
FACT("MKNOD of a device by an ordinary user is EPERM") {
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EPERM, mknod("d", S_IFCHR | 0666, makedev(1, 3)));
		MUST(mkfifo("p", 0666));
	}
}
FACT("a bound Unix socket is a socket inode that can be connected to") {
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "s"};
	int server = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(bind(server, (struct sockaddr *)&address, sizeof address));
	CHECK(S_ISSOCK(lstat_of("s").st_mode));
	MUST(listen(server, 1));
	int client = (int)MUST(socket(AF_UNIX, SOCK_STREAM, 0));
	MUST(connect(client, (struct sockaddr *)&address, sizeof address));
	EQ(MUST(write(client, "hi", 2)), 2);
}

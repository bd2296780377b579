// Names: lookup, create, open flags, directories, unlink.
#include "facts.h"

static char *repeated(char letter, size_t length) {
	static char name[PATH_MAX + 16];
	memset(name, letter, length);
	name[length] = '\0';
	return name;
}

FACT("LOOKUP of a missing name is ENOENT") { FAILS(ENOENT, access("missing", F_OK)); }
FACT("LOOKUP of a missing name is ENOENT again, and found once it is made") {
	FAILS(ENOENT, access("f", F_OK));
	FAILS(ENOENT, access("f", F_OK));
	put("f", "x");
	MUST(access("f", F_OK));
}
FACT("a path through a regular file is ENOTDIR") {
	put("f", "");
	FAILS(ENOTDIR, access("f/x", F_OK));
	FAILS(ENOTDIR, open("f/x", O_CREAT | O_WRONLY, 0644));
	FAILS(ENOTDIR, mkdir("f/x", 0755));
}
FACT("a path through a missing directory is ENOENT") {
	FAILS(ENOENT, open("no/x", O_CREAT | O_WRONLY, 0644));
	FAILS(ENOENT, mkdir("no/x", 0755));
}
FACT("a name of 255 bytes works") {
	put(repeated('n', 255), "long");
	holds(repeated('n', 255), "long");
	MUST(unlink(repeated('n', 255)));
	FAILS(ENOENT, access(repeated('n', 255), F_OK));
}
FACT("a name of 256 bytes is ENAMETOOLONG for create, mkdir and lookup") {
	FAILS(ENAMETOOLONG, open(repeated('n', 256), O_CREAT | O_WRONLY, 0644));
	FAILS(ENAMETOOLONG, mkdir(repeated('n', 256), 0755));
	FAILS(ENAMETOOLONG, access(repeated('n', 256), F_OK));
}
FACT("a directory name of 255 bytes works") {
	MUST(mkdir(repeated('d', 255), 0755));
	CHECK(S_ISDIR(lstat_of(repeated('d', 255)).st_mode));
	MUST(rmdir(repeated('d', 255)));
}
FACT("an empty path is ENOENT") { FAILS(ENOENT, open("", O_RDONLY)); }
FACT("names are bytes: control characters, spaces and invalid UTF-8 work") {
	const char *names[] = {" ", "a b", "\n", "\x01", "\xff\xfe", "\xc3\x28", "...", "*?", "\\", "-rf"};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		put(names[i], names[i]);
		holds(names[i], names[i]);
	}
}
FACT("names differ by case") {
	put("name", "lower");
	put("NAME", "upper");
	holds("name", "lower");
	holds("NAME", "upper");
}
FACT("'.' and '..' of a directory are itself and its parent") {
	MUST(mkdir("d", 0755));
	MUST(mkdir("d/e", 0755));
	EQ(lstat_of("d/.").st_ino, lstat_of("d").st_ino);
	EQ(lstat_of("d/e/..").st_ino, lstat_of("d").st_ino);
	put("f", "up");
	holds("d/e/../../f", "up");
}
FACT("a tree 60 directories deep works") {
	for (int i = 0; i < 60; i++) {
		MUST(mkdir("deep", 0755));
		MUST(chdir("deep"));
	}
	put("f", "bottom");
	holds("f", "bottom");
}

FACT("O_CREAT makes an empty regular file") {
	int fd = (int)MUST(open("f", O_CREAT | O_WRONLY, 0640));
	struct stat s = fstat_of(fd);
	CHECK(S_ISREG(s.st_mode));
	EQ(s.st_size, 0);
	EQ(s.st_mode & 07777, 0640);
	EQ(s.st_nlink, 1);
}
FACT("O_CREAT on an existing file opens it and leaves content and mode") {
	put("f", "content");
	int fd = (int)MUST(open("f", O_CREAT | O_RDONLY, 0600));
	EQ(fstat_of(fd).st_mode & 07777, 0644);
	holds("f", "content");
}
FACT("O_CREAT|O_EXCL on an existing file is EEXIST") {
	put("f", "");
	FAILS(EEXIST, open("f", O_CREAT | O_EXCL | O_RDWR, 0644));
}
FACT("O_CREAT|O_EXCL on a dangling symlink is EEXIST and makes nothing") {
	MUST(symlink("target", "link"));
	FAILS(EEXIST, open("link", O_CREAT | O_EXCL | O_RDWR, 0644));
	FAILS(ENOENT, access("target", F_OK));
}
FACT("O_CREAT through a dangling symlink makes its target") {
	MUST(symlink("target", "link"));
	MUST(open("link", O_CREAT | O_WRONLY, 0644));
	CHECK(S_ISREG(lstat_of("target").st_mode));
}
FACT("O_TRUNC empties the file and keeps its inode") {
	put("f", "content");
	ino_t before = lstat_of("f").st_ino;
	int fd = (int)MUST(open("f", O_WRONLY | O_TRUNC));
	EQ(fstat_of(fd).st_size, 0);
	EQ(lstat_of("f").st_ino, before);
	EQ(lstat_of("f").st_size, 0);
}
FACT("O_CREAT|O_TRUNC on an existing file empties it") {
	put("f", "content");
	MUST(open("f", O_CREAT | O_WRONLY | O_TRUNC, 0644));
	EQ(lstat_of("f").st_size, 0);
}
FACT("O_DIRECTORY on a file is ENOTDIR") {
	put("f", "");
	FAILS(ENOTDIR, open("f", O_RDONLY | O_DIRECTORY));
}
FACT("O_NOFOLLOW on a symlink is ELOOP") {
	put("f", "");
	MUST(symlink("f", "link"));
	FAILS(ELOOP, open("link", O_RDONLY | O_NOFOLLOW));
}
FACT("writing to a directory is EISDIR at open") {
	MUST(mkdir("d", 0755));
	FAILS(EISDIR, open("d", O_WRONLY));
	FAILS(EISDIR, open("d", O_RDWR));
}
FACT("a new file opened with mode 0000 can still be written through that descriptor") {
	int fd = (int)MUST(open("f", O_CREAT | O_EXCL | O_RDWR, 0));
	EQ(MUST(write(fd, "abc", 3)), 3);
	EQ(mode_of("f"), 0);
}
FACT("an open for reading gives EBADF on write, and the other way round") {
	put("f", "x");
	char byte;
	FAILS(EBADF, write((int)MUST(open("f", O_RDONLY)), "x", 1));
	FAILS(EBADF, read((int)MUST(open("f", O_WRONLY)), &byte, 1));
}
FACT("O_PATH gives a descriptor that only names the file") {
	put("f", "x");
	int fd = (int)MUST(open("f", O_PATH));
	char byte;
	EQ(fstat_of(fd).st_size, 1);
	FAILS(EBADF, read(fd, &byte, 1));
}

FACT("mkdir makes an empty directory with two links") {
	MUST(mkdir("d", 0755));
	struct stat s = lstat_of("d");
	CHECK(S_ISDIR(s.st_mode));
	EQ(s.st_nlink, 2);
	EQ(s.st_mode & 07777, 0755);
}
FACT("a subdirectory adds a link to its parent and takes it away again") {
	MUST(mkdir("d", 0755));
	MUST(mkdir("d/e", 0755));
	int fd = (int)MUST(open("d", O_RDONLY));
	MUST(fsync(fd));
	EQ(MUST(access("d/e", F_OK)), 0);
	struct stat s;
	sleep(1);
	MUST(stat("d", &s));
	EQ(s.st_nlink, 3);
	MUST(rmdir("d/e"));
	MUST(stat("d", &s));
	EQ(s.st_nlink, 2);
}
FACT("mkdir on an existing name is EEXIST, whatever it is") {
	put("f", "");
	MUST(mkdir("d", 0755));
	MUST(symlink("nowhere", "l"));
	FAILS(EEXIST, mkdir("f", 0755));
	FAILS(EEXIST, mkdir("d", 0755));
	FAILS(EEXIST, mkdir("l", 0755));
}
FACT("rmdir of a directory that is not empty is ENOTEMPTY") {
	MUST(mkdir("d", 0755));
	put("d/f", "");
	FAILS(ENOTEMPTY, rmdir("d"));
	MUST(unlink("d/f"));
	MUST(rmdir("d"));
	FAILS(ENOENT, access("d", F_OK));
}
FACT("rmdir of a file is ENOTDIR, of a missing name ENOENT") {
	put("f", "");
	FAILS(ENOTDIR, rmdir("f"));
	FAILS(ENOENT, rmdir("missing"));
}
FACT("rmdir of '.' is EINVAL and of '..' ENOTEMPTY") {
	MUST(mkdir("d", 0755));
	FAILS(EINVAL, rmdir("d/."));
	FAILS(ENOTEMPTY, rmdir("d/.."));
}
FACT("making something in a removed directory is ENOENT") {
	MUST(mkdir("d", 0755));
	int fd = (int)MUST(open("d", O_RDONLY | O_DIRECTORY));
	MUST(rmdir("d"));
	FAILS(ENOENT, openat(fd, "f", O_CREAT | O_WRONLY, 0644));
	FAILS(ENOENT, mkdirat(fd, "e", 0755));
}
FACT("unlink of a directory is EISDIR, of a missing name ENOENT") {
	MUST(mkdir("d", 0755));
	FAILS(EISDIR, unlink("d"));
	FAILS(ENOENT, unlink("missing"));
}
FACT("unlink of a symlink leaves its target") {
	put("f", "x");
	MUST(symlink("f", "l"));
	MUST(unlink("l"));
	FAILS(ENOENT, lstat("l", &(struct stat){0}));
	holds("f", "x");
}
FACT("an unlinked file that is open can be read and written, and has no links") {
	put("f", "before");
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(unlink("f"));
	FAILS(ENOENT, access("f", F_OK));
	EQ(MUST(pwrite(fd, "AFTER!", 6, 0)), 6);
	char buffer[8] = "";
	EQ(MUST(pread(fd, buffer, 8, 0)), 6);
	CHECK(memcmp(buffer, "AFTER!", 6) == 0);
	EQ(fstat_of(fd).st_size, 6);
	MUST(ftruncate(fd, 100));
	EQ(fstat_of(fd).st_size, 100);
}
FACT("fstat, fchmod, fchown and futimens work on an unlinked open file") {
	int fd = open_new("f");
	MUST(unlink("f"));
	MUST(fchmod(fd, 0600));
	MUST(fchown(fd, 5, 6));
	MUST(futimens(fd, (struct timespec[2]){{100, 1}, {200, 2}}));
	struct stat s = fstat_of(fd);
	EQ(s.st_mode & 07777, 0600);
	EQ(s.st_uid, 5);
	EQ(s.st_mtim.tv_sec, 200);
	EQ(s.st_nlink, 0);
}
FACT("a name that is unlinked and made again is another file") {
	put("f", "one");
	int fd = (int)MUST(open("f", O_RDONLY));
	MUST(unlink("f"));
	put("f", "two!");
	EQ(fstat_of(fd).st_size, 3);
	EQ(lstat_of("f").st_size, 4);
	CHECK(fstat_of(fd).st_ino != lstat_of("f").st_ino);
}
FACT("making and unlinking one name 200 times never finds the old one") {
	for (int i = 0; i < 200; i++) {
		char text[16];
		snprintf(text, sizeof text, "%d", i);
		put("f", text);
		EQ(lstat_of("f").st_size, strlen(text));
		MUST(unlink("f"));
		FAILS(ENOENT, access("f", F_OK));
	}
}

// Opening: every kind of target with every set of flags, and flags that are changed afterwards.
#include "record.h"

static const struct {
	const char *name;
	int flags;
} opens[] = {
	{"O_RDONLY", O_RDONLY},
	{"O_WRONLY", O_WRONLY},
	{"O_RDWR", O_RDWR},
	{"O_WRONLY|O_RDWR", O_WRONLY | O_RDWR},
	{"O_RDONLY|O_TRUNC", O_RDONLY | O_TRUNC},
	{"O_RDWR|O_TRUNC", O_RDWR | O_TRUNC},
	{"O_RDWR|O_APPEND", O_RDWR | O_APPEND},
	{"O_WRONLY|O_CREAT", O_WRONLY | O_CREAT},
	{"O_RDONLY|O_CREAT", O_RDONLY | O_CREAT},
	{"O_RDWR|O_CREAT|O_EXCL", O_RDWR | O_CREAT | O_EXCL},
	{"O_RDWR|O_CREAT|O_TRUNC", O_RDWR | O_CREAT | O_TRUNC},
	{"O_RDWR|O_CREAT|O_NOFOLLOW", O_RDWR | O_CREAT | O_NOFOLLOW},
	{"O_RDONLY|O_NOFOLLOW", O_RDONLY | O_NOFOLLOW},
	{"O_RDONLY|O_DIRECTORY", O_RDONLY | O_DIRECTORY},
	{"O_RDWR|O_DIRECTORY", O_RDWR | O_DIRECTORY},
	{"O_RDONLY|O_DIRECTORY|O_CREAT", O_RDONLY | O_DIRECTORY | O_CREAT},
	{"O_PATH", O_PATH},
	{"O_PATH|O_NOFOLLOW", O_PATH | O_NOFOLLOW},
	{"O_PATH|O_DIRECTORY", O_PATH | O_DIRECTORY},
	{"O_RDONLY|O_NOATIME", O_RDONLY | O_NOATIME},
	{"O_RDONLY|O_SYNC", O_RDONLY | O_SYNC},
	{"O_RDWR|O_DSYNC", O_RDWR | O_DSYNC},
	{"O_RDONLY|O_ASYNC", O_RDONLY | O_ASYNC},
	{"O_RDWR|O_DIRECT", O_RDWR | O_DIRECT},
	{"O_RDWR|O_TMPFILE", O_RDWR | O_TMPFILE},
	{"O_RDONLY|O_TMPFILE", O_RDONLY | O_TMPFILE},
};

static void open_all(const char *target, bool made_by_open) {
	for (size_t i = 0; i < sizeof opens / sizeof *opens; i++) {
		errno = 0;
		int fd = open(target, opens[i].flags | O_NONBLOCK, 0640);
		if (fd < 0) {
			line("open(%s, %s) = %s", target, opens[i].name, strerrorname_np(errno));
		} else {
			struct stat s;
			fstat(fd, &s);
			line("open(%s, %s) = a descriptor of mode %o with flags %o", target, opens[i].name, s.st_mode, fcntl(fd, F_GETFL));
			close(fd);
		}
		if (made_by_open) unlink(target);
	}
}

RECORDING("open: files, missing names, and slashes behind them") {
	make("file", "content");
	open_all("missing", true);
	open_all("file", false);
	open_all("file/", false);
	open_all("missing/", false);
	open_all("file/below", false);
	open_all("missing/below", false);
	open_all("", false);
	show_names(".");
}
RECORDING("open: directories") {
	mkdir("dir", 0755);
	open_all("dir", false);
	open_all("dir/", false);
	open_all("dir/.", false);
	open_all("..", false);
	show_names("dir");
}
RECORDING("open: symbolic links") {
	make("file", "content");
	mkdir("dir", 0755);
	T(symlink("file", "to-file"));
	T(symlink("dir", "to-dir"));
	T(symlink("nowhere", "dangling"));
	T(symlink("loop", "loop"));
	T(symlink("nowhere/below", "deep"));
	open_all("to-file", false);
	open_all("to-dir", false);
	open_all("to-dir/", false);
	open_all("dangling", false);
	unlink("nowhere");
	open_all("loop", false);
	open_all("deep", false);
	show_names(".");
}
RECORDING("open: FIFOs, sockets and devices") {
	T(mkfifo("fifo", 0644));
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
	T(bind(s, (struct sockaddr *)&address, sizeof address));
	T(mknod("null", S_IFCHR | 0666, makedev(1, 3)));
	T(mknod("no-device", S_IFCHR | 0666, makedev(4095, 1048575)));
	T(mknod("no-disk", S_IFBLK | 0666, makedev(4000, 7)));
	open_all("fifo", false);
	open_all("socket", false);
	open_all("null", false);
	open_all("no-device", false);
	open_all("no-disk", false);
	show_stat("no-device");
	show_stat("no-disk");
}
RECORDING("open: as another user, by the bits of owner, group and others") {
	make("mine", "content");
	T(chown("mine", 1000, 2000));
	static const mode_t modes[] = {0000, 0400, 0200, 0600, 0040, 0020, 0060, 0004, 0002, 0006, 0777};
	static const struct {
		uid_t uid;
		gid_t gid, extra;
	} users[] = {{1000, 3000, 3000}, {1001, 2000, 2000}, {1001, 3000, 2000}, {1001, 3000, 3000}};
	for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
		chmod("mine", modes[m]);
		for (size_t u = 0; u < sizeof users / sizeof *users; u++) CHILD {
			become(users[u].uid, users[u].gid, (int)users[u].extra, -1);
			EACH(text("mode %04o, user %u:%u+%u", modes[m], users[u].uid, users[u].gid, users[u].extra), open("mine", O_RDONLY) < 0 ? -1 : 0, open("mine", O_WRONLY) < 0 ? -1 : 0,
				open("mine", O_RDWR) < 0 ? -1 : 0, truncate("mine", 7), access("mine", R_OK), access("mine", W_OK), access("mine", X_OK));
		}
	}
}
RECORDING("flags of an open file: what fcntl sets and what it does not") {
	make("f", "0123456789");
	int fd = FD(open("f", O_RDWR));
	static const struct {
		const char *name;
		int flags;
	} sets[] = {{"O_APPEND", O_APPEND}, {"O_NONBLOCK", O_NONBLOCK}, {"O_DIRECT", O_DIRECT}, {"O_ASYNC", O_ASYNC}, {"O_NOATIME", O_NOATIME}, {"O_SYNC", O_SYNC},
		{"O_TRUNC", O_TRUNC}, {"O_RDONLY", O_RDONLY}, {"all", ~0}, {"none", 0}};
	for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
		const char *set = R(fcntl(fd, F_SETFL, sets[i].flags));
		line("F_SETFL %s = %s, then F_GETFL = %o", sets[i].name, set, fcntl(fd, F_GETFL));
	}
	T(fcntl(fd, F_SETFL, O_APPEND));
	T(pwrite(fd, "appended", 8, 0));
	int copy = FD(dup(fd));
	T(fcntl(copy, F_SETFL, 0));
	T(pwrite(fd, "XX", 2, 2));
	T(lseek(fd, 5, SEEK_SET));
	T(write(copy, "YY", 2));
	T(lseek(fd, 0, SEEK_CUR));
	show_content("f");
	CHILD {
		T(fcntl(fd, F_SETFL, O_APPEND));
		T(write(fd, "child", 5));
	}
	T(pwrite(fd, "parent", 6, 0));
	show_content("f");
	int other = FD(open(path_of(fd), O_RDWR));
	T(pwrite(other, "ZZ", 2, 0));
	show_content("f");
}
RECORDING("calls on descriptors of the wrong kind") {
	make("f", "0123456789");
	mkdir("d", 0755);
	char bytes[16];
	int reader = FD(open("f", O_RDONLY)), writer = FD(open("f", O_WRONLY)), path = FD(open("f", O_PATH)), dir = FD(open("d", O_RDONLY)), neither = FD(open("f", O_WRONLY | O_RDWR));
	int fds[] = {reader, writer, path, dir, neither, -1};
	static const char *const names[] = {"a reader", "a writer", "an O_PATH", "a directory", "access mode 3", "no descriptor"};
	for (int i = 0; i < 6; i++) {
		int fd = fds[i];
		const char *what = names[i];
		EACH(what, read(fd, bytes, 1), pread(fd, bytes, 4, 2), write(fd, "a", 1), pwrite(fd, "b", 1, 5), lseek(fd, 0, SEEK_SET), ftruncate(fd, 10));
		EACH(what, fsync(fd), fdatasync(fd), syncfs(fd), sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE), -posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED), readahead(fd, 0, 4096));
		EACH(what, fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4096), flock(fd, LOCK_SH | LOCK_NB), fchmod(fd, 0755), fchown(fd, 0, 0), futimens(fd, NULL), fchdir(fd));
		if (fd == dir && chdir("..") < 0) line("no way back");
		EACH(what, syscall(SYS_getdents64, fd, bytes, sizeof bytes), fgetxattr(fd, "user.none", bytes, 16), fsetxattr(fd, "user.a", "v", 1, 0));
		off_t from = 0, to = 0, end = 20;
		EACH(what, copy_file_range(reader, &from, fd, &to, 2, 0), copy_file_range(fd, &from, writer, &end, 2, 0));
	}
	show_content("f");
}

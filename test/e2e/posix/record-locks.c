// Locks and leases, of processes and of open files, to the last byte; who holds them, and until when.
#include "record.h"

static int lock(int fd, int command, short type, off_t start, off_t length) {
	struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	return fcntl(fd, command, &l);
}
// F_GETLK in words: `self` is how to call the parent's process.
static void ask(int fd, int command, short type, off_t start, off_t length, pid_t parent) {
	struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	errno = 0;
	if (fcntl(fd, command, &l) < 0) line("who has %lld+%lld: %s", (long long)start, (long long)length, strerrorname_np(errno));
	else if (l.l_type == F_UNLCK) line("who has %lld+%lld: nobody", (long long)start, (long long)length);
	else line("who has %lld+%lld: a %s lock of %lld+%lld, %s", (long long)start, (long long)length, l.l_type == F_RDLCK ? "read" : "write", (long long)l.l_start, (long long)l.l_len, l.l_pid == parent ? "the parent's" : l.l_pid == -1 ? "an open file's" : l.l_pid == 0 ? "nobody's here" : "another process's");
}
static const struct {
	off_t start, length;
} ranges[] = {{0, 1}, {0, 0}, {5, 10}, {1LL << 31, 1}, {1LL << 53, 3}, {(1LL << 53) + 1, 1}, {1LL << 62, 10}, {LLONG_MAX - 1, 1}, {LLONG_MAX - 1, 2}, {LLONG_MAX, 1}, {LLONG_MAX, 2}, {LLONG_MAX, 0}, {10, LLONG_MAX - 10}, {10, LLONG_MAX}, {10, -5}, {10, -11}, {-1, 1}};

RECORDING("fcntl locks of two processes, over all ranges") {
	make("f", "0123456789");
	int fd = FD(open("f", O_RDWR));
	pid_t parent = getpid();
	for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
		off_t start = ranges[i].start, length = ranges[i].length;
		const char *what = text("%lld+%lld", (long long)start, (long long)length);
		EACH(what, lock(fd, F_SETLK, F_WRLCK, start, length));
		CHILD {
			int other = open("f", O_RDWR);
			ask(other, F_GETLK, F_RDLCK, start, length, parent);
			ask(other, F_GETLK, F_WRLCK, 0, 0, parent);
			EACH(what, lock(other, F_SETLK, F_RDLCK, start, length), lock(other, F_SETLK, F_WRLCK, 0, start > 0 ? start : 1));
		}
		EACH(what, lock(fd, F_SETLK, F_UNLCK, 0, 0));
	}
	int reader = FD(open("f", O_RDONLY)), writer = FD(open("f", O_WRONLY));
	EACH("by access", lock(reader, F_SETLK, F_RDLCK, 0, 0), lock(reader, F_SETLK, F_WRLCK, 0, 0), lock(writer, F_SETLK, F_RDLCK, 0, 0), lock(writer, F_SETLK, F_WRLCK, 0, 0), lock(fd, F_SETLK, 7, 0, 0), lock(fd, F_GETLK, F_UNLCK, 0, 0));
	T(lseek(fd, 5, SEEK_SET));
	EACH("whence", fcntl(fd, F_SETLK, &(struct flock){.l_type = F_WRLCK, .l_whence = SEEK_CUR, .l_start = 1, .l_len = 1}), fcntl(fd, F_SETLK, &(struct flock){.l_type = F_WRLCK, .l_whence = SEEK_END, .l_start = -2, .l_len = 1}),
		fcntl(fd, F_SETLK, &(struct flock){.l_type = F_WRLCK, .l_whence = 9}));
	CHILD {
		int other = open("f", O_RDWR);
		for (off_t at = 0; at < 10; at++) ask(other, F_GETLK, F_WRLCK, at, 1, parent);
	}
}
RECORDING("fcntl locks: split, joined, upgraded, and what ends them") {
	make("f", "0123456789");
	int fd = FD(open("f", O_RDWR)), copy = FD(dup(fd)), second = FD(open("f", O_RDONLY));
	pid_t parent = getpid();
	EACH("its own", lock(fd, F_SETLK, F_WRLCK, 0, 100), lock(fd, F_SETLK, F_UNLCK, 40, 20), lock(fd, F_SETLK, F_RDLCK, 10, 10));
	CHILD {
		int other = open("f", O_RDWR);
		static const off_t at[] = {0, 9, 10, 19, 20, 39, 40, 59, 60, 99, 100};
		for (size_t i = 0; i < sizeof at / sizeof *at; i++) ask(other, F_GETLK, F_WRLCK, at[i], 1, parent);
		EACH("a child has none of its parent's", lock(other, F_SETLK, F_RDLCK, 10, 5), lock(fd, F_SETLK, F_WRLCK, 0, 1));
	}
	T(close(copy));
	CHILD ask(open("f", O_RDWR), F_GETLK, F_WRLCK, 0, 0, parent);
	T(lock(fd, F_SETLK, F_WRLCK, 0, 100));
	T(close(second));
	CHILD ask(open("f", O_RDWR), F_GETLK, F_WRLCK, 0, 0, parent);
	int ends[2];
	T(pipe(ends));
	pid_t holder = fork();
	if (holder == 0) {
		lock(open("f", O_RDWR), F_SETLK, F_WRLCK, 0, 0);
		if (write(ends[1], "x", 1) < 0) _exit(1);
		pause();
	}
	char byte;
	T(read(ends[0], &byte, 1));
	EACH("while it lives", lock(fd, F_SETLK, F_RDLCK, 0, 1));
	T(kill(holder, SIGKILL));
	T(waitpid(holder, NULL, 0) == holder);
	EACH("when it is killed", lock(fd, F_SETLK, F_RDLCK, 0, 1));
}
RECORDING("locks of open files") {
	make("f", "0123456789");
	pid_t parent = getpid();
	int a = FD(open("f", O_RDWR)), b = FD(open("f", O_RDWR));
	for (int round = 0; round < 3; round++) {
		int c = open("f", O_RDWR), copy = dup(c);
		EACH("taken", lock(c, F_OFD_SETLK, F_WRLCK, 0, 5), lock(a, F_OFD_SETLK, F_WRLCK, 0, 5), lock(a, F_OFD_SETLK, F_WRLCK, 1LL << 62, 5));
		ask(a, F_OFD_GETLK, F_WRLCK, 0, 0, parent);
		ask(a, F_OFD_GETLK, F_RDLCK, 1LL << 62, 1, parent);
		ask(b, F_OFD_GETLK, F_RDLCK, 1LL << 62, 1, parent);
		close(c);
		EACH("a copy is left", lock(b, F_OFD_SETLK, F_RDLCK, 0, 5));
		CHILD {
			EACH("a child", lock(copy, F_OFD_SETLK, F_WRLCK, 5, 5));
		}
		close(copy);
		EACH("none is left", lock(b, F_OFD_SETLK, F_WRLCK, 0, 10), lock(b, F_OFD_SETLK, F_UNLCK, 0, 0));
		lock(a, F_OFD_SETLK, F_UNLCK, 0, 0);
	}
	EACH("a process's beside an open file's", lock(a, F_SETLK, F_WRLCK, 0, 5), lock(a, F_OFD_SETLK, F_WRLCK, 0, 5));
	EACH("a pid that is given", fcntl(a, F_OFD_SETLK, &(struct flock){.l_type = F_WRLCK, .l_pid = 1}));
}
RECORDING("flock") {
	make("f", "x"), mkdir("d", 0755);
	int a = FD(open("f", O_RDONLY)), b = FD(open("f", O_RDWR)), w = FD(open("f", O_WRONLY)), dir = FD(open("d", O_RDONLY)), dir2 = FD(open("d", O_RDONLY)), path = FD(open("f", O_PATH));
	EACH("flock", flock(a, LOCK_EX | LOCK_NB), flock(a, LOCK_EX | LOCK_NB), flock(b, LOCK_SH | LOCK_NB), flock(b, LOCK_EX | LOCK_NB), flock(a, LOCK_SH | LOCK_NB), flock(b, LOCK_SH | LOCK_NB), flock(a, LOCK_EX | LOCK_NB), flock(w, LOCK_SH | LOCK_NB), flock(b, LOCK_UN));
	EACH("flock", flock(a, LOCK_EX | LOCK_NB), flock(b, LOCK_UN), flock(w, LOCK_UN), flock(path, LOCK_SH | LOCK_NB), flock(a, 0), flock(a, LOCK_SH | LOCK_EX), flock(dir, LOCK_EX | LOCK_NB), flock(dir2, LOCK_SH | LOCK_NB), flock(dir, LOCK_UN));
	int copy = FD(dup(a));
	EACH("a duplicate", flock(copy, LOCK_EX | LOCK_NB), flock(b, LOCK_SH | LOCK_NB), close(a), flock(b, LOCK_SH | LOCK_NB), close(copy), flock(b, LOCK_SH | LOCK_NB), unlink("f"), flock(w, LOCK_SH | LOCK_NB));
	CHILD {
		EACH("a child", flock(b, LOCK_EX | LOCK_NB), flock(b, LOCK_UN));
	}
	EACH("after it", flock(w, LOCK_EX | LOCK_NB));
}
RECORDING("leases, and others of fcntl's commands") {
	make("f", "x"), mkdir("d", 0755);
	signal(SIGIO, SIG_IGN);
	int reader = FD(open("f", O_RDONLY)), writer = -1, dir = FD(open("d", O_RDONLY));
	EACH("a reader", fcntl(reader, F_SETLEASE, F_RDLCK), fcntl(reader, F_GETLEASE), fcntl(reader, F_SETLEASE, F_WRLCK), fcntl(reader, F_SETLEASE, F_UNLCK), fcntl(reader, F_GETLEASE));
	writer = FD(open("f", O_RDWR));
	EACH("a writer", fcntl(writer, F_SETLEASE, F_RDLCK), fcntl(writer, F_SETLEASE, F_WRLCK), fcntl(dir, F_SETLEASE, F_RDLCK));
	uint64_t hint = 2;
	EACH("others", fcntl(reader, F_NOTIFY, 1) < 0 ? -1 : 0, fcntl(dir, F_NOTIFY, 1) < 0 ? -1 : 0, fcntl(writer, F_ADD_SEALS, 1), fcntl(writer, F_GET_SEALS), fcntl(writer, F_GETPIPE_SZ), fcntl(writer, F_GET_RW_HINT, &hint), fcntl(writer, F_DUPFD, 100), fcntl(writer, 9999));
}

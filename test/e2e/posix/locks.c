// flock, POSIX record locks, open-file-description locks. Between processes of one guest they hold in any case: the
// guest's kernel keeps them itself when the daemon does not.
#include "facts.h"

static int ready[2], go[2];

static void make_pipes(void) {
	MUST(pipe(ready));
	MUST(pipe(go));
}

static struct flock range(short type, off_t from, off_t length) {
	return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = length};
}

static int try_lock(int fd, short type, off_t from, off_t length) {
	struct flock lock = range(type, from, length);
	return fcntl(fd, F_SETLK, &lock);
}

FACT("flock LOCK_EX keeps another description out, until unlocked") {
	put("f", "");
	int a = (int)MUST(open("f", O_RDWR)), b = (int)MUST(open("f", O_RDWR));
	MUST(flock(a, LOCK_EX));
	FAILS(EWOULDBLOCK, flock(b, LOCK_EX | LOCK_NB));
	FAILS(EWOULDBLOCK, flock(b, LOCK_SH | LOCK_NB));
	MUST(flock(a, LOCK_UN));
	MUST(flock(b, LOCK_EX | LOCK_NB));
}
FACT("flock LOCK_SH is shared, and is upgraded when alone") {
	put("f", "");
	int a = (int)MUST(open("f", O_RDONLY)), b = (int)MUST(open("f", O_RDONLY));
	MUST(flock(a, LOCK_SH));
	MUST(flock(b, LOCK_SH | LOCK_NB));
	FAILS(EWOULDBLOCK, flock(a, LOCK_EX | LOCK_NB));
	MUST(flock(b, LOCK_UN));
	MUST(flock(a, LOCK_EX | LOCK_NB));
}
FACT("flock is released when the last descriptor closes") {
	put("f", "");
	int a = (int)MUST(open("f", O_RDWR)), copy = (int)MUST(dup(a)), b = (int)MUST(open("f", O_RDWR));
	MUST(flock(a, LOCK_EX));
	MUST(close(a));
	FAILS(EWOULDBLOCK, flock(b, LOCK_EX | LOCK_NB));
	MUST(close(copy));
	usleep(200000);
	MUST(flock(b, LOCK_EX | LOCK_NB));
}

static void flock_holder(void) {
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(flock(fd, LOCK_EX));
	signal_to(ready[1]);
	await_from(go[0]);
	usleep(300000);
	put("released", "");
	MUST(flock(fd, LOCK_UN));
}
FACT("a waiting flock gets the lock when the other process releases it, and other requests go on meanwhile") {
	put("f", "");
	make_pipes();
	pid_t holder = start(flock_holder);
	await_from(ready[0]);
	int fd = (int)MUST(open("f", O_RDWR));
	FAILS(EWOULDBLOCK, flock(fd, LOCK_EX | LOCK_NB));
	put("other", "not held up");
	holds("other", "not held up");
	signal_to(go[1]);
	MUST(flock(fd, LOCK_EX));
	MUST(access("released", F_OK));
	finish(holder);
}

FACT("a POSIX write lock keeps another process out of its range only") {
	put("f", "0123456789");
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_WRLCK, 2, 3));
	IN_CHILD {
		int other = (int)MUST(open("f", O_RDWR));
		errno = 0;
		CHECK(try_lock(other, F_RDLCK, 4, 1) < 0 && (errno == EAGAIN || errno == EACCES));
		MUST(try_lock(other, F_WRLCK, 5, 5));
		MUST(try_lock(other, F_WRLCK, 0, 2));
	}
}
FACT("POSIX read locks are shared between processes") {
	put("f", "0123456789");
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_RDLCK, 0, 0));
	IN_CHILD {
		int other = (int)MUST(open("f", O_RDWR));
		MUST(try_lock(other, F_RDLCK, 0, 0));
		errno = 0;
		CHECK(try_lock(other, F_WRLCK, 0, 1) < 0 && (errno == EAGAIN || errno == EACCES));
	}
}
FACT("F_GETLK tells the holder's type and range, and its process") {
	put("f", "0123456789");
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_WRLCK, 3, 4));
	pid_t holder = getpid();
	IN_CHILD {
		int other = (int)MUST(open("f", O_RDWR));
		struct flock lock = range(F_RDLCK, 0, 0);
		MUST(fcntl(other, F_GETLK, &lock));
		EQ(lock.l_type, F_WRLCK);
		EQ(lock.l_start, 3);
		EQ(lock.l_len, 4);
		EQ(lock.l_pid, holder);
		lock = range(F_WRLCK, 7, 0);
		MUST(fcntl(other, F_GETLK, &lock));
		EQ(lock.l_type, F_UNLCK);
	}
}
FACT("a process replaces, splits and joins its own POSIX locks") {
	put("f", "0123456789");
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_WRLCK, 0, 10));
	MUST(try_lock(fd, F_UNLCK, 4, 2));
	MUST(try_lock(fd, F_RDLCK, 0, 2));
	IN_CHILD {
		int other = (int)MUST(open("f", O_RDWR));
		MUST(try_lock(other, F_WRLCK, 4, 2));
		MUST(try_lock(other, F_RDLCK, 0, 2));
		FAILS(EAGAIN, try_lock(other, F_RDLCK, 2, 1));
		FAILS(EAGAIN, try_lock(other, F_RDLCK, 6, 1));
	}
}
FACT("closing any descriptor of the file releases the process's POSIX locks") {
	put("f", "x");
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_WRLCK, 0, 0));
	MUST(close((int)MUST(open("f", O_RDONLY))));
	IN_CHILD MUST(try_lock((int)MUST(open("f", O_RDWR)), F_WRLCK, 0, 0));
}

static void posix_holder(void) {
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_WRLCK, 0, 0));
	signal_to(ready[1]);
	await_from(go[0]);
	usleep(300000);
	put("released", "");
	MUST(close(fd));
}
FACT("a waiting POSIX lock gets the lock when the holder closes the file") {
	put("f", "x");
	make_pipes();
	pid_t holder = start(posix_holder);
	await_from(ready[0]);
	int fd = (int)MUST(open("f", O_RDWR));
	FAILS(EAGAIN, try_lock(fd, F_WRLCK, 0, 0));
	signal_to(go[1]);
	struct flock lock = range(F_WRLCK, 0, 0);
	MUST(fcntl(fd, F_SETLKW, &lock));
	MUST(access("released", F_OK));
	finish(holder);
}

static void killed_holder(void) {
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_WRLCK, 0, 0));
	MUST(flock((int)MUST(open("g", O_RDWR)), LOCK_EX));
	signal_to(ready[1]);
	pause();
}
FACT("the locks of a killed process are released") {
	put("f", "");
	put("g", "");
	make_pipes();
	pid_t holder = start(killed_holder);
	await_from(ready[0]);
	MUST(kill(holder, SIGKILL));
	MUST(waitpid(holder, NULL, 0));
	struct flock lock = range(F_WRLCK, 0, 0);
	MUST(fcntl((int)MUST(open("f", O_RDWR)), F_SETLKW, &lock));
	MUST(flock((int)MUST(open("g", O_RDWR)), LOCK_EX));
}

// The two facts that need "interrupt" hold for locks of the guest's kernel only: Linux' virtiofs sends no FUSE_INTERRUPT,
// and waits without end for the answer to a request that it has sent.
static void interrupted_waiter(void) {
	struct sigaction action = {.sa_handler = SIG_IGN};
	sigaction(SIGINT, &action, NULL);
	int fd = (int)MUST(open("f", O_RDWR));
	signal_to(ready[1]);
	struct flock lock = range(F_WRLCK, 0, 0);
	fcntl(fd, F_SETLKW, &lock);
	fail("the waiting lock came back");
}
FACT_NEEDS("interrupt", "a process that waits for a lock can be killed, and leaves no lock behind") {
	put("f", "");
	make_pipes();
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_WRLCK, 0, 0));
	pid_t waiter = start(interrupted_waiter);
	await_from(ready[0]);
	usleep(200000);
	MUST(kill(waiter, SIGKILL));
	MUST(waitpid(waiter, NULL, 0));
	MUST(try_lock(fd, F_UNLCK, 0, 0));
	// The daemon may grant the lock to the dead for a moment, before it learns of the release.
	IN_CHILD {
		struct flock lock = range(F_WRLCK, 0, 0);
		MUST(fcntl((int)MUST(open("f", O_RDWR)), F_SETLKW, &lock));
	}
}

static void on_alarm(int signal) { (void)signal; }
FACT_NEEDS("interrupt", "a waiting lock is interrupted by a signal with EINTR") {
	put("f", "");
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_WRLCK, 0, 0));
	IN_CHILD {
		struct sigaction action = {.sa_handler = on_alarm};
		sigaction(SIGUSR1, &action, NULL);
		int other = (int)MUST(open("f", O_RDWR));
		pid_t self = getpid(), sender = (pid_t)MUST(fork());
		if (sender == 0) {
			for (int i = 0; i < 20; i++) {
				usleep(200000);
				kill(self, SIGUSR1);
			}
			_exit(0);
		}
		struct flock lock = range(F_WRLCK, 0, 0);
		FAILS(EINTR, fcntl(other, F_SETLKW, &lock));
		kill(sender, SIGKILL);
		waitpid(sender, NULL, 0);
	}
}

FACT("open-file-description locks keep apart two descriptions of one process") {
	put("f", "0123456789");
	int a = (int)MUST(open("f", O_RDWR)), b = (int)MUST(open("f", O_RDWR));
	struct flock lock = range(F_WRLCK, 0, 5);
	MUST(fcntl(a, F_OFD_SETLK, &lock));
	lock = range(F_WRLCK, 0, 5);
	FAILS(EAGAIN, fcntl(b, F_OFD_SETLK, &lock));
	lock = range(F_WRLCK, 5, 5);
	MUST(fcntl(b, F_OFD_SETLK, &lock));
	lock = range(F_WRLCK, 0, 1);
	MUST(fcntl(b, F_OFD_GETLK, &lock));
	EQ(lock.l_type, F_WRLCK);
	EQ(lock.l_pid, -1);
	lock = range(F_UNLCK, 0, 0);
	MUST(fcntl(a, F_OFD_SETLK, &lock));
	lock = range(F_WRLCK, 0, 5);
	MUST(fcntl(b, F_OFD_SETLK, &lock));
}
static int try_ofd_lock(int fd, short type, off_t from, off_t length) {
	struct flock lock = range(type, from, length);
	return fcntl(fd, F_OFD_SETLK, &lock);
}
FACT("an open-file-description lock ends with the file's last descriptor, duplicates and children's among them, each time anew") {
	put("f", "0123456789");
	for (int i = 0; i < 5; i++) {
		int fd = (int)MUST(open("f", O_RDWR)), copy = (int)MUST(dup(fd)), other = (int)MUST(open("f", O_RDWR));
		MUST(try_ofd_lock(fd, F_WRLCK, 0, 5));
		MUST(close(fd));
		FAILS(EAGAIN, try_ofd_lock(other, F_WRLCK, 0, 5));
		make_pipes();
		pid_t child = (pid_t)MUST(fork());
		if (child == 0) {
			close(other);
			await_from(go[0]);
			_exit(0);
		}
		MUST(close(copy));
		FAILS(EAGAIN, try_ofd_lock(other, F_WRLCK, 0, 5));
		signal_to(go[1]);
		finish(child);
		MUST(try_ofd_lock(other, F_WRLCK, 0, 5));
		MUST(close(other));
	}
}
static void ofd_holder(void) {
	MUST(try_ofd_lock((int)MUST(open("f", O_RDWR)), F_WRLCK, 0, 0));
	signal_to(ready[1]);
	pause();
}
FACT("the open-file-description lock of a killed process is released, for the next one and for one that waits") {
	put("f", "");
	for (int i = 0; i < 2; i++) {
		make_pipes();
		pid_t holder = start(ofd_holder);
		await_from(ready[0]);
		int fd = (int)MUST(open("f", O_RDWR));
		FAILS(EAGAIN, try_ofd_lock(fd, F_WRLCK, 0, 0));
		if (i == 0) {
			MUST(kill(holder, SIGKILL));
			MUST(waitpid(holder, NULL, 0));
			MUST(try_ofd_lock(fd, F_WRLCK, 0, 0));
		} else {
			pid_t killer = (pid_t)MUST(fork());
			if (killer == 0) {
				usleep(200000);
				kill(holder, SIGKILL);
				_exit(0);
			}
			struct flock lock = range(F_WRLCK, 0, 0);
			MUST(fcntl(fd, F_OFD_SETLKW, &lock));
			MUST(waitpid(holder, NULL, 0));
			finish(killer);
		}
		MUST(close(fd));
	}
}
FACT("locks reach to the last byte that there can be") {
	put("f", "");
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(try_lock(fd, F_WRLCK, 1LL << 62, 10));
	MUST(try_lock(fd, F_WRLCK, LLONG_MAX - 1, 1));
	IN_CHILD {
		int other = (int)MUST(open("f", O_RDWR));
		FAILS(EAGAIN, try_lock(other, F_RDLCK, (1LL << 62) + 9, 1));
		MUST(try_lock(other, F_RDLCK, (1LL << 62) + 10, LLONG_MAX - 1 - (1LL << 62) - 10));
		MUST(try_lock(other, F_RDLCK, 0, 1LL << 62));
		FAILS(EAGAIN, try_lock(other, F_RDLCK, LLONG_MAX - 1, 1));
		struct flock lock = range(F_WRLCK, 1LL << 62, 1);
		MUST(fcntl(other, F_GETLK, &lock));
		EQ(lock.l_start, 1LL << 62);
		EQ(lock.l_len, 10);
		MUST(try_lock(other, F_RDLCK, LLONG_MAX, 0));
		FAILS(EOVERFLOW, try_lock(other, F_RDLCK, LLONG_MAX, 2));
	}
}
FACT("a POSIX lock needs a descriptor open for that kind of access") {
	put("f", "");
	FAILS(EBADF, try_lock((int)MUST(open("f", O_RDONLY)), F_WRLCK, 0, 0));
	FAILS(EBADF, try_lock((int)MUST(open("f", O_WRONLY)), F_RDLCK, 0, 0));
}
FACT("flock and POSIX locks do not see each other") {
	put("f", "");
	int fd = (int)MUST(open("f", O_RDWR));
	MUST(flock(fd, LOCK_EX));
	IN_CHILD MUST(try_lock((int)MUST(open("f", O_RDWR)), F_WRLCK, 0, 0));
}

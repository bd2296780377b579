// Open files that lose their names, far offsets and sizes, allocation, copies between files.
#include "record.h"
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/resource.h>
#include <sys/sendfile.h>

#define KIB 1024
#define MIB (1024 * 1024)

static void use_open_file(int fd) {
	static char bytes[64];
	EACH("open", pread(fd, bytes, 4, 0), pwrite(fd, "NEW", 3, 2), ftruncate(fd, 20), fallocate(fd, 0, 0, 30), fsync(fd), fchmod(fd, 0604), fchown(fd, 5, 6), fsetxattr(fd, "user.k", "v", 1, 0),
		lseek(fd, 0, SEEK_END));
	EACH("open", fgetxattr(fd, "user.k", bytes, 10), futimens(fd, (struct timespec[]){{1, 2}, {3, 4}}), flock(fd, LOCK_EX | LOCK_NB), fcntl(fd, F_SETLK, &(struct flock){.l_type = F_WRLCK}),
		syncfs(fd), flistxattr(fd, bytes, sizeof bytes), fdatasync(fd), copy_file_range(fd, &(off_t){0}, fd, &(off_t){40}, 10, 0));
	show_fstat(fd);
	struct stat s;
	fstat(fd, &s);
	line("mtime: %s", s.st_mtim.tv_sec > 1000 ? "now" : "as it was set");
	show_bytes("all", bytes, pread(fd, bytes, sizeof bytes, 0));
}
RECORDING("an open file that is unlinked is all that it was") {
	make("f", "0123456789");
	int fd = FD(open("f", O_RDWR));
	T(unlink("f"));
	T(access("f", F_OK));
	use_open_file(fd);
	int again = FD(open(path_of(fd), O_RDWR));
	show_fstat(again);
	T(make("f", "another"));
	use_open_file(fd);
	show_content("f");
	CHILD show_fstat(fd);
}
RECORDING("an open file that another one is renamed over is all that it was") {
	make("f", "0123456789"), make("g", "gggg");
	int fd = FD(open("f", O_RDWR)), other = FD(open("g", O_RDWR));
	T(rename("g", "f"));
	use_open_file(fd);
	show_fstat(other);
	T(write(other, "HHHHHH", 6));
	show_content("f");
	T(rename("f", "h"));
	T(write(other, "II", 2));
	show_content("h");
	T(syscall(SYS_renameat2, AT_FDCWD, "h", AT_FDCWD, "f", 1));
	show_content("f");
}
RECORDING_NEEDS("links", "an open file of which one of two names goes") {
	make("f", "0123456789");
	T(link("f", "g"));
	int fd = FD(open("f", O_RDWR));
	T(unlink("f"));
	use_open_file(fd);
	show_content("g");
	show_stat("g");
	T(unlink("g"));
	show_fstat(fd);
}
RECORDING_NEEDS("tmpfile", "a file without a name from its beginning") {
	int fd = FD(open(".", O_TMPFILE | O_RDWR, 0640));
	show_fstat(fd);
	T(write(fd, "0123456789", 10));
	use_open_file(fd);
	T(linkat(fd, "", AT_FDCWD, "named", AT_EMPTY_PATH));
	T(linkat(AT_FDCWD, path_of(fd), AT_FDCWD, "again", AT_SYMLINK_FOLLOW));
	show_stat("named");
	show_content("again");
	T(unlink("named")), T(unlink("again"));
	show_fstat(fd);
	T(linkat(AT_FDCWD, path_of(fd), AT_FDCWD, "third", AT_SYMLINK_FOLLOW));
	int shut = FD(open(".", O_TMPFILE | O_RDWR | O_EXCL, 0640));
	T(linkat(AT_FDCWD, path_of(shut), AT_FDCWD, "fourth", AT_SYMLINK_FOLLOW));
	show_fstat(shut);
	FD(open("missing", O_TMPFILE | O_RDWR, 0640));
	umask(077);
	int masked = FD(open(".", O_TMPFILE | O_WRONLY | O_APPEND, 0666));
	show_fstat(masked);
	T(pwrite(masked, "a", 1, 5));
	T(pwrite(masked, "b", 1, 0));
	T(linkat(AT_FDCWD, path_of(masked), AT_FDCWD, "masked", AT_SYMLINK_FOLLOW));
	show_content("masked");
	show_names(".");
}

static const long long far[] = {0, 1, 4095, 4096, 1LL << 31, (1LL << 32) + 5, 1LL << 40, (1LL << 44) - 4096, (1LL << 44) - 1, 1LL << 44, 1LL << 45, (1LL << 53) - 1, 1LL << 53, (1LL << 53) + 1, 1LL << 60, 1LL << 62,
	LLONG_MAX - 4096, LLONG_MAX - 1, LLONG_MAX, -1, LLONG_MIN};
// Where a hole is sent like data only those that are refused.
static bool too_large_a_hole(long long at) { return !has_feature("sparse") && at > 4096 && at < 1LL << 44; }
RECORDING("far offsets: reading, writing and seeking") {
	for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
		long long at = far[i];
		char bytes[8];
		if (too_large_a_hole(at)) continue;
		int fd = open("f", O_RDWR | O_CREAT | O_TRUNC, 0644);
		EACH(text("at %lld", at), pread(fd, bytes, 8, at), lseek(fd, at, SEEK_SET), lseek(fd, at, SEEK_END), lseek(fd, at, SEEK_CUR), lseek(fd, at, SEEK_DATA), lseek(fd, at, SEEK_HOLE),
			pwrite(fd, "far", 3, at), pread(fd, bytes, 8, at));
		show_fstat(fd);
		EACH(text("at %lld", at), lseek(fd, 0, SEEK_END), lseek(fd, 1, SEEK_END), write(fd, "x", 1), lseek(fd, -1, SEEK_SET), lseek(fd, 0, 77));
		close(fd), unlink("f");
	}
}
RECORDING("far sizes: truncating and allocating") {
	for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
		long long size = far[i];
		if (too_large_a_hole(size)) continue;
		int fd = open("f", O_RDWR | O_CREAT | O_TRUNC, 0644);
		EACH(text("to %lld", size), ftruncate(fd, size), truncate("f", size), pwrite(fd, "abc", 3, 0), ftruncate(fd, 10), fallocate(fd, FALLOC_FL_KEEP_SIZE, size, 1), fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, size, 100),
			posix_fallocate(fd, 5, size <= 4096 ? size : -1));
		show_fstat(fd);
		close(fd), unlink("f");
	}
}
RECORDING("a limit of the size of files") {
	CHILD {
		signal(SIGXFSZ, SIG_IGN);
		setrlimit(RLIMIT_FSIZE, &(struct rlimit){10000, 10000});
		int fd = FD(open("f", O_RDWR | O_CREAT, 0644));
		static char bytes[20000];
		T(pwrite(fd, bytes, 10000, 0));
		T(pwrite(fd, bytes, 10, 9995));
		T(pwrite(fd, bytes, 10, 10000));
		T(pwrite(fd, bytes, 20000, 0));
		T(ftruncate(fd, 10001));
		T(ftruncate(fd, 9999));
		T(fallocate(fd, 0, 0, 20000));
		T(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 20000));
		show_fstat(fd);
	}
	CHILD {
		setrlimit(RLIMIT_FSIZE, &(struct rlimit){10, 10});
		T(write(open("g", O_WRONLY | O_CREAT, 0644), "0123456789", 10));
		T(truncate("g", 11));
	}
}

static void pattern(int fd, size_t length) {
	static unsigned char bytes[256 * KIB];
	fill(bytes, length, 0);
	if (pwrite(fd, bytes, length, 0) != (ssize_t)length) line("the pattern cannot be written: %s", strerrorname_np(errno));
}
RECORDING("fallocate in every mode") {
	static const struct {
		const char *name;
		int mode;
	} modes[] = {{"0", 0}, {"KEEP_SIZE", 1}, {"PUNCH_HOLE", 2}, {"PUNCH_HOLE|KEEP_SIZE", 3}, {"COLLAPSE_RANGE", 8}, {"ZERO_RANGE", 16}, {"ZERO_RANGE|KEEP_SIZE", 17}, {"INSERT_RANGE", 32}, {"UNSHARE_RANGE", 64},
		{"PUNCH_HOLE|ZERO_RANGE", 18}, {"unknown", 0x1000}};
	static const struct {
		off_t offset, length;
	} ranges[] = {{0, 4096}, {4096, 8192}, {100, 5000}, {60000, 10000}, {65536, 100}, {100000, 5000}, {0, 0}, {-1, 100}, {100, -1}, {0, LLONG_MAX}, {LLONG_MAX, 1}};
	for (size_t m = 0; m < sizeof modes / sizeof *modes; m++)
		for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
			int fd = open("f", O_RDWR | O_CREAT | O_TRUNC, 0644);
			pattern(fd, 64 * KIB);
			line("fallocate(%s, %lld, %lld) = %s", modes[m].name, (long long)ranges[r].offset, (long long)ranges[r].length, R(fallocate(fd, modes[m].mode, ranges[r].offset, ranges[r].length)));
			show_content("f");
			close(fd), unlink("f");
		}
}
RECORDING_NEEDS("holes", "holes: where data begins and ends") {
	int fd = FD(open("f", O_RDWR | O_CREAT, 0644));
	T(pwrite(fd, "data", 4, MIB));
	T(ftruncate(fd, 3 * MIB));
	T(fsync(fd));
	for (off_t at = 0; at <= 4 * MIB; at += MIB / 2) EACH(text("at %lld KiB", (long long)at / KIB), lseek(fd, at, SEEK_DATA), lseek(fd, at, SEEK_HOLE));
	T(pwrite(fd, "more", 4, 2 * MIB));
	T(lseek(fd, MIB + 8192, SEEK_DATA));
	T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, MIB, 4096));
	T(lseek(fd, 0, SEEK_DATA));
}
RECORDING("copies between files: copy_file_range, sendfile, splice, reflinks") {
	make("empty", "");
	int in = FD(open("in", O_RDWR | O_CREAT, 0644)), out = FD(open("out", O_RDWR | O_CREAT, 0644)), append = FD(open("out", O_WRONLY | O_APPEND)), dir = FD(open(".", O_RDONLY));
	pattern(in, 200 * KIB);
	off_t from = 0, to = 0;
	T(copy_file_range(in, &from, out, &to, 0, 0));
	for (size_t left = 150 * KIB; left > 0;) {
		ssize_t n = copy_file_range(in, &from, out, &to, left, 0);
		if (n <= 0) break;
		left -= (size_t)n;
	}
	line("copied to %lld, %lld", (long long)from, (long long)to);
	show_content("out");
	EACH("copy_file_range", copy_file_range(in, &(off_t){200 * KIB}, out, &(off_t){0}, 10, 0), copy_file_range(in, &(off_t){LLONG_MAX}, out, &(off_t){0}, 10, 0), copy_file_range(in, &(off_t){0}, out, &(off_t){LLONG_MAX}, 10, 0),
		copy_file_range(in, &(off_t){-1}, out, &(off_t){0}, 10, 0), copy_file_range(in, &(off_t){0}, append, &(off_t){0}, 10, 0), copy_file_range(dir, &(off_t){0}, out, &(off_t){0}, 10, 0),
		copy_file_range(in, &(off_t){0}, in, &(off_t){5}, 10, 0), copy_file_range(in, &(off_t){0}, in, &(off_t){300 * KIB}, 10, 0), copy_file_range(in, &(off_t){0}, out, &(off_t){0}, 10, 1));
	T(lseek(in, 0, SEEK_SET)), T(lseek(out, 100, SEEK_SET));
	T(copy_file_range(in, NULL, out, NULL, 50, 0));
	EACH("after it", lseek(in, 0, SEEK_CUR), lseek(out, 0, SEEK_CUR));
	EACH("sendfile", sendfile(out, in, &(off_t){1000}, 5000), sendfile(append, in, &(off_t){1000}, 5000), sendfile(out, in, &(off_t){300 * KIB + 10}, 10), sendfile(out, in, &(off_t){-1}, 10), sendfile(out, dir, NULL, 10),
		sendfile(in, out, NULL, 100));
	show_content("out");
	int pipes[2];
	T(pipe(pipes));
	EACH("splice", splice(in, &(off_t){500}, pipes[1], NULL, 3000, 0), splice(pipes[0], NULL, out, &(off_t){7}, 2000, 0), splice(pipes[0], NULL, append, NULL, 100, 0), splice(pipes[0], NULL, out, &(off_t){160 * KIB}, 5000, SPLICE_F_MOVE),
		splice(in, &(off_t){-1}, pipes[1], NULL, 10, 0), splice(dir, NULL, pipes[1], NULL, 10, 0), splice(in, NULL, out, NULL, 10, 0), splice(in, &(off_t){400 * KIB}, pipes[1], NULL, 10, SPLICE_F_NONBLOCK));
	show_content("out");
	int clone = FD(open("clone", O_RDWR | O_CREAT, 0644));
	EACH("ioctls", ioctl(clone, FICLONE, in), ioctl(in, FIONREAD, &(int){0}), ioctl(in, FIGETBSZ, &(int){0}) < 0 ? -1 : 0, ioctl(in, 0x5413, pipes));
	int device = FD(open("/dev/null", O_RDWR));
	EACH("devices", copy_file_range(in, &(off_t){0}, device, NULL, 10, 0), sendfile(device, in, &(off_t){0}, 10));
	show_stat("in"), show_stat("out");
}
RECORDING("RWF_NOAPPEND: a write that does not append, by a descriptor that does") {
	make("f", "0123456789");
	int fd = FD(open("f", O_RDWR | O_APPEND));
	struct iovec piece = {"abc", 3};
	T(pwritev2(fd, &piece, 1, 2, 0x20));
	show_content("f");
	T(pwrite(fd, "!", 1, 0));
	show_content("f");
}
RECORDING("reads and writes with flags and in pieces") {
	make("f", "0123456789");
	int fd = FD(open("f", O_RDWR));
	char bytes[32];
	static void *volatile nowhere = (void *)8;
	static volatile int too_few = -1;
	struct iovec one = {bytes, 4}, two[2] = {{"ab", 2}, {"cd", 2}}, none = {bytes, 0}, bad = {nowhere, 10};
	static struct iovec many[1025];
	for (int i = 0; i < 1025; i++) many[i] = (struct iovec){bytes, 1};
	EACH("preadv2", preadv2(fd, &one, 1, 2, 0), preadv2(fd, &one, 1, -1, 0), preadv2(fd, &one, 1, 2, RWF_HIPRI), preadv2(fd, &one, 1, 2, RWF_DSYNC), preadv2(fd, &one, 1, 2, 0x40000), preadv2(fd, &none, 1, 2, 0), preadv2(fd, &one, 0, 2, 0),
		preadv2(fd, &one, 1, -2, 0));
	EACH("pwritev2", pwritev2(fd, two, 2, 3, 0), pwritev2(fd, two, 2, 0, RWF_DSYNC), pwritev2(fd, two, 2, 5, RWF_SYNC), pwritev2(fd, two, 2, 1, RWF_APPEND), pwritev2(fd, two, 2, 1, 0x40000), pwritev2(fd, two, 0, 1, 0), pwritev2(fd, two, 2, -2, 0));
	EACH("limits", preadv(fd, many, 1024, 0), preadv(fd, many, 1025, 0), preadv(fd, many, too_few, 0), pwritev(fd, many, 1025, 0), pread(fd, nowhere, 10, 0), pwrite(fd, nowhere, 10, 0), preadv2(fd, &bad, 1, 0, 0), read(fd, NULL, 0));
	show_content("f");
	T(ftruncate(fd, 5));
	EACH("an empty write", pwrite(fd, "", 0, 100), write(fd, NULL, 0));
	show_fstat(fd);
	static char large[3 * MIB];
	memset(large, 'L', sizeof large);
	T(pwrite(fd, large, sizeof large, 3));
	T(pread(fd, large, sizeof large, 1000000));
	show_fstat(fd);
}

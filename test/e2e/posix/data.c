// Data: read, write, truncate, holes, mapping, copying, allocation.
#include "facts.h"
#include <linux/falloc.h>

#define KIB 1024
#define MIB (1024 * 1024)

static unsigned char buffer[4 * MIB + 4096] __attribute__((aligned(4096)));

FACT("what is written is read back at the same offsets") {
	int fd = open_new("f");
	EQ(MUST(pwrite(fd, "world", 5, 6)), 5);
	EQ(MUST(pwrite(fd, "hello ", 6, 0)), 6);
	holds("f", "hello world");
	char part[4] = "";
	EQ(MUST(pread(fd, part, 3, 4)), 3);
	CHECK(strcmp(part, "o w") == 0);
}
FACT("READ at and beyond the end gives no bytes") {
	put("f", "abc");
	int fd = (int)MUST(open("f", O_RDONLY));
	EQ(MUST(pread(fd, buffer, 10, 3)), 0);
	EQ(MUST(pread(fd, buffer, 10, 1000000)), 0);
	EQ(MUST(pread(fd, buffer, 10, 1)), 2);
}
FACT("a write of no bytes changes nothing") {
	put("f", "abc");
	int fd = (int)MUST(open("f", O_WRONLY));
	EQ(MUST(pwrite(fd, "", 0, 100)), 0);
	EQ(fstat_of(fd).st_size, 3);
}
FACT("O_APPEND writes at the end whatever the offset, also after another descriptor grew the file") {
	put("f", "abc");
	int fd = (int)MUST(open("f", O_WRONLY | O_APPEND));
	int other = (int)MUST(open("f", O_WRONLY));
	EQ(MUST(write(fd, "1", 1)), 1);
	EQ(MUST(pwrite(other, "XX", 2, 4)), 2);
	MUST(lseek(fd, 0, SEEK_SET));
	EQ(MUST(write(fd, "2", 1)), 1);
	holds("f", "abc1XX2");
}
FACT("requests of 1 MiB and odd sizes keep every byte of a 4 MiB file") {
	int fd = open_new("f");
	fill(buffer, 4 * MIB, 0);
	EQ(MUST(write(fd, buffer, MIB)), MIB);
	EQ(MUST(pwrite(fd, buffer + MIB, 2 * MIB + 777, MIB)), 2 * MIB + 777);
	EQ(MUST(pwrite(fd, buffer + 3 * MIB + 777, MIB - 777, 3 * MIB + 777)), MIB - 777);
	MUST(close(fd));
	fd = (int)MUST(open("f", O_RDONLY));
	memset(buffer, 0, 4 * MIB);
	EQ(MUST(read(fd, buffer, 4 * MIB)), 4 * MIB);
	filled(buffer, 4 * MIB, 0);
	EQ(MUST(pread(fd, buffer, 100001, 1234567)), 100001);
	filled(buffer, 100001, 1234567);
}
FACT("writes across page boundaries at many odd offsets read back right") {
	int fd = open_new("f");
	fill(buffer, 300 * KIB, 0);
	for (size_t at = 0; at < 300 * KIB;) {
		size_t length = at % 9973 + 1;
		if (at + length > 300 * KIB) length = 300 * KIB - at;
		EQ(MUST(pwrite(fd, buffer + at, length, (off_t)at)), length);
		at += length;
	}
	memset(buffer, 0, 300 * KIB);
	EQ(MUST(pread(fd, buffer, 300 * KIB, 0)), 300 * KIB);
	filled(buffer, 300 * KIB, 0);
}
FACT("writev and readv with many pieces work") {
	int fd = open_new("f");
	struct iovec pieces[64];
	fill(buffer, 64 * 333, 0);
	for (int i = 0; i < 64; i++) pieces[i] = (struct iovec){buffer + i * 333, 333};
	EQ(MUST(writev(fd, pieces, 64)), 64 * 333);
	memset(buffer, 0, 64 * 333);
	EQ(MUST(preadv(fd, pieces, 64, 0)), 64 * 333);
	filled(buffer, 64 * 333, 0);
}
FACT("a file with a hole reads as zeros there and takes little space") {
	int fd = open_new("f");
	EQ(MUST(pwrite(fd, "end", 3, 64 * MIB)), 3);
	EQ(fstat_of(fd).st_size, 64 * MIB + 3);
	EQ(MUST(pread(fd, buffer, 8192, 32 * MIB)), 8192);
	for (int i = 0; i < 8192; i++) EQ(buffer[i], 0);
	MUST(fsync(fd));
	CHECK(fstat_of(fd).st_blocks * 512 < MIB);
}
FACT("offsets beyond 4 GiB work") {
	int fd = open_new("f");
	off_t at = (5LL << 30) + 123;
	EQ(MUST(pwrite(fd, "far", 3, at)), 3);
	EQ(fstat_of(fd).st_size, at + 3);
	EQ(MUST(pread(fd, buffer, 100, at)), 3);
	CHECK(memcmp(buffer, "far", 3) == 0);
	MUST(ftruncate(fd, 0));
}
FACT("a second descriptor reads what the first has written at once") {
	int writer = open_new("f");
	int reader = (int)MUST(open("f", O_RDONLY));
	EQ(MUST(write(writer, "one", 3)), 3);
	EQ(MUST(pread(reader, buffer, 10, 0)), 3);
	EQ(MUST(write(writer, "two", 3)), 3);
	EQ(MUST(pread(reader, buffer, 10, 0)), 6);
	CHECK(memcmp(buffer, "onetwo", 6) == 0);
}
FACT("O_DIRECT reads and writes aligned blocks, seen by a buffered reader") {
	int fd = open("f", O_RDWR | O_CREAT | O_DIRECT, 0644);
	if (fd < 0) skip("open: %s", strerrorname_np(errno));
	fill(buffer, 64 * KIB, 0);
	EQ(MUST(pwrite(fd, buffer, 64 * KIB, 0)), 64 * KIB);
	memset(buffer, 0, 64 * KIB);
	EQ(MUST(pread(fd, buffer, 32 * KIB, 16 * KIB)), 32 * KIB);
	filled(buffer, 32 * KIB, 16 * KIB);
	int other = (int)MUST(open("f", O_RDONLY));
	EQ(MUST(pread(other, buffer, 64 * KIB, 0)), 64 * KIB);
	filled(buffer, 64 * KIB, 0);
}

FACT("truncate shortens, and growing again shows zeros") {
	put("f", "abcdefgh");
	MUST(truncate("f", 3));
	holds("f", "abc");
	MUST(truncate("f", 6));
	EQ(lstat_of("f").st_size, 6);
	int fd = (int)MUST(open("f", O_RDONLY));
	EQ(MUST(read(fd, buffer, 10)), 6);
	CHECK(memcmp(buffer, "abc\0\0\0", 6) == 0);
}
FACT("ftruncate works on a descriptor for writing and is EINVAL on one for reading") {
	put("f", "abc");
	MUST(ftruncate((int)MUST(open("f", O_WRONLY)), 1));
	EQ(lstat_of("f").st_size, 1);
	FAILS(EINVAL, ftruncate((int)MUST(open("f", O_RDONLY)), 0));
}
FACT("truncate of a directory is EISDIR, of a missing name ENOENT, to a negative size EINVAL") {
	MUST(mkdir("d", 0755));
	put("f", "");
	FAILS(EISDIR, truncate("d", 0));
	FAILS(ENOENT, truncate("missing", 0));
	FAILS(EINVAL, truncate("f", -1));
}
FACT_NEEDS("sparse", "truncate to far beyond 4 GiB makes a sparse file") {
	put("f", "x");
	MUST(truncate("f", 6LL << 30));
	EQ(lstat_of("f").st_size, 6LL << 30);
	MUST(truncate("f", 0));
	EQ(lstat_of("f").st_size, 0);
}
FACT("RLIMIT-like maximum: a write beyond the largest offset is EFBIG or EINVAL") {
	int fd = open_new("f");
	errno = 0;
	CHECK(pwrite(fd, "x", 1, LLONG_MAX) < 0 && (errno == EFBIG || errno == EINVAL || errno == EOVERFLOW));
}

FACT("fsync and fdatasync succeed on files, fsync on directories") {
	int fd = open_new("f");
	EQ(MUST(write(fd, "x", 1)), 1);
	MUST(fsync(fd));
	MUST(fdatasync(fd));
	MUST(fsync((int)MUST(open(".", O_RDONLY | O_DIRECTORY))));
}
FACT("syncfs and sync succeed") {
	int fd = open_new("f");
	EQ(MUST(write(fd, "x", 1)), 1);
	MUST(syncfs(fd));
	sync();
}
FACT("O_SYNC writes succeed") {
	int fd = (int)MUST(open("f", O_CREAT | O_WRONLY | O_SYNC, 0644));
	EQ(MUST(write(fd, "safe", 4)), 4);
	holds("f", "safe");
}

FACT("mmap private shows the file and keeps its writes to itself") {
	put("f", "mapped");
	int fd = (int)MUST(open("f", O_RDWR));
	char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(map != MAP_FAILED);
	CHECK(memcmp(map, "mapped", 6) == 0);
	map[0] = 'X';
	MUST(munmap(map, 4096));
	holds("f", "mapped");
}
FACT_NEEDS("mmap", "mmap shared for reading shows what was written") {
	put("f", "mapped");
	char *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, (int)MUST(open("f", O_RDONLY)), 0);
	CHECK(map != MAP_FAILED);
	CHECK(memcmp(map, "mapped", 6) == 0);
	EQ(map[6], 0);
}
FACT_NEEDS("mmap", "mmap shared writes reach the file with msync") {
	int fd = open_new("f");
	MUST(ftruncate(fd, 3 * 4096));
	char *map = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	memcpy(map + 4090, "across pages", 12);
	MUST(msync(map, 3 * 4096, MS_SYNC));
	EQ(MUST(pread(fd, buffer, 12, 4090)), 12);
	CHECK(memcmp(buffer, "across pages", 12) == 0);
	MUST(munmap(map, 3 * 4096));
	EQ(fstat_of(fd).st_size, 3 * 4096);
}
FACT_NEEDS("mmap", "mmap shared writes reach the file after munmap and close") {
	int fd = open_new("f");
	MUST(ftruncate(fd, 4096));
	char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	memcpy(map, "kept", 4);
	MUST(munmap(map, 4096));
	MUST(close(fd));
	fd = (int)MUST(open("f", O_RDONLY));
	EQ(MUST(pread(fd, buffer, 4, 0)), 4);
	CHECK(memcmp(buffer, "kept", 4) == 0);
}
FACT_NEEDS("mmap", "a write by a descriptor is seen in a shared mapping") {
	int fd = open_new("f");
	MUST(ftruncate(fd, 4096));
	char *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	EQ(map[0], 0);
	EQ(MUST(pwrite(fd, "new", 3, 0)), 3);
	CHECK(memcmp(map, "new", 3) == 0);
}
FACT("a program on the share can be executed") {
	int in = (int)MUST(open("/bin/busybox", O_RDONLY));
	int out = (int)MUST(open("true", O_CREAT | O_WRONLY, 0755));
	for (ssize_t length; (length = MUST(read(in, buffer, MIB))) > 0;) EQ(MUST(write(out, buffer, (size_t)length)), length);
	MUST(close(out));
	pid_t pid = (pid_t)MUST(fork());
	if (pid == 0) {
		execl("./true", "true", NULL);
		fail("execl: %s", strerrorname_np(errno));
	}
	finish(pid);
}
FACT("a program without an execute bit is EACCES even for root") {
	put("f", "#!/bin/sh\n");
	FAILS(EACCES, execl("./f", "f", NULL));
}

FACT("fallocate makes the file longer") {
	int fd = open_new("f");
	MAY_LACK(fallocate(fd, 0, 0, 100000));
	EQ(fstat_of(fd).st_size, 100000);
	EQ(MUST(pread(fd, buffer, 16, 50000)), 16);
	EQ(buffer[3], 0);
}
FACT("fallocate with KEEP_SIZE keeps the size and takes blocks") {
	int fd = open_new("f");
	MAY_LACK(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, MIB));
	struct stat s = fstat_of(fd);
	EQ(s.st_size, 0);
	CHECK(s.st_blocks * 512LL >= MIB);
}
FACT("fallocate with PUNCH_HOLE zeroes a range and keeps the size") {
	int fd = open_new("f");
	fill(buffer, 64 * KIB, 0);
	EQ(MUST(write(fd, buffer, 64 * KIB)), 64 * KIB);
	MAY_LACK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096 + 100, 20000));
	EQ(fstat_of(fd).st_size, 64 * KIB);
	EQ(MUST(pread(fd, buffer, 64 * KIB, 0)), 64 * KIB);
	filled(buffer, 4196, 0);
	for (int i = 4196; i < 24196; i++) EQ(buffer[i], 0);
	filled(buffer + 24196, 64 * KIB - 24196, 24196);
}
FACT("fallocate with ZERO_RANGE zeroes a range and may grow the file") {
	int fd = open_new("f");
	fill(buffer, 8192, 0);
	EQ(MUST(write(fd, buffer, 8192)), 8192);
	MAY_LACK(fallocate(fd, FALLOC_FL_ZERO_RANGE, 4096, 8192));
	EQ(fstat_of(fd).st_size, 12288);
	EQ(MUST(pread(fd, buffer, 12288, 0)), 12288);
	filled(buffer, 4096, 0);
	for (int i = 4096; i < 12288; i++) EQ(buffer[i], 0);
}
FACT("fallocate with COLLAPSE_RANGE is refused with EOPNOTSUPP by the guest's kernel") {
	int fd = open_new("f");
	MUST(ftruncate(fd, 64 * KIB));
	FAILS(EOPNOTSUPP, fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096));
}
FACT("fallocate on a descriptor for reading is EBADF") {
	put("f", "x");
	FAILS(EBADF, fallocate((int)MUST(open("f", O_RDONLY)), 0, 0, 10));
}

FACT_NEEDS("writethrough", "SEEK_DATA and SEEK_HOLE find data and holes") {
	int fd = open_new("f");
	EQ(MUST(pwrite(fd, "data", 4, MIB)), 4);
	MUST(ftruncate(fd, 2 * MIB));
	MUST(fsync(fd));
	off_t data = MAY_LACK(lseek(fd, 0, SEEK_DATA));
	CHECK(data > 0 && data <= MIB);
	EQ(MUST(lseek(fd, 0, SEEK_HOLE)), 0);
	off_t hole = MUST(lseek(fd, MIB, SEEK_HOLE));
	CHECK(hole > MIB && hole < 2 * MIB);
}
FACT_NEEDS("writethrough", "SEEK_DATA and SEEK_HOLE beyond the end are ENXIO; SEEK_DATA in a last hole too") {
	int fd = open_new("f");
	EQ(MUST(write(fd, "abc", 3)), 3);
	MUST(ftruncate(fd, MIB));
	MUST(fsync(fd));
	FAILS(ENXIO, lseek(fd, 2 * MIB, SEEK_DATA));
	FAILS(ENXIO, lseek(fd, 2 * MIB, SEEK_HOLE));
	FAILS(ENXIO, lseek(fd, 512 * KIB, SEEK_DATA));
}
FACT("SEEK_END follows the size, also when another descriptor grows the file") {
	int fd = open_new("f");
	EQ(MUST(pwrite((int)MUST(open("f", O_WRONLY)), "12345", 5, 0)), 5);
	EQ(MUST(lseek(fd, 0, SEEK_END)), 5);
	EQ(MUST(lseek(fd, -2, SEEK_END)), 3);
	FAILS(EINVAL, lseek(fd, -6, SEEK_END));
}

FACT("copy_file_range copies a part between files") {
	int in = open_new("in"), out = open_new("out");
	fill(buffer, 200 * KIB, 0);
	EQ(MUST(write(in, buffer, 200 * KIB)), 200 * KIB);
	off_t from = 1000, to = 50;
	size_t left = 150 * KIB;
	while (left > 0) {
		ssize_t copied = MUST(copy_file_range(in, &from, out, &to, left, 0));
		CHECK(copied > 0);
		left -= (size_t)copied;
	}
	EQ(fstat_of(out).st_size, 150 * KIB + 50);
	EQ(MUST(pread(out, buffer, 150 * KIB, 50)), 150 * KIB);
	filled(buffer, 150 * KIB, 1000);
}
FACT("copy_file_range beyond the source's end copies what there is") {
	put("in", "12345");
	int in = (int)MUST(open("in", O_RDONLY)), out = open_new("out");
	EQ(MUST(copy_file_range(in, NULL, out, NULL, 100, 0)), 5);
	EQ(MUST(copy_file_range(in, NULL, out, NULL, 100, 0)), 0);
	holds("out", "12345");
}
FACT("copy_file_range within one file, ranges apart, works; overlapping is EINVAL") {
	int fd = open_new("f");
	EQ(MUST(write(fd, "abcdefghij", 10)), 10);
	off_t from = 0, to = 10;
	EQ(MUST(copy_file_range(fd, &from, fd, &to, 5, 0)), 5);
	holds("f", "abcdefghijabcde");
	from = 0, to = 2;
	FAILS(EINVAL, copy_file_range(fd, &from, fd, &to, 5, 0));
}

FACT_NEEDS("tmpfile", "O_TMPFILE makes a file without a name that linkat gives one") {
	if (!kernel_at_least(6, 2)) skip("this kernel's FUSE has no O_TMPFILE");
	int fd = (int)MUST(open(".", O_TMPFILE | O_RDWR, 0640));
	EQ(fstat_of(fd).st_nlink, 0);
	EQ(MUST(write(fd, "nameless", 8)), 8);
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	MUST(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
	holds("named", "nameless");
	EQ(mode_of("named"), 0640);
	EQ(fstat_of(fd).st_nlink, 1);
}
FACT_NEEDS("tmpfile", "O_TMPFILE with O_EXCL cannot be linked") {
	if (!kernel_at_least(6, 2)) skip("this kernel's FUSE has no O_TMPFILE");
	int fd = (int)MUST(open(".", O_TMPFILE | O_EXCL | O_RDWR, 0644));
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	FAILS(ENOENT, linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
}

// O_APPEND, O_DIRECT and O_DSYNC are what the open file has now, not what it was opened with; a mapped page goes to its place.
#include "facts.h"
#include <linux/io_uring.h>

#define PAGE 4096
#define MIB (1024 * 1024)

static unsigned char buffer[4 * MIB] __attribute__((aligned(4096)));

static char *map_shared(int fd, size_t length) {
	char *map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) fail("mmap: %s", strerrorname_np(errno));
	return map;
}

// Sets or clears a flag of the open file.
static void set_flag(int fd, int flag, bool on) {
	int flags = (int)MUST(fcntl(fd, F_GETFL));
	MUST(fcntl(fd, F_SETFL, on ? flags | flag : flags & ~flag));
}

FACT_NEEDS("mmap", "a mapping of a file opened with O_APPEND is written to its place, not to the end") {
	int fd = (int)MUST(open("f", O_RDWR | O_CREAT | O_APPEND, 0644));
	MUST(ftruncate(fd, 1024));
	char *map = map_shared(fd, 1024);
	fill((unsigned char *)map, 1024, 0);
	MUST(msync(map, 1024, MS_SYNC));
	MUST(munmap(map, 1024));
	MUST(close(fd));
	fd = (int)MUST(open("f", O_RDONLY));
	EQ(fstat_of(fd).st_size, 1024);
	EQ(MUST(read(fd, buffer, 2048)), 1024);
	filled(buffer, 1024, 0);
}
FACT_NEEDS("mmap", "what is appended and what is mapped in one file do not displace each other") {
	int fd = (int)MUST(open("f", O_RDWR | O_CREAT | O_APPEND, 0644));
	MUST(ftruncate(fd, 3 * PAGE));
	char *map = map_shared(fd, 3 * PAGE);
	fill((unsigned char *)map, 3 * PAGE, 0);
	fill(buffer, 8 * 1000, 3 * PAGE);
	for (int i = 0; i < 8; i++) {
		EQ(MUST(write(fd, buffer + i * 1000, 1000)), 1000);
		map[i * 1500] = (char)~map[i * 1500];
		MUST(msync(map, 3 * PAGE, MS_SYNC));
		map[i * 1500] = (char)~map[i * 1500];
	}
	MUST(munmap(map, 3 * PAGE));
	MUST(close(fd));
	fd = (int)MUST(open("f", O_RDONLY));
	EQ(fstat_of(fd).st_size, 3 * PAGE + 8000);
	EQ(MUST(read(fd, buffer, MIB)), 3 * PAGE + 8000);
	filled(buffer, 3 * PAGE + 8000, 0);
}
FACT_NEEDS("mmap", "a page that one descriptor maps goes to its place also when only an appending one is left open") {
	put("f", "0123456789");
	int plain = (int)MUST(open("f", O_RDWR));
	int append = (int)MUST(open("f", O_RDWR | O_APPEND));
	char *map = map_shared(plain, 10);
	memcpy(map, "abc", 3);
	MUST(close(plain));
	EQ(MUST(write(append, "end", 3)), 3);
	MUST(fsync(append));
	MUST(munmap(map, 10));
	MUST(close(append));
	holds("f", "abc3456789end");
}
FACT_NEEDS("mmap", "a mapping of a file that is cut and grown by an appending descriptor goes to its place") {
	int fd = (int)MUST(open("f", O_RDWR | O_CREAT | O_APPEND, 0644));
	MUST(ftruncate(fd, 2 * PAGE));
	char *map = map_shared(fd, 2 * PAGE);
	memset(map, 'a', 2 * PAGE);
	MUST(ftruncate(fd, 100));
	EQ(MUST(write(fd, "tail", 4)), 4);
	MUST(ftruncate(fd, PAGE));
	map[200] = 'b';
	MUST(msync(map, PAGE, MS_SYNC));
	EQ(fstat_of(fd).st_size, PAGE);
	EQ(MUST(pread(fd, buffer, 2 * PAGE, 0)), PAGE);
	for (int i = 0; i < PAGE; i++) EQ(buffer[i], i < 100 ? 'a' : i < 104 ? "tail"[i - 100] : i == 200 ? 'b' : 0);
}
FACT("O_APPEND that fcntl clears does not append any more") {
	int fd = (int)MUST(open("f", O_RDWR | O_CREAT | O_APPEND, 0644));
	EQ(MUST(write(fd, "0123456789", 10)), 10);
	MUST(fcntl(fd, F_SETFL, 0));
	EQ(MUST(pwrite(fd, "XX", 2, 2)), 2);
	holds("f", "01XX456789");
	MUST(lseek(fd, 5, SEEK_SET));
	EQ(MUST(write(fd, "YY", 2)), 2);
	holds("f", "01XX4YY789");
}
FACT("O_APPEND that fcntl sets appends, also for a duplicate and a child") {
	put("f", "0123456789");
	int fd = (int)MUST(open("f", O_RDWR));
	int duplicate = (int)MUST(dup(fd));
	set_flag(fd, O_APPEND, true);
	EQ(MUST(pwrite(duplicate, "A", 1, 0)), 1);
	IN_CHILD {
		EQ(MUST(pwrite(fd, "B", 1, 0)), 1);
		set_flag(fd, O_APPEND, false);
	}
	EQ(MUST(pwrite(duplicate, "C", 1, 0)), 1);
	MUST(close(fd));
	MUST(close(duplicate));
	holds("f", "C123456789AB");
}
FACT("of two descriptors one appends, and the other writes where it is told") {
	put("f", "0123456789");
	int append = (int)MUST(open("f", O_WRONLY | O_APPEND));
	int plain = (int)MUST(open("f", O_WRONLY));
	for (int i = 0; i < 3; i++) {
		EQ(MUST(pwrite(append, "a", 1, 0)), 1);
		EQ(MUST(pwrite(plain, "p", 1, i)), 1);
		EQ(MUST(pwrite(plain, "z", 1, 10 + 2 * i + 1)), 1);
	}
	holds("f", "ppp3456789azazaz");
}
FACT("RWF_APPEND appends once, whatever the offset and the descriptor") {
	put("f", "0123456789");
	int fd = (int)MUST(open("f", O_RDWR));
	struct iovec piece = {"end", 3};
	EQ(MAY_LACK(pwritev2(fd, &piece, 1, 2, RWF_APPEND)), 3);
	EQ(MUST(pwrite(fd, "X", 1, 2)), 1);
	holds("f", "01X3456789end");
}
FACT("RWF_DSYNC and RWF_SYNC write what any write does") {
	put("f", "0123456789");
	int fd = (int)MUST(open("f", O_RDWR));
	struct iovec piece = {"ab", 2};
	EQ(MAY_LACK(pwritev2(fd, &piece, 1, 2, RWF_DSYNC)), 2);
	EQ(MUST(pwritev2(fd, &piece, 1, 6, RWF_SYNC)), 2);
	holds("f", "01ab45ab89");
}
FACT("an O_DIRECT append of several megabytes keeps its order") {
	int fd = open("f", O_WRONLY | O_CREAT | O_APPEND | O_DIRECT, 0644);
	if (fd < 0) skip("open: %s", strerrorname_np(errno));
	fill(buffer, 4 * MIB, 0);
	EQ(MUST(write(fd, buffer, 3 * MIB)), 3 * MIB);
	EQ(MUST(write(fd, buffer + 3 * MIB, MIB)), MIB);
	MUST(close(fd));
	memset(buffer, 0, 4 * MIB);
	fd = (int)MUST(open("f", O_RDONLY));
	EQ(fstat_of(fd).st_size, 4 * MIB);
	EQ(MUST(read(fd, buffer, 4 * MIB)), 4 * MIB);
	filled(buffer, 4 * MIB, 0);
}
FACT("O_DIRECT that fcntl clears takes odd offsets, and one that it sets works on aligned blocks") {
	int fd = open("f", O_RDWR | O_CREAT | O_DIRECT, 0644);
	if (fd < 0) skip("open: %s", strerrorname_np(errno));
	fill(buffer, 4 * PAGE, 0);
	EQ(MUST(pwrite(fd, buffer, 2 * PAGE, 0)), 2 * PAGE);
	set_flag(fd, O_DIRECT, false);
	EQ(MUST(pwrite(fd, buffer + 2 * PAGE, 777, 2 * PAGE)), 777);
	EQ(MUST(pread(fd, buffer + 3 * PAGE, 5, 1234)), 5);
	filled(buffer + 3 * PAGE, 5, 1234);
	fill(buffer + PAGE, PAGE, 0);
	set_flag(fd, O_DIRECT, true);
	EQ(MUST(pwrite(fd, buffer + PAGE, PAGE, PAGE)), PAGE);
	MUST(close(fd));
	fd = (int)MUST(open("f", O_RDONLY));
	EQ(MUST(read(fd, buffer, MIB)), 2 * PAGE + 777);
	filled(buffer, PAGE, 0);
	filled(buffer + PAGE, PAGE, 0);
	filled(buffer + 2 * PAGE, 777, 2 * PAGE);
}
FACT_NEEDS("mmap", "a mapping of a file opened with O_DIRECT whose end is no block's is kept") {
	int fd = open("f", O_RDWR | O_CREAT | O_DIRECT, 0644);
	if (fd < 0) skip("open: %s", strerrorname_np(errno));
	MUST(ftruncate(fd, PAGE + 77));
	char *map = map_shared(fd, PAGE + 77);
	fill((unsigned char *)map, PAGE + 77, 0);
	MUST(msync(map, PAGE + 77, MS_SYNC));
	MUST(munmap(map, PAGE + 77));
	MUST(close(fd));
	fd = (int)MUST(open("f", O_RDONLY));
	EQ(MUST(read(fd, buffer, MIB)), PAGE + 77);
	filled(buffer, PAGE + 77, 0);
}
FACT("copy_file_range to a descriptor that appends is EBADF, and works when O_APPEND is cleared") {
	put("in", "abc");
	put("out", "0123456789");
	int in = (int)MUST(open("in", O_RDONLY)), out = (int)MUST(open("out", O_RDWR | O_APPEND));
	off_t from = 0, to = 2;
	FAILS(EBADF, copy_file_range(in, &from, out, &to, 3, 0));
	set_flag(out, O_APPEND, false);
	EQ(MUST(copy_file_range(in, &from, out, &to, 3, 0)), 3);
	holds("out", "01abc56789");
}
FACT("fallocate of a descriptor that appends is at its offset") {
	put("f", "0123456789");
	int fd = (int)MUST(open("f", O_RDWR | O_APPEND));
	MAY_LACK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 3));
	EQ(MUST(write(fd, "!", 1)), 1);
	EQ(MUST(pread(fd, buffer, 100, 0)), 11);
	CHECK(memcmp(buffer, "01\0\0\0" "56789!", 11) == 0);
}

// One write through io_uring; the result is bytes or -errno.
static int ring_write(int fd, const void *data, unsigned length, uint64_t offset, int rw_flags) {
	struct io_uring_params parameters = {0};
	int ring = (int)syscall(SYS_io_uring_setup, 1, &parameters);
	if (ring < 0) skip("io_uring_setup: %s", strerrorname_np(errno));
	if (!(parameters.features & IORING_FEAT_SINGLE_MMAP)) skip("io_uring_setup: an old one");
	size_t sq_bytes = parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned);
	size_t cq_bytes = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
	char *rings = mmap(NULL, sq_bytes > cq_bytes ? sq_bytes : cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *entry = mmap(NULL, sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	CHECK(rings != MAP_FAILED && entry != MAP_FAILED);
	*entry = (struct io_uring_sqe){.opcode = IORING_OP_WRITE, .fd = fd, .addr = (uintptr_t)data, .len = length, .off = offset, .rw_flags = rw_flags};
	*(unsigned *)(rings + parameters.sq_off.array) = 0;
	__atomic_store_n((unsigned *)(rings + parameters.sq_off.tail), 1, __ATOMIC_RELEASE);
	EQ(MUST(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0)), 1);
	int result = ((struct io_uring_cqe *)(rings + parameters.cq_off.cqes))->res;
	MUST(close(ring));
	return result;
}
FACT("io_uring writes where it is told, and appends only while O_APPEND or RWF_APPEND is set") {
	put("f", "0123456789");
	int fd = (int)MUST(open("f", O_RDWR | O_APPEND));
	EQ(ring_write(fd, "A", 1, 0, 0), 1);
	set_flag(fd, O_APPEND, false);
	EQ(ring_write(fd, "B", 1, 1, 0), 1);
	EQ(ring_write(fd, "C", 1, 1, RWF_APPEND), 1);
	holds("f", "0B23456789AC");
}

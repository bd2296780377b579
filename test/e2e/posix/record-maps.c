// Mappings in all mixtures with descriptors that append, truncate or are direct, and what a program gets beyond the end.
#include "record.h"

#define PAGE 4096

static void *map(int fd, size_t length, int protection, int flags, off_t offset) {
	errno = 0;
	void *at = mmap(NULL, length, protection, flags, fd, offset);
	if (at == MAP_FAILED) line("mmap: %s", strerrorname_np(errno));
	return at;
}

RECORDING("mmap: descriptors, protections and kinds") {
	make("f", "0123456789");
	mkdir("d", 0755);
	static const struct {
		const char *name;
		int flags;
	} kinds[] = {{"MAP_SHARED", MAP_SHARED}, {"MAP_PRIVATE", MAP_PRIVATE}, {"MAP_SHARED_VALIDATE", MAP_SHARED_VALIDATE}, {"MAP_SHARED_VALIDATE|MAP_SYNC", MAP_SHARED_VALIDATE | MAP_SYNC}, {"neither", 0}};
	static const struct {
		const char *name;
		int flags;
	} protections[] = {{"r", PROT_READ}, {"w", PROT_WRITE}, {"rw", PROT_READ | PROT_WRITE}, {"x", PROT_READ | PROT_EXEC}, {"none", PROT_NONE}};
	static const struct {
		const char *name, *path;
		int flags;
	} descriptors[] = {{"a reader", "f", O_RDONLY}, {"a writer", "f", O_WRONLY}, {"both", "f", O_RDWR}, {"append", "f", O_RDWR | O_APPEND}, {"direct", "f", O_RDWR | O_DIRECT}, {"a path", "f", O_PATH}, {"a directory", "d", O_RDONLY}};
	for (size_t d = 0; d < sizeof descriptors / sizeof *descriptors; d++)
		for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
			for (size_t p = 0; p < sizeof protections / sizeof *protections; p++) {
				int fd = open(descriptors[d].path, descriptors[d].flags);
				errno = 0;
				void *at = mmap(NULL, PAGE, protections[p].flags, kinds[k].flags, fd, 0);
				line("%s of %s for %s: %s", kinds[k].name, descriptors[d].name, protections[p].name, at == MAP_FAILED ? strerrorname_np(errno) : "mapped");
				if (at != MAP_FAILED) munmap(at, PAGE);
				close(fd);
			}
	int fd = FD(open("f", O_RDWR));
	line("an odd offset: %s", R(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 100) == MAP_FAILED ? -1 : 0));
	line("a far offset: %s", R(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 1LL << 50) == MAP_FAILED ? -1 : 0));
	line("no length: %s", R(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0));
}

// One mixture: a file of 2.5 pages, or 3 for a direct descriptor, is mapped, changed in memory, by the descriptor and by truncation, in turn.
static void mixture(const char *name, int flags, bool direct) {
	off_t size = direct ? 3 * PAGE : 2 * PAGE + PAGE / 2;
	int setup = open("f", O_RDWR | O_CREAT | O_TRUNC, 0644);
	static unsigned char bytes[4 * PAGE] __attribute__((aligned(4096))), page[PAGE] __attribute__((aligned(4096)));
	memset(bytes, '.', (size_t)size);
	if (write(setup, bytes, (size_t)size) < 0) line("no file: %s", strerrorname_np(errno));
	close(setup);
	int fd = open("f", flags);
	line("%s: open %s", name, fd < 0 ? strerrorname_np(errno) : "a descriptor");
	if (fd < 0) return;
	char *at = map(fd, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	if (at == MAP_FAILED) {
		close(fd);
		return;
	}
	memset(page, 'w', PAGE);
	memcpy(at + 10, "mapped", 6);
	line("%s: write %s", name, R(direct ? pwrite(fd, page, PAGE, PAGE) : pwrite(fd, "written", 7, PAGE + 10)));
	memcpy(at + 2 * PAGE + 5, "third", 5);
	line("%s: msync %s", name, R(msync(at, 3 * PAGE, MS_SYNC)));
	show_fstat(fd);
	show_content("f");
	off_t cut = direct ? PAGE : PAGE + 100;
	line("%s: cut %s", name, R(ftruncate(fd, cut)));
	memcpy(at + cut - 50, "before the end", 14);
	line("%s: write %s", name, R(direct ? pwrite(fd, page, PAGE, 0) : pwrite(fd, "W", 1, 20)));
	show_fstat(fd);
	line("%s: grow %s", name, R(ftruncate(fd, 2 * PAGE)));
	show_bytes("behind the cut", at + cut - 10, 40);
	memcpy(at + PAGE + 500, "grown", 5);
	EACH(name, munmap(at, 3 * PAGE), close(fd));
	show_content("f");
	show_stat("f");
	unlink("f");
}
RECORDING_NEEDS("mmap", "mapping and writing: a plain descriptor") { mixture("O_RDWR", O_RDWR, false); }
RECORDING_NEEDS("mmap", "mapping and writing: a descriptor that appends") { mixture("O_APPEND", O_RDWR | O_APPEND, false); }
RECORDING_NEEDS("mmap", "mapping and writing: a synchronous descriptor") { mixture("O_SYNC", O_RDWR | O_SYNC, false); }
RECORDING_NEEDS("mmap", "mapping and writing: a direct descriptor") { mixture("O_DIRECT", O_RDWR | O_DIRECT, true); }
RECORDING_NEEDS("mmap", "mapping and writing: a direct descriptor that appends") { mixture("O_DIRECT|O_APPEND", O_RDWR | O_DIRECT | O_APPEND, true); }

RECORDING("a direct descriptor and blocks that are not aligned") {
	static unsigned char page[2 * PAGE] __attribute__((aligned(4096)));
	int fd = FD(open("f", O_RDWR | O_CREAT | O_DIRECT, 0644));
	EACH("direct", pwrite(fd, page, PAGE, 0), pwrite(fd, page, 100, PAGE), pwrite(fd, page, PAGE, 100), pwrite(fd, page + 1, PAGE, 0), pread(fd, page, PAGE, 0), pread(fd, page, 100, 0), pread(fd, page, PAGE, 1), pread(fd, page + 1, PAGE, 0));
	show_fstat(fd);
	T(fcntl(fd, F_SETFL, 0));
	EACH("not direct any more", pwrite(fd, page, 100, PAGE), pwrite(fd, "odd", 3, 5000), pread(fd, page, 10, 4999));
	T(fcntl(fd, F_SETFL, O_DIRECT));
	EACH("direct again", pwrite(fd, page, PAGE, PAGE), pread(fd, page, PAGE, PAGE));
	show_content("f");
}

RECORDING_NEEDS("mmap", "a mapping and other descriptors see each other, two processes too") {
	make("f", "0123456789");
	int fd = FD(open("f", O_RDWR)), other = FD(open("f", O_RDWR | O_APPEND));
	char *at = map(fd, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0), *copy = map(fd, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
	if (at == MAP_FAILED || copy == MAP_FAILED) return;
	char bytes[64];
	copy[1] = 'P';
	at[0] = 'S';
	T(pread(other, bytes, 3, 0));
	show_bytes("read", bytes, 3);
	T(write(other, "more", 4));
	show_bytes("mapped", at, 16);
	T(pwrite(fd, "W", 1, 5));
	show_bytes("mapped", at, 16);
	show_bytes("private", copy, 4);
	CHILD {
		at[2] = 'C';
		T(pwrite(other, "child", 5, 0));
	}
	show_bytes("mapped", at, 20);
	T(unlink("f"));
	at[3] = 'U';
	T(pread(fd, bytes, sizeof bytes, 0));
	show_bytes("all", bytes, 19);
	T(close(fd)), T(close(other));
	at[4] = 'Z';
	show_bytes("mapped", at, 20);
}
RECORDING_NEEDS("mmap", "beyond the end of a mapped file, and behind it") {
	make("f", "0123456789");
	CHILD {
		char *at = map(open("f", O_RDWR), 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
		if (at == MAP_FAILED) _exit(0);
		show_bytes("behind the end", at + 8, 4);
		line("the second page: %c", at[PAGE]);
	}
	CHILD {
		int fd = open("f", O_RDWR);
		char *at = map(fd, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
		if (at == MAP_FAILED) _exit(0);
		at[0] = 'a';
		T(ftruncate(fd, 0));
		at[0] = 'b';
	}
	show_content("f");
	T(truncate("f", 20));
	show_content("f");
	CHILD {
		char *at = map(open("f", O_RDONLY), PAGE, PROT_READ, MAP_SHARED, 0);
		if (at == MAP_FAILED) _exit(0);
		T(mprotect(at, PAGE, PROT_READ | PROT_WRITE));
		at[0] = 'c';
	}
	int fd = FD(open("f", O_RDWR));
	char *at = map(fd, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	if (at == MAP_FAILED) return;
	EACH("a mapping", mprotect(at, PAGE, PROT_READ), mprotect(at, PAGE, PROT_READ | PROT_WRITE), msync(at, PAGE, MS_ASYNC), msync(at, PAGE, MS_SYNC | MS_INVALIDATE), msync(at + 1, PAGE, MS_SYNC), madvise(at, PAGE, MADV_DONTNEED),
		madvise(at, PAGE, MADV_WILLNEED), madvise(at, PAGE, MADV_REMOVE) < 0 ? -1 : 0, mlock(at, PAGE));
	T(fsync(fd));
	show_content("f");
	line("mremap: %s", R(mremap(at, PAGE, 3 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0));
}
RECORDING_NEEDS("mmap", "a buffer that is a mapping of the file itself") {
	int fd = FD(open("f", O_RDWR | O_CREAT, 0644));
	static char bytes[3 * PAGE];
	fill((unsigned char *)bytes, sizeof bytes, 0);
	T(write(fd, bytes, sizeof bytes));
	char *at = map(fd, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	if (at == MAP_FAILED) return;
	T(pwrite(fd, at, PAGE, PAGE));
	T(pread(fd, at + 2 * PAGE, PAGE, 0));
	T(pwrite(fd, at + 100, 2 * PAGE, PAGE - 100));
	T(msync(at, 3 * PAGE, MS_SYNC));
	show_fstat(fd);
}

// Several processes at once.
#include "facts.h"

#define WRITERS 4

static int number;

static pid_t start_numbered(int n, void (*body)(void)) {
	number = n;
	return start(body);
}

static void run_writers(void (*body)(void)) {
	pid_t pids[WRITERS];
	for (int i = 0; i < WRITERS; i++) pids[i] = start_numbered(i, body);
	for (int i = 0; i < WRITERS; i++) finish(pids[i]);
}

static void write_stripes(void) {
	unsigned char block[8192];
	int fd = (int)MUST(open("f", O_WRONLY));
	for (int i = number; i < 128; i += WRITERS) {
		fill(block, sizeof block, (uint64_t)i * sizeof block);
		EQ(MUST(pwrite(fd, block, sizeof block, (off_t)i * (off_t)sizeof block)), sizeof block);
	}
}
FACT("4 writers of stripes of one file lose nothing") {
	put("f", "");
	run_writers(write_stripes);
	static unsigned char all[128 * 8192];
	int fd = (int)MUST(open("f", O_RDONLY));
	EQ(MUST(read(fd, all, sizeof all)), sizeof all);
	filled(all, sizeof all, 0);
}

static void append_lines(void) {
	int fd = (int)MUST(open("f", O_WRONLY | O_APPEND));
	char line[16];
	for (int i = 0; i < 50; i++) {
		snprintf(line, sizeof line, "%d %06d\n", number, i);
		EQ(MUST(write(fd, line, 9)), 9);
	}
}
FACT("4 writers that append lose and tear no line") {
	put("f", "");
	run_writers(append_lines);
	FILE *file = fopen("f", "r");
	int next[WRITERS] = {0}, who, what, lines = 0;
	while (fscanf(file, "%d %d\n", &who, &what) == 2) {
		CHECK(who >= 0 && who < WRITERS);
		EQ(what, next[who]++);
		lines++;
	}
	EQ(lines, 4 * 50);
}

static void make_and_remove(void) {
	char name[32], other[32];
	for (int i = 0; i < 60; i++) {
		snprintf(name, sizeof name, "w%d-%d", number, i);
		snprintf(other, sizeof other, "renamed-%d-%d", number, i);
		put(name, name);
		holds(name, name);
		MUST(rename(name, other));
		if (i % 3) MUST(unlink(other));
	}
}
FACT("4 processes that make, rename and remove files in one directory do not disturb each other") {
	run_writers(make_and_remove);
	DIR *directory = opendir(".");
	int left = 0;
	for (struct dirent *entry; (entry = readdir(directory)) != NULL;) left += entry->d_name[0] != '.';
	EQ(left, 4 * 20);
}

static void race_for_names(void) {
	char name[32];
	for (int i = 0; i < 50; i++) {
		snprintf(name, sizeof name, "n%d", i);
		int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
		if (fd < 0 && errno != EEXIST) fail("open: %s", strerrorname_np(errno));
		if (fd < 0) continue;
		EQ(MUST(write((int)MUST(open("winners", O_WRONLY | O_APPEND)), "w", 1)), 1);
		MUST(close(fd));
	}
}
FACT("of 4 processes exactly one wins each O_EXCL") {
	put("winners", "");
	run_writers(race_for_names);
	EQ(lstat_of("winners").st_size, 50);
}

static void race_for_directories(void) {
	char name[32];
	for (int i = 0; i < 50; i++) {
		snprintf(name, sizeof name, "d%d", i);
		if (mkdir(name, 0755) < 0 && errno != EEXIST) fail("mkdir: %s", strerrorname_np(errno));
		EQ(MUST(access(name, F_OK)), 0);
	}
}
FACT("4 processes that make the same directories see each as there") { run_writers(race_for_directories); }

static void count_under_lock(void) {
	int lock = (int)MUST(open("lock", O_RDWR)), fd = (int)MUST(open("count", O_RDWR));
	for (int i = 0; i < 25; i++) {
		struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
		MUST(fcntl(lock, F_SETLKW, &range));
		int count;
		EQ(MUST(pread(fd, &count, sizeof count, 0)), sizeof count);
		count++;
		EQ(MUST(pwrite(fd, &count, sizeof count, 0)), sizeof count);
		range.l_type = F_UNLCK;
		MUST(fcntl(lock, F_SETLK, &range));
	}
}
FACT("4 processes that count under a POSIX lock lose no count") {
	put("lock", "");
	int fd = open_new("count"), count = 0;
	EQ(MUST(write(fd, &count, sizeof count)), sizeof count);
	run_writers(count_under_lock);
	EQ(MUST(pread(fd, &count, sizeof count, 0)), sizeof count);
	EQ(count, 4 * 25);
}

static void swap_names(void) {
	for (int i = 0; i < 60; i++) {
		if (number == 0) {
			MUST(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", 2));
		} else {
			char byte;
			int fd = (int)MUST(open(number % 2 ? "a" : "b", O_RDONLY));
			EQ(MUST(read(fd, &byte, 1)), 1);
			MUST(close(fd));
		}
	}
}
FACT("while two names are exchanged again and again, both always exist for 3 readers") {
	put("a", "1");
	put("b", "2");
	run_writers(swap_names);
	holds("a", "1");
	holds("b", "2");
}

static void replace_name(void) {
	char mine[16];
	snprintf(mine, sizeof mine, "new%d", number);
	for (int i = 0; i < 40; i++) {
		if (number < 2) {
			put(mine, "whole content");
			MUST(rename(mine, "f"));
		} else {
			int fd = open("f", O_RDONLY);
			// A name that was replaced between lookup and open may be stale for a moment.
			if (fd < 0 && (errno == ESTALE || errno == ENOENT)) continue;
			MUST(fd);
			char text[32] = "";
			EQ(MUST(read(fd, text, sizeof text)), 13);
			CHECK(strcmp(text, "whole content") == 0);
			MUST(close(fd));
		}
	}
}
FACT("readers of a file that is replaced by rename see whole contents only") {
	put("f", "whole content");
	run_writers(replace_name);
}

static void read_same(void) {
	static unsigned char all[1 << 20];
	int fd = (int)MUST(open("f", O_RDONLY));
	for (int i = 0; i < 4; i++) {
		EQ(MUST(pread(fd, all, sizeof all, 0)), sizeof all);
		filled(all, sizeof all, 0);
	}
}
FACT("4 readers of 1 MiB each get every byte right") {
	static unsigned char all[1 << 20];
	fill(all, sizeof all, 0);
	int fd = open_new("f");
	EQ(MUST(write(fd, all, sizeof all)), sizeof all);
	MUST(close(fd));
	run_writers(read_same);
}

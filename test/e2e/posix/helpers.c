#include "facts.h"

int open_new(const char *path) { return (int)MUST(open(path, O_RDWR | O_CREAT | O_EXCL, 0644)); }

void put(const char *path, const char *content) {
	int fd = open_new(path);
	size_t length = strlen(content);
	EQ(MUST(write(fd, content, length)), length);
	MUST(close(fd));
}

void holds(const char *path, const char *content) {
	int fd = (int)MUST(open(path, O_RDONLY));
	char buffer[4096];
	ssize_t length = MUST(read(fd, buffer, sizeof buffer - 1));
	buffer[length] = '\0';
	if (strlen(content) != (size_t)length || memcmp(buffer, content, (size_t)length) != 0)
		fail("%s holds \"%.80s\" (%zd bytes), not \"%.80s\"", path, buffer, length, content);
	MUST(close(fd));
}

struct stat lstat_of(const char *path) {
	struct stat status;
	if (lstat(path, &status) < 0) fail("lstat %s: %s", path, strerrorname_np(errno));
	return status;
}

struct stat fstat_of(int fd) {
	struct stat status;
	MUST(fstat(fd, &status));
	return status;
}

mode_t mode_of(const char *path) { return lstat_of(path).st_mode & 07777; }

static unsigned char byte_at(uint64_t offset) { return (unsigned char)((offset * 31 + (offset >> 8) * 7 + (offset >> 16)) & 0xff); }

void fill(unsigned char *buffer, size_t length, uint64_t offset) {
	for (size_t i = 0; i < length; i++) buffer[i] = byte_at(offset + i);
}

void filled(const unsigned char *buffer, size_t length, uint64_t offset) {
	for (size_t i = 0; i < length; i++)
		if (buffer[i] != byte_at(offset + i))
			fail("byte %llu is %02x, not %02x", (unsigned long long)(offset + i), buffer[i], byte_at(offset + i));
}

void signal_to(int pipe_fd) { EQ(MUST(write(pipe_fd, "x", 1)), 1); }

void await_from(int pipe_fd) {
	char byte;
	EQ(MUST(read(pipe_fd, &byte, 1)), 1);
}

// A fact is a named statement about the mounted file system. It runs in a process and an empty directory of its own,
// as root with umask 022, and ends the process as soon as one of its checks fails.
#pragma once
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

struct fact {
	const char *name;
	// Space-separated features that the mount must have (given on the command line), else the fact is skipped.
	const char *needs;
	void (*run)(void);
	// Where it stands: "data.c". The linker keeps the facts as one array; four pointers leave no gaps between its elements.
	const char *file;
};

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define FACT_(id, text, features)                                                                                  \
	static void PASTE(fact_, id)(void);                                                                            \
	static const struct fact PASTE(entry_, id) __attribute__((used, section("facts"), aligned(8))) = {             \
		text, features, PASTE(fact_, id), __FILE_NAME__};                                                                \
	static void PASTE(fact_, id)(void)
#define FACT(text) FACT_(__COUNTER__, text, "")
#define FACT_NEEDS(features, text) FACT_(__COUNTER__, text, features)

__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);
__attribute__((noreturn, format(printf, 1, 2))) void skip(const char *format, ...);

#define AT "line %d: "
// The call must succeed; its result is the value.
#define MUST(call)                                                                                                 \
	({                                                                                                             \
		errno = 0;                                                                                                 \
		long must_ = (long)(call);                                                                                 \
		if (must_ < 0) fail(AT "%s: %s", __LINE__, #call, strerrorname_np(errno));                                 \
		must_;                                                                                                     \
	})
// The call must fail with this errno.
#define FAILS(expected, call)                                                                                      \
	({                                                                                                             \
		errno = 0;                                                                                                 \
		long got_ = (long)(call);                                                                                  \
		int errno_ = errno;                                                                                        \
		if (got_ >= 0) fail(AT "%s gave %ld, not %s", __LINE__, #call, got_, #expected);                           \
		if (errno_ != (expected)) fail(AT "%s: %s, not %s", __LINE__, #call, strerrorname_np(errno_), #expected);  \
	})
#define CHECK(condition)                                                                                           \
	do {                                                                                                           \
		if (!(condition)) fail(AT "not true: %s", __LINE__, #condition);                                           \
	} while (0)
#define EQ(actual, expected)                                                                                       \
	do {                                                                                                           \
		long long a_ = (long long)(actual), e_ = (long long)(expected);                                            \
		if (a_ != e_) fail(AT "%s is %lld (0%llo), not %lld (0%llo)", __LINE__, #actual, a_, a_, e_, e_);          \
	} while (0)
// A call that some kernels or host file systems do not have: skip the fact on these errnos.
#define MAY_LACK(call)                                                                                             \
	({                                                                                                             \
		errno = 0;                                                                                                 \
		long may_ = (long)(call);                                                                                  \
		if (may_ < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENOTTY))                               \
			skip("%s: %s", #call, strerrorname_np(errno));                                                         \
		if (may_ < 0) fail(AT "%s: %s", __LINE__, #call, strerrorname_np(errno));                                  \
		may_;                                                                                                      \
	})

// The statement that follows runs in a child, whose failure is the fact's failure; the parent waits for it.
#define IN_CHILD for (bool go_ = child_begin(); go_; child_end())
bool child_begin(void);
__attribute__((noreturn)) void child_end(void);

// A child that runs at the same time as its parent; finish() waits for it and takes over its failure.
pid_t start(void (*body)(void));
void finish(pid_t pid);

// Becomes another user for good: uid, gid and supplementary groups (a list ended by -1).
void become(uid_t uid, gid_t gid, ...);
bool has_feature(const char *feature);
bool kernel_at_least(int major, int minor);

// Makes a file of this content (a string), mode 0644, and closes it.
void put(const char *path, const char *content);
// The whole file must be this string.
void holds(const char *path, const char *content);
int open_new(const char *path);
struct stat lstat_of(const char *path);
struct stat fstat_of(int fd);
mode_t mode_of(const char *path);
// Bytes that differ at each place: a wrong offset cannot look right.
void fill(unsigned char *buffer, size_t length, uint64_t offset);
void filled(const unsigned char *buffer, size_t length, uint64_t offset);
// A one-byte signal between processes that share a pipe.
void signal_to(int pipe_fd);
void await_from(int pipe_fd);

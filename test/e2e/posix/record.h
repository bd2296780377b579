// A recording is a named series of calls whose results are printed, one line each, to be compared between two file systems: what is the same on all
// that behave alike, so no inode numbers, times of now, processes, descriptors or numbers of blocks. It takes the same way whatever the results are.
#pragma once
#include "facts.h"

#define RECORDING_(id, text, features)                                                                             \
	static void PASTE(record_, id)(void);                                                                          \
	static const struct fact PASTE(recording_, id) __attribute__((used, section("recordings"), aligned(8))) = {    \
		text, features, PASTE(record_, id), __FILE_NAME__};                                                        \
	static void PASTE(record_, id)(void)
#define RECORDING(text) RECORDING_(__COUNTER__, text, "")
// One that makes sense only on a mount with these features.
#define RECORDING_NEEDS(features, text) RECORDING_(__COUNTER__, text, features)

// One line of the recording.
__attribute__((format(printf, 1, 2))) void line(const char *format, ...);
// A call's result in words: a number, or the errno's name. The text is good until eight others were made.
const char *result(long value);
#define R(call)                                                                                                    \
	({                                                                                                             \
		errno = 0;                                                                                                 \
		result((long)(call));                                                                                      \
	})
// A call with its result.
#define T(call)                                                                                                    \
	({                                                                                                             \
		errno = 0;                                                                                                 \
		long t_ = (long)(call);                                                                                    \
		line("%s = %s", #call, result(t_));                                                                        \
		t_;                                                                                                        \
	})
// One whose result is a descriptor.
#define FD(call)                                                                                                   \
	({                                                                                                             \
		errno = 0;                                                                                                 \
		int t_ = (int)(call);                                                                                      \
		line("%s = %s", #call, t_ >= 0 ? "a descriptor" : result(t_));                                             \
		t_;                                                                                                        \
	})
// Several calls, one after the other, each with its result; `what` says of what.
#define EACH_1(what, call) line("%s: %s = %s", what, #call, R(call));
#define EACH_2(what, call, ...) EACH_1(what, call) EACH_1(what, __VA_ARGS__)
#define EACH_3(what, call, ...) EACH_1(what, call) EACH_2(what, __VA_ARGS__)
#define EACH_4(what, call, ...) EACH_1(what, call) EACH_3(what, __VA_ARGS__)
#define EACH_5(what, call, ...) EACH_1(what, call) EACH_4(what, __VA_ARGS__)
#define EACH_6(what, call, ...) EACH_1(what, call) EACH_5(what, __VA_ARGS__)
#define EACH_7(what, call, ...) EACH_1(what, call) EACH_6(what, __VA_ARGS__)
#define EACH_8(what, call, ...) EACH_1(what, call) EACH_7(what, __VA_ARGS__)
#define EACH_9(what, call, ...) EACH_1(what, call) EACH_8(what, __VA_ARGS__)
#define EACH_N(_1, _2, _3, _4, _5, _6, _7, _8, _9, n, ...) n
#define EACH(what, ...)                                                                                            \
	do {                                                                                                           \
		EACH_N(__VA_ARGS__, EACH_9, EACH_8, EACH_7, EACH_6, EACH_5, EACH_4, EACH_3, EACH_2, EACH_1)(what, __VA_ARGS__)  \
	} while (0)
// A text made for `what`, good until the next one.
__attribute__((format(printf, 1, 2))) const char *text(const char *format, ...);
// What follows runs in a child; how it ends is a line, unless it ends well.
#define CHILD for (bool go_ = recorded_child_begin(); go_; _exit(0))
bool recorded_child_begin(void);

// Type, mode, link count, owner, size and device number; the contents with their length; the sorted names.
void show_stat(const char *path);
void show_fstat(int fd);
void show_content(const char *path);
void show_names(const char *path);
// "what: " and the bytes, what is no letter as \ooo, at most 80 of them, and a sum of all.
void show_bytes(const char *what, const void *bytes, long length);
// Below /proc, good until four others were made.
const char *path_of(int fd);
// Files without a check: a recording goes on whatever happens.
int make(const char *path, const char *content);
void remove_all(const char *path);

#include "record.h"
#include <ftw.h>
#include <stdarg.h>

void line(const char *format, ...) {
	char text[2048];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(text, sizeof text - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof text - 2) length = (int)sizeof text - 2;
	for (char *at = text; (at = strchr(at, '\n')) != NULL; at++) *at = ' ';
	text[length] = '\n';
	if (write(STDOUT_FILENO, text, (size_t)length + 1) < 0) _exit(1);
}

const char *result(long value) {
	static char texts[8][64];
	static int next;
	int error = errno;
	char *text = texts[next++ % 8];
	if (value >= 0) snprintf(text, sizeof texts[0], "%ld", value);
	else if (value != -1) snprintf(text, sizeof texts[0], "%ld", value);
	else snprintf(text, sizeof texts[0], "%s", error == 0 ? "-1" : strerrorname_np(error) ? strerrorname_np(error) : "an errno without a name");
	return text;
}

const char *text(const char *format, ...) {
	static char made[512];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(made, sizeof made, format, arguments);
	va_end(arguments);
	return made;
}

bool recorded_child_begin(void) {
	pid_t pid = fork();
	if (pid == 0) {
		alarm(20);
		return true;
	}
	int status = 0;
	if (pid < 0 || waitpid(pid, &status, 0) != pid) line("no child: %s", strerrorname_np(errno));
	else if (WIFSIGNALED(status)) line("the child is ended by SIG%s", sigabbrev_np(WTERMSIG(status)));
	else if (WEXITSTATUS(status) != 0) line("the child ends with %d", WEXITSTATUS(status));
	return false;
}

static void stat_line(const char *what, int failed, const struct stat *s) {
	if (failed) {
		line("%s: %s", what, strerrorname_np(errno));
		return;
	}
	static const char *const types[] = {[S_IFREG >> 12] = "file", [S_IFDIR >> 12] = "directory", [S_IFLNK >> 12] = "symlink", [S_IFIFO >> 12] = "FIFO",
		[S_IFSOCK >> 12] = "socket", [S_IFCHR >> 12] = "character device", [S_IFBLK >> 12] = "block device"};
	bool sized = S_ISREG(s->st_mode) || S_ISLNK(s->st_mode), device = S_ISCHR(s->st_mode) || S_ISBLK(s->st_mode);
	// "dirlinks": a directory counts those below
	long links = S_ISDIR(s->st_mode) && !has_feature("dirlinks") ? 0 : (long)s->st_nlink;
	line("%s: %s %04o nlink %ld uid %u gid %u size %lld device %u:%u", what, types[(s->st_mode & S_IFMT) >> 12], s->st_mode & 07777, links, s->st_uid, s->st_gid,
		sized ? (long long)s->st_size : -1, device ? major(s->st_rdev) : 0, device ? minor(s->st_rdev) : 0);
}

void show_stat(const char *path) {
	struct stat s;
	errno = 0;
	stat_line(path, lstat(path, &s), &s);
}

void show_fstat(int fd) {
	struct stat s;
	errno = 0;
	stat_line("fstat", fstat(fd, &s), &s);
}

void show_bytes(const char *what, const void *bytes, long length) {
	char text[512];
	const unsigned char *at = bytes;
	size_t used = 0;
	uint32_t sum = 2166136261u;
	for (long i = 0; i < length; i++) {
		sum = (sum ^ at[i]) * 16777619u;
		if (i >= 80) continue;
		if (at[i] >= ' ' && at[i] < 127 && at[i] != '\\') text[used++] = (char)at[i];
		else used += (size_t)snprintf(text + used, sizeof text - used, "\\%03o", at[i]);
	}
	text[used] = '\0';
	if (length < 0) line("%s: nothing", what);
	else line("%s: %ld bytes, sum %08x, \"%s\"", what, length, sum, text);
}

void show_content(const char *path) {
	static unsigned char bytes[1 << 20];
	errno = 0;
	int fd = open(path, O_RDONLY | O_NONBLOCK);
	ssize_t length = fd < 0 ? -1 : read(fd, bytes, sizeof bytes);
	if (length < 0) line("content of %s: %s", path, strerrorname_np(errno));
	else show_bytes(path, bytes, length);
	if (fd >= 0) close(fd);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

void show_names(const char *path) {
	char *names[1024], text[1800] = "";
	size_t count = 0, used = 0;
	errno = 0;
	DIR *directory = opendir(path);
	if (directory == NULL) {
		line("names in %s: %s", path, strerrorname_np(errno));
		return;
	}
	struct dirent *entry;
	while (count < 1024 && (errno = 0, entry = readdir(directory)) != NULL) names[count++] = strdup(entry->d_name);
	int error = errno;
	closedir(directory);
	qsort(names, count, sizeof *names, by_name);
	for (size_t i = 0; i < count; i++) {
		if (used + strlen(names[i]) + 2 < sizeof text) used += (size_t)sprintf(text + used, " %s", names[i]);
		free(names[i]);
	}
	line("names in %s: %zu%s%s%s", path, count, text, error ? " and " : "", error ? strerrorname_np(error) : "");
}

const char *path_of(int fd) {
	static char paths[4][32];
	static int next;
	char *path = paths[next++ % 4];
	snprintf(path, sizeof paths[0], "/proc/self/fd/%d", fd);
	return path;
}

int make(const char *path, const char *content) {
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0644);
	if (fd < 0) return -1;
	ssize_t length = write(fd, content, strlen(content));
	return close(fd) < 0 || length < 0 ? -1 : 0;
}

static int remove_one(const char *path, const struct stat *status, int flag, struct FTW *walk) {
	(void)status, (void)flag, (void)walk;
	return remove(path), 0;
}

void remove_all(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

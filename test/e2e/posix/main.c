// posix DIRECTORY [FEATURES [PART]]: runs every fact whose name or file contains PART, each in a new directory below DIRECTORY.
// FEATURES is a comma-separated list (xattr,acl,mmap,tmpfile,ioctl,killpriv,interrupt,writethrough,sparse,slow). One line per fact on standard output:
//   ok N name | not ok N name # detail | skip N name # reason
// and at last "total T ok O failed F skipped S". Exit code 1 when a fact failed.
// posix record DIRECTORY [FEATURES [PART]]: runs the recordings (record.h) in the same way; "# N name" and its lines for each, and at last "total N".
#include "facts.h"
#include <grp.h>
#include <stdarg.h>
#include <sys/utsname.h>

// Of one fact; FACT_SECONDS in the environment is another, for a slow mount.
#define FACT_TIMEOUT_S 60
enum { EXIT_FAILED = 1, EXIT_SKIPPED = 77 };

extern const struct fact __start_facts[], __stop_facts[];
extern const struct fact __start_recordings[], __stop_recordings[];

static int report_fd = -1;
static const char *features = "";
static unsigned fact_timeout_s = FACT_TIMEOUT_S;
static pid_t nested_child;

static void leave(int code, const char *format, va_list arguments) {
	char text[1024];
	int length = vsnprintf(text, sizeof text, format, arguments);
	if (length >= (int)sizeof text) length = sizeof text - 1;
	if (write(report_fd, text, (size_t)length) < 0) code = EXIT_FAILED;
	_exit(code);
}

void fail(const char *format, ...) {
	va_list arguments;
	va_start(arguments, format);
	leave(EXIT_FAILED, format, arguments);
	__builtin_unreachable();
}

void skip(const char *format, ...) {
	va_list arguments;
	va_start(arguments, format);
	leave(EXIT_SKIPPED, format, arguments);
	__builtin_unreachable();
}

void finish(pid_t pid) {
	int status;
	if (waitpid(pid, &status, 0) != pid) fail("waitpid: %s", strerrorname_np(errno));
	if (WIFSIGNALED(status)) fail("a child was ended by signal %d", WTERMSIG(status));
	// The child has already written why.
	if (WEXITSTATUS(status) != 0) _exit(WEXITSTATUS(status));
}

bool child_begin(void) {
	nested_child = fork();
	if (nested_child < 0) fail("fork: %s", strerrorname_np(errno));
	if (nested_child == 0) {
		alarm(fact_timeout_s);
		return true;
	}
	finish(nested_child);
	return false;
}

void child_end(void) { _exit(0); }

pid_t start(void (*body)(void)) {
	pid_t pid = fork();
	if (pid < 0) fail("fork: %s", strerrorname_np(errno));
	if (pid > 0) return pid;
	alarm(fact_timeout_s);
	body();
	_exit(0);
}

void become(uid_t uid, gid_t gid, ...) {
	gid_t groups[64];
	size_t count = 0;
	va_list list;
	va_start(list, gid);
	for (int group; (group = va_arg(list, int)) != -1;) groups[count++] = (gid_t)group;
	va_end(list);
	MUST(setgroups(count, groups));
	MUST(setresgid(gid, gid, gid));
	MUST(setresuid(uid, uid, uid));
}

bool has_feature(const char *feature) {
	size_t length = strlen(feature);
	for (const char *at = features; (at = strstr(at, feature)) != NULL; at += length) {
		bool starts = at == features || at[-1] == ',';
		if (starts && (at[length] == ',' || at[length] == '\0')) return true;
	}
	return false;
}

bool kernel_at_least(int major, int minor) {
	struct utsname name;
	uname(&name);
	int actual_major = 0, actual_minor = 0;
	sscanf(name.release, "%d.%d", &actual_major, &actual_minor);
	return actual_major > major || (actual_major == major && actual_minor >= minor);
}

// The first feature in the list that the mount lacks, or NULL.
static const char *lacking(const char *needs) {
	static char copy[128];
	snprintf(copy, sizeof copy, "%s", needs);
	for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
		if (!has_feature(word)) return word;
	return NULL;
}

static void run_in_directory(const struct fact *fact, const char *directory) {
	alarm(fact_timeout_s);
	umask(022);
	if (mkdir(directory, 0777) < 0) fail("mkdir of the scratch directory: %s", strerrorname_np(errno));
	// Facts run as other users too.
	if (chmod(directory, 0777) < 0 || chdir(directory) < 0) fail("scratch directory: %s", strerrorname_np(errno));
	fact->run();
	_exit(0);
}

// Gives the exit code; text receives the detail.
static int run_fact(const struct fact *fact, const char *directory, char *text, size_t size) {
	int ends[2];
	if (pipe2(ends, O_CLOEXEC) < 0) abort();
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		// Its own process group: whatever the fact leaves behind is ended with it.
		setpgid(0, 0);
		report_fd = ends[1];
		run_in_directory(fact, directory);
	}
	setpgid(pid, pid);
	int status;
	waitpid(pid, &status, 0);
	kill(-pid, SIGKILL);
	close(ends[1]);
	ssize_t length = read(ends[0], text, size - 1);
	text[length < 0 ? 0 : length] = '\0';
	// Several children may have written at once; the line stays one line.
	for (char *at = text; (at = strpbrk(at, "\n#")) != NULL; at++) *at = ' ';
	close(ends[0]);
	if (WIFEXITED(status)) return WEXITSTATUS(status);
	snprintf(text, size, WTERMSIG(status) == SIGALRM ? "no answer in time" : "ended by signal %d", WTERMSIG(status));
	return EXIT_FAILED;
}

static int record(int argc, char **argv) {
	int number = 0;
	for (const struct fact *recording = __start_recordings; recording < __stop_recordings; recording++) {
		if (argc > 2 && !strstr(recording->name, argv[2]) && !strstr(recording->file, argv[2])) continue;
		if (lacking(recording->needs)) continue;
		char text[1024] = "", directory[PATH_MAX];
		snprintf(directory, sizeof directory, "%s/%d", argv[0], ++number);
		printf("# %s: %s\n", recording->file, recording->name);
		int code = run_fact(recording, directory, text, sizeof text);
		if (code != 0) printf("it ended with %d: %s\n", code, text);
	}
	printf("total %d\n", number);
	return 0;
}

int main(int argc, char **argv) {
	if (argc < 2) {
		fprintf(stderr, "usage: posix DIRECTORY [FEATURES [PART]]\n");
		return 2;
	}
	if (getenv("FACT_SECONDS")) fact_timeout_s = (unsigned)atoi(getenv("FACT_SECONDS"));
	features = argc > 2 ? argv[2] : "";
	if (argc > 2 && strcmp(argv[1], "record") == 0) {
		features = argc > 3 ? argv[3] : "";
		return record(argc - 2, argv + 2);
	}
	const char *only = argc > 3 ? argv[3] : "";
	int number = 0, passed = 0, failed = 0, skipped = 0;
	for (const struct fact *fact = __start_facts; fact < __stop_facts; fact++) {
		if (!strstr(fact->name, only) && !strstr(fact->file, only)) continue;
		number++;
		char text[1024] = "", directory[PATH_MAX];
		snprintf(directory, sizeof directory, "%s/%d", argv[1], number);
		const char *lack = lacking(fact->needs);
		int code = EXIT_SKIPPED;
		if (lack) snprintf(text, sizeof text, "needs %s", lack);
		else code = run_fact(fact, directory, text, sizeof text);
		if (code == 0) passed++, printf("ok %d %s\n", number, fact->name);
		else if (code == EXIT_SKIPPED) skipped++, printf("skip %d %s # %s\n", number, fact->name, text);
		else failed++, printf("not ok %d %s # %s\n", number, fact->name, text);
	}
	printf("total %d ok %d failed %d skipped %d\n", number, passed, failed, skipped);
	return failed > 0;
}

// Directories: reading them while they change, and what is left of those that are removed or moved.
#include "record.h"

static int count_of(DIR *directory) {
	int count = 0;
	while (readdir(directory) != NULL) count++;
	return count;
}
RECORDING("a directory that is removed while it is open and the current one") {
	mkdir("d", 0755), mkdir("d/e", 0755), make("f", "x");
	T(chdir("d/e"));
	int fd = FD(open(".", O_RDONLY));
	T(rmdir("../e"));
	char path[PATH_MAX];
	EACH("in it", syscall(SYS_getcwd, path, sizeof path), access(".", F_OK), access("..", F_OK), mkdir("x", 0755), open("y", O_CREAT | O_WRONLY, 0644), symlink("t", "z"), link("../../f", "l"), rename("../../f", "g"), rmdir("."));
	EACH("in it", open(".", O_RDONLY) < 0 ? -1 : 0, open(".", O_TMPFILE | O_RDWR, 0644) < 0 ? -1 : 0, chmod(".", 0700), utimensat(AT_FDCWD, ".", NULL, 0), setxattr(".", "user.a", "v", 1, 0), fsync(fd), fchdir(fd), mknod("n", S_IFIFO | 0644, 0));
	show_fstat(fd);
	show_names(".");
	show_names("..");
	DIR *directory = fdopendir(fd);
	if (directory != NULL) line("entries: %d", count_of(directory));
	T(chdir("/"));
}
RECORDING("a directory that is moved while it is open and the current one") {
	mkdir("a", 0755), mkdir("a/b", 0755), mkdir("c", 0755), make("a/b/f", "content");
	char home[PATH_MAX], path[PATH_MAX];
	if (getcwd(home, sizeof home) == NULL) line("no home");
	T(chdir("a/b"));
	int fd = FD(open(".", O_RDONLY)), file = FD(open("f", O_RDWR));
	T(renameat(AT_FDCWD, "..", AT_FDCWD, "../../c/moved"));
	T(rename("../../a", "../../c/moved"));
	errno = 0;
	line("getcwd: %s", getcwd(path, sizeof path) ? path + strlen(home) : strerrorname_np(errno));
	show_content("f");
	T(write(file, "CHANGED", 7));
	T(make("g", "new"));
	show_names(".");
	show_names("..");
	T(openat(fd, "f", O_RDONLY) < 0 ? -1 : 0);
	T(rename("../../moved", "below"));
	T(syscall(SYS_renameat2, AT_FDCWD, "f", AT_FDCWD, "../../../a", 1));
	T(chdir("../../.."));
	show_names("c/moved/b");
	show_content("c/moved/b/f");
	T(syscall(SYS_renameat2, AT_FDCWD, "c/moved", AT_FDCWD, "c", 2));
	T(rename("c/moved/b", "c/moved"));
	T(rename("c", "c/moved/b/c"));
	T(rmdir("c"));
	show_names(".");
}
RECORDING("positions in a directory that changes") {
	mkdir("d", 0755);
	char name[64];
	for (int i = 0; i < 300; i++) {
		snprintf(name, sizeof name, "d/a-rather-long-name-of-an-entry-%03d", i);
		make(name, "");
	}
	DIR *directory = opendir("d");
	if (directory == NULL) return;
	long places[303];
	int count = 0;
	char seen[302][256];
	struct dirent *entry;
	for (places[0] = telldir(directory); count < 302 && (entry = readdir(directory)) != NULL; places[count] = telldir(directory)) snprintf(seen[count++], 256, "%s", entry->d_name);
	line("entries: %d", count);
	static const int from[] = {0, 1, 2, 100, 200, 299, 301};
	for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
		seekdir(directory, places[from[i]]);
		entry = readdir(directory);
		const char *what = entry && strcmp(entry->d_name, seen[from[i]]) == 0 ? "the entry that was there" : "another entry";
		line("from place %d: %s, then %d", from[i], what, count_of(directory));
	}
	// What is behind the place is removed: it and what stays before come no more, what stays behind comes once.
	seekdir(directory, places[100]);
	for (int i = 150; i < 250; i++) {
		if (seen[i][0] == '.') continue;
		snprintf(name, sizeof name, "d/%.60s", seen[i]);
		unlink(name);
	}
	DIR *fresh = opendir("d");
	seekdir(directory, places[100]);
	int left = count_of(directory);
	line("after removals from place 100 on: between %d and %d", left >= 100 ? 100 : left, left <= 202 ? 202 : left);
	rewinddir(directory);
	line("from the beginning: %d", count_of(directory));
	line("by another one: %d", fresh ? count_of(fresh) : -1);
	seekdir(directory, places[301]);
	line("from the last place: %d", count_of(directory));
	rewinddir(directory);
	for (int i = 0; i < 5; i++) readdir(directory);
	remove_all("d");
	line("when it is removed: %s", count_of(directory) <= 197 ? "no more than there were" : "too many");
	rewinddir(directory);
	line("and from the beginning: %d", count_of(directory));
}
RECORDING("what readdir says of each kind, and getdents with little room") {
	mkdir("d", 0755), mkdir("d/dir", 0755), make("d/file", "x"), symlink("x", "d/link"), mkfifo("d/fifo", 0644), mknod("d/null", S_IFCHR | 0666, makedev(1, 3));
	DIR *directory = opendir("d");
	if (directory == NULL) return;
	char types[256] = "";
	static const char *const all[] = {".", "..", "dir", "file", "link", "fifo", "null"};
	struct dirent *entry;
	int type[7] = {0};
	while ((entry = readdir(directory)) != NULL)
		for (int i = 0; i < 7; i++)
			if (strcmp(all[i], entry->d_name) == 0) {
				struct stat s;
				type[i] = entry->d_type;
				if (fstatat(dirfd(directory), entry->d_name, &s, AT_SYMLINK_NOFOLLOW) == 0 && s.st_ino != entry->d_ino && i > 1) strcat(types, " (another inode number)");
			}
	for (int i = 0; i < 7; i++) sprintf(types + strlen(types), " %s %d", all[i], type[i]);
	line("types:%s", types);
	char room[300];
	int fd = FD(open("d", O_RDONLY));
	EACH("getdents", syscall(SYS_getdents64, fd, room, 10), syscall(SYS_getdents64, fd, room, 24) > 0 ? 1 : -1, lseek(fd, 0, SEEK_SET), lseek(fd, -1, SEEK_SET));
	int entries = 0, calls = 0;
	for (long n; calls < 100 && (n = syscall(SYS_getdents64, fd, room, 64)) > 0; calls++)
		for (long at = 0; at < n; at += *(unsigned short *)(room + at + 16)) entries++;
	line("in little pieces: %d entries", entries);
	T(lseek(fd, 0, SEEK_SET));
	T(unlink("d/file"));
	T(mkdir("d/new", 0755));
	T(syscall(SYS_getdents64, fd, room, sizeof room) > 0 ? 1 : 0);
	T(lseek(fd, 0, 77));
}
RECORDING("a directory of a thousand names") {
	mkdir("d", 0755);
	char name[64];
	for (int i = 0; i < 1000; i++) {
		snprintf(name, sizeof name, "d/%d", i);
		if (i % 3 == 0) make(name, "");
		else if (i % 3 == 1) mkdir(name, 0755);
		else symlink("target", name);
	}
	show_names("d");
	T(rmdir("d"));
	DIR *directory = opendir("d");
	if (directory == NULL) return;
	int removed = 0;
	struct dirent *entry;
	while ((entry = readdir(directory)) != NULL)
		if (entry->d_name[0] != '.') removed += unlinkat(dirfd(directory), entry->d_name, entry->d_type == DT_DIR ? AT_REMOVEDIR : 0) == 0;
	line("removed while it was read: %d", removed);
	T(rmdir("d"));
	show_stat("d");
}
RECORDING("what links a directory has, and its size when it is empty") {
	mkdir("d", 0755), mkdir("d/a", 0755), mkdir("d/b", 0755), make("d/f", "x");
	struct stat s = lstat_of("d");
	line("nlink %s", s.st_nlink == 4 ? "2 and one for each below" : s.st_nlink == 1 ? "not counted" : "something else");
	T(rmdir("d/a"));
	T(rename("d/b", "c"));
	T(rmdir("d"));
	T(unlink("d/f"));
	T(rmdir("d"));
	T(mkdir("d", 0));
	T(rmdir("d"));
}

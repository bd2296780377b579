// Names: odd ones, long ones, links, renames, and directories that are removed or moved under whoever is in them.
#include "record.h"

RECORDING("names of every length and kind") {
	char name[600];
	static const int lengths[] = {1, 2, 100, 254, 255, 256, 300, 511};
	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
		memset(name, 'n', sizeof name);
		name[lengths[i]] = '\0';
		EACH(text("%d bytes", lengths[i]), mkdir(name, 0755), access(name, F_OK), rename(name, "moved"), symlink("t", name), mknod(name, S_IFREG | 0644, 0), unlink(name), rmdir("moved"));
	}
	static const char *const odd[] = {" ", "  leading", "trailing ", "new\nline", "tab\t", "back\\slash", "quote'\"", "star*?[a]", "-dash", "~", "%~", "%~e", "%~x41", "a%2Fb", "\001\002", "\177", "\303\244",
		"\303", "\377\376", "\355\240\200", "\360\237\230\200", "...", ".hidden", ".. ", "CON", "a:b", "#", ";", "&", "$(x)", ".bucketfsd", ".bucketfsd-unlinked", "A", "a"};
	for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
		show_bytes("name", odd[i], strlen(odd[i]));
		EACH("so named", make(odd[i], "x"), access(odd[i], F_OK), open(odd[i], O_WRONLY | O_CREAT | O_EXCL), rename(odd[i], "other"), rename("other", odd[i]));
	}
	show_names(".");
	for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) unlink(odd[i]);
	show_names(".");
}
RECORDING("paths that are too long, empty, or end in dots and slashes") {
	static char path[8192];
	memset(path, '/', sizeof path - 1);
	memcpy(path, "d", 1);
	mkdir("d", 0755);
	make("f", "x");
	static const int lengths[] = {100, 4095, 4096, 8000};
	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
		char kept = path[lengths[i]];
		path[lengths[i]] = '\0';
		line("a path of %d slashes: %s", lengths[i] - 1, R(access(path, F_OK)));
		path[lengths[i]] = kept;
	}
	static const char *const ends[] = {"", ".", "..", "d/", "d/.", "d/..", "f/", "f/.", "f/..", "new/", "new/."};
	for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
		const char *end = ends[i], *what = text("\"%s\"", end);
		EACH(what, mkdir(end, 0755), rmdir(end));
		mkdir("d", 0755);
		EACH(what, unlink(end), open(end, O_WRONLY | O_CREAT, 0644) < 0 ? -1 : 0, symlink("t", end), link("f", end), mknod(end, S_IFREG | 0644, 0));
		EACH(what, rename("f", end), rename(end, "g"), readlink(end, path + 4100, 10), truncate(end, 1), chmod(end, 0755));
		remove_all("new"), remove_all("g");
		mkdir("d", 0755);
		if (access("f", F_OK) < 0) make("f", "x");
	}
	show_names(".");
}
RECORDING("symbolic links: targets of every length, and chains") {
	static char target[5000];
	static const int lengths[] = {0, 1, 59, 60, 255, 1023, 4094, 4095, 4096};
	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
		memset(target, 't', sizeof target);
		target[lengths[i]] = '\0';
		static char back[5000];
		EACH(text("a target of %d bytes", lengths[i]), symlink(target, "l"), readlink("l", back, sizeof back), readlink("l", back, 10));
		show_stat("l");
		unlink("l");
	}
	make("end", "the end");
	for (int i = 0; i < 45; i++) {
		char from[16], to[16];
		snprintf(from, sizeof from, "c%d", i);
		snprintf(to, sizeof to, i ? "c%d" : "end", i - 1);
		symlink(to, from);
	}
	T(access("c38", F_OK));
	T(access("c39", F_OK));
	T(access("c40", F_OK));
	show_stat("c3");
	T(chmod("c0", 0600));
	show_stat("c0");
	show_stat("end");
	T(fchmodat(AT_FDCWD, "c0", 0644, AT_SYMLINK_NOFOLLOW));
	T(lchown("c0", 11, 12));
	show_stat("c0");
	T(truncate("c0", 3));
	show_content("c5");
	T(unlink("c0"));
	T(access("c1", F_OK));
	T(symlink("x", "c1"));
	T(mkdir("c2", 0755));
	T(rename("end", "c4"));
	show_stat("c4");
	show_content("c5");
}
RECORDING_NEEDS("links", "hard links") {
	make("a", "content");
	mkdir("d", 0755);
	symlink("a", "l");
	T(link("a", "b"));
	T(link("a", "d/c"));
	T(link("b", "a"));
	T(link("a", "a"));
	T(link("d", "e"));
	T(link("missing", "e"));
	T(link("a", "missing/e"));
	T(link("a", "b/e"));
	T(linkat(AT_FDCWD, "l", AT_FDCWD, "l2", 0));
	T(linkat(AT_FDCWD, "l", AT_FDCWD, "l3", AT_SYMLINK_FOLLOW));
	T(linkat(AT_FDCWD, "l", AT_FDCWD, "l4", 0x8000));
	show_stat("a"), show_stat("l2"), show_stat("l3");
	T(unlink("a"));
	show_stat("b");
	T(rename("b", "l3"));
	show_stat("b");
	T(truncate("d/c", 3));
	show_content("l3");
	int fd = FD(open("d/c", O_RDONLY));
	T(unlink("d/c")), T(unlink("l3")), T(unlink("b"));
	show_fstat(fd);
	T(linkat(fd, "", AT_FDCWD, "again", AT_EMPTY_PATH));
	T(linkat(AT_FDCWD, path_of(fd), AT_FDCWD, "again", AT_SYMLINK_FOLLOW));
	mkfifo("fifo", 0644);
	T(link("fifo", "fifo2"));
	show_stat("fifo");
	CHILD {
		become(1000, 1000, -1);
		T(link("fifo", "others"));
	}
	show_names(".");
}

static const struct {
	const char *name;
	unsigned flags;
} renames[] = {{"0", 0}, {"NOREPLACE", 1}, {"EXCHANGE", 2}, {"WHITEOUT", 4}, {"NOREPLACE|EXCHANGE", 3}, {"EXCHANGE|WHITEOUT", 6}, {"NOREPLACE|WHITEOUT", 5}, {"8", 8}, {"0x80000000", 0x80000000}};
static const char *const kinds[] = {"missing", "file", "file2", "empty", "full", "full2", "link", "fifo", "full/below", "full/in"};

static void set_up_kinds(void) {
	make("file", "1"), make("file2", "22");
	mkdir("empty", 0755), mkdir("full", 0755), mkdir("full2", 0755), mkdir("full/in", 0755), mkdir("full2/in", 0755);
	symlink("file", "link"), mkfifo("fifo", 0644);
}
static void rename_all(size_t first, size_t last) {
	for (size_t f = first; f < last; f++)
		for (size_t a = 0; a < sizeof kinds / sizeof *kinds; a++)
			for (size_t b = 0; b < sizeof kinds / sizeof *kinds; b++) {
				static const char *const top[] = {"file", "file2", "empty", "full", "full2", "link", "fifo", "missing"};
				set_up_kinds();
				const char *renamed = R(syscall(SYS_renameat2, AT_FDCWD, kinds[a], AT_FDCWD, kinds[b], renames[f].flags));
				struct stat from = {0}, to = {0};
				lstat(kinds[a], &from), lstat(kinds[b], &to);
				line("rename(%s, %s, %s) = %s, then %o %lld and %o %lld", kinds[a], kinds[b], renames[f].name, renamed, from.st_mode, S_ISREG(from.st_mode) ? (long long)from.st_size : -1, to.st_mode,
					S_ISREG(to.st_mode) ? (long long)to.st_size : -1);
				for (size_t i = 0; i < sizeof top / sizeof *top; i++) remove_all(top[i]);
			}
}
RECORDING("rename: every kind onto every kind") { rename_all(0, 1); }
RECORDING("rename: NOREPLACE") { rename_all(1, 2); }
RECORDING_NEEDS("exchange", "rename: EXCHANGE") { rename_all(2, 3); }
RECORDING_NEEDS("exchange", "rename: WHITEOUT") { rename_all(3, 4); }
RECORDING("rename: flags that do not go together, and unknown ones") {
	set_up_kinds();
	for (size_t f = 4; f < sizeof renames / sizeof *renames; f++) {
		line("rename(file, missing, %s) = %s", renames[f].name, R(syscall(SYS_renameat2, AT_FDCWD, "file", AT_FDCWD, "missing", renames[f].flags)));
		line("rename(file, file2, %s) = %s", renames[f].name, R(syscall(SYS_renameat2, AT_FDCWD, "file", AT_FDCWD, "file2", renames[f].flags)));
	}
	show_names(".");
}
RECORDING("rename: by whom, with a sticky bit and without") {
	mkdir("sticky", 0777), chmod("sticky", 01777);
	mkdir("open", 0777), chmod("open", 0777);
	mkdir("closed", 0755);
	static const char *const places[] = {"sticky", "open", "closed"};
	for (int i = 0; i < 3; i++) {
		T(chdir(places[i]));
		make("roots", "r"), make("users", "u"), make("others", "o");
		chown("users", 1000, 1000), chown("others", 1001, 1001);
		CHILD {
			become(1000, 1000, -1);
			T(unlink("roots"));
			T(rename("others", "new"));
			T(rename("users", "others"));
			T(rename("users", "moved"));
			T(unlink("moved"));
			T(mkdir("dir", 0755));
			T(symlink("t", "link"));
			T(mkfifo("fifo", 0600));
			T(chmod("roots", 0777));
			T(chown("users", 1001, -1));
			T(utimensat(AT_FDCWD, "roots", NULL, 0));
		}
		show_names(".");
		T(chdir(".."));
	}
}
RECORDING("unlink, rmdir and remove of every kind") {
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		set_up_kinds();
		EACH(kinds[i], unlinkat(AT_FDCWD, kinds[i], 1), rmdir(kinds[i]), unlinkat(AT_FDCWD, kinds[i], AT_REMOVEDIR), unlink(kinds[i]));
		remove_all("full"), remove_all("full2");
	}
	show_names(".");
}

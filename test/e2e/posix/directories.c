// Reading directories.
#include "facts.h"

#define MANY 5000
// Where each costs some requests to a server; still more than one page of a listing.
#define MANY_SLOW 1200

static void make_many(int count) {
	char name[32];
	for (int i = 0; i < count; i++) {
		snprintf(name, sizeof name, "entry-%05d", i);
		MUST(mknod(name, S_IFREG | 0644, 0));
	}
}

// Counts the entries, "." and ".." apart; marks each in seen and fails on a second sight.
static int read_all(DIR *directory, unsigned char *seen) {
	int count = 0;
	errno = 0;
	for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
		if (entry->d_name[0] == '.') continue;
		int number;
		if (sscanf(entry->d_name, "entry-%d", &number) != 1) fail("unexpected name %s", entry->d_name);
		if (seen && seen[number]++) fail("%s is there twice", entry->d_name);
		count++;
	}
	EQ(errno, 0);
	return count;
}

FACT("an empty directory lists '.' and '..' only") {
	MUST(mkdir("d", 0755));
	DIR *directory = opendir("d");
	int dots = 0;
	for (struct dirent *entry; (entry = readdir(directory)) != NULL; dots++)
		CHECK(strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0);
	EQ(dots, 2);
}
FACT("readdir tells the type and the inode number of each entry") {
	put("file", "");
	MUST(mkdir("directory", 0755));
	MUST(symlink("x", "link"));
	MUST(mkfifo("pipe", 0644));
	MUST(mknod("device", S_IFCHR | 0600, makedev(1, 3)));
	DIR *directory = opendir(".");
	int count = 0;
	for (struct dirent *entry; (entry = readdir(directory)) != NULL; count++) {
		if (strcmp(entry->d_name, "..") == 0) continue;
		struct stat s = lstat_of(entry->d_name);
		EQ(entry->d_type, (s.st_mode & S_IFMT) >> 12);
		EQ(entry->d_ino, s.st_ino);
	}
	EQ(count, 7);
}
FACT("thousands of entries are listed once each; telldir, seekdir and rewinddir work; so does deleting while listing") {
	static unsigned char seen[MANY];
	int many = has_feature("slow") ? MANY_SLOW : MANY;
	make_many(many);
	DIR *directory = opendir(".");
	EQ(read_all(directory, seen), many);

	rewinddir(directory);
	EQ(read_all(directory, NULL), many);

	rewinddir(directory);
	for (int i = 0; i < many / 4; i++) CHECK(readdir(directory) != NULL);
	long place = telldir(directory);
	char next[256];
	snprintf(next, sizeof next, "%s", readdir(directory)->d_name);
	for (int i = 0; i < many / 2; i++) CHECK(readdir(directory) != NULL);
	seekdir(directory, place);
	struct dirent *again = readdir(directory);
	CHECK(again != NULL);
	if (strcmp(again->d_name, next) != 0) fail("after seekdir came %s, not %s", again->d_name, next);

	rewinddir(directory);
	int removed = 0;
	for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
		if (entry->d_name[0] == '.') continue;
		MUST(unlink(entry->d_name));
		removed++;
	}
	EQ(removed, many);
	MUST(closedir(directory));
	directory = opendir(".");
	EQ(read_all(directory, NULL), 0);
}
FACT("entries that stay while others are removed and added are each listed once") {
	static unsigned char seen[1000];
	make_many(600);
	DIR *directory = opendir(".");
	int count = 0;
	for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
		if (entry->d_name[0] == '.') continue;
		int number = -1;
		sscanf(entry->d_name, "entry-%d", &number);
		if (seen[number]++) fail("%s is there twice", entry->d_name);
		char name[32];
		if (++count == 100) {
			for (int i = 1; i < 600; i += 2) {
				snprintf(name, sizeof name, "entry-%05d", i);
				MUST(unlink(name));
			}
			for (int i = 700; i < 800; i++) {
				snprintf(name, sizeof name, "entry-%05d", i);
				put(name, "");
			}
		}
	}
	for (int i = 0; i < 600; i += 2)
		if (seen[i] != 1) fail("entry-%05d was seen %d times", i, seen[i]);
}
FACT("a file made after opendir is listed after rewinddir") {
	DIR *directory = opendir(".");
	while (readdir(directory)) continue;
	put("entry-1", "");
	rewinddir(directory);
	EQ(read_all(directory, NULL), 1);
}
FACT("long names are listed whole") {
	char name[256];
	for (int i = 0; i < 60; i++) {
		memset(name, 'a' + i % 26, 255);
		snprintf(name, 8, "%05d", i);
		name[5] = '-';
		name[255] = '\0';
		put(name, "");
	}
	DIR *directory = opendir(".");
	int count = 0;
	for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
		if (entry->d_name[0] == '.') continue;
		EQ(strlen(entry->d_name), 255);
		count++;
	}
	EQ(count, 60);
}
FACT("getdents with a small buffer gives every entry") {
	make_many(300);
	int fd = (int)MUST(open(".", O_RDONLY | O_DIRECTORY));
	char chunk[128];
	int count = 0;
	for (long length; (length = MUST(syscall(SYS_getdents64, fd, chunk, sizeof chunk))) > 0;)
		for (long at = 0; at < length; at += *(unsigned short *)(chunk + at + 16)) count++;
	EQ(count, 302);
}
FACT("readdir of a removed directory ends without entries of it") {
	MUST(mkdir("d", 0755));
	put("d/f", "");
	DIR *directory = opendir("d");
	MUST(unlink("d/f"));
	MUST(rmdir("d"));
	errno = 0;
	for (struct dirent *entry; (entry = readdir(directory)) != NULL;) CHECK(entry->d_name[0] == '.' || entry->d_name[0] == 'f');
	CHECK(errno == 0 || errno == ENOENT);
}
FACT("opendir of a file is ENOTDIR") {
	put("f", "");
	errno = 0;
	CHECK(opendir("f") == NULL && errno == ENOTDIR);
}
FACT("two readers of one directory do not disturb each other") {
	make_many(500);
	DIR *a = opendir("."), *b = opendir(".");
	for (int i = 0; i < 100; i++) CHECK(readdir(a) != NULL);
	EQ(read_all(b, NULL), 500);
	CHECK(read_all(a, NULL) >= 398);
}

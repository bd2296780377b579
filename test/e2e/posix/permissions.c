// Who may do what: users, groups, supplementary groups, sticky directories.
#include "facts.h"

static void owned(const char *path, uid_t uid, gid_t gid, mode_t mode) {
	put(path, "content");
	MUST(chown(path, uid, gid));
	MUST(chmod(path, mode));
}

// A daemon that makes files as the calling user knows of that user's other groups only from FUSE_CREATE_SUPP_GROUP.
static void kernel_sends_groups(void) {
	if (!kernel_at_least(6, 3)) skip("this kernel does not send supplementary groups");
}

FACT("mode 0600 of root keeps another user out") {
	owned("f", 0, 0, 0600);
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EACCES, open("f", O_RDONLY));
		FAILS(EACCES, open("f", O_WRONLY));
		FAILS(EACCES, truncate("f", 0));
	}
	holds("f", "content");
}
FACT("mode 0644 lets another user read, not write") {
	owned("f", 0, 0, 0644);
	IN_CHILD {
		become(1000, 1000, -1);
		holds("f", "content");
		FAILS(EACCES, open("f", O_WRONLY));
		FAILS(EACCES, open("f", O_RDONLY | O_TRUNC));
	}
}
FACT("the owner's bits come before the group's and the others'") {
	owned("f", 1000, 1000, 0077);
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EACCES, open("f", O_RDONLY));
	}
	IN_CHILD {
		become(1001, 1001, -1);
		MUST(open("f", O_RDONLY));
	}
}
FACT("the primary group opens a file of mode 0640") {
	owned("f", 0, 2000, 0640);
	IN_CHILD {
		become(1000, 2000, -1);
		holds("f", "content");
		FAILS(EACCES, open("f", O_WRONLY));
	}
}
FACT("a supplementary group opens a file of mode 0660 for writing") {
	owned("f", 0, 3000, 0660);
	IN_CHILD {
		become(1000, 1000, 2000, 3000, 4000, -1);
		int fd = (int)MUST(open("f", O_RDWR));
		EQ(MUST(write(fd, "group's", 7)), 7);
	}
	holds("f", "group's");
	IN_CHILD {
		become(1000, 1000, 2000, 4000, -1);
		FAILS(EACCES, open("f", O_RDWR));
	}
}
FACT("a supplementary group makes files, directories and links in a directory of mode 0770") {
	MUST(mkdir("d", 0770));
	MUST(chown("d", 0, 3000));
	MUST(chmod("d", 0770));
	kernel_sends_groups();
	IN_CHILD {
		become(1000, 1000, 3000, -1);
		put("d/f", "x");
		MUST(mkdir("d/e", 0755));
		MUST(symlink("x", "d/l"));
		MUST(mkfifo("d/p", 0644));
		MUST(rename("d/f", "d/g"));
		MUST(link("d/g", "d/h"));
		MUST(unlink("d/h"));
		MUST(rmdir("d/e"));
	}
	EQ(lstat_of("d/g").st_uid, 1000);
	EQ(lstat_of("d/g").st_gid, 1000);
}
FACT("a supplementary group makes files in a set-group-id directory of mode 2770") {
	MUST(mkdir("d", 0770));
	MUST(chown("d", 0, 3000));
	MUST(chmod("d", 02770));
	kernel_sends_groups();
	IN_CHILD {
		become(1000, 1000, 3000, -1);
		put("d/f", "x");
		MUST(mkdir("d/e", 0755));
	}
	EQ(lstat_of("d/f").st_gid, 3000);
	EQ(lstat_of("d/e").st_gid, 3000);
	EQ(mode_of("d/e"), 02755);
}
FACT("a directory without write permission refuses create, mkdir, unlink and rename") {
	MUST(mkdir("d", 0755));
	// Writable by all, so that no protection of hard links answers first.
	owned("d/f", 0, 0, 0666);
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EACCES, open("d/g", O_CREAT | O_WRONLY, 0644));
		FAILS(EACCES, mkdir("d/e", 0755));
		FAILS(EACCES, symlink("x", "d/l"));
		FAILS(EACCES, mkfifo("d/p", 0644));
		FAILS(EACCES, unlink("d/f"));
		FAILS(EACCES, rename("d/f", "d/h"));
		FAILS(EACCES, link("d/f", "d/i"));
	}
}
FACT("a directory without search permission hides what is inside") {
	MUST(mkdir("d", 0755));
	owned("d/f", 0, 0, 0666);
	MUST(chmod("d", 0744));
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EACCES, open("d/f", O_RDONLY));
		FAILS(EACCES, lstat("d/f", &(struct stat){0}));
		FAILS(EACCES, chdir("d"));
		DIR *directory = opendir("d");
		CHECK(directory != NULL);
	}
}
FACT("a directory without read permission cannot be listed but searched") {
	MUST(mkdir("d", 0755));
	owned("d/f", 0, 0, 0666);
	MUST(chmod("d", 0711));
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EACCES, open("d", O_RDONLY | O_DIRECTORY));
		holds("d/f", "content");
	}
}
FACT("root reads and writes whatever the mode is") {
	owned("f", 1000, 1000, 0000);
	holds("f", "content");
	MUST(open("f", O_RDWR));
}
FACT("root's write into another user's directory works") {
	MUST(mkdir("d", 0700));
	MUST(chown("d", 1000, 1000));
	put("d/f", "root's");
	EQ(lstat_of("d/f").st_uid, 0);
}
FACT("access answers for the real user") {
	owned("f", 0, 0, 0640);
	MUST(access("f", R_OK | W_OK));
	FAILS(EACCES, access("f", X_OK));
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EACCES, access("f", R_OK));
		MUST(access("f", F_OK));
	}
}
FACT("chmod by someone who does not own the file is EPERM") {
	owned("f", 0, 0, 0666);
	IN_CHILD {
		become(1000, 1000, -1);
		FAILS(EPERM, chmod("f", 0777));
	}
}
FACT("chown by an ordinary user is EPERM, except to a group of its own") {
	owned("f", 1000, 1000, 0644);
	IN_CHILD {
		become(1000, 1000, 3000, -1);
		FAILS(EPERM, chown("f", 0, (gid_t)-1));
		FAILS(EPERM, chown("f", (uid_t)-1, 2000));
		MUST(chown("f", (uid_t)-1, 3000));
	}
	EQ(lstat_of("f").st_gid, 3000);
}
FACT("in a sticky directory only the owner removes or renames a file") {
	MUST(mkdir("d", 0777));
	MUST(chmod("d", 01777));
	owned("d/f", 1000, 1000, 0666);
	IN_CHILD {
		become(1001, 1001, -1);
		FAILS(EPERM, unlink("d/f"));
		FAILS(EPERM, rename("d/f", "d/g"));
		put("d/own", "");
		FAILS(EPERM, rename("d/own", "d/f"));
		MUST(unlink("d/own"));
	}
	IN_CHILD {
		become(1000, 1000, -1);
		MUST(unlink("d/f"));
	}
}
FACT("a descriptor opened before the mode changed still works") {
	owned("f", 1000, 1000, 0600);
	IN_CHILD {
		become(1000, 1000, -1);
		int fd = (int)MUST(open("f", O_RDWR));
		MUST(fchmod(fd, 0));
		EQ(MUST(write(fd, "still", 5)), 5);
		char byte;
		EQ(MUST(pread(fd, &byte, 1, 0)), 1);
		FAILS(EACCES, open("f", O_RDONLY));
	}
}
FACT("a user's own file in a shared directory can be made, changed and removed by that user") {
	IN_CHILD {
		become(1000, 1000, -1);
		put("f", "mine");
		MUST(chmod("f", 0600));
		holds("f", "mine");
		MUST(truncate("f", 1));
		MUST(utimensat(AT_FDCWD, "f", (struct timespec[2]){{1, 0}, {2, 0}}, 0));
		MUST(unlink("f"));
	}
}
FACT("a file made with mode 0444 by a user is writable through the descriptor that made it") {
	IN_CHILD {
		become(1000, 1000, -1);
		int fd = (int)MUST(open("f", O_CREAT | O_EXCL | O_WRONLY, 0444));
		EQ(MUST(write(fd, "x", 1)), 1);
		FAILS(EACCES, open("f", O_WRONLY));
	}
}

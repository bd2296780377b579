// What else programs do with files: FIFOs and sockets, execution, handles, io_uring, watches.
#include "record.h"
#include <linux/fs.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/quota.h>
#include <sys/swap.h>

RECORDING("FIFOs and sockets of the share") {
	T(mkfifo("p", 0666));
	T(open("p", O_WRONLY | O_NONBLOCK));
	int reader = FD(open("p", O_RDONLY | O_NONBLOCK)), writer = FD(open("p", O_WRONLY | O_NONBLOCK)), both = FD(open("p", O_RDWR));
	char bytes[32];
	EACH("a FIFO", write(writer, "through", 7), read(reader, bytes, 32), lseek(reader, 0, SEEK_SET), pwrite(writer, "x", 1, 0), ftruncate(writer, 0), fsync(writer), write(both, "b", 1), truncate("p", 0));
	CHILD {
		become(1000, 1000, -1);
		EACH("another user", open("p", O_RDONLY | O_NONBLOCK) < 0 ? -1 : 0, chmod("p", 0600));
	}
	T(rename("p", "q"));
	EACH("renamed", write(writer, "still", 5), read(reader, bytes, 32));
	T(unlink("q"));
	EACH("unlinked", write(writer, "there", 5), read(reader, bytes, 32));
	int s = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0), d = socket(AF_UNIX, SOCK_DGRAM, 0);
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "s"};
	EACH("a socket", bind(s, (struct sockaddr *)&address, sizeof address), bind(d, (struct sockaddr *)&address, sizeof address), connect(c, (struct sockaddr *)&address, sizeof address), listen(s, 1), connect(c, (struct sockaddr *)&address, sizeof address),
		open("s", O_RDWR), rename("s", "t"));
	show_stat("t");
	strcpy(address.sun_path, "t");
	int again = socket(AF_UNIX, SOCK_STREAM, 0);
	EACH("by its new name", connect(again, (struct sockaddr *)&address, sizeof address), chmod("t", 0600), unlink("t"));
}
RECORDING("programs: execution, who may, and while they are written") {
	int in = open("/proc/self/exe", O_RDONLY), out = open("program", O_CREAT | O_WRONLY, 0755);
	static char bytes[1 << 20];
	for (ssize_t n; (n = read(in, bytes, sizeof bytes)) > 0;)
		if (write(out, bytes, (size_t)n) != n) line("the program cannot be written");
	close(in), close(out);
	make("script", "#!/nowhere/interpreter\n"), chmod("script", 0755), make("garbage", "no program"), chmod("garbage", 0755), make("plain", "x"), mkdir("d", 0755), symlink("program", "l");
	static const char *const all[] = {"./script", "./garbage", "./plain", "./d", "./missing", "./plain/x"};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) CHILD line("exec %s: %s", all[i], R(execl(all[i], "x", NULL)));
	// Its usage: a line on standard error, and 2.
	CHILD {
		dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
		execl("./l", "program", NULL);
		line("exec ./l: %s", strerrorname_np(errno));
	}
	CHILD {
		int writer = open("program", O_WRONLY);
		line("exec while it is written: %s", R(execl("./program", "x", NULL)));
		close(writer);
	}
	chmod("program", 0644);
	CHILD line("exec without the bit: %s", R(execl("./program", "x", NULL)));
	chmod("program", 0700);
	CHILD {
		become(1000, 1000, -1);
		line("exec of another user's: %s", R(execl("./program", "x", NULL)));
	}
}
RECORDING("watches, polls and mounts") {
	make("f", "x"), mkdir("d", 0755);
	int watch = FD(inotify_init1(IN_NONBLOCK)), fd = FD(open("f", O_RDWR)), poll_fd = FD(epoll_create1(0));
	EACH("watches", inotify_add_watch(watch, "f", IN_ALL_EVENTS) > 0, inotify_add_watch(watch, "d", IN_ALL_EVENTS) > 0, inotify_add_watch(watch, "missing", IN_ALL_EVENTS), inotify_add_watch(watch, "f", IN_ONLYDIR | IN_MODIFY));
	char events[4096];
	T(write(fd, "y", 1));
	T(make("d/new", "x"));
	T(read(watch, events, sizeof events) > 0);
	EACH("polls", epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN}), poll(&(struct pollfd){.fd = fd, .events = POLLIN | POLLOUT}, 1, 0));
	EACH("mounts and more", mount("none", "f", "tmpfs", 0, NULL), swapon("f", 0), acct("missing"), umount2("d", 0));
}
RECORDING("handles of files") {
	make("f", "content"), mkdir("d", 0755);
	struct {
		struct file_handle head;
		unsigned char bytes[128];
	} handle = {.head.handle_bytes = 128}, small = {.head.handle_bytes = 0};
	int mount_id, dir = FD(open(".", O_RDONLY));
	T(name_to_handle_at(AT_FDCWD, "f", &handle.head, &mount_id, 0));
	T(name_to_handle_at(AT_FDCWD, "f", &small.head, &mount_id, 0));
	int fd = FD(open_by_handle_at(dir, &handle.head, O_RDONLY));
	char bytes[16];
	T(read(fd, bytes, 16));
	T(unlink("f"));
	T(open_by_handle_at(dir, &handle.head, O_RDONLY) < 0 ? -1 : 0);
	T(close(fd));
}
RECORDING("a process without rights in a directory of others") {
	mkdir("private", 0700), make("private/f", "x"), mkdir("listed", 0744), make("listed/f", "x"), mkdir("searched", 0711), make("searched/f", "x");
	static const char *const all[] = {"private", "listed", "searched"};
	int kept = FD(open("private/f", O_RDWR));
	CHILD {
		become(1000, 1000, -1);
		for (int i = 0; i < 3; i++) {
			char path[64];
			snprintf(path, sizeof path, "%s/f", all[i]);
			EACH(all[i], open(path, O_RDONLY) < 0 ? -1 : 0, access(path, F_OK), open(all[i], O_RDONLY) < 0 ? -1 : 0, chdir(all[i]) < 0 ? -1 : chdir(".."), unlink(path), rename(path, "g"), link(path, "h"), mkdir(text("%s/new", all[i]), 0755), statfs(path, &(struct statfs){0}));
			show_names(all[i]);
			show_stat(path);
		}
		T(pwrite(kept, "still", 5, 0));
		show_fstat(kept);
	}
	show_content("private/f");
}
RECORDING("the limit of open files, and closing what is closed") {
	make("f", "x");
	int fd = FD(open("f", O_RDWR));
	T(close(fd));
	T(close(fd));
	T(read(fd, &fd, 1));
	T(dup2(open("f", O_RDWR), 200));
	T(write(200, "y", 1));
	T(close_range(3, 300, 0));
	T(write(200, "y", 1));
}
// What some shares cannot do: the errno that a program gets instead.
RECORDING("what not every file system has") {
	make("f", "0123456789"), make("g", "g"), mkdir("d", 0755), symlink("f", "l");
	char bytes[64];
	int fd = FD(open("f", O_RDWR)), flags = 0;
	EACH("links", link("f", "h"), linkat(AT_FDCWD, path_of(fd), AT_FDCWD, "h", AT_SYMLINK_FOLLOW), link("l", "h"), link("f", "g"));
	EACH("files without a name", open(".", O_TMPFILE | O_RDWR, 0644) < 0 ? -1 : 0);
	EACH("renames", syscall(SYS_renameat2, AT_FDCWD, "f", AT_FDCWD, "g", 2), syscall(SYS_renameat2, AT_FDCWD, "g", AT_FDCWD, "w", 4), syscall(SYS_renameat2, AT_FDCWD, "f", AT_FDCWD, "missing", 2));
	EACH("flags", ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0 ? -1 : 0, ioctl(fd, FS_IOC_SETFLAGS, &flags));
	EACH("attributes", setxattr("f", "trusted.t", "v", 1, 0), getxattr("f", "trusted.t", bytes, 64), removexattr("f", "trusted.t"), setxattr("f", "security.s", "v", 1, 0), getxattr("f", "system.posix_acl_access", bytes, 64) < 0 ? -1 : 0);
	EACH("a long attribute", setxattr("f", "user.long", "v", 1, 0), removexattr("f", "user.long"));
	EACH("room", fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4096));
	EACH("holes", ftruncate(fd, 3 << 20), lseek(fd, 1 << 20, SEEK_HOLE), lseek(fd, 1 << 20, SEEK_DATA));
	struct stat s = lstat_of("d");
	line("a directory of nothing has %ld links", (long)s.st_nlink);
}

/*
 * A disk of the tests: one file, served by FUSE, for a loop device to lie on. Every write and every completed flush goes into a log, in order,
 * so that what such a disk may hold after a power failure can be made of it. It can be told to fail.
 *
 *   disk FILE IMAGE LOG CONTROL shared|private [REPLAY]
 *
 * FILE is mounted over. IMAGE holds the content: `shared` changes it, `private` leaves it as it is and forgets all changes at the end. REPLAY is a log
 * whose writes are done first. CONTROL is mapped: see struct control. It prints "ready" when it is mounted, and ends when it is unmounted.
 *
 *   disk drop FILE
 *
 * has the kernel write FILE's data back and forget its pages, as it may do at any time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096u
#define MAX_WRITE (1u << 20)

/* One record of a log; `bytes` of data follow a write. test/storage/power/disk-log.ts reads the same. */
struct record {
	uint32_t kind;
	uint32_t bytes;
	uint64_t offset;
};
enum { KIND_WRITE = 1, KIND_FLUSH = 2 };

/* What the test asks for while the disk runs; an error is a positive errno, 0: none. */
struct control {
	uint32_t write_error;      /* of every write */
	uint32_t thin_error;       /* of a write to pages that were never written: the room behind the disk is used up */
	uint32_t flush_error;      /* of every flush */
	uint32_t failed;           /* counts what has failed */
};

static uint8_t *image;
static uint64_t image_bytes;
static int log_fd = -1;
static volatile struct control *control;
/* A byte for each page that was ever written. */
static uint8_t *written;

static void die(const char *what)
{
	fprintf(stderr, "disk: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void log_record(uint32_t kind, uint64_t offset, const void *data, uint32_t bytes)
{
	struct record record = { .kind = kind, .bytes = bytes, .offset = offset };
	struct iovec parts[2] = { { &record, sizeof record }, { (void *)data, bytes } };
	if (writev(log_fd, parts, bytes > 0 ? 2 : 1) != (ssize_t)(sizeof record + bytes))
		die("the log");
}

static void replay(const char *path)
{
	FILE *in = fopen(path, "r");
	struct record record;
	if (in == NULL)
		die(path);
	while (fread(&record, sizeof record, 1, in) == 1) {
		if (record.kind != KIND_WRITE)
			continue;
		if (record.offset > image_bytes || record.bytes > image_bytes - record.offset || fread(image + record.offset, 1, record.bytes, in) != record.bytes)
			die("a record of the replayed log");
	}
	fclose(in);
}

/* Pages that hold something are room that the disk has. */
static void find_written(int fd)
{
	for (off_t from = 0; (from = lseek(fd, from, SEEK_DATA)) >= 0; ) {
		off_t to = lseek(fd, from, SEEK_HOLE);
		memset(written + from / PAGE, 1, (to - from + PAGE - 1) / PAGE);
		from = to;
	}
}

static int do_write(uint64_t offset, const uint8_t *data, uint32_t bytes)
{
	uint32_t error = control->write_error;
	if (offset > image_bytes || bytes > image_bytes - offset)
		return -EIO;
	if (bytes == 0)
		return 0;
	for (uint64_t page = offset / PAGE; error == 0 && control->thin_error != 0 && page <= (offset + bytes - 1) / PAGE; page++)
		if (!written[page])
			error = control->thin_error;
	if (error != 0) {
		control->failed++;
		return -(int)error;
	}
	log_record(KIND_WRITE, offset, data, bytes);
	memcpy(image + offset, data, bytes);
	memset(written + offset / PAGE, 1, (offset + bytes - 1) / PAGE - offset / PAGE + 1);
	return 0;
}

static int do_flush(void)
{
	if (control->flush_error != 0) {
		control->failed++;
		return -(int)control->flush_error;
	}
	log_record(KIND_FLUSH, 0, NULL, 0);
	return 0;
}

static void reply(int dev, uint64_t unique, int error, const void *body, size_t bytes)
{
	struct fuse_out_header out = { .len = sizeof out + (error ? 0 : bytes), .error = error, .unique = unique };
	struct iovec parts[2] = { { &out, sizeof out }, { (void *)body, bytes } };
	if (writev(dev, parts, error || bytes == 0 ? 1 : 2) < 0 && errno != ENOENT)
		die("a reply");
}

static struct fuse_attr attributes(void)
{
	return (struct fuse_attr){ .ino = 1, .size = image_bytes, .blocks = image_bytes / 512, .mode = S_IFREG | 0600, .nlink = 1, .blksize = PAGE };
}

static void serve(int dev)
{
	static uint8_t buffer[MAX_WRITE + 2 * PAGE];
	for (;;) {
		ssize_t n = read(dev, buffer, sizeof buffer);
		if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
			continue;
		if (n < 0 && errno == ENODEV)
			return;
		if (n < (ssize_t)sizeof(struct fuse_in_header))
			die("a request");
		const struct fuse_in_header *in = (void *)buffer;
		const void *args = buffer + sizeof *in;
		uint64_t unique = in->unique;
		switch (in->opcode) {
		case FUSE_INIT: {
			const struct fuse_init_in *init = args;
			struct fuse_init_out out = {
				.major = FUSE_KERNEL_VERSION, .minor = 31, .max_readahead = init->max_readahead, .max_write = MAX_WRITE,
				.flags = init->flags & (FUSE_MAX_PAGES | FUSE_BIG_WRITES | FUSE_ASYNC_READ | FUSE_ASYNC_DIO), .max_pages = MAX_WRITE / PAGE,
				.max_background = 64, .congestion_threshold = 48,
			};
			reply(dev, unique, 0, &out, sizeof out);
			break;
		}
		case FUSE_GETATTR: case FUSE_SETATTR: {
			struct fuse_attr_out out = { .attr_valid = 3600, .attr = attributes() };
			reply(dev, unique, 0, &out, sizeof out);
			break;
		}
		case FUSE_OPEN: {
			struct fuse_open_out out = { .open_flags = FOPEN_DIRECT_IO };
			reply(dev, unique, 0, &out, sizeof out);
			break;
		}
		case FUSE_READ: {
			const struct fuse_read_in *read_in = args;
			uint64_t offset = read_in->offset;
			uint64_t bytes = offset >= image_bytes ? 0 : read_in->size < image_bytes - offset ? read_in->size : image_bytes - offset;
			reply(dev, unique, 0, image + offset, bytes);
			break;
		}
		case FUSE_WRITE: {
			const struct fuse_write_in *write_in = args;
			struct fuse_write_out out = { .size = write_in->size };
			int error = do_write(write_in->offset, (const uint8_t *)(write_in + 1), write_in->size);
			reply(dev, unique, error, &out, sizeof out);
			break;
		}
		case FUSE_FSYNC:
			reply(dev, unique, do_flush(), NULL, 0);
			break;
		case FUSE_FLUSH: case FUSE_RELEASE: case FUSE_ACCESS:
			reply(dev, unique, 0, NULL, 0);
			break;
		case FUSE_FALLOCATE:
			/* No discard, no zeroing by the device */
			reply(dev, unique, -EOPNOTSUPP, NULL, 0);
			break;
		case FUSE_STATFS: {
			struct fuse_statfs_out out = { .st = { .bsize = PAGE, .frsize = PAGE, .namelen = 255 } };
			reply(dev, unique, 0, &out, sizeof out);
			break;
		}
		case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_INTERRUPT:
			break;
		case FUSE_DESTROY:
			reply(dev, unique, 0, NULL, 0);
			break;
		default:
			reply(dev, unique, -ENOSYS, NULL, 0);
		}
	}
}

/* Without hearing of an error: that is for who has the file open. */
static int drop(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	size_t pages = (st.st_size + PAGE - 1) / PAGE;
	void *map = mmap(NULL, pages * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	unsigned char *resident = calloc(pages + 1, 1);
	if (pages == 0)
		return 0;
	if (map == MAP_FAILED || resident == NULL)
		die(path);
	for (int tries = 0; tries < 10000; tries++) {
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		if (mincore(map, pages * PAGE, resident) < 0)
			die("mincore");
		if (memchr(resident, 1, pages) == NULL)
			return 0;
		usleep(1000);
	}
	errno = EBUSY;
	die(path);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "drop") == 0)
		return drop(argv[2]);
	if (argc < 6) {
		fprintf(stderr, "usage: disk FILE IMAGE LOG CONTROL shared|private [REPLAY], or disk drop FILE\n");
		return 2;
	}
	int is_private = strcmp(argv[5], "private") == 0;
	int image_fd = open(argv[2], (is_private ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	struct stat st;
	if (image_fd < 0 || fstat(image_fd, &st) < 0)
		die(argv[2]);
	image_bytes = st.st_size;
	image = mmap(NULL, image_bytes, PROT_READ | PROT_WRITE, (is_private ? MAP_PRIVATE : MAP_SHARED) | MAP_NORESERVE, image_fd, 0);
	written = calloc(image_bytes / PAGE + 1, 1);
	if (image == MAP_FAILED || written == NULL)
		die("memory");
	find_written(image_fd);
	if (argc > 6)
		replay(argv[6]);
	log_fd = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	int control_fd = open(argv[4], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (log_fd < 0 || control_fd < 0 || ftruncate(control_fd, PAGE) < 0)
		die("log or control");
	control = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, control_fd, 0);
	int dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (control == MAP_FAILED || dev < 0)
		die("/dev/fuse");
	char options[100];
	snprintf(options, sizeof options, "fd=%d,rootmode=100600,user_id=0,group_id=0", dev);
	if (mount("disk", argv[1], "fuse", MS_NODEV | MS_NOSUID, options) < 0)
		die("mount");
	/* What it needs to write for others must not wait for others to write */
	prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
	puts("ready");
	fflush(stdout);
	serve(dev);
	return 0;
}

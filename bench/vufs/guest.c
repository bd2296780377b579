/*
 * vufs guest: what programs in a guest do with files, each once from beginning to end, in the requests that Linux makes of
 * it without a writeback cache and with nothing in its page cache. Used with daemons that somebody else starts: it prints
 * {"ready":true} when it has mounted and one JSON line after each pass, and goes on whenever it reads a line, so that the
 * passes can be told apart from outside.
 */
#include "vufs.h"

#define MIB (1u << 20)
#define LISTING PAGE	/* the size of a READDIR of Linux */
#define RECORD 10240u	/* what tar writes at a time */

struct pass {
	struct sess s;
	const struct opts *o;
	const char *name;
	uint64_t t0, end, reqs0, bytes, done, total, bad_data, errors;
	uint32_t *us;		/* of each operation */
	size_t nus, capus;
	double flush_s;
	bool late, no_flush, no_getxattr;
	char first_error[120];
};

/* ---- content: a block over and over, with the page's number and the file's seed at the beginning of each page ---- */

static uint8_t block[MIB];

static void make_block(void)
{
	uint32_t x = 1;
	for (size_t i = 0; i < MIB; i += 4) {
		x = x * 1664525u + 1013904223u;
		memcpy(block + i, &x, 4);
	}
}

static void stamp_of(uint64_t page, uint32_t seed, uint32_t stamp[2])
{
	stamp[0] = (uint32_t)page;
	stamp[1] = seed;
}

static void fill(uint8_t *to, uint64_t off, uint32_t len, uint32_t seed)	/* off: at a page */
{
	for (uint32_t i = 0; i < len; i += PAGE) {
		uint32_t n = len - i < PAGE ? len - i : PAGE, stamp[2];
		memcpy(to + i, block + (off + i) % MIB, n);
		stamp_of((off + i) / PAGE, seed, stamp);
		memcpy(to + i, stamp, n < 8 ? n : 8);
	}
}

/* Of what a READ brought: every page's stamp, and the whole first page. */
static bool right(struct req *r, uint64_t off, uint32_t len, uint32_t seed)
{
	uint8_t want[PAGE];
	for (uint32_t i = 0; i < len; i += PAGE) {
		uint32_t n = len - i < PAGE ? len - i : PAGE;
		fill(want, off + i, n, seed);
		if (memcmp(r->pg[i / PAGE], want, i && n > 8 ? 8 : n))
			return false;
	}
	return true;
}

/* ---- a pass ---- */

static bool trouble(struct pass *p, int e, const char *what)
{
	if (e >= 0)
		return false;
	p->s.dead |= e == E_TIMEOUT;	/* nothing more is asked of it */
	if (!p->errors++)
		snprintf(p->first_error, sizeof p->first_error, "%s: %s", what, errname(e));
	return true;
}

static void took(struct pass *p, uint64_t since)
{
	if (p->nus == p->capus)
		p->us = realloc(p->us, (p->capus = p->capus * 2 + 1024) * sizeof *p->us);
	uint64_t us = (now_ns() - since) / 1000;
	p->us[p->nus++] = us > UINT32_MAX ? UINT32_MAX : us;
}

static bool over(struct pass *p)
{
	return p->late = p->late || p->s.dead || now_ns() > p->end;
}

static void wait_for_go(void)
{
	int c;
	while ((c = getchar()) != '\n' && c != EOF)
		;
	if (c == EOF)
		exit(2);
}

static void begin(struct pass *p, const char *name, uint64_t total)
{
	wait_for_go();
	p->name = name;
	p->total = total;
	p->bytes = p->done = p->bad_data = p->errors = p->nus = p->flush_s = 0;
	p->late = false;
	p->first_error[0] = 0;
	p->reqs0 = p->s.unique;
	p->t0 = now_ns();
	p->end = p->t0 + (uint64_t)(p->o->limit * 1e9);
}

static int by_size(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static void finish(struct pass *p)
{
	double sec = (now_ns() - p->t0) / 1e9;
	qsort(p->us, p->nus, sizeof *p->us, by_size);
#define AT(q) (p->nus ? p->us[(size_t)((p->nus - 1) * (q))] / 1e3 : 0)
	printf("{\"pass\":\"%s\",\"seconds\":%.6f,\"done\":%" PRIu64 ",\"total\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"requests\":%" PRIu64 ",",
	       p->name, sec, p->done, p->total, p->bytes, (p->s.unique - p->reqs0) / 2);
	printf("\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,\"flush_s\":%.3f,\"complete\":%s,\"bad_data\":%" PRIu64 ",",
	       AT(.5), AT(.99), AT(1), p->flush_s, p->done == p->total ? "true" : "false", p->bad_data);
	printf("\"anomalies\":%u,\"errors\":%" PRIu64 ",\"first_error\":\"%s\"}\n", p->s.anomalies, p->errors, p->first_error);
}

/* ---- single operations, as the VFS makes them ---- */

#define ARGS(...) (const struct arg[]){ __VA_ARGS__ }, sizeof((const struct arg[]){ __VA_ARGS__ }) / sizeof(struct arg)
#define IN(x) { &(x), sizeof(x) }

static void flush(struct pass *p, uint64_t node, uint64_t fh)
{
	struct fuse_flush_in in = { .fh = fh };
	uint64_t t = now_ns();
	int e = p->no_flush ? 0 : fs_call(&p->s, FUSE_FLUSH, node, ARGS(IN(in)), NULL, 0, NULL);
	if (e == -ENOSYS)
		p->no_flush = true;
	else
		trouble(p, e, "FLUSH");
	p->flush_s += (now_ns() - t) / 1e9;
}

static void close_file(struct pass *p, uint64_t node, uint64_t fh)
{
	flush(p, node, fh);
	trouble(p, fs_release(&p->s, node, fh), "RELEASE");
}

/* Before a write Linux asks for the capabilities of the file, once where the daemon takes care of them itself. */
static void before_write(struct pass *p, uint64_t node, bool first)
{
	static const char name[] = "security.capability";
	const bool daemon_does = p->s.init.flags & FUSE_HANDLE_KILLPRIV_V2;
	struct fuse_getxattr_in in = { .size = 0 };
	struct fuse_getxattr_out out;
	uint32_t got;
	if (p->no_getxattr || (daemon_does && !first))
		return;
	p->no_getxattr = fs_call(&p->s, FUSE_GETXATTR, node, ARGS(IN(in), { name, sizeof name }), &out, sizeof out, &got) == -ENOSYS;
}

static uint64_t create(struct pass *p, uint64_t dir, const char *name, uint64_t *fh)
{
	struct fuse_entry_out e;
	int r = fs_lookup(&p->s, dir, name, &e);
	if (r != -ENOENT)
		return trouble(p, r ? r : -EEXIST, "LOOKUP of what is to be created"), 0;
	return trouble(p, fs_create(&p->s, dir, name, 0644, O_WRONLY | O_EXCL, &e, fh), "CREATE") ? 0 : e.nodeid;
}

static uint64_t make_dir(struct pass *p, uint64_t dir, const char *name)
{
	struct fuse_entry_out e;
	int r = fs_lookup(&p->s, dir, name, &e);
	if (r != -ENOENT)
		return trouble(p, r ? r : -EEXIST, "LOOKUP of a directory to be made"), 0;
	return trouble(p, fs_mkdir(&p->s, dir, name, 0755, &e), "MKDIR") ? 0 : e.nodeid;
}

static uint64_t find_node(struct pass *p, uint64_t dir, const char *name)
{
	struct fuse_entry_out e;
	return trouble(p, fs_lookup(&p->s, dir, name, &e), "LOOKUP") ? 0 : e.nodeid;
}

static bool write_all(struct pass *p, uint64_t node, uint64_t fh, const uint8_t *data, uint32_t len, uint32_t step)
{
	for (uint32_t at = 0; at < len; at += step) {
		uint32_t n = len - at < step ? len - at : step;
		before_write(p, node, !at);
		int w = fs_write(&p->s, node, fh, at, n, data + at);
		if (w != (int)n)
			return trouble(p, w < 0 ? w : -EIO, "WRITE"), false;
	}
	p->bytes += len;
	return true;
}

static uint32_t request_max(struct pass *p)
{
	uint32_t max = p->s.init.flags & FUSE_MAX_PAGES ? p->s.init.max_pages * PAGE : 32 * PAGE;
	max = p->s.init.max_write < max ? p->s.init.max_write : max;
	return max < p->o->bs ? max : p->o->bs;
}

/* ---- jobs ---- */

/* dd of=PATH bs=1M */
static void job_write_file(struct pass *p)
{
	const uint32_t bs = request_max(p);
	uint8_t *data = malloc(bs);
	uint64_t fh, node;
	begin(p, "write", p->o->size);
	node = create(p, FUSE_ROOT_ID, p->o->path, &fh);
	for (uint64_t off = 0; node && off < p->o->size && !over(p); off += bs) {
		uint32_t n = p->o->size - off < bs ? p->o->size - off : bs;
		fill(data, off, n, 0);
		uint64_t t = now_ns();
		before_write(p, node, !off);
		int w = fs_write(&p->s, node, fh, off, n, data);
		if (w != (int)n) {
			trouble(p, w < 0 ? w : -EIO, "WRITE");
			break;
		}
		took(p, t);
		p->done += n;
		p->bytes += n;
	}
	if (node)
		close_file(p, node, fh);
	finish(p);
	free(data);
}

/* READs in order, `qd` under way at a time, as readahead has them. */
static void read_file(struct pass *p, uint64_t node, uint64_t fh, uint64_t size, uint32_t seed)
{
	const uint32_t bs = request_max(p);
	uint64_t sent = 0, got = 0;
	while (got < size && !p->s.dead) {
		while (sent < size && sent / bs - got / bs < p->o->qd && !over(p)) {
			struct req *r = req_get(&p->s);
			const uint64_t rest = (size - sent + PAGE - 1) / PAGE * PAGE;
			struct fuse_read_in in = { .fh = fh, .offset = sent, .size = rest < bs ? rest : bs };
			req_prep(&p->s, r, FUSE_READ, node, 0);
			req_add(r, &in, sizeof in);
			r->rlen = in.size;
			r->t0 = now_ns();
			r->user = (void *)(uintptr_t)sent;
			if (req_submit(&p->s, r, 1))
				die("no room in the ring");
			sent += bs;
		}
		if (sent <= got)
			return;	/* late, and nothing under way */
		struct req *r = sess_next(&p->s, now_ns() + (uint64_t)(p->o->req_timeout * 1e9));
		if (!r) {
			trouble(p, p->s.dead ? E_DEAD : E_TIMEOUT, "READ");
			return;
		}
		const uint64_t off = (uintptr_t)r->user, want = size - off < bs ? size - off : bs;
		int e = req_result(&p->s, r);
		took(p, r->t0);
		if (e || r->oh->len - sizeof *r->oh != want)
			trouble(p, e ? e : -EIO, "READ");
		else if (!right(r, off, want, seed))
			p->bad_data++;
		else
			p->bytes += want;
		got += bs;
		req_put(&p->s, r);
	}
}

/* dd if=PATH */
static void job_read_file(struct pass *p)
{
	uint64_t fh, node;
	begin(p, "read", p->o->size);
	node = find_node(p, FUSE_ROOT_ID, p->o->path);
	if (node && !trouble(p, fs_open(&p->s, node, O_RDONLY, &fh), "OPEN")) {
		read_file(p, node, fh, p->o->size, 0);
		p->done = p->bytes;
		close_file(p, node, fh);
	}
	finish(p);
}

/* The same places `times` over. */
static void random_reads(struct pass *p, uint64_t node, uint64_t fh, const char *name, unsigned times)
{
	const uint32_t bs = request_max(p);
	const uint64_t blocks = p->o->size / bs, first = p->o->seed * 0x9e3779b97f4a7c15ull + 1;
	uint64_t x = first;
	begin(p, name, (uint64_t)p->o->count * times);
	for (uint64_t i = 0; i < p->total && !over(p); i++) {
		struct fuse_read_in in = { .fh = fh, .size = bs };
		struct req *r = req_get(&p->s);
		if (i % p->o->count == 0)
			x = first;
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		in.offset = x % blocks * bs;
		uint64_t t = now_ns();
		req_prep(&p->s, r, FUSE_READ, node, 0);
		req_add(r, &in, sizeof in);
		r->rlen = bs;
		int e = req_wait(&p->s, r);
		took(p, t);
		if (e == E_TIMEOUT || e == E_DEAD) {
			trouble(p, e, "READ");
			break;
		}
		if (e || r->oh->len - sizeof *r->oh != bs)
			trouble(p, e ? e : -EIO, "READ");
		else if (!right(r, in.offset, bs, 0))
			p->bad_data++;
		p->bytes += bs;
		p->done++;
		req_put(&p->s, r);
	}
	finish(p);
}

/* One read after the other, then in the same places again, which the daemon has seen: often enough to take some time. */
static void job_random_read(struct pass *p)
{
	uint64_t fh, node = find_node(p, FUSE_ROOT_ID, p->o->path);
	if (!node || trouble(p, fs_open(&p->s, node, O_RDONLY, &fh), "OPEN"))
		die("%s: %s", p->o->path, p->first_error);
	random_reads(p, node, fh, "cold", 1);
	random_reads(p, node, fh, "warm", 100);
	fs_release(&p->s, node, fh);
}

/* cp of many small files into a new directory */
static void job_write_files(struct pass *p)
{
	uint8_t *data = malloc(p->o->fsize + PAGE);
	char name[32];
	begin(p, "write", p->o->files);
	uint64_t fh, node, dir = make_dir(p, FUSE_ROOT_ID, p->o->path);
	for (unsigned i = 0; dir && i < p->o->files && !over(p); i++) {
		snprintf(name, sizeof name, "f%06u", i);
		fill(data, 0, p->o->fsize, i);
		uint64_t t = now_ns();
		if (!(node = create(p, dir, name, &fh)))
			continue;
		p->done += write_all(p, node, fh, data, p->o->fsize, MIB);
		close_file(p, node, fh);
		took(p, t);
	}
	finish(p);
	free(data);
}

/* cat DIR/f* */
static void job_read_files(struct pass *p)
{
	char name[32];
	begin(p, "read", p->o->files);
	uint64_t fh, node, dir = find_node(p, FUSE_ROOT_ID, p->o->path);
	for (unsigned i = 0; dir && i < p->o->files && !over(p); i++) {
		snprintf(name, sizeof name, "f%06u", i);
		const uint64_t t = now_ns(), before = p->bytes;
		const size_t nus = p->nus;
		if (!(node = find_node(p, dir, name)) || trouble(p, fs_open(&p->s, node, O_RDONLY, &fh), "OPEN"))
			continue;
		read_file(p, node, fh, p->o->fsize, i);
		p->done += p->bytes > before;
		close_file(p, node, fh);
		p->nus = nus;	/* of files, not of their READs */
		took(p, t);
	}
	finish(p);
}

static bool is_dots(const struct fuse_dirent *d)
{
	return d->name[0] == '.' && (d->namelen == 1 || (d->namelen == 2 && d->name[1] == '.'));
}

/* stat() of a name that a listing has just brought: asked for only if the listing did not bring it, or nobody may rely on that. */
static uint64_t stat_entry(struct pass *p, uint64_t dir, const struct fuse_direntplus *d, uint32_t *mode)
{
	const struct fuse_entry_out *e = &d->entry_out;
	struct fuse_entry_out looked;
	char name[256];
	if (e->nodeid && (e->entry_valid || e->entry_valid_nsec)) {
		struct fuse_getattr_in in = { 0 };
		struct fuse_attr_out out;
		*mode = e->attr.mode;
		if (!e->attr_valid && !e->attr_valid_nsec)
			trouble(p, fs_call(&p->s, FUSE_GETATTR, e->nodeid, ARGS(IN(in)), &out, sizeof out, NULL), "GETATTR");
		return e->nodeid;
	}
	snprintf(name, sizeof name, "%.*s", (int)d->dirent.namelen, d->dirent.name);
	if (trouble(p, fs_lookup(&p->s, dir, name, &looked), "LOOKUP"))
		return 0;
	*mode = looked.attr.mode;
	return looked.nodeid;
}

struct todo { uint64_t *dirs; size_t n, cap; };

static void push(struct todo *t, uint64_t dir)
{
	if (t->n == t->cap)
		t->dirs = realloc(t->dirs, (t->cap = t->cap * 2 + 64) * sizeof *t->dirs);
	t->dirs[t->n++] = dir;
}

/* One READDIRPLUS, or READDIR; the bytes of it, and where to go on. */
static int read_listing(struct pass *p, uint64_t dir, uint64_t fh, uint64_t off, bool plus, uint8_t *buf)
{
	struct fuse_read_in in = { .fh = fh, .offset = off, .size = LISTING };
	struct req *r = req_get(&p->s);
	req_prep(&p->s, r, plus ? FUSE_READDIRPLUS : FUSE_READDIR, dir, 0);
	req_add(r, &in, sizeof in);
	r->rlen = LISTING;
	int e = req_wait(&p->s, r);
	if (e == E_TIMEOUT || e == E_DEAD)
		return e;
	if (!e)
		req_data(r, buf, e = r->oh->len - sizeof *r->oh, false);
	req_put(&p->s, r);
	return e;
}

/* A whole directory. `stat`: as find and ls -l, every entry's attributes; else as ls -U, whose first request is a READDIRPLUS too. */
static void list_dir(struct pass *p, uint64_t dir, bool stat, struct todo *below)
{
	const bool can_plus = p->s.init.flags & FUSE_DO_READDIRPLUS;
	uint64_t fh, off = 0, buf[LISTING / 8];
	if (trouble(p, fs_opendir(&p->s, dir, &fh), "OPENDIR"))
		return;
	for (int n; !over(p);) {
		const bool plus = can_plus && (stat || !off);
		uint64_t t = now_ns();
		n = read_listing(p, dir, fh, off, plus, (uint8_t *)buf);
		took(p, t);
		if (trouble(p, n, "READDIR") || !n)
			break;
		for (int at = 0; at + (int)FUSE_NAME_OFFSET < n;) {
			struct fuse_direntplus none = { 0 }, *dp = plus ? (void *)((uint8_t *)buf + at) : &none;
			struct fuse_dirent *d = plus ? &dp->dirent : (void *)((uint8_t *)buf + at);
			uint8_t room[sizeof none + 256];
			uint32_t mode = 0;
			off = d->off;
			at += plus ? FUSE_DIRENTPLUS_SIZE(dp) : FUSE_DIRENT_SIZE(d);
			if (plus && dp->entry_out.nodeid && !is_dots(d))
				ref_add(&p->s, dp->entry_out.nodeid, 1);
			if (is_dots(d))
				continue;
			if (!plus && d->namelen < 256) {
				dp = (void *)room;
				dp->entry_out = none.entry_out;
				memcpy(&dp->dirent, d, FUSE_NAME_OFFSET + d->namelen);
			}
			uint64_t node = stat ? stat_entry(p, dir, dp, &mode) : 0;
			if (S_ISDIR(mode))
				push(below, node);
			else
				p->done++;
		}
	}
	fs_releasedir(&p->s, dir, fh);
}

static void job_find(struct pass *p)
{
	struct todo todo = { 0 };
	begin(p, "find", p->o->files);
	uint64_t dir = find_node(p, FUSE_ROOT_ID, p->o->path);
	if (dir)
		push(&todo, dir);
	while (todo.n && !over(p))
		list_dir(p, todo.dirs[--todo.n], true, &todo);
	finish(p);
	free(todo.dirs);
}

static void job_list(struct pass *p)
{
	begin(p, "list", p->o->files);
	uint64_t dir = find_node(p, FUSE_ROOT_ID, p->o->path);
	if (dir)
		list_dir(p, dir, false, NULL);
	finish(p);
}

static void set_attr(struct pass *p, uint64_t node, struct fuse_setattr_in in, const char *what)
{
	struct fuse_attr_out out;
	trouble(p, fs_call(&p->s, FUSE_SETATTR, node, ARGS(IN(in)), &out, sizeof out, NULL), what);
}

/* What tar does as root to each thing that it has made: utimensat, chown, chmod. */
static void restore(struct pass *p, uint64_t node, uint32_t mode)
{
	set_attr(p, node, (struct fuse_setattr_in){ .valid = FATTR_MTIME, .mtime = 1000000000 }, "SETATTR of times");
	set_attr(p, node, (struct fuse_setattr_in){ .valid = FATTR_UID | FATTR_GID, .uid = p->s.o.uid, .gid = p->s.o.gid }, "SETATTR of owners");
	set_attr(p, node, (struct fuse_setattr_in){ .valid = FATTR_MODE, .mode = mode }, "SETATTR of modes");
}

/* tar x of a source tree: 8 files in each directory, 5 directories in each directory above; the sizes of ordinary sources. */
static void job_untar(struct pass *p)
{
	static const uint32_t sizes[] = { 300, 14000, 1800, 60000, 900, 4200, 25000, 3000, 9000, 6000 };
	uint8_t *data = malloc(MIB);
	uint64_t fh, node, upper = 0, dir = 0;
	char name[32];
	struct todo made = { 0 };
	begin(p, "untar", p->o->files);
	uint64_t top = make_dir(p, FUSE_ROOT_ID, p->o->path);
	for (unsigned i = 0; top && i < p->o->files && !over(p); i++) {
		if (i % 40 == 0) {
			snprintf(name, sizeof name, "part%u", i / 40);
			if (!(upper = make_dir(p, top, name)))
				break;
			push(&made, upper);
		}
		if (i % 8 == 0) {
			snprintf(name, sizeof name, "module%u", i / 8 % 5);
			if (!(dir = make_dir(p, upper, name)))
				break;
			push(&made, dir);
		}
		const uint32_t size = sizes[i % 10];
		snprintf(name, sizeof name, "source%u.c", i);
		fill(data, 0, size, i);
		uint64_t t = now_ns();
		if (!(node = create(p, dir, name, &fh)))
			continue;
		p->done += write_all(p, node, fh, data, size, RECORD);
		restore(p, node, 0644);
		close_file(p, node, fh);
		took(p, t);
	}
	while (made.n && !over(p))
		restore(p, made.dirs[--made.n], 0755);
	finish(p);
	free(made.dirs);
	free(data);
}

static const struct job_def { const char *name; void (*run)(struct pass *p); } defs[] = {
	{ "write-file", job_write_file }, { "read-file", job_read_file }, { "random-read", job_random_read },
	{ "write-files", job_write_files }, { "read-files", job_read_files }, { "find", job_find }, { "list", job_list },
	{ "untar", job_untar },
};

int cmd_guest(struct opts *o, const char *job)
{
	struct pass *p = calloc(1, sizeof *p);
	const struct job_def *def = NULL;
	for (size_t i = 0; i < sizeof defs / sizeof *defs; i++)
		if (!strcmp(defs[i].name, job))
			def = &defs[i];
	if (!def || !o->path)
		die("guest takes a job (write-file read-file random-read write-files read-files find list untar) and --path");
	if (!o->bs)
		o->bs = MIB;
	o->bs = (o->bs + PAGE - 1) / PAGE * PAGE;
	o->datacap = o->bs < MIB ? MIB : o->bs;
	o->argcap = 2048;
	o->ocap = 512;
	o->slots = o->qd + 4;
	for (o->ring = 128; o->ring < 4 + o->datacap / PAGE && o->ring < MAXRING;)
		o->ring *= 2;
	make_block();
	p->o = o;
	pin_cpus(o->cpu);
	must(sess_open(&p->s, o), "connect and INIT");
	printf("{\"ready\":true}\n");
	def->run(p);
	wait_for_go();
	sess_close(&p->s, true);
	return 0;
}

/* Workloads: data sets, and one operation of each kind as a small state machine of FUSE requests. */
#include "vufs.h"

static uint64_t rnd(struct bench *b)
{
	b->rng ^= b->rng << 13;
	b->rng ^= b->rng >> 7;
	return b->rng ^= b->rng << 17;
}

void must(int e, const char *what)
{
	if (e)
		die("%s: %s", what, errname(e));
}

static void prep(struct bench *b, struct job *j, uint32_t op, uint64_t node, uint32_t olen, const void *in, uint32_t len)
{
	req_prep(&b->s, j->r, op, node, olen);
	req_add(j->r, in, len);
}

static void prep_name(struct bench *b, struct job *j, uint32_t op, uint64_t node, uint32_t olen, const char *name)
{
	prep(b, j, op, node, olen, name, strlen(name) + 1);
}

/* ---- data sets, made once and kept under vufs-bench/ ---- */

static bool present(struct bench *b, const char *name, struct fuse_entry_out *e)
{
	int r = fs_lookup(&b->s, b->base, name, e);
	if (r && r != -ENOENT)
		must(r, name);
	return !r;
}

static void publish(struct bench *b, const char *name, struct fuse_entry_out *e)
{
	must(fs_rename(&b->s, b->base, "tmp", b->base, name), "rename");
	must(fs_lookup(&b->s, b->base, name, e), name);
}

/* `files` files of `size` bytes, `per` to a directory; b->dirs gets the directories' nodeids */
static void make_tree(struct bench *b, unsigned per, size_t size)
{
	struct fuse_entry_out top, d = { 0 }, f;
	char name[64], *data = malloc(size + 1);
	unsigned n = b->o->files;
	uint64_t fh;
	snprintf(name, sizeof name, "tree-%u-%u-%zu", n, per, size);
	pat_fill(data, 0, size, 3);
	if (!present(b, name, &top)) {
		fs_rm_rf(&b->s, b->base, "tmp");
		must(fs_mkdir(&b->s, b->base, "tmp", 0755, &top), "mkdir");
		for (unsigned i = 0; i < n; i++) {
			char nm[32];
			snprintf(nm, sizeof nm, "d%04u", i / per);
			if (i % per == 0)
				must(fs_mkdir(&b->s, top.nodeid, nm, 0755, &d), "mkdir");
			snprintf(nm, sizeof nm, "file-%06u", i % per);
			must(fs_create(&b->s, d.nodeid, nm, 0644, O_RDWR, &f, &fh), "create");
			for (size_t at = 0; at < size; at += PAGE) {
				uint32_t len = size - at < PAGE ? size - at : PAGE;
				if (fs_write(&b->s, f.nodeid, fh, at, len, data + at) != (int)len)
					die("write of the data set failed");
			}
			fs_release(&b->s, f.nodeid, fh);
		}
		publish(b, name, &top);
	}
	free(data);
	b->node = top.nodeid;
	b->ndirs = (n + per - 1) / per;
	b->dirs = calloc(b->ndirs, sizeof *b->dirs);
	for (unsigned i = 0; i < b->ndirs; i++) {
		snprintf(name, sizeof name, "d%04u", i);
		must(fs_lookup(&b->s, top.nodeid, name, &d), name);
		b->dirs[i] = d.nodeid;
	}
}

static void setup_tree(struct bench *b)
{
	make_tree(b, 100, b->o->fsize);
}

static void setup_nodes(struct bench *b)
{
	struct fuse_entry_out f;
	char name[32];
	setup_tree(b);
	b->nnodes = b->o->files;
	b->nodes = calloc(b->nnodes, sizeof *b->nodes);
	for (unsigned i = 0; i < b->nnodes; i++) {
		snprintf(name, sizeof name, "file-%06u", i % 100);
		must(fs_lookup(&b->s, b->dirs[i / 100], name, &f), name);
		b->nodes[i] = f.nodeid;
	}
}

static void setup_flat(struct bench *b)
{
	make_tree(b, b->o->files, 0);
	b->node = b->dirs[0];
}

static void setup_cu(struct bench *b)
{
	struct fuse_entry_out e;
	fs_rm_rf(&b->s, b->base, "cu");
	must(fs_mkdir(&b->s, b->base, "cu", 0755, &e), "mkdir");
	b->node = e.nodeid;
}

static void setup_data(struct bench *b)
{
	struct fuse_entry_out e;
	size_t bs = b->o->bs, size = b->o->size / bs * bs;
	char name[64], *buf = malloc(bs);
	uint64_t fh;
	if (!size)
		die("--size is less than --bs");
	snprintf(name, sizeof name, "%s-%zu", b->w->write ? "wdata" : "data", size);
	if (!present(b, name, &e) || e.attr.size != size) {
		fs_rm_rf(&b->s, b->base, "tmp");
		must(fs_create(&b->s, b->base, "tmp", 0644, O_RDWR, &e, &fh), "create");
		for (uint64_t at = 0; at < size; at += bs) {
			pat_fill(buf, at, bs, 1);
			if (fs_write(&b->s, e.nodeid, fh, at, bs, buf) != (int)bs)
				die("write of the data set failed");
		}
		fs_release(&b->s, e.nodeid, fh);
		publish(b, name, &e);
	}
	must(fs_open(&b->s, e.nodeid, O_RDWR, &b->fh), "open");
	b->node = e.nodeid;
	b->blocks = size / bs;
	b->written = calloc(b->blocks, 1);
	pat_fill(buf, 0, bs, 2);
	for (unsigned i = 0; b->w->write && i < b->s.o.slots; i++)
		req_data(&b->s.reqs[i], buf, bs, true);
	free(buf);
}

/* ---- operations ---- */

static int op_getattr(struct bench *b, struct job *j, int e)
{
	struct fuse_getattr_in in = { 0 };
	if (j->st++)
		return e ? FAIL : DONE;
	prep(b, j, FUSE_GETATTR, b->nodes[rnd(b) % b->nnodes], sizeof(struct fuse_attr_out), &in, sizeof in);
	return GO;
}

static int op_lookup(struct bench *b, struct job *j, int e)
{
	unsigned i = rnd(b) % b->o->files;
	if (j->st++) {
		if (!e)
			ref_add(&b->s, ((struct fuse_entry_out *)j->r->oarg)->nodeid, 1);
		return e == (j->count ? -ENOENT : 0) ? DONE : FAIL;
	}
	j->count = rnd(b) % 100 < b->o->miss;
	snprintf(j->name, sizeof j->name, j->count ? "none-%06u" : "file-%06u", i % 100);
	prep_name(b, j, FUSE_LOOKUP, b->dirs[i / 100], sizeof(struct fuse_entry_out), j->name);
	return GO;
}

static int open_error(struct bench *b, int e, uint32_t flag)
{
	return e == -ENOSYS && (b->s.init.flags & flag) ? 0 : e;
}

static void get_fh(struct job *j, int e, const void *out)
{
	j->open = !e;
	j->fh = e ? 0 : ((const struct fuse_open_out *)out)->fh;
}

static int op_open_read_close(struct bench *b, struct job *j, int e)
{
	struct fuse_open_in op = { .flags = O_RDONLY };
	struct fuse_read_in rd = { .size = b->o->fsize };
	struct fuse_flush_in fl = { 0 };
	struct fuse_release_in rl = { 0 };
	switch (j->st++) {
	case 0:
		j->node = b->nodes[rnd(b) % b->nnodes];
		prep(b, j, FUSE_OPEN, j->node, sizeof(struct fuse_open_out), &op, sizeof op);
		return GO;
	case 1:
		if (open_error(b, e, FUSE_NO_OPEN_SUPPORT))
			return FAIL;
		get_fh(j, e, j->r->oarg);
		rd.fh = j->fh;
		prep(b, j, FUSE_READ, j->node, 0, &rd, sizeof rd);
		j->r->rlen = (b->o->fsize + PAGE - 1) / PAGE * PAGE;
		return GO;
	case 2:
		if (e || j->r->oh->len - sizeof *j->r->oh != b->o->fsize)
			j->count = 1;	/* still release it */
		else if (b->o->verify)
			for (size_t i = 0; i < b->o->fsize; i += PAGE)
				b->bad_data += !pat_same(j->r->pg[i / PAGE], i, b->o->fsize - i < PAGE ? b->o->fsize - i : PAGE, 3);
		b->bytes += b->o->fsize;
		fl.fh = j->fh;
		prep(b, j, FUSE_FLUSH, j->node, 0, &fl, sizeof fl);
		return GO;
	case 3:
		if (e && e != -ENOSYS)
			j->count = 1;
		if (!j->open)
			break;
		rl.fh = j->fh;
		prep(b, j, FUSE_RELEASE, j->node, 0, &rl, sizeof rl);
		return GO;
	}
	return e && e != -ENOSYS ? FAIL : j->count ? FAIL : DONE;
}

/* FORGETs go out as slots allow, the rest waits in a list, as in Linux. */
void forget_async(struct bench *b, uint64_t node)
{
	struct fuse_forget_in in = { 1 };
	if (node) {
		if (b->ndeferred == b->deferredcap)
			b->deferred = realloc(b->deferred, (b->deferredcap = b->deferredcap * 2 + 1024) * sizeof *b->deferred);
		b->deferred[b->ndeferred++] = node;
	}
	while (b->ndeferred && b->s.nfreeq) {
		struct req *r = req_get(&b->s);
		req_prep(&b->s, r, FUSE_FORGET, b->deferred[b->ndeferred - 1], 0);
		req_add(r, &in, sizeof in);
		r->noreply = true;
		if (req_submit(&b->s, r, 0)) {
			req_put(&b->s, r);
			break;
		}
		b->ndeferred--;
	}
}

/* As `cp` of a small file and `rm` in a guest: the write goes out before FLUSH. */
static int op_create_write_unlink(struct bench *b, struct job *j, int e)
{
	struct fuse_create_in cr = { .flags = O_CREAT | O_EXCL | O_RDWR, .mode = S_IFREG | 0644, .umask = 022 };
	struct fuse_flush_in fl = { .fh = j->fh };
	struct fuse_release_in rl = { .fh = j->fh };
	struct fuse_write_in wr = { .size = PAGE };
	struct fuse_secctx_header none = { 8, 0 };
	switch (j->st++) {
	case 0:
		snprintf(j->name, sizeof j->name, "cu-%u-%" PRIu64, (unsigned)(j - b->jobs), b->seq++);
		prep_name(b, j, FUSE_LOOKUP, b->node, sizeof(struct fuse_entry_out), j->name);
		return GO;
	case 1:
		if (e != -ENOENT && !(e == 0 && !((struct fuse_entry_out *)j->r->oarg)->nodeid))
			return FAIL;
		prep(b, j, FUSE_CREATE, b->node, sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out), &cr, sizeof cr);
		req_add(j->r, j->name, strlen(j->name) + 1);
		if ((b->s.init.flags & FUSE_INIT_EXT) && (b->s.init.flags2 & 1))
			req_add(j->r, &none, sizeof none);
		return GO;
	case 2:
		if (e)
			return FAIL;
		j->node = ((struct fuse_entry_out *)j->r->oarg)->nodeid;
		get_fh(j, 0, j->r->oarg + sizeof(struct fuse_entry_out));
		wr.fh = j->fh;
		prep(b, j, FUSE_WRITE, j->node, sizeof(struct fuse_write_out), &wr, sizeof wr);
		j->r->wlen = PAGE;
		return GO;
	case 3:
		if (e || ((struct fuse_write_out *)j->r->oarg)->size != PAGE)
			j->count = 1;	/* still close and remove it */
		else
			b->bytes += PAGE;
		prep(b, j, FUSE_FLUSH, j->node, 0, &fl, sizeof fl);
		return GO;
	case 4:
		if (e && e != -ENOSYS)
			j->count = 1;
		prep(b, j, FUSE_RELEASE, j->node, 0, &rl, sizeof rl);
		return GO;
	case 5:
		if (e)
			return FAIL;
		prep_name(b, j, FUSE_UNLINK, b->node, 0, j->name);
		return GO;
	}
	forget_async(b, j->node);
	return e || j->count ? FAIL : DONE;
}

static void prep_readdir(struct bench *b, struct job *j, uint32_t op)
{
	struct fuse_read_in rd = { .fh = j->fh, .offset = j->off, .size = b->o->bs };
	prep(b, j, op, j->node, 0, &rd, sizeof rd);
	j->r->rlen = b->o->bs;
}

static bool is_dots(const struct fuse_dirent *d)
{
	return d->name[0] == '.' && (d->namelen == 1 || (d->namelen == 2 && d->name[1] == '.'));
}

static bool full_listing(struct bench *b, struct job *j)
{
	if (j->count != b->o->files && !b->failed_shown++)
		fprintf(stderr, "vufs: a listing of %" PRIu64 " entries, there are %u\n", j->count, b->o->files);
	return j->count == b->o->files;
}

/*
 * One operation is one READDIRPLUS answered; each job lists the whole directory again and again, and its
 * OPENDIR and RELEASEDIR count as time, not as operations. The figure to compare is entries per second: how
 * many entries fit in a reply is the daemon's business.
 */
static int op_readdirplus(struct bench *b, struct job *j, int e)
{
	struct fuse_open_in op = { .flags = O_DIRECTORY };
	struct fuse_release_in rl = { .fh = j->fh };
	enum { NEW, OPENED, MORE, LISTED, CLOSED };
	switch (j->st) {
	case OPENED:
		if (open_error(b, e, FUSE_NO_OPENDIR_SUPPORT)) {
			j->st = NEW;
			return FAIL;
		}
		get_fh(j, e, j->r->oarg);
		break;
	case MORE:
		break;
	case LISTED:
		j->blen = e ? 0 : j->r->oh->len - sizeof *j->r->oh;
		j->eof = !j->blen;
		req_data(j->r, j->buf, j->blen, false);
		for (uint32_t at = 0; at + FUSE_NAME_OFFSET_DIRENTPLUS < j->blen;) {
			struct fuse_direntplus *d = (void *)(j->buf + at);
			if (!is_dots(&d->dirent)) {
				j->count++;
				b->entries += !b->stop;
				ref_add(&b->s, d->entry_out.nodeid, 1);
			}
			j->off = d->dirent.off;
			at += FUSE_DIRENTPLUS_SIZE(d);
		}
		b->bytes += j->blen;
		if (j->eof && j->open) {
			prep(b, j, FUSE_RELEASEDIR, j->node, 0, &rl, sizeof rl);
			j->st = CLOSED;
			return GO;
		}
		j->st = j->eof ? NEW : MORE;
		return e || (j->eof && !full_listing(b, j)) ? FAIL : DONE;
	case CLOSED:
		j->st = NEW;
		return full_listing(b, j) ? DONE : FAIL;
	default:
		j->node = b->node;
		j->count = j->off = 0;
		prep(b, j, FUSE_OPENDIR, j->node, sizeof(struct fuse_open_out), &op, sizeof op);
		j->st = OPENED;
		return GO;
	}
	prep_readdir(b, j, FUSE_READDIRPLUS);
	j->st = LISTED;
	return GO;
}

static int op_io(struct bench *b, struct job *j, int e)
{
	const uint32_t bs = b->o->bs;
	uint64_t block = j->st ? 0 : (b->w->seq ? b->seq++ : rnd(b)) % b->blocks;
	struct fuse_read_in rd = { .fh = b->fh, .offset = block * bs, .size = bs };
	struct fuse_write_in wr = { .fh = b->fh, .offset = block * bs, .size = bs };
	if (!j->st++) {
		j->off = block * bs;
		if (b->w->write) {
			prep(b, j, FUSE_WRITE, b->node, sizeof(struct fuse_write_out), &wr, sizeof wr);
			j->r->wlen = bs;
			for (uint32_t i = 0; b->o->verify && i < bs; i += PAGE)
				pat_fill(j->r->pg[i / PAGE], j->off + i, bs - i < PAGE ? bs - i : PAGE, 2);
		} else {
			prep(b, j, FUSE_READ, b->node, 0, &rd, sizeof rd);
			j->r->rlen = bs;
		}
		return GO;
	}
	if (e)
		return FAIL;
	b->bytes += bs;
	if (b->w->write) {
		b->written[j->off / bs] = 1;
		return ((struct fuse_write_out *)j->r->oarg)->size == bs ? DONE : FAIL;
	}
	if (j->r->oh->len - sizeof *j->r->oh != bs)
		return FAIL;
	for (uint32_t i = 0; b->o->verify && i < bs; i += PAGE)
		b->bad_data += !pat_same(j->r->pg[i / PAGE], j->off + i, bs - i < PAGE ? bs - i : PAGE, 1);
	return DONE;
}

const struct work works[] = {
	{ .name = "getattr", setup_nodes, op_getattr },
	{ .name = "lookup", setup_tree, op_lookup },
	{ .name = "open-read-close", setup_nodes, op_open_read_close },
	{ .name = "create-write-unlink", setup_cu, op_create_write_unlink },
	{ .name = "readdirplus", setup_flat, op_readdirplus, .dir = true, .keeps_state = true },
	{ .name = "randread", setup_data, op_io, .io = true },
	{ .name = "seqread", setup_data, op_io, .io = true, .seq = true },
	{ .name = "randwrite", setup_data, op_io, .io = true, .write = true },
	{ .name = "seqwrite", setup_data, op_io, .io = true, .write = true, .seq = true },
};
const unsigned nworks = sizeof works / sizeof *works;

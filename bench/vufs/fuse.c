/* Sessions (memory + rings + FUSE state) and synchronous FUSE calls. */
#include "vufs.h"
#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>

uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

void die(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	fputs("vufs: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(2);
}

const char *errname(int e)
{
	static char buf[4][24];
	static unsigned k;
	const char *n;
	switch (e) {
	case 0: return "OK";
	case E_DEAD: return "CONNECTION-LOST";
	case E_TIMEOUT: return "NO-REPLY";
	case E_PROTO: return "MALFORMED-REPLY";
	}
	n = strerrorname_np(e < 0 ? -e : e);
	if (n && e < 0)
		return n;
	k = (k + 1) % 4;
	snprintf(buf[k], sizeof buf[k], "%d", e);
	return buf[k];
}

/* ---- session ---- */

void sess_alloc(struct sess *s, const struct opts *o)
{
	size_t npg = (o->datacap + PAGE - 1) / PAGE, ind = (npg + 8) * sizeof(struct vring_desc);
	size_t slot = 128 + o->argcap + o->ocap + ind + npg * PAGE + 4096;
	size_t rings = (o->queues + 1) * (vring_size(o->ring, PAGE) + PAGE);
	uint8_t **pool;
	memset(s, 0, sizeof *s);
	s->o = *o;
	s->sock = -1;
	s->nq = o->queues + 1;
	s->curq = 1;
	s->contig = !strcmp(o->sg, "contig");
	s->unique = 2;
	if (s->nq > MAXQ || (o->ring & (o->ring - 1)) || o->ring > MAXRING || o->ring < 8)
		die("queues 1..%d, ring a power of two 8..%d", MAXQ - 1, MAXRING);
	if (gmem_init(&s->m, (rings + o->slots * slot) * 11 / 10 + (8u << 20), o->regions))
		die("guest memory: %s", strerror(errno));
	for (unsigned i = 0; i < s->nq; i++)
		vq_init(s, &s->q[i], i, o->ring);
	s->reqs = calloc(o->slots, sizeof *s->reqs);
	s->freeq = calloc(o->slots, sizeof *s->freeq);
	/* data pages: in one piece per request, or drawn from a shuffled pool */
	pool = calloc(o->slots * npg + 1, sizeof *pool);
	for (size_t i = 0; i < o->slots * npg; i++)
		if (!s->contig)
			pool[i] = galloc(&s->m, PAGE, PAGE);
		else
			pool[i] = i % npg ? pool[i - 1] + PAGE : galloc(&s->m, npg * PAGE, PAGE);
	srandom(1);
	for (size_t i = o->slots * npg; i > 1 && !s->contig; i--) {
		size_t j = random() % i;
		uint8_t *t = pool[i - 1];
		pool[i - 1] = pool[j];
		pool[j] = t;
	}
	for (unsigned i = 0; i < o->slots; i++) {
		struct req *r = &s->reqs[i];
		r->ih = galloc(&s->m, 128, 64);
		r->oh = (void *)((uint8_t *)r->ih + 64);
		r->arg = galloc(&s->m, o->argcap + o->ocap, 64);
		r->oarg = r->arg + o->argcap;
		r->ind = galloc(&s->m, ind, 16);
		r->indcap = npg + 8;
		r->pg = &pool[i * npg];
		r->pg_gpa = calloc(npg + 1, sizeof *r->pg_gpa);
		for (size_t k = 0; k < npg; k++)
			r->pg_gpa[k] = gpa_of(&s->m, r->pg[k]);
		r->ih_gpa = gpa_of(&s->m, r->ih);
		r->oh_gpa = gpa_of(&s->m, r->oh);
		r->arg_gpa = gpa_of(&s->m, r->arg);
		r->oarg_gpa = gpa_of(&s->m, r->oarg);
		r->ind_gpa = gpa_of(&s->m, r->ind);
		s->freeq[s->nfreeq++] = r;
	}
	if (!o->slots)
		free(pool);
}

int sess_open(struct sess *s, const struct opts *o)
{
	int e;
	sess_alloc(s, o);
	s->t_connect = now_ns();
	s->sock = vu_connect(s->o.sock, s->o.connect_timeout);
	if (s->sock < 0)
		return s->sock;
	if (!(e = vu_features(s)) && !(e = vu_rings(s)))
		e = fs_init(s);
	s->t_init = now_ns();
	return e;
}

/* `polite`: as a guest that unmounts and shuts down; else as one that is killed. */
void sess_close(struct sess *s, bool polite)
{
	if (polite && !s->dead && s->started) {
		refs_flush(s);
		fs_call(s, FUSE_DESTROY, 0, NULL, 0, NULL, 0, NULL);
		vu_stop(s);
	}
	if (s->sock >= 0)
		close(s->sock);
	for (unsigned i = 0; i < s->nq; i++) {
		close(s->q[i].kickfd);
		close(s->q[i].callfd);
		close(s->q[i].errfd);
	}
	if (s->o.slots)
		free(s->reqs[0].pg);
	for (unsigned i = 0; i < s->o.slots; i++)
		free(s->reqs[i].pg_gpa);
	free(s->reqs);
	free(s->freeq);
	free(s->refs);
	if (s->m.va) {
		munmap(s->m.va, s->m.size);
		close(s->m.fd);
	}
	s->sock = -1;
	s->m.va = NULL;
	s->nq = s->o.slots = 0;
	s->reqs = NULL;
	s->freeq = NULL;
	s->refs = NULL;
}

/* ---- requests ---- */

struct req *req_get(struct sess *s)
{
	if (!s->nfreeq)
		die("out of request slots");
	struct req *r = s->freeq[--s->nfreeq];
	r->busy = true;
	r->user = NULL;
	return r;
}

void req_put(struct sess *s, struct req *r)
{
	r->busy = false;
	s->freeq[s->nfreeq++] = r;
}

void req_prep(struct sess *s, struct req *r, uint32_t op, uint64_t node, uint32_t olen)
{
	*r->ih = (struct fuse_in_header){ .opcode = op, .unique = s->unique += 2, .nodeid = node,
		.uid = s->o.uid, .gid = s->o.gid, .pid = 4242 };
	memset(r->oh, 0xaa, sizeof *r->oh);
	r->arglen = r->wlen = r->rlen = 0;
	r->olen = olen;
	r->noreply = false;
	if (olen > s->o.ocap)
		die("reply space %u > %zu", olen, s->o.ocap);
}

void req_add(struct req *r, const void *p, uint32_t len)
{
	if (r->arg + r->arglen + len > r->oarg)
		die("request arguments too long");
	if (len)
		memcpy(r->arg + r->arglen, p, len);
	r->arglen += len;
}

int req_submit(struct sess *s, struct req *r, unsigned qi)
{
	r->ih->len = sizeof *r->ih + r->arglen + r->wlen;
	int e = vq_add(s, &s->q[qi], r);
	if (!e)
		vq_kick(s, &s->q[qi]);
	return e;
}

/* Judge a completed request: its errno (negative), or E_PROTO where the reply breaks the rules. */
int req_result(struct sess *s, struct req *r)
{
	struct fuse_out_header *oh = r->oh;
	if (r->noreply) {
		if (r->used_len)
			anomaly(s, "op %u without reply space: used length %u", r->ih->opcode, r->used_len);
		return 0;
	}
	if ((r->ih->opcode == FUSE_INTERRUPT || r->ih->opcode == FUSE_DESTROY) && !r->used_len) {	/* need not be answered */
		oh->len = sizeof *oh;
		return oh->error = 0;
	}
	if (oh->unique != r->ih->unique || oh->len < sizeof *oh || oh->len > sizeof *oh + r->olen + r->rlen ||
	    oh->error > 0 || oh->error <= -4096 || (oh->error && oh->len != sizeof *oh)) {
		anomaly(s, "op %u: reply len %u (room %zu) error %d unique %" PRIu64 " (sent %" PRIu64 ")", r->ih->opcode,
			oh->len, sizeof *oh + r->olen + r->rlen, oh->error, (uint64_t)oh->unique, (uint64_t)r->ih->unique);
		return E_PROTO;
	}
	if (r->used_len != oh->len)
		anomaly(s, "op %u: used length %u, reply length %u", r->ih->opcode, r->used_len, oh->len);
	return oh->error;
}

int req_wait(struct sess *s, struct req *r)
{
	bool hip = r->ih->opcode == FUSE_FORGET || r->ih->opcode == FUSE_BATCH_FORGET || r->ih->opcode == FUSE_INTERRUPT;
	uint64_t end = now_ns() + (uint64_t)(s->o.req_timeout * 1e9);
	int e;
	if (s->dead)
		return E_DEAD;
	while ((e = req_submit(s, r, hip ? 0 : s->curq)) == -ENOSPC && sess_next(s, end))
		;
	while (!e && !r->done && sess_next(s, end))
		;
	if (e || !r->done)
		return s->dead ? E_DEAD : E_TIMEOUT;
	return req_result(s, r);
}

void req_data(struct req *r, void *buf, uint32_t len, bool to_req)
{
	for (uint32_t i = 0; i < len; i += PAGE) {
		uint32_t n = len - i < PAGE ? len - i : PAGE;
		if (to_req)
			memcpy(r->pg[i / PAGE], (char *)buf + i, n);
		else
			memcpy((char *)buf + i, r->pg[i / PAGE], n);
	}
}

/* The pattern of a file: byte k depends on k and the seed only. */
static uint64_t pat(uint64_t word, uint64_t seed)
{
	uint64_t x = (word + seed * 0x100000001b3ull + 1) * 0x9e3779b97f4a7c15ull;
	return x ^ (x >> 29);
}

void pat_fill(void *buf, uint64_t off, size_t len, uint64_t seed)
{
	uint8_t *b = buf;
	for (size_t i = 0; i < len;) {
		uint64_t v = pat((off + i) / 8, seed);
		size_t skip = (off + i) % 8, n = 8 - skip < len - i ? 8 - skip : len - i;
		if (n == 8)
			memcpy(b + i, &v, 8);
		else
			memcpy(b + i, (uint8_t *)&v + skip, n);
		i += n;
	}
}

bool pat_same(const void *buf, uint64_t off, size_t len, uint64_t seed)
{
	const uint8_t *b = buf;
	uint64_t diff = 0;
	for (size_t i = 0; i < len;) {
		uint64_t v = pat((off + i) / 8, seed), w;
		size_t skip = (off + i) % 8, n = 8 - skip < len - i ? 8 - skip : len - i;
		if (n == 8) {
			memcpy(&w, b + i, 8);
			diff |= v ^ w;
		} else {
			diff |= memcmp(b + i, (uint8_t *)&v + skip, n);
		}
		i += n;
	}
	return !diff;
}

/* ---- lookup counts ---- */

void ref_add(struct sess *s, uint64_t node, int64_t n)
{
	if (!node || node == FUSE_ROOT_ID)
		return;
	if (s->nrefs * 2 >= s->refcap) {
		typeof(s->refs) old = s->refs;
		size_t oldcap = s->refcap;
		s->refcap = oldcap ? oldcap * 2 : 1024;
		s->refs = calloc(s->refcap, sizeof *s->refs);
		s->nrefs = 0;
		for (size_t i = 0; i < oldcap; i++)
			if (old[i].n)
				ref_add(s, old[i].node, old[i].n);
		free(old);
	}
	size_t i = (node * 0x9e3779b97f4a7c15ull >> 20) % s->refcap;
	while (s->refs[i].node && s->refs[i].node != node)
		i = (i + 1) % s->refcap;
	s->nrefs += !s->refs[i].node;
	s->refs[i].node = node;
	s->refs[i].n += n;
}

void refs_flush(struct sess *s)
{
	struct fuse_forget_one f[64];
	unsigned k = 0;
	for (size_t i = 0; i < s->refcap; i++) {
		if (s->refs[i].n)
			f[k++] = (struct fuse_forget_one){ s->refs[i].node, s->refs[i].n };
		if (k == 64 || (k && i + 1 == s->refcap)) {
			if (fs_batch_forget(s, f, k))
				break;
			k = 0;
		}
	}
	if (s->refcap)
		memset(s->refs, 0, s->refcap * sizeof *s->refs);
	s->nrefs = 0;
}

/* ---- calls ---- */

int fs_call(struct sess *s, uint32_t op, uint64_t node, const struct arg *a, unsigned na, void *out, uint32_t cap, uint32_t *got)
{
	struct req *r = req_get(s);
	int e;
	req_prep(s, r, op, node, cap);
	for (unsigned i = 0; i < na; i++)
		req_add(r, a[i].p, a[i].len);
	r->noreply = op == FUSE_FORGET || op == FUSE_BATCH_FORGET;
	e = req_wait(s, r);
	if (!e && !r->noreply) {
		uint32_t len = r->oh->len - sizeof *r->oh;
		if (len)
			memcpy(out, r->oarg, len);
		if (got) {
			*got = len;
		} else if (len != cap) {
			anomaly(s, "op %u: result of %u bytes, %u expected", op, len, cap);
			e = E_PROTO;
		}
	}
	if (e != E_TIMEOUT && e != E_DEAD)	/* else the device may still own the slot */
		req_put(s, r);
	return e;
}

#define ARGS(...) (const struct arg[]){ __VA_ARGS__ }, sizeof((const struct arg[]){ __VA_ARGS__ }) / sizeof(struct arg)
#define IN(x) { &(x), sizeof(x) }
#define STR(n) { n, strlen(n) + 1 }

int fs_init(struct sess *s)
{
	struct fuse_init_in in = { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_readahead = 131072 };
	uint64_t want = FUSE_ASYNC_READ | FUSE_POSIX_LOCKS | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT | FUSE_BIG_WRITES |
		FUSE_DONT_MASK | FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE | FUSE_SPLICE_READ | FUSE_FLOCK_LOCKS |
		FUSE_HAS_IOCTL_DIR | FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO |
		FUSE_WRITEBACK_CACHE | FUSE_NO_OPEN_SUPPORT | FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV | FUSE_POSIX_ACL |
		FUSE_ABORT_ERROR | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS | FUSE_NO_OPENDIR_SUPPORT | FUSE_EXPLICIT_INVAL_DATA |
		FUSE_SUBMOUNTS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT | FUSE_INIT_EXT | FUSE_SECURITY_CTX | FUSE_HAS_EXPIRE_ONLY;
	uint32_t got = 0;
	int e;
	in.flags = (uint32_t)want;
	in.flags2 = want >> 32;
	memset(&s->init, 0, sizeof s->init);
	e = fs_call(s, FUSE_INIT, 0, ARGS(IN(in)), &s->init, sizeof s->init, &got);
	if (!e && (got < FUSE_COMPAT_22_INIT_OUT_SIZE || s->init.major != 7)) {
		anomaly(s, "INIT: %u bytes, version %u.%u", got, s->init.major, s->init.minor);
		e = E_PROTO;
	}
	return e;
}

static int entry(struct sess *s, uint32_t op, uint64_t node, const struct arg *a, unsigned na, struct fuse_entry_out *e)
{
	int r = fs_call(s, op, node, a, na, e, sizeof *e, NULL);
	if (!r)
		ref_add(s, e->nodeid, 1);
	return r ? r : e->nodeid ? 0 : -ENOENT;	/* node 0: a negative entry to be cached */
}

/* With SECURITY_CTX agreed, Linux without an LSM label appends an empty context to creations. */
static struct arg secctx(struct sess *s)
{
	static const struct fuse_secctx_header none = { sizeof none, 0 };
	return (struct arg){ &none, (s->init.flags & FUSE_INIT_EXT) && (s->init.flags2 & (FUSE_SECURITY_CTX >> 32)) ? sizeof none : 0 };
}

int fs_lookup(struct sess *s, uint64_t dir, const char *name, struct fuse_entry_out *e)
{
	return entry(s, FUSE_LOOKUP, dir, ARGS(STR(name)), e);
}

int fs_forget(struct sess *s, uint64_t node, uint64_t n)
{
	struct fuse_forget_in in = { n };
	ref_add(s, node, -(int64_t)n);
	return fs_call(s, FUSE_FORGET, node, ARGS(IN(in)), NULL, 0, NULL);
}

int fs_batch_forget(struct sess *s, const struct fuse_forget_one *f, uint32_t n)
{
	struct fuse_batch_forget_in in = { n, 0 };
	for (uint32_t i = 0; i < n; i++)
		ref_add(s, f[i].nodeid, -(int64_t)f[i].nlookup);
	return fs_call(s, FUSE_BATCH_FORGET, 0, ARGS(IN(in), { f, n * sizeof *f }), NULL, 0, NULL);
}

/* Linux applies the umask itself unless the daemon took DONT_MASK. */
static uint32_t masked(struct sess *s, uint32_t mode)
{
	return s->init.flags & FUSE_DONT_MASK ? mode : mode & ~022;
}

int fs_mkdir(struct sess *s, uint64_t dir, const char *name, uint32_t mode, struct fuse_entry_out *e)
{
	struct fuse_mkdir_in in = { .mode = masked(s, mode), .umask = 022 };
	return entry(s, FUSE_MKDIR, dir, ARGS(IN(in), STR(name), secctx(s)), e);
}

int fs_create(struct sess *s, uint64_t dir, const char *name, uint32_t mode, int flags, struct fuse_entry_out *e, uint64_t *fh)
{
	struct fuse_create_in in = { .flags = (flags & ~O_NOCTTY) | O_CREAT, .mode = masked(s, mode) | S_IFREG, .umask = 022 };
	struct { struct fuse_entry_out e; struct fuse_open_out o; } out;
	int r = fs_call(s, FUSE_CREATE, dir, ARGS(IN(in), STR(name), secctx(s)), &out, sizeof out, NULL);
	if (!r) {
		*e = out.e;
		*fh = out.o.fh;
		ref_add(s, e->nodeid, 1);
	}
	return r;
}

int fs_open(struct sess *s, uint64_t node, int flags, uint64_t *fh)
{
	struct fuse_open_in in = { .flags = flags & ~(O_CREAT | O_EXCL | O_NOCTTY) };
	struct fuse_open_out out;
	int e = fs_call(s, FUSE_OPEN, node, ARGS(IN(in)), &out, sizeof out, NULL);
	*fh = e ? 0 : out.fh;
	if (e == -ENOSYS && (s->init.flags & FUSE_NO_OPEN_SUPPORT))	/* zero-message open */
		s->no_open = true, e = 0;
	return e;
}

int fs_opendir(struct sess *s, uint64_t node, uint64_t *fh)
{
	struct fuse_open_in in = { .flags = O_DIRECTORY };
	struct fuse_open_out out;
	int e = fs_call(s, FUSE_OPENDIR, node, ARGS(IN(in)), &out, sizeof out, NULL);
	*fh = e ? 0 : out.fh;
	if (e == -ENOSYS && (s->init.flags & FUSE_NO_OPENDIR_SUPPORT))
		s->no_opendir = true, e = 0;
	return e;
}

int fs_release(struct sess *s, uint64_t node, uint64_t fh)
{
	struct fuse_release_in in = { .fh = fh };
	return s->no_open ? 0 : fs_call(s, FUSE_RELEASE, node, ARGS(IN(in)), NULL, 0, NULL);
}

int fs_releasedir(struct sess *s, uint64_t node, uint64_t fh)
{
	struct fuse_release_in in = { .fh = fh };
	return s->no_opendir ? 0 : fs_call(s, FUSE_RELEASEDIR, node, ARGS(IN(in)), NULL, 0, NULL);
}

static int do_read(struct sess *s, uint32_t op, uint64_t node, uint64_t fh, uint64_t off, uint32_t len, void *buf)
{
	struct fuse_read_in in = { .fh = fh, .offset = off, .size = len };
	struct req *r = req_get(s);
	int e;
	if (len > s->o.datacap)
		die("read of %u bytes, slot holds %zu", len, s->o.datacap);
	req_prep(s, r, op, node, 0);
	req_add(r, &in, sizeof in);
	r->rlen = len;
	if (!(e = req_wait(s, r))) {
		e = r->oh->len - sizeof *r->oh;
		req_data(r, buf, e, false);
	}
	if (e != E_TIMEOUT && e != E_DEAD)
		req_put(s, r);
	return e;
}

/* Bytes read, or an error. */
int fs_read(struct sess *s, uint64_t node, uint64_t fh, uint64_t off, uint32_t len, void *buf)
{
	return do_read(s, FUSE_READ, node, fh, off, len, buf);
}

int fs_readdir(struct sess *s, uint64_t node, uint64_t fh, uint64_t off, uint32_t len, void *buf)
{
	return do_read(s, FUSE_READDIR, node, fh, off, len, buf);
}

int fs_write(struct sess *s, uint64_t node, uint64_t fh, uint64_t off, uint32_t len, const void *buf)
{
	struct fuse_write_in in = { .fh = fh, .offset = off, .size = len };
	struct req *r = req_get(s);
	int e;
	if (len > s->o.datacap)
		die("write of %u bytes, slot holds %zu", len, s->o.datacap);
	req_prep(s, r, FUSE_WRITE, node, sizeof(struct fuse_write_out));
	req_add(r, &in, sizeof in);
	r->wlen = len;
	req_data(r, (void *)buf, len, true);
	if (!(e = req_wait(s, r)))
		e = ((struct fuse_write_out *)r->oarg)->size;
	if (e != E_TIMEOUT && e != E_DEAD)
		req_put(s, r);
	return e;
}

/* UNLINK, RMDIR: one name. */
int fs_name(struct sess *s, uint32_t op, uint64_t dir, const char *name)
{
	return fs_call(s, op, dir, ARGS(STR(name)), NULL, 0, NULL);
}

int fs_rename(struct sess *s, uint64_t dir, const char *name, uint64_t ndir, const char *nname)
{
	struct fuse_rename_in in = { ndir };
	return fs_call(s, FUSE_RENAME, dir, ARGS(IN(in), STR(name), STR(nname)), NULL, 0, NULL);
}

/* Remove a tree by name. */
int fs_rm_rf(struct sess *s, uint64_t dir, const char *name)
{
	struct fuse_entry_out e;
	uint64_t fh, buf[512];
	int n, r = fs_lookup(s, dir, name, &e), guard = 100000;
	if (r)
		return r;
	if (!S_ISDIR(e.attr.mode)) {
		r = fs_name(s, FUSE_UNLINK, dir, name);
		fs_forget(s, e.nodeid, 1);
		return r;
	}
	for (bool any = true; any && guard-- > 0;) {	/* list afresh until nothing but . and .. is left */
		any = false;
		if ((r = fs_opendir(s, e.nodeid, &fh)))
			return r;
		for (uint64_t off = 0; !any && (n = fs_readdir(s, e.nodeid, fh, off, sizeof buf, buf)) > 0;)
			for (int at = 0; at + (int)FUSE_NAME_OFFSET < n;) {
				struct fuse_dirent *d = (void *)((char *)buf + at);
				char nm[256];
				snprintf(nm, sizeof nm, "%.*s", (int)d->namelen, d->name);
				if (strcmp(nm, ".") && strcmp(nm, "..")) {
					if ((r = fs_rm_rf(s, e.nodeid, nm)))
						return r;
					any = true;
				}
				off = d->off;
				at += FUSE_DIRENT_SIZE(d);
			}
		fs_releasedir(s, e.nodeid, fh);
	}
	r = fs_name(s, FUSE_RMDIR, dir, name);
	fs_forget(s, e.nodeid, 1);
	return r;
}

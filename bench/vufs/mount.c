/*
 * mount: this machine's own kernel as the client of a daemon, by way of /dev/fuse, so that any program runs on the share at native speed.
 * The daemon sees what a guest's driver would send, but for the layout of requests whose arguments are long, and INTERRUPT, which virtiofs never
 * sends: here it goes to the hiprio queue, and its EAGAIN back to the kernel.
 */
#include "vufs.h"
#include <poll.h>
#include <sys/mount.h>
#include <sys/uio.h>

enum {
	SLOTS = 48,
	HEAD = sizeof(struct fuse_write_in),	/* of the arguments: what follows a WRITE's lies on whole pages */
	ARGS_MAX = 72 << 10,			/* an attribute's value, its name, and what goes before */
	DATA_MAX = (1 << 20) + (64 << 10),
	DAEMON_GONE = 3,
};
/* Of a reply that is neither data nor of a size that was asked for. */
#define REPLY_MAX 512u

static bool is_forget(uint32_t op) { return op == FUSE_FORGET || op == FUSE_BATCH_FORGET; }

/* Room for the reply: `olen` beside the header, and `rlen` in whole pages. */
static void set_room(struct req *r)
{
	const void *in = r->arg;
	r->olen = r->rlen = 0;
	switch (r->ih->opcode) {
	case FUSE_READ: case FUSE_READDIR: case FUSE_READDIRPLUS:
		r->rlen = ((const struct fuse_read_in *)in)->size;
		break;
	case FUSE_GETXATTR: case FUSE_LISTXATTR:
		r->rlen = ((const struct fuse_getxattr_in *)in)->size;
		if (!r->rlen)
			r->olen = sizeof(struct fuse_getxattr_out);
		break;
	case FUSE_READLINK:
		r->olen = PAGE;
		break;
	case FUSE_IOCTL:
		r->olen = sizeof(struct fuse_ioctl_out) + ((const struct fuse_ioctl_in *)in)->out_size;
		break;
	default:
		r->olen = REPLY_MAX;
	}
	if (r->rlen > DATA_MAX || r->olen > ARGS_MAX)
		die("opcode %u wants a reply of %u bytes", r->ih->opcode, r->rlen + r->olen);
}

/* Take one request from the kernel. @returns false when there is none now; ends the process when it was unmounted. */
static bool take(struct sess *s, int fuse)
{
	struct req *r = s->freeq[s->nfreeq - 1];
	struct iovec parts[] = { { r->ih, sizeof *r->ih }, { r->arg, HEAD }, { r->pg[0], DATA_MAX } };
	ssize_t n = readv(fuse, parts, 3);
	if (n < 0 && errno == ENODEV)
		exit(0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOENT))
		return errno != EAGAIN;
	if (n < (ssize_t)sizeof *r->ih)
		die("reading /dev/fuse: %s", n < 0 ? strerror(errno) : "less than a header");
	uint32_t args = n - sizeof *r->ih, op = r->ih->opcode;
	bool forget = is_forget(op);
	r->arglen = args < HEAD ? args : HEAD;
	r->wlen = args - r->arglen;
	if (op != FUSE_WRITE && !forget) {
		if (args > ARGS_MAX)
			die("opcode %u has %u bytes of arguments", op, args);
		memcpy(r->arg + HEAD, r->pg[0], r->wlen);
		r->arglen = args;
		r->wlen = 0;
	}
	r->noreply = forget;
	set_room(r);
	unsigned queue = forget || op == FUSE_INTERRUPT ? 0 : s->curq;
	if (queue)
		s->curq = s->curq + 1 < s->nq ? s->curq + 1 : 1;
	int e = vq_add(s, &s->q[queue], r);
	if (e)
		die("the ring is full: %s", errname(e));
	s->nfreeq--;
	vq_kick(s, &s->q[queue]);
	return true;
}

/* Give an answer to the kernel. */
static void answer(struct sess *s, int fuse, struct req *r)
{
	uint32_t left = r->used_len, rest;
	s->freeq[s->nfreeq++] = r;
	if (r->noreply)
		return;
	if (left < sizeof *r->oh) {
		if (r->ih->opcode == FUSE_INTERRUPT)
			return;
		*r->oh = (struct fuse_out_header){ sizeof *r->oh, -EIO, r->ih->unique };
		left = sizeof *r->oh;
	}
	left -= sizeof *r->oh;
	rest = left < r->olen ? left : r->olen;
	struct iovec parts[] = { { r->oh, sizeof *r->oh }, { r->oarg, rest }, { r->pg[0], left - rest } };
	/* ENOENT: whoever asked has been killed meanwhile */
	if (writev(fuse, parts, 3) < 0 && errno != ENOENT)
		fprintf(stderr, "vufs: the kernel refuses the answer to opcode %u (error %d, %u bytes): %s\n", r->ih->opcode, r->oh->error, r->used_len, strerror(errno));
}

static bool answers(struct sess *s, int fuse)
{
	struct req *r;
	bool any = false;
	for (unsigned i = 0; i < s->nq; i++)
		while ((r = vq_pop(s, &s->q[i]))) {
			answer(s, fuse, r);
			any = true;
		}
	return any;
}

static void serve(struct sess *s, int fuse)
{
	for (;;) {
		struct pollfd pf[MAXQ + 2];
		for (unsigned i = 0; i < s->nq; i++) {
			if (s->event_idx)
				__atomic_store_n(&vring_used_event(&s->q[i].vr), s->q[i].last_used, __ATOMIC_RELEASE);
			pf[i] = (struct pollfd){ s->q[i].callfd, POLLIN, 0 };
		}
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (answers(s, fuse))
			continue;
		pf[s->nq] = (struct pollfd){ s->sock, POLLIN, 0 };
		pf[s->nq + 1] = (struct pollfd){ s->nfreeq ? fuse : -1, POLLIN, 0 };
		if (poll(pf, s->nq + 2, -1) < 0 && errno != EINTR)
			die("poll: %s", strerror(errno));
		for (unsigned i = 0; i < s->nq; i++) {
			uint64_t calls;
			if (pf[i].revents & POLLIN && read(pf[i].fd, &calls, sizeof calls) < 0 && errno != EAGAIN)
				die("call: %s", strerror(errno));
		}
		if (pf[s->nq].revents) {
			fprintf(stderr, "vufs: the daemon is gone\n");
			exit(DAEMON_GONE);
		}
		if (pf[s->nq + 1].revents)
			while (s->nfreeq && take(s, fuse))
				;
	}
}

int cmd_mount(struct opts *o, const char *directory)
{
	struct sess s;
	char options[128];
	o->slots = SLOTS;
	o->argcap = (ARGS_MAX + 63) / 64 * 64;
	o->ocap = ARGS_MAX;
	o->datacap = DATA_MAX;
	o->sg = "contig";
	if (!o->ring)
		o->ring = 128;
	sess_alloc(&s, o);
	s.sock = vu_connect(o->sock, o->connect_timeout);
	if (s.sock < 0)
		die("%s: %s", o->sock, strerror(-s.sock));
	int e = vu_features(&s);
	if (e || (e = vu_rings(&s)))
		die("handshake: %s", errname(e));
	int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fuse < 0)
		die("/dev/fuse: %s", strerror(errno));
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", fuse);
	if (mount("vufs", directory, "fuse", 0, options))
		die("mount on %s: %s", directory, strerror(errno));
	puts("mounted");
	serve(&s, fuse);
	return 0;
}

/* The driver's side of split virtqueues (virtio 1.2, 2.7), and waiting for completions. */
#include "vufs.h"
#include <poll.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define LOAD(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)

void anomaly(struct sess *s, const char *fmt, ...)
{
	char text[sizeof s->anomaly];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (!s->anomalies++)
		strcpy(s->anomaly, text);
	if (s->o.verbose)
		fprintf(stderr, "vufs: anomaly: %s\n", text);
}

void vq_init(struct sess *s, struct vq *q, unsigned index, unsigned num)
{
	memset(q, 0, sizeof *q);
	q->index = index;
	q->num = num;
	vring_init(&q->vr, num, galloc(&s->m, vring_size(num, PAGE), PAGE), PAGE);
	q->nfree = num;
	for (unsigned i = 0; i < num; i++)
		q->nxt[i] = i + 1;
	q->kickfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	q->callfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	q->errfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void vq_push(struct vq *q, uint16_t head)
{
	q->vr.avail->ring[q->avail_idx & (q->num - 1)] = head;
	STORE(&q->vr.avail->idx, ++q->avail_idx);
}

struct cursor { struct vring_desc *t; const uint16_t *nxt; unsigned i, last, n; };

static void put(struct cursor *c, uint64_t gpa, uint32_t len, uint16_t flags)
{
	struct vring_desc *d = &c->t[c->i];
	unsigned next = c->nxt ? c->nxt[c->i] : c->i + 1;
	*d = (struct vring_desc){ gpa, len, flags | VRING_DESC_F_NEXT, next };
	c->last = c->i;
	c->i = next;
	c->n++;
}

static void put_data(struct sess *s, struct cursor *c, struct req *r, uint32_t len, uint16_t flags)
{
	if (s->contig && len)
		put(c, r->pg_gpa[0], len, flags);
	else
		for (unsigned i = 0; len; i++) {
			uint32_t n = len < PAGE ? len : PAGE;
			put(c, r->pg_gpa[i], n, flags);
			len -= n;
		}
}

/* Lays a request out as Linux does: header | arguments | payload pages || header | results | pages. */
int vq_add(struct sess *s, struct vq *q, struct req *r)
{
	unsigned pages = ((r->wlen + PAGE - 1) / PAGE) + ((r->rlen + PAGE - 1) / PAGE);
	unsigned need = 4 + (s->contig ? 2 : pages);
	bool ind = s->indirect;
	struct cursor c = { ind ? r->ind : q->vr.desc, ind ? NULL : q->nxt, ind ? 0 : q->free_head, 0, 0 };
	if (need > q->num)
		die("a chain of %u descriptors needs a bigger ring than %u (--ring)", need, q->num);
	if (q->nfree < (ind ? 1 : need))
		return -ENOSPC;
	put(&c, r->ih_gpa, sizeof *r->ih, 0);
	if (r->arglen)
		put(&c, r->arg_gpa, r->arglen, 0);
	put_data(s, &c, r, r->wlen, 0);
	if (!r->noreply) {
		put(&c, r->oh_gpa, sizeof *r->oh, VRING_DESC_F_WRITE);
		if (r->olen)
			put(&c, r->oarg_gpa, r->olen, VRING_DESC_F_WRITE);
		put_data(s, &c, r, r->rlen, VRING_DESC_F_WRITE);
	}
	c.t[c.last].flags &= ~VRING_DESC_F_NEXT;
	r->head = q->free_head;
	if (ind) {
		q->vr.desc[r->head] = (struct vring_desc){ r->ind_gpa, c.n * sizeof(struct vring_desc), VRING_DESC_F_INDIRECT, 0 };
		q->free_head = q->nxt[r->head];
	} else {
		q->free_head = c.i;
	}
	r->ndesc = ind ? 1 : c.n;
	q->nfree -= r->ndesc;
	r->q = q;
	r->done = false;
	q->live[r->head] = r;
	q->outstanding++;
	vq_push(q, r->head);
	return 0;
}

void vq_kick(struct sess *s, struct vq *q)
{
	const uint64_t one = 1;
	bool need;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (s->event_idx)
		need = vring_need_event(LOAD(&vring_avail_event(&q->vr)), q->avail_idx, q->kick_idx);
	else
		need = !(LOAD(&q->vr.used->flags) & VRING_USED_F_NO_NOTIFY);
	q->kick_idx = q->avail_idx;
	if (!need)
		return;
	q->kicks++;
	if (write(q->kickfd, &one, sizeof one) < 0 && errno != EAGAIN)
		die("kick: %s", strerror(errno));
}

struct req *vq_pop(struct sess *s, struct vq *q)
{
	for (;;) {
		uint16_t used = LOAD(&q->vr.used->idx);
		if (used == q->last_used)
			return NULL;
		if ((uint16_t)(used - q->last_used) > q->outstanding) {
			anomaly(s, "queue %u: used idx %u, last seen %u, %u outstanding", q->index, used, q->last_used, q->outstanding);
			q->last_used = used;
			continue;
		}
		struct vring_used_elem e = q->vr.used->ring[q->last_used++ & (q->num - 1)];
		struct req *r = e.id < q->num ? q->live[e.id] : NULL;
		if (!r) {
			anomaly(s, "queue %u: used element names head %u, which is not outstanding", q->index, e.id);
			continue;
		}
		q->live[e.id] = NULL;
		q->outstanding--;
		r->used_len = e.len;
		r->done = true;
		/* give the head, or the whole direct chain, back to the free list */
		unsigned last = r->head;
		for (unsigned n = 1; n < r->ndesc; n++)
			last = q->nxt[last];
		q->nxt[last] = q->free_head;
		q->free_head = r->head;
		q->nfree += r->ndesc;
		return r;
	}
}

static bool hung_up(struct sess *s)
{
	char junk[512];
	ssize_t n = recv(s->sock, junk, sizeof junk, MSG_DONTWAIT);
	if (n == 0 || (n < 0 && errno != EAGAIN))
		s->dead = true;
	else if (n > 0)
		anomaly(s, "unasked message on the vhost-user socket");
	return s->dead;
}

/* The next completed request of any queue, or NULL: deadline passed, or the daemon is gone. */
struct req *sess_next(struct sess *s, uint64_t deadline)
{
	static unsigned rr;
	unsigned spins = 0;
	for (;;) {
		for (unsigned k = 0; k < s->nq; k++) {
			struct req *r = vq_pop(s, &s->q[(rr + k) % s->nq]);
			if (r) {
				rr = r->q ? r->q->index : 0;
				return r;
			}
		}
		if (s->o.spin) {
			__builtin_ia32_pause();
			if (++spins % 4096)
				continue;
			if (hung_up(s) || now_ns() > deadline)
				return NULL;
			continue;
		}
		/* ask for an interrupt at the next completion, then look once more */
		struct pollfd pf[MAXQ + 1];
		bool raced = false;
		for (unsigned i = 0; i < s->nq; i++) {
			struct vq *q = &s->q[i];
			if (s->event_idx)
				STORE(&vring_used_event(&q->vr), q->last_used);
			else
				q->vr.avail->flags = 0;
		}
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		for (unsigned i = 0; i < s->nq; i++) {
			pf[i] = (struct pollfd){ s->q[i].callfd, POLLIN, 0 };
			raced |= LOAD(&s->q[i].vr.used->idx) != s->q[i].last_used;
		}
		if (!raced) {
			int64_t left = (int64_t)(deadline - now_ns());
			unsigned n = s->nq;
			pf[n++] = (struct pollfd){ s->sock, POLLIN, 0 };
			if (left <= 0)
				return NULL;
			int ev = poll(pf, n, left < 1000000000 ? (int)(left / 1000000) + 1 : 1000);
			if (ev < 0 && errno != EINTR)
				die("poll: %s", strerror(errno));
			for (unsigned i = 0; !ev && i < s->nq; i++)
				if (LOAD(&s->q[i].vr.used->idx) != s->q[i].last_used && !poll(pf, n, 50))
					anomaly(s, "queue %u: requests completed, but the call was not signalled", i);
			for (unsigned i = 0; i < s->nq; i++) {
				uint64_t v;
				if ((pf[i].revents & POLLIN) && read(pf[i].fd, &v, sizeof v) == sizeof v)
					s->q[i].calls += v;
			}
			if (pf[s->nq].revents && hung_up(s)) {
				for (unsigned i = 0; i < s->nq; i++)	/* what it finished before going */
					raced |= LOAD(&s->q[i].vr.used->idx) != s->q[i].last_used;
				if (!raced)
					return NULL;
			}
		}
		for (unsigned i = 0; i < s->nq && !s->event_idx; i++)
			s->q[i].vr.avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	}
}

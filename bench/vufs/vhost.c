/* Guest memory and the vhost-user control channel. */
#include "vufs.h"
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

/* ---- guest memory ---- */

/* Regions share one memfd at rising offsets, as QEMU's RAM below and above the 4 GiB hole does;
 * guest-physical addresses of consecutive regions lie 4 GiB apart. */
int gmem_init(struct gmem *m, size_t size, unsigned nreg)
{
	size_t chunk = (size / nreg + 0x1fffff) & ~(size_t)0x1fffff;
	memset(m, 0, sizeof *m);
	m->nreg = nreg;
	m->size = chunk * nreg;
	m->fd = memfd_create("vufs-ram", MFD_CLOEXEC);
	if (m->fd < 0 || ftruncate(m->fd, m->size))
		return -errno;
	m->va = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	if (m->va == MAP_FAILED)
		return -errno;
	for (unsigned i = 0; i < nreg; i++) {
		struct vu_region *r = &m->reg[i];
		r->off = i * chunk;
		r->size = chunk;
		r->uva = (uint64_t)(uintptr_t)m->va + r->off;
		r->gpa = (uint64_t)i << 32;
		m->bump[i] = r->off + (i ? 0 : PAGE);	/* leave guest address 0 alone */
	}
	return 0;
}

/* Bump allocation, taking the regions in turn; a block never crosses a border. */
void *galloc(struct gmem *m, size_t size, size_t align)
{
	for (unsigned k = 0; k < m->nreg; k++) {
		unsigned i = (m->rr + k) % m->nreg;
		size_t at = (m->bump[i] + align - 1) / align * align;
		size_t end = m->reg[i].off + m->reg[i].size;
		if (at + size <= end) {
			m->bump[i] = at + size;
			m->rr = i + 1;
			return m->va + at;
		}
	}
	die("out of guest memory (%zu bytes)", size);
}

uint64_t gpa_of(const struct gmem *m, const void *p)
{
	size_t off = (const uint8_t *)p - m->va;
	for (unsigned i = 0; i < m->nreg; i++)
		if (off >= m->reg[i].off && off < m->reg[i].off + m->reg[i].size)
			return m->reg[i].gpa + (off - m->reg[i].off);
	die("pointer outside guest memory");
}

/* ---- messages ---- */

int vu_connect(const char *path, double timeout)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	uint64_t end = now_ns() + (uint64_t)(timeout * 1e9);
	if (strlen(path) >= sizeof sa.sun_path)
		return -ENAMETOOLONG;
	strcpy(sa.sun_path, path);
	for (;;) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0)
			return -errno;
		if (!connect(fd, (struct sockaddr *)&sa, sizeof sa))
			return fd;
		int e = errno;
		close(fd);
		if (now_ns() >= end)
			return -e;
		usleep(2000);
	}
}

/* One message. */
static int vu_send(struct sess *s, uint32_t req, uint32_t flags, const void *p, uint32_t len, const int *fds, unsigned nfds)
{
	struct vu_hdr h = { req, VU_VERSION | flags, len };
	struct iovec iov[2] = { { &h, sizeof h }, { (void *)p, len } };
	union { char buf[CMSG_SPACE(sizeof(int) * 8)]; struct cmsghdr align; } u;
	struct msghdr mh = { .msg_iov = iov, .msg_iovlen = len ? 2 : 1 };
	if (nfds) {
		mh.msg_control = u.buf;
		mh.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		memset(u.buf, 0, sizeof u.buf);
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	if (sendmsg(s->sock, &mh, MSG_NOSIGNAL) != (ssize_t)(sizeof h + len)) {
		s->dead = true;
		return E_DEAD;
	}
	return 0;
}

static int rd(struct sess *s, void *buf, size_t len, uint64_t end)
{
	size_t got = 0;
	while (got < len) {
		struct pollfd pf = { s->sock, POLLIN, 0 };
		int64_t left = (int64_t)(end - now_ns()) / 1000000;
		if (left < 0 || poll(&pf, 1, (int)left + 1) == 0)
			return E_TIMEOUT;
		ssize_t n = recv(s->sock, (char *)buf + got, len - got, 0);
		if (n <= 0) {
			s->dead = true;
			return E_DEAD;
		}
		got += n;
	}
	return 0;
}

static int vu_recv(struct sess *s, struct vu_hdr *h, void *p, uint32_t cap, double timeout)
{
	uint64_t end = now_ns() + (uint64_t)(timeout * 1e9);
	int e = rd(s, h, sizeof *h, end);
	if (e)
		return e;
	if (h->size > cap)
		return E_PROTO;
	return h->size ? rd(s, p, h->size, end) : 0;
}

/* A request with a reply of its own: returns the payload size or an error. */
static int vu_get(struct sess *s, uint32_t req, const void *p, uint32_t len, void *out, uint32_t cap)
{
	struct vu_hdr h;
	int e = vu_send(s, req, 0, p, len, NULL, 0);
	if (!e)
		e = vu_recv(s, &h, out, cap, s->o.req_timeout);
	if (e)
		return e;
	if (h.request != req || (h.flags & 7) != (VU_VERSION | VU_REPLY)) {
		anomaly(s, "reply to request %u has request=%u flags=%#x", req, h.request, h.flags);
		return E_PROTO;
	}
	return h.size;
}

static int vu_u64(struct sess *s, uint32_t req, uint64_t *out)
{
	int n = vu_get(s, req, NULL, 0, out, sizeof *out);
	return n < 0 ? n : n == 8 ? 0 : E_PROTO;
}

/* A request without reply; with REPLY_ACK it asks for one where QEMU itself waits (`ack`). */
static int vu_set(struct sess *s, uint32_t req, const void *p, uint32_t len, const int *fds, unsigned nfds, bool ack)
{
	struct vu_hdr h;
	uint64_t v = 0;
	int e;
	ack &= !!(s->pf & BIT(PF_REPLY_ACK));
	e = vu_send(s, req, ack ? VU_NEED_REPLY : 0, p, len, fds, nfds);
	if (e || !ack)
		return e;
	e = vu_recv(s, &h, &v, sizeof v, s->o.req_timeout);
	if (e)
		return e;
	if (h.request != req || !(h.flags & VU_REPLY) || h.size != 8) {
		anomaly(s, "bad ack to request %u: request=%u flags=%#x size=%u", req, h.request, h.flags, h.size);
		return E_PROTO;
	}
	return v ? -EINVAL : 0;
}

/* ---- handshake, in QEMU's order ---- */

int vu_features(struct sess *s)
{
	const uint64_t proto = BIT(VU_F_PROTOCOL_FEATURES);
	uint64_t want;
	int e;
	s->pf = s->pf_off = s->feat = 0;
	s->qmax = s->nq;
	if ((e = vu_u64(s, VU_GET_FEATURES, &s->feat_off)))
		return e;
	if (s->feat_off & proto) {
		if ((e = vu_u64(s, VU_GET_PROTOCOL_FEATURES, &s->pf_off)))
			return e;
		want = (BIT(PF_MQ) | BIT(PF_REPLY_ACK) | BIT(PF_CONFIG)) & s->pf_off;
		if ((e = vu_set(s, VU_SET_PROTOCOL_FEATURES, &want, 8, NULL, 0, false)))
			return e;
		s->pf = want;
		if ((s->pf & BIT(PF_MQ)) && (e = vu_u64(s, VU_GET_QUEUE_NUM, &s->qmax)))
			return e;
		if (s->qmax < s->nq) {
			fprintf(stderr, "vufs: the daemon offers %" PRIu64 " queues, %u wanted\n", s->qmax, s->nq);
			return -ENOSPC;
		}
	}
	if ((e = vu_set(s, VU_SET_OWNER, NULL, 0, NULL, 0, false)) || (e = vu_u64(s, VU_GET_FEATURES, &s->feat_off)))
		return e;
	for (unsigned i = 0; i < s->nq; i++) {
		uint64_t u = i;
		if ((e = vu_set(s, VU_SET_VRING_CALL, &u, 8, &s->q[i].callfd, 1, false)))
			return e;
	}
	if (s->pf & BIT(PF_CONFIG)) {
		struct vu_config c = { .size = sizeof(struct virtio_fs_config) }, r;
		uint32_t len = offsetof(struct vu_config, data) + c.size;
		e = vu_get(s, VU_GET_CONFIG, &c, len, &r, sizeof r);
		if (e < 0)
			return e;
	}
	want = BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_RING_F_INDIRECT_DESC) | proto;
	s->feat = want & s->feat_off;
	s->event_idx = s->feat & BIT(VIRTIO_RING_F_EVENT_IDX);
	s->indirect = s->feat & BIT(VIRTIO_RING_F_INDIRECT_DESC);
	return vu_set(s, VU_SET_FEATURES, &s->feat, 8, NULL, 0, false);
}

static int vu_memory(struct sess *s)
{
	struct vu_memory t = { .n = s->m.nreg };
	int fds[8];
	for (unsigned i = 0; i < t.n; i++) {
		t.reg[i] = s->m.reg[i];
		fds[i] = s->m.fd;
	}
	return vu_set(s, VU_SET_MEM_TABLE, &t, 8 + t.n * sizeof t.reg[0], fds, t.n, true);
}

static int vu_ring(struct sess *s, struct vq *q)
{
	struct vhost_vring_state num = { q->index, q->num }, bs = { q->index, 0 };
	struct vhost_vring_addr a = {
		.index = q->index,
		.desc_user_addr = (uintptr_t)q->vr.desc,
		.avail_user_addr = (uintptr_t)q->vr.avail,
		.used_user_addr = (uintptr_t)q->vr.used,
		.log_guest_addr = gpa_of(&s->m, q->vr.used),
	};
	uint64_t u = q->index;
	int e;
	(void)((e = vu_set(s, VU_SET_VRING_NUM, &num, sizeof num, NULL, 0, false)) ||
	       (e = vu_set(s, VU_SET_VRING_BASE, &bs, sizeof bs, NULL, 0, false)) ||
	       (e = vu_set(s, VU_SET_VRING_ADDR, &a, sizeof a, NULL, 0, false)) ||
	       (e = vu_set(s, VU_SET_VRING_KICK, &u, 8, &q->kickfd, 1, false)) ||
	       (e = vu_set(s, VU_SET_VRING_CALL, &u, 8, &q->callfd, 1, false)) ||
	       (e = vu_set(s, VU_SET_VRING_ERR, &u, 8, &q->errfd, 1, false)));
	return e;
}

/* Memory table, rings, enable. */
int vu_rings(struct sess *s)
{
	int e;
	if ((e = vu_memory(s)))
		return e;
	for (unsigned i = 0; i < s->nq; i++)
		if ((e = vu_ring(s, &s->q[i])))
			return e;
	for (unsigned i = 0; i < s->nq && (s->feat & BIT(VU_F_PROTOCOL_FEATURES)); i++) {
		struct vhost_vring_state st = { i, 1 };
		/* QEMU waits here since 8.2: a kick that overtakes the message may be discarded by the daemon */
		if ((e = vu_set(s, VU_SET_VRING_ENABLE, &st, sizeof st, NULL, 0, true)))
			return e;
	}
	if (!(s->pf & BIT(PF_REPLY_ACK)) && (e = vu_u64(s, VU_GET_FEATURES, &s->feat_off)))
		return e;	/* the reply to this tells as much */
	s->started = true;
	return 0;
}

/* Disable, then GET_VRING_BASE stops each ring; what the daemon answers must be what it has taken. */
int vu_stop(struct sess *s)
{
	int e;
	s->started = false;
	for (unsigned i = 0; i < s->nq && (s->feat & BIT(VU_F_PROTOCOL_FEATURES)); i++) {
		struct vhost_vring_state st = { i, 0 };
		if ((e = vu_set(s, VU_SET_VRING_ENABLE, &st, sizeof st, NULL, 0, false)))
			return e;
	}
	for (unsigned i = 0; i < s->nq; i++) {
		struct vhost_vring_state st = { i, 0 }, r = { 0, 0 };
		int n = vu_get(s, VU_GET_VRING_BASE, &st, sizeof st, &r, sizeof r);
		if (n < 0)
			return n;
		if (n != sizeof r || r.index != i || (uint16_t)r.num != s->q[i].avail_idx)
			anomaly(s, "GET_VRING_BASE %u: index %u base %u, avail idx is %u", i, r.index, r.num, s->q[i].avail_idx);
	}
	return 0;
}

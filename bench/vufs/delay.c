/*
 * vufs delay PORT TARGET: a TCP proxy on loopback that holds back what goes in each direction for --delay milliseconds,
 * as a long line does: any number of bytes may be under way at the same time. A new connection's first bytes wait for a
 * round trip more, as they would for its handshake. Prints the port that it listens on; ends when its standard input does.
 */
#include "vufs.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#define CHUNK (256u << 10)
#define UNDER_WAY_MAX (256u << 20)	/* of one direction: then its sender has to wait */

struct chunk { struct chunk *next; uint64_t due; uint32_t len, off; uint8_t data[]; };

struct end;
struct direction {
	struct end *from, *to;
	struct chunk *first, **last;
	size_t bytes;
	uint64_t hold_until;	/* nothing is on its way before that */
	bool eof, paused, blocked, shut;
};

struct end { int fd; struct conn *conn; struct direction *out, *in; };	/* out: what is read here */

struct conn {
	struct conn *next;
	struct end a, b;
	struct direction d[2];
	bool broken;
};

static struct conn *conns;
static int ep, listener, timer;
static uint64_t delay_ns;

static void watch(struct end *e, int how)
{
	struct epoll_event ev = { .events = (e->out->paused || e->out->eof ? 0 : EPOLLIN) | (e->in->blocked ? EPOLLOUT : 0), .data.ptr = e };
	if (epoll_ctl(ep, how, e->fd, &ev))
		die("epoll_ctl: %s", strerror(errno));
}

static int prepared(int fd)
{
	int one = 1;
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) || fcntl(fd, F_SETFL, O_NONBLOCK))
		die("socket: %s", strerror(errno));
	return fd;
}

static struct sockaddr_in loopback(unsigned port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

static void take(unsigned target)
{
	struct sockaddr_in to = loopback(target);
	int a = accept4(listener, NULL, NULL, SOCK_CLOEXEC), b = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (a < 0 || b < 0 || connect(b, (void *)&to, sizeof to)) {
		close(a);
		close(b);
		return;
	}
	struct conn *c = calloc(1, sizeof *c);
	c->a = (struct end){ prepared(a), c, &c->d[0], &c->d[1] };
	c->b = (struct end){ prepared(b), c, &c->d[1], &c->d[0] };
	c->d[0] = (struct direction){ .from = &c->a, .to = &c->b, .last = &c->d[0].first, .hold_until = now_ns() + 2 * delay_ns };
	c->d[1] = (struct direction){ .from = &c->b, .to = &c->a, .last = &c->d[1].first };
	c->next = conns;
	conns = c;
	watch(&c->a, EPOLL_CTL_ADD);
	watch(&c->b, EPOLL_CTL_ADD);
}

/* What has come: behind what is under way. Nothing is read into is the end of the stream, which travels too. */
static void receive(struct direction *d)
{
	for (;;) {
		struct chunk *c = malloc(sizeof *c + CHUNK);
		ssize_t n = recv(d->from->fd, c->data, CHUNK, 0);
		if (n < 0) {
			free(c);
			d->from->conn->broken |= errno != EAGAIN && errno != EINTR;
			return;
		}
		uint64_t now = now_ns();
		c = realloc(c, sizeof *c + n);
		c->next = NULL;
		c->due = (now > d->hold_until ? now : d->hold_until) + delay_ns;
		c->len = n;
		c->off = 0;
		*d->last = c;
		d->last = &c->next;
		d->bytes += n;
		d->eof = !n;
		d->paused = d->bytes > UNDER_WAY_MAX;
		if (d->eof || d->paused) {
			watch(d->from, EPOLL_CTL_MOD);
			return;
		}
	}
}

static void deliver(struct direction *d, uint64_t now)
{
	struct chunk *c;
	while (!d->blocked && (c = d->first) && c->due <= now) {
		ssize_t n = c->len ? send(d->to->fd, c->data + c->off, c->len - c->off, MSG_NOSIGNAL) : 0;
		if (n < 0) {
			d->blocked = errno == EAGAIN;
			d->to->conn->broken |= !d->blocked;
			if (d->blocked)
				watch(d->to, EPOLL_CTL_MOD);
			return;
		}
		d->bytes -= n;
		if ((c->off += n) < c->len)
			continue;
		if (!c->len) {
			d->shut = true;
			shutdown(d->to->fd, SHUT_WR);
		}
		if (!(d->first = c->next))
			d->last = &d->first;
		free(c);
		if (d->paused && d->bytes < UNDER_WAY_MAX / 2) {
			d->paused = false;
			watch(d->from, EPOLL_CTL_MOD);
		}
	}
}

/* All that is due goes out; connections that are over go; the timer is set for what is due next. */
static void deliver_all(void)
{
	uint64_t next = UINT64_MAX;
	for (struct conn **at = &conns, *c; (c = *at);) {
		uint64_t now = now_ns();
		for (int i = 0; i < 2; i++) {
			struct direction *d = &c->d[i];
			deliver(d, now);
			if (d->first && !d->blocked && d->first->due < next)
				next = d->first->due;
		}
		if (!c->broken && !(c->d[0].shut && c->d[1].shut)) {
			at = &c->next;
			continue;
		}
		*at = c->next;
		close(c->a.fd);
		close(c->b.fd);
		for (int i = 0; i < 2; i++)
			for (struct chunk *k = c->d[i].first, *n; k; k = n) {
				n = k->next;
				free(k);
			}
		free(c);
	}
	struct itimerspec when = { 0 };
	if (next != UINT64_MAX)
		when.it_value = (struct timespec){ next / 1000000000, next % 1000000000 };
	timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void add(int fd, void *ptr)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = ptr };
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev))
		die("epoll_ctl: %s", strerror(errno));
}

int cmd_delay(struct opts *o, const char *target)
{
	struct sockaddr_in at = loopback(atoi(o->sock));
	socklen_t len = sizeof at;
	int one = 1;
	delay_ns = (uint64_t)(o->delay * 1e6);
	ep = epoll_create1(EPOLL_CLOEXEC);
	timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (void *)&at, sizeof at) || listen(listener, 1024) || getsockname(listener, (void *)&at, &len))
		die("port %s: %s", o->sock, strerror(errno));
	add(listener, &listener);
	add(timer, &timer);
	add(0, &ep);
	printf("%u\n", ntohs(at.sin_port));
	for (;;) {
		struct epoll_event ev[64];
		int n = epoll_wait(ep, ev, 64, -1);
		if (n < 0 && errno != EINTR)
			die("epoll_wait: %s", strerror(errno));
		for (int i = 0; i < n; i++) {
			struct end *e = ev[i].data.ptr;
			if (ev[i].data.ptr == &ep)
				return 0;
			if (ev[i].data.ptr == &listener) {
				take(atoi(target));
				continue;
			}
			if (ev[i].data.ptr == &timer)
				continue;
			if (ev[i].events & EPOLLOUT) {
				e->in->blocked = false;
				watch(e, EPOLL_CTL_MOD);
			}
			if (ev[i].events & EPOLLIN)
				receive(e->out);
			/* Not asked for, so that it comes only when both ways are closed, or something broke */
			e->conn->broken |= !(ev[i].events & (EPOLLIN | EPOLLOUT)) && (ev[i].events & (EPOLLERR | EPOLLHUP));
		}
		deliver_all();
	}
}

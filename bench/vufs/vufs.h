/* vufs - a vhost-user-fs front-end (VMM + guest driver) without a VM. Shared declarations. */
#ifndef VUFS_H
#define VUFS_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#include <linux/fuse.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <linux/virtio_fs.h>
#include <linux/virtio_ring.h>

/* ---- vhost-user protocol (QEMU docs/interop/vhost-user.rst) ---- */
enum {
	VU_GET_FEATURES = 1, VU_SET_FEATURES, VU_SET_OWNER, VU_RESET_OWNER, VU_SET_MEM_TABLE,
	VU_SET_LOG_BASE, VU_SET_LOG_FD, VU_SET_VRING_NUM, VU_SET_VRING_ADDR, VU_SET_VRING_BASE,
	VU_GET_VRING_BASE, VU_SET_VRING_KICK, VU_SET_VRING_CALL, VU_SET_VRING_ERR,
	VU_GET_PROTOCOL_FEATURES, VU_SET_PROTOCOL_FEATURES, VU_GET_QUEUE_NUM, VU_SET_VRING_ENABLE,
	VU_GET_CONFIG = 24,
};
enum { PF_MQ = 0, PF_REPLY_ACK = 3, PF_CONFIG = 9 }; /* protocol feature bits */
#define VU_VERSION 1u
#define VU_REPLY 4u
#define VU_NEED_REPLY 8u
#define VU_F_PROTOCOL_FEATURES 30
#define BIT(n) (1ULL << (n))

struct vu_hdr { uint32_t request, flags, size; };
struct vu_region { uint64_t gpa, size, uva, off; };
struct vu_memory { uint32_t n, pad; struct vu_region reg[16]; };
struct vu_config { uint32_t offset, size, flags; uint8_t data[256]; };

/* ---- options (filled by main.c, copied into each session) ---- */
struct opts {
	const char *sock, *restart, *log, *name, *sg, *cpu, *daemon_cpu, *dir, *path;
	double connect_timeout, req_timeout, time, warmup, settle, limit, delay;
	/* virtio / vhost-user */
	bool spin, verbose;
	unsigned queues, ring, regions;
	unsigned uid, gid;
	/* workloads */
	size_t bs, size, fsize;
	unsigned qd, files, seed, miss, pid, cycles, passes, count;
	uint64_t ops;
	bool verify, cleanup;
	/* set by each command: what a session has to hold */
	unsigned slots;
	size_t argcap, ocap, datacap;
};

/* ---- guest memory: one memfd, split in regions ---- */
#define PAGE 4096u
struct gmem {
	int fd;
	uint8_t *va;
	size_t size, bump[8];
	unsigned nreg, rr;
	struct vu_region reg[8];
};
int gmem_init(struct gmem *m, size_t size, unsigned nreg);
void *galloc(struct gmem *m, size_t size, size_t align);
uint64_t gpa_of(const struct gmem *m, const void *p);

/* ---- one FUSE request and its place in guest memory ---- */
struct vq;
struct req {
	struct fuse_in_header *ih;	/* descriptor 1 */
	uint8_t *arg;			/* descriptor 2: arguments */
	struct fuse_out_header *oh;	/* first writable descriptor */
	uint8_t *oarg;			/* second writable descriptor */
	uint8_t **pg;			/* data pages (either direction) */
	uint64_t ih_gpa, arg_gpa, oh_gpa, oarg_gpa, ind_gpa, *pg_gpa;
	uint32_t arglen, olen, wlen, rlen; /* wlen: payload the device reads; rlen: writes */
	struct vring_desc *ind;
	unsigned indcap;
	bool noreply, done, busy;
	uint32_t used_len;
	uint16_t head, ndesc;
	struct vq *q;
	uint64_t t0;
	void *user;
};

/* ---- split virtqueue, driver side ---- */
#define MAXQ 17
#define MAXRING 1024
struct vq {
	unsigned index, num;
	struct vring vr;
	uint16_t avail_idx, kick_idx, last_used, free_head;
	uint16_t nxt[MAXRING];
	unsigned nfree, outstanding;
	struct req *live[MAXRING];
	int kickfd, callfd, errfd;
	uint64_t kicks, calls;
};

struct sess {
	struct opts o;
	struct gmem m;
	struct vq q[MAXQ];
	unsigned nq, curq;
	int sock;
	uint64_t feat_off, feat, pf_off, pf, qmax;
	uint64_t t_connect, t_init;	/* ns: before connect(), after INIT's answer */
	bool event_idx, indirect, contig, started;
	struct fuse_init_out init;
	bool no_open, no_opendir;
	struct req *reqs, **freeq;
	unsigned nfreeq;
	uint64_t unique;
	bool dead;
	unsigned anomalies;
	char anomaly[200];
	struct { uint64_t node, n; } *refs; /* lookup counts, open addressing */
	size_t refcap, nrefs;
};

/* errors beside -errno */
#define E_DEAD (-10001)
#define E_TIMEOUT (-10002)
#define E_PROTO (-10003)
const char *errname(int e);
uint64_t now_ns(void);
void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* vhost.c */
int vu_connect(const char *path, double timeout);
int vu_features(struct sess *s);
int vu_rings(struct sess *s);
int vu_stop(struct sess *s);

/* vq.c */
void vq_init(struct sess *s, struct vq *q, unsigned index, unsigned num);
int vq_add(struct sess *s, struct vq *q, struct req *r);
void vq_push(struct vq *q, uint16_t head);
void vq_kick(struct sess *s, struct vq *q);
struct req *vq_pop(struct sess *s, struct vq *q);
struct req *sess_next(struct sess *s, uint64_t deadline);
void anomaly(struct sess *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* fuse.c: sessions and requests */
struct arg { const void *p; uint32_t len; };
void sess_alloc(struct sess *s, const struct opts *o);
int sess_open(struct sess *s, const struct opts *o);
void sess_close(struct sess *s, bool polite);
struct req *req_get(struct sess *s);
void req_put(struct sess *s, struct req *r);
void req_prep(struct sess *s, struct req *r, uint32_t op, uint64_t node, uint32_t olen);
void req_add(struct req *r, const void *p, uint32_t len);
int req_submit(struct sess *s, struct req *r, unsigned qi);
int req_wait(struct sess *s, struct req *r);
int req_result(struct sess *s, struct req *r);
void req_data(struct req *r, void *buf, uint32_t len, bool to_req);
void pat_fill(void *buf, uint64_t off, size_t len, uint64_t seed);
bool pat_same(const void *buf, uint64_t off, size_t len, uint64_t seed);
void ref_add(struct sess *s, uint64_t node, int64_t n);
void refs_flush(struct sess *s);

int fs_init(struct sess *s);
int fs_call(struct sess *s, uint32_t op, uint64_t node, const struct arg *a, unsigned na, void *out, uint32_t cap, uint32_t *got);
int fs_lookup(struct sess *s, uint64_t dir, const char *name, struct fuse_entry_out *e);
int fs_forget(struct sess *s, uint64_t node, uint64_t n);
int fs_batch_forget(struct sess *s, const struct fuse_forget_one *f, uint32_t n);
int fs_mkdir(struct sess *s, uint64_t dir, const char *name, uint32_t mode, struct fuse_entry_out *e);
int fs_create(struct sess *s, uint64_t dir, const char *name, uint32_t mode, int flags, struct fuse_entry_out *e, uint64_t *fh);
int fs_open(struct sess *s, uint64_t node, int flags, uint64_t *fh);
int fs_opendir(struct sess *s, uint64_t node, uint64_t *fh);
int fs_release(struct sess *s, uint64_t node, uint64_t fh);
int fs_releasedir(struct sess *s, uint64_t node, uint64_t fh);
int fs_read(struct sess *s, uint64_t node, uint64_t fh, uint64_t off, uint32_t len, void *buf);
int fs_readdir(struct sess *s, uint64_t node, uint64_t fh, uint64_t off, uint32_t len, void *buf);
int fs_write(struct sess *s, uint64_t node, uint64_t fh, uint64_t off, uint32_t len, const void *buf);
int fs_name(struct sess *s, uint32_t op, uint64_t dir, const char *name);
int fs_rename(struct sess *s, uint64_t dir, const char *name, uint64_t ndir, const char *nname);
int fs_rm_rf(struct sess *s, uint64_t dir, const char *name);

/* proc.c: the daemon under test */
struct daemon { pid_t pid; bool running; int status; };
struct procstat {
	unsigned procs, fds;
	double cpu, delay;		/* seconds run; seconds that the busiest thread was runnable without a CPU */
	double busiest;			/* seconds that one ran */
	uint64_t hwm_kb, rss_kb, shmem_kb;
};
void daemon_start(struct daemon *d, const struct opts *o);
bool daemon_alive(struct daemon *d);
void daemon_kill(struct daemon *d);
struct procstat proc_stat(pid_t pid);
bool proc_listening(const char *path);
double proc_cpu_ms(pid_t pid);
double self_delay(void);
void machine_cpu(double *busy, double *all);
void pin_cpus(const char *list);

/* bench.c, work.c: workloads */
enum { GO, DONE, FAIL }; /* a step: request ready | operation over | gone wrong */

struct job {
	struct req *r;
	int st;
	bool pend, open, eof;
	uint64_t t0, node, fh, off, count;
	uint32_t blen;
	char name[64];
	uint8_t *buf;
};

struct bench;
struct work {
	const char *name;
	void (*setup)(struct bench *b);
	int (*step)(struct bench *b, struct job *j, int e);
	bool io, dir, write, seq;
	bool keeps_state;	/* the next operation goes on where this one ended */
};
extern const struct work works[];
extern const unsigned nworks;

struct bench {
	struct sess s;
	const struct opts *o;
	const struct work *w;
	struct job *jobs;
	unsigned active, nnodes, ndirs, rrq, failed_shown;
	uint64_t base, *nodes, *dirs;	/* data set: file nodeids, directory nodeids */
	uint64_t node, fh, blocks, seq, rng;
	uint8_t *written;		/* --verify: blocks written */
	uint64_t *deferred;		/* FORGETs to be sent */
	size_t ndeferred, deferredcap;
	bool measuring, stop;
	uint64_t warm_end, t_start, t_end;
	uint64_t ops, reqs, bytes, errors, bad_data, entries, kicks, calls, max_ns;
	uint32_t hist[48 * 64];
	struct procstat p0;
	struct rusage u0;
	double busy0, all0, delay0;
};

void must(int e, const char *what);
void forget_async(struct bench *b, uint64_t node);

int cmd_bench(struct opts *o, const char *workload);
/* resources.c */
int cmd_startup(struct opts *o);
int cmd_cycle(struct opts *o);
int cmd_forget(struct opts *o);
/* guest.c, delay.c */
int cmd_guest(struct opts *o, const char *job);
int cmd_delay(struct opts *o, const char *target);
/* mount.c */
int cmd_mount(struct opts *o, const char *directory);
#endif

/* vufs bench: one thread, `qd` concurrent operations, each a small state machine of FUSE requests. */
#include "vufs.h"

static unsigned bucket(uint64_t ns)
{
	unsigned e = ns < 64 ? 0 : 63 - __builtin_clzll(ns) - 5;
	return e ? e * 64 + ((ns >> (e - 1)) & 63) : ns;
}

static double percentile(const struct bench *b, double p)
{
	uint64_t seen = 0, want = (uint64_t)(p * b->ops);
	for (unsigned i = 0; i < sizeof b->hist / sizeof *b->hist; i++) {
		seen += b->hist[i];
		if (b->hist[i] && seen > want) {
			unsigned e = i / 64;
			return (e ? (double)(64 + i % 64) * (1ull << (e - 1)) : i) / 1000;
		}
	}
	return (double)b->max_ns / 1000;
}

static void counters(struct bench *b, uint64_t *kicks, uint64_t *calls)
{
	*kicks = *calls = 0;
	for (unsigned i = 0; i < b->s.nq; i++) {
		*kicks += b->s.q[i].kicks;
		*calls += b->s.q[i].calls;
	}
}

static pid_t daemon_pid;

static void account(struct bench *b, struct job *j, bool failed)
{
	uint64_t t = now_ns(), ns = t - j->t0;
	if (b->stop)
		return;
	if (!b->measuring) {
		if (t < b->warm_end)
			return;
		b->measuring = true;
		b->t_start = t;
		b->bytes = b->reqs = b->entries = b->errors = 0;
		counters(b, &b->kicks, &b->calls);
		getrusage(RUSAGE_SELF, &b->u0);
		b->p0 = proc_stat(daemon_pid);
		b->delay0 = self_delay();
		machine_cpu(&b->busy0, &b->all0);
		return;
	}
	if (failed) {
		b->errors++;
		if (!b->failed_shown++)
			fprintf(stderr, "vufs: first error: op %u: %s\n", j->r->ih->opcode, errname(req_result(&b->s, j->r)));
	} else {
		b->ops++;
		b->hist[bucket(ns)]++;
		if (ns > b->max_ns)
			b->max_ns = ns;
	}
	if (b->o->ops ? b->ops + b->errors >= b->o->ops : t >= b->t_start + (uint64_t)(b->o->time * 1e9)) {
		b->stop = true;
		b->t_end = t;
	}
}

static void advance(struct bench *b, struct job *j, int e)
{
	for (;;) {
		int rc = b->w->step(b, j, e);
		if (rc == GO) {
			j->r->user = j;
			j->pend = req_submit(&b->s, j->r, 1 + b->rrq++ % b->o->queues) == -ENOSPC;
			return;
		}
		account(b, j, rc == FAIL);
		if (b->stop) {
			b->active--;
			return;
		}
		e = 0;
		if (!b->w->keeps_state)
			j->st = j->count = 0;
		j->t0 = now_ns();
	}
}

static int run(struct bench *b)
{
	b->warm_end = now_ns() + (uint64_t)(b->o->warmup * 1e9);
	b->active = b->o->qd;
	for (unsigned i = 0; i < b->o->qd; i++) {
		b->jobs[i].t0 = now_ns();
		advance(b, &b->jobs[i], 0);
	}
	while (b->active) {
		struct req *r = sess_next(&b->s, now_ns() + (uint64_t)(b->o->req_timeout * 1e9));
		if (!r)
			return b->s.dead ? E_DEAD : E_TIMEOUT;
		int e = req_result(&b->s, r);
		struct job *j = r->user;
		if (!b->stop)
			b->reqs++;
		if (!j) {	/* a FORGET */
			req_put(&b->s, r);
			forget_async(b, 0);
			continue;
		}
		advance(b, j, e);
		for (unsigned i = 0; i < b->o->qd; i++) {
			struct job *k = &b->jobs[i];
			if (k->pend)
				k->pend = req_submit(&b->s, k->r, 1 + b->rrq++ % b->o->queues) == -ENOSPC;
		}
	}
	return 0;
}

static void verify_written(struct bench *b)
{
	uint8_t *buf = malloc(b->o->bs);
	for (uint64_t i = 0; i < b->blocks; i++)
		if (b->written[i] && (fs_read(&b->s, b->node, b->fh, i * b->o->bs, b->o->bs, buf) != (int)b->o->bs ||
				      !pat_same(buf, i * b->o->bs, b->o->bs, 2)))
			b->bad_data++;
	free(buf);
}

/* How much a session of this workload has to hold, and a ring that takes its longest chain. */
static void dimension(struct opts *o, const struct work *w)
{
	if (!o->bs)
		o->bs = PAGE;
	o->datacap = w->io || w->dir ? o->bs : o->fsize;
	if (o->datacap < PAGE)
		o->datacap = PAGE;
	o->datacap = (o->datacap + PAGE - 1) / PAGE * PAGE;
	o->argcap = 2048;	/* room for a batch of FORGETs */
	o->ocap = 512;
	o->slots = o->qd * 2 + 8;
	unsigned chain = !strcmp(o->sg, "contig") ? 5 : 4 + o->datacap / PAGE;
	if (!o->ring)
		for (o->ring = 128; o->ring < chain && o->ring < MAXRING;)
			o->ring *= 2;
}

static void prepare(struct bench *b, struct opts *o)
{
	struct fuse_entry_out base;
	int e;
	must(sess_open(&b->s, o), "connect and INIT");
	uint32_t max = b->s.init.flags & FUSE_MAX_PAGES ? b->s.init.max_pages * PAGE : 32 * PAGE;
	if (b->s.init.max_write < max)
		max = b->s.init.max_write;
	if (b->w->io && o->bs > max) {
		fprintf(stderr, "vufs: the daemon takes at most %u bytes a request; --bs lowered\n", max);
		o->bs = max;
	}
	e = fs_lookup(&b->s, FUSE_ROOT_ID, "vufs-bench", &base);
	if (e == -ENOENT)
		e = fs_mkdir(&b->s, FUSE_ROOT_ID, "vufs-bench", 0755, &base);
	must(e, "vufs-bench");
	b->base = base.nodeid;
	b->w->setup(b);
	b->jobs = calloc(o->qd, sizeof *b->jobs);
	for (unsigned i = 0; i < o->qd; i++) {
		b->jobs[i].r = req_get(&b->s);
		b->jobs[i].buf = malloc(o->bs);
	}
}

static double pct(double part, double whole)
{
	return part > 0 && whole > 0 ? part / whole * 100 : 0;
}

/* One JSON line. `noise_pct` is the worse of two signs that others disturbed the run: the share of the machine
 * that they took, and how long the daemon or the client was runnable without a CPU. */
static void report(struct bench *b, const char *fatal)
{
	const struct opts *o = b->o;
	struct procstat p1 = proc_stat(daemon_pid);
	struct rusage u1;
	double busy1, all1, delay1 = self_delay(), sec = (b->t_end - b->t_start) / 1e9;
	uint64_t k1, c1;
	machine_cpu(&busy1, &all1);
	getrusage(RUSAGE_SELF, &u1);
	counters(b, &k1, &c1);
	if (!fatal && o->verify && b->w->write)
		verify_written(b);
#define TV(f) (u1.f.tv_sec - b->u0.f.tv_sec + (u1.f.tv_usec - b->u0.f.tv_usec) / 1e6)
	double client = TV(ru_utime) + TV(ru_stime), cpu = p1.cpu - b->p0.cpu;
	double others = pct(busy1 - b->busy0 - client - cpu, all1 - b->all0);
	double delay = pct(p1.delay - b->p0.delay, sec), mine = pct(delay1 - b->delay0, sec);
	delay = mine > delay ? mine : delay;
	printf("{\"workload\":\"%s\",\"qd\":%u,\"bs\":%zu,\"ring\":%u,\"queues\":%u,\"event_idx\":%d,\"indirect\":%d,",
	       b->w->name, o->qd, b->w->io || b->w->dir ? o->bs : 0, o->ring, o->queues, b->s.event_idx, b->s.indirect);
	printf("\"init_minor\":%u,\"init_flags\":\"%#" PRIx64 "\",", b->s.init.minor, b->s.init.flags | (uint64_t)b->s.init.flags2 << 32);
	printf("\"ops\":%" PRIu64 ",\"reqs\":%" PRIu64 ",\"seconds\":%.3f,\"ops_per_s\":%.1f,\"mb_per_s\":%.2f,\"entries_per_s\":%.0f,",
	       b->ops, b->reqs, sec, b->ops / sec, b->bytes / sec / 1e6, b->entries / sec);
	printf("\"p50_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f,", percentile(b, .5), percentile(b, .99), b->max_ns / 1e3);
	printf("\"kicks\":%" PRIu64 ",\"calls\":%" PRIu64 ",\"errors\":%" PRIu64 ",\"anomalies\":%u,\"bad_data\":%" PRIu64 ",",
	       k1 - b->kicks, c1 - b->calls, b->errors, b->s.anomalies, b->bad_data);
	printf("\"noise_pct\":%.1f,\"daemon_cpu_s\":%.4f,\"daemon_hwm_mb\":%.1f,\"client_cpu_s\":%.4f,\"fatal\":%s%s%s}\n",
	       daemon_pid && b->measuring ? others > delay ? others : delay : 0, cpu, p1.hwm_kb / 1024.0, client,
	       fatal ? "\"" : "", fatal ? fatal : "null", fatal ? "\"" : "");
	if (b->s.anomalies)
		fprintf(stderr, "vufs: first of %u anomalies: %s\n", b->s.anomalies, b->s.anomaly);
}

int cmd_bench(struct opts *o, const char *workload)
{
	struct bench *b = calloc(1, sizeof *b);
	struct daemon d = { 0 };
	int e;
	for (unsigned i = 0; i < nworks; i++)
		if (!strcmp(works[i].name, workload))
			b->w = &works[i];
	if (!b->w)
		die("no workload %s", workload);
	dimension(o, b->w);
	b->o = o;
	b->rng = o->seed * 0x9e3779b97f4a7c15ull + 1;
	if (o->restart)
		daemon_start(&d, o);
	pin_cpus(o->cpu);
	daemon_pid = o->restart ? d.pid : (pid_t)o->pid;
	prepare(b, o);
	e = run(b);
	if (!b->stop)
		b->t_end = now_ns();
	if (!b->measuring) {	/* it failed before or while warming up */
		b->t_start = b->t_end - 1000000000;
		b->ops = b->reqs = b->bytes = b->entries = 0;
		b->p0 = proc_stat(daemon_pid);
		getrusage(RUSAGE_SELF, &b->u0);
		counters(b, &b->kicks, &b->calls);
	}
	report(b, e ? errname(e) : NULL);
	if (!e) {
		for (unsigned i = 0; i < o->qd; i++)
			req_put(&b->s, b->jobs[i].r);
		for (size_t i = 0; i < b->ndeferred; i++)
			ref_add(&b->s, b->deferred[i], 1);
		if (b->fh)
			fs_release(&b->s, b->node, b->fh);
		if (o->cleanup)
			fs_rm_rf(&b->s, FUSE_ROOT_ID, "vufs-bench");
	}
	sess_close(&b->s, !e);
	daemon_kill(&d);
	return e || b->errors || b->bad_data || !b->ops;	/* the rest goes with the process */
}

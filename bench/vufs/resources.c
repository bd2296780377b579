/* What a daemon costs beside the requests: starting, mounting, memory, descriptors. Each command prints one JSON line. */
#include "vufs.h"

static double ms_since(uint64_t t)
{
	return (now_ns() - t) / 1e6;
}

static void rest(double seconds)
{
	usleep((useconds_t)(seconds * 1e6));
}

static void small_session(struct opts *o)
{
	o->datacap = PAGE;
	o->argcap = 2048;
	o->ocap = 512;
	o->slots = o->qd * 2 + 8;
	if (!o->ring)
		o->ring = 128;
}

static pid_t begin(struct daemon *d, struct opts *o)
{
	small_session(o);
	if (o->restart)
		daemon_start(d, o);
	pin_cpus(o->cpu);
	return o->restart ? d->pid : (pid_t)o->pid;
}

static void print_mem(const char *key, pid_t pid)
{
	struct procstat p = proc_stat(pid);
	printf("\"%s\":{\"rss_mb\":%.1f,\"guest_mb\":%.1f,\"hwm_mb\":%.1f,\"fds\":%u}", key, p.rss_kb / 1024.0,
	       p.shmem_kb / 1024.0, p.hwm_kb / 1024.0, p.fds);
}

/* From exec to a listening socket and to the answer to INIT, which a daemon that listens early gives late; CPU time until then; memory at rest. */
int cmd_startup(struct opts *o)
{
	struct daemon d = { 0 };
	struct sess s;
	uint64_t t0 = now_ns();
	if (!o->restart)
		die("startup needs --restart");
	pid_t pid = begin(&d, o);
	while (!proc_listening(o->sock)) {
		if (ms_since(t0) > o->connect_timeout * 1e3 || !daemon_alive(&d))
			die("the daemon does not listen at %s", o->sock);
		usleep(500);
	}
	double listening = ms_since(t0);
	must(sess_open(&s, o), "connect and INIT");
	double mounted = (s.t_init - s.t_connect) / 1e6, answered = ms_since(t0), cpu = proc_cpu_ms(pid);
	rest(o->settle);
	printf("{\"listening_ms\":%.1f,\"mount_ms\":%.1f,\"answered_ms\":%.1f,\"cpu_ms\":%.1f,", listening, mounted, answered, cpu);
	print_mem("idle", pid);
	printf(",\"anomalies\":%u}\n", s.anomalies);
	sess_close(&s, true);
	daemon_kill(&d);
	return 0;
}

/* Connections made and closed: every other one as by a guest that unmounts, the rest as by a VMM that is killed. */
int cmd_cycle(struct opts *o)
{
	struct daemon d = { 0 };
	struct sess s;
	unsigned bad = 0, warm = o->cycles < 20 ? 1 : 20;
	uint64_t t0 = 0;
	pid_t pid = begin(&d, o);
	for (unsigned i = 0; i < warm + o->cycles; i++) {
		if (i == warm) {	/* what the first connections bring up once and for all is not growth */
			rest(o->settle);
			printf("{\"cycles\":%u,", o->cycles);
			print_mem("before", pid);
			fflush(stdout);
			t0 = now_ns();
		}
		struct fuse_entry_out e;
		int r = sess_open(&s, o);
		if (r == E_DEAD || r == -ENOENT || r == -ECONNREFUSED)
			die("cycle %u: %s", i, errname(r));
		bad += r || fs_lookup(&s, FUSE_ROOT_ID, "none", &e) != -ENOENT;
		sess_close(&s, i % 2);
	}
	double ms = ms_since(t0) / o->cycles;
	rest(o->settle);
	printf(",");
	print_mem("after", pid);
	printf(",\"ms_per_cycle\":%.2f,\"errors\":%u}\n", ms, bad);
	daemon_kill(&d);
	return bad > 0;
}

/* ---- a guest that looks up very many files and forgets them ---- */

#define PER_DIR 1000u

/* On the host itself, which is far quicker than through the daemon. */
static void make_files(const struct opts *o)
{
	char path[4096];
	for (unsigned i = 0; i < o->files; i++) {
		if (i % PER_DIR == 0) {
			snprintf(path, sizeof path, "%s/d%05u", o->dir, i / PER_DIR);
			if (mkdir(path, 0755) && errno == EEXIST) {
				i += PER_DIR - 1;	/* made by an earlier run */
				continue;
			}
		}
		snprintf(path, sizeof path, "%s/d%05u/f%03u", o->dir, i / PER_DIR, i % PER_DIR);
		int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
		if (fd < 0)
			die("%s: %s", path, strerror(errno));
		close(fd);
	}
}

/* `o->qd` requests at a time; LOOKUP i answers into nodes[i], FORGET i is of nodes[i]. */
static unsigned sweep(struct sess *s, const struct opts *o, bool forget, const uint64_t *dirs, uint64_t *nodes)
{
	const struct fuse_forget_in one = { 1 };
	unsigned sent = 0, got = 0, bad = 0;
	while (got < o->files) {
		while (sent < o->files && sent - got < o->qd) {
			struct req *r = req_get(s);
			char name[16];
			int len = snprintf(name, sizeof name, "f%03u", sent % PER_DIR);
			if (forget) {
				req_prep(s, r, FUSE_FORGET, nodes[sent], 0);
				req_add(r, &one, sizeof one);
				r->noreply = true;
			} else {
				req_prep(s, r, FUSE_LOOKUP, dirs[sent / PER_DIR], sizeof(struct fuse_entry_out));
				req_add(r, name, len + 1);
			}
			r->user = (void *)(uintptr_t)sent++;
			must(req_submit(s, r, forget ? 0 : 1), "submit");
		}
		struct req *r = sess_next(s, now_ns() + (uint64_t)(o->req_timeout * 1e9));
		if (!r)
			die("%s", s->dead ? "the daemon is gone" : "no reply");
		int e = req_result(s, r);
		if (!forget)
			nodes[(uintptr_t)r->user] = e ? 0 : ((struct fuse_entry_out *)r->oarg)->nodeid;
		if (e && !bad++)
			fprintf(stderr, "vufs: first error: op %u, item %u: %s\n", r->ih->opcode, (unsigned)(uintptr_t)r->user, errname(e));
		req_put(s, r);
		got++;
	}
	return bad;
}

/* Memory before, while `files` nodes are known, and after they were forgotten (FORGETs singly by hiprio, as Linux does). */
int cmd_forget(struct opts *o)
{
	struct daemon d = { 0 };
	struct sess s;
	struct fuse_entry_out e;
	unsigned ndirs = (o->files + PER_DIR - 1) / PER_DIR, bad = 0;
	uint64_t *nodes = calloc(o->files, sizeof *nodes), *dirs = calloc(ndirs, sizeof *dirs);
	char name[16], key[32];
	if (!o->dir)
		die("forget needs --dir");
	make_files(o);
	pid_t pid = begin(&d, o);
	must(sess_open(&s, o), "connect and INIT");
	for (unsigned i = 0; i < ndirs; i++) {
		snprintf(name, sizeof name, "d%05u", i);
		must(fs_lookup(&s, FUSE_ROOT_ID, name, &e), name);
		dirs[i] = e.nodeid;
	}
	rest(o->settle);
	printf("{\"files\":%u,", o->files);
	print_mem("before", pid);
	for (unsigned p = 1; p <= o->passes; p++) {
		uint64_t t0 = now_ns();
		bad += sweep(&s, o, false, dirs, nodes);
		double looked = ms_since(t0) / 1e3;
		snprintf(key, sizeof key, "known%u", p);
		printf(",");
		print_mem(key, pid);
		t0 = now_ns();
		bad += sweep(&s, o, true, dirs, nodes);
		double forgot = ms_since(t0) / 1e3;
		rest(o->settle);
		snprintf(key, sizeof key, "after%u", p);
		printf(",");
		print_mem(key, pid);
		printf(",\"lookup_s%u\":%.1f,\"forget_s%u\":%.1f", p, looked, p, forgot);
	}
	printf(",\"errors\":%u,\"anomalies\":%u}\n", bad, s.anomalies);
	sess_close(&s, true);
	daemon_kill(&d);
	return bad > 0;
}

/* Options and commands. */
#include "vufs.h"
#include <signal.h>

enum type { FLAG, UINT, SIZE, U64, DBL, STR };
static const struct option_def { const char *name; enum type type; size_t at; const char *help; } defs[] = {
#define D(n, t, f, h) { n, t, offsetof(struct opts, f), h }
	D("restart", STR, restart, "command that starts the daemon; {SOCK} is the socket"),
	D("pid", UINT, pid, "the daemon's pid, where --restart is not used"),
	D("log", STR, log, "append the started daemon's output here (/dev/null)"),
	D("connect-timeout", DBL, connect_timeout, "seconds to retry connecting (10)"),
	D("req-timeout", DBL, req_timeout, "seconds to wait for any one reply (10)"),
	D("cpu", STR, cpu, "pin the client to these CPUs (0 or 0,2-3)"),
	D("daemon-cpu", STR, daemon_cpu, "pin the daemon that --restart starts"),
	D("verbose", FLAG, verbose, "report anomalies as they come"),
	D("queues", UINT, queues, "request queues (1)"),
	D("ring", UINT, ring, "ring size (128; more where the longest chain needs it)"),
	D("regions", UINT, regions, "memory regions, 1..8 (1)"),
	D("sg", STR, sg, "pages: 4 KiB scattered descriptors (default); contig: one descriptor"),
	D("spin", FLAG, spin, "poll the used ring instead of waiting for the call eventfd"),
	D("uid", UINT, uid, "uid in requests (own)"),
	D("gid", UINT, gid, "gid in requests (own)"),
	D("bs", SIZE, bs, "bench: request size (4k); readdir buffer"),
	D("size", SIZE, size, "bench: data file size (64m)"),
	D("fsize", SIZE, fsize, "bench: size of small files (4k)"),
	D("files", UINT, files, "bench: number of files/entries (1000); forget: files looked up"),
	D("qd", UINT, qd, "operations in progress, 1..128 (1)"),
	D("time", DBL, time, "bench: seconds measured (3)"),
	D("warmup", DBL, warmup, "bench: seconds before measuring (0.5)"),
	D("ops", U64, ops, "bench: stop after so many operations"),
	D("seed", UINT, seed, "bench: random seed"),
	D("miss", UINT, miss, "bench lookup: percent of names that do not exist"),
	D("verify", FLAG, verify, "bench: check data read / read back data written"),
	D("cleanup", FLAG, cleanup, "bench: remove the data set afterwards"),
	D("cycles", UINT, cycles, "cycle: connections made and closed (1000)"),
	D("passes", UINT, passes, "forget: how often all is looked up and forgotten (2)"),
	D("dir", STR, dir, "forget: the shared directory on the host, where the files are made"),
	D("settle", DBL, settle, "startup, cycle, forget: seconds a daemon gets to come to rest (3)"),
	D("path", STR, path, "guest: the file or directory at the top of the share"),
	D("count", UINT, count, "guest random-read: how many (200)"),
	D("limit", DBL, limit, "guest: seconds after which a pass begins nothing more (120)"),
	D("delay", DBL, delay, "delay: milliseconds in each direction (0)"),
};

static size_t size_of(const char *v)
{
	char *end;
	double d = strtod(v, &end);
	for (const char *u = "kmg"; *u && *end; u++) {
		d *= 1024;
		if ((*end | 32) == *u)
			return d;
	}
	return d;
}

static void usage(void)
{
	puts("vufs bench SOCKET WORKLOAD | startup SOCKET | cycle SOCKET | forget SOCKET | guest SOCKET JOB | delay PORT TARGET | mount SOCKET DIRECTORY  [options]\nworkloads:");
	for (unsigned i = 0; i < nworks; i++)
		printf("  %s\n", works[i].name);
	for (size_t i = 0; i < sizeof defs / sizeof *defs; i++)
		printf("  --%-22s %s\n", defs[i].name, defs[i].help);
	exit(2);
}

int main(int argc, char **argv)
{
	struct opts o = { .connect_timeout = 10, .req_timeout = 10, .time = 3, .warmup = 0.5, .queues = 1, .regions = 1,
		.sg = "pages", .size = 64 << 20, .fsize = PAGE, .files = 1000, .qd = 1, .seed = 1, .cycles = 1000,
		.passes = 2, .settle = 3, .count = 200, .limit = 120, .uid = getuid(), .gid = getgid() };
	const char *pos[3] = { 0 };
	int n = 0;
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		const char *a = argv[i], *v = NULL;
		const struct option_def *d = NULL;
		size_t len = strcspn(a, "=");
		if (strncmp(a, "--", 2)) {
			if (n == 3)
				usage();
			pos[n++] = a;
			continue;
		}
		for (size_t k = 0; k < sizeof defs / sizeof *defs; k++)
			if (strlen(defs[k].name) == len - 2 && !strncmp(defs[k].name, a + 2, len - 2))
				d = &defs[k];
		if (!d)
			usage();
		void *at = (char *)&o + d->at;
		if (d->type != FLAG) {
			v = a[len] ? a + len + 1 : ++i < argc ? argv[i] : NULL;
			if (!v)
				usage();
		}
		switch (d->type) {
		case FLAG: *(bool *)at = true; break;
		case UINT: *(unsigned *)at = strtoul(v, NULL, 0); break;
		case SIZE: *(size_t *)at = size_of(v); break;
		case U64: *(uint64_t *)at = strtoull(v, NULL, 0); break;
		case DBL: *(double *)at = atof(v); break;
		case STR: *(const char **)at = v; break;
		}
	}
	if (!pos[0] || !pos[1])
		usage();
	if (strcmp(o.sg, "pages") && strcmp(o.sg, "contig"))
		usage();
	if (o.qd < 1 || o.qd > 128 || o.regions < 1 || o.regions > 8 || o.queues < 1 || o.queues >= MAXQ || !o.files)
		usage();
	o.sock = pos[1];
	if (!strcmp(pos[0], "bench") && pos[2])
		return cmd_bench(&o, pos[2]);
	if (!strcmp(pos[0], "startup"))
		return cmd_startup(&o);
	if (!strcmp(pos[0], "cycle"))
		return cmd_cycle(&o);
	if (!strcmp(pos[0], "forget"))
		return cmd_forget(&o);
	if (!strcmp(pos[0], "guest") && pos[2])
		return cmd_guest(&o, pos[2]);
	if (!strcmp(pos[0], "delay") && pos[2])
		return cmd_delay(&o, pos[2]);
	if (!strcmp(pos[0], "mount") && pos[2])
		return cmd_mount(&o, pos[2]);
	usage();
}

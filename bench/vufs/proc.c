/* Starting, watching and killing the daemon under test (--restart CMD, --pid). */
#include "vufs.h"
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

/* "0,2-3"; NULL leaves things as they are. */
void pin_cpus(const char *list)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	for (const char *p = list; p && *p;) {
		char *end;
		unsigned a = strtoul(p, &end, 10), b = *end == '-' ? strtoul(end + 1, &end, 10) : a;
		for (; a <= b && a < CPU_SETSIZE; a++)
			CPU_SET(a, &set);
		p = *end ? end + 1 : end;
	}
	if (list && sched_setaffinity(0, sizeof set, &set))
		die("CPUs %s: %s", list, strerror(errno));
}

static pid_t running;	/* so that no daemon outlives us */

static void kill_running(void)
{
	if (running)
		kill(-running, SIGKILL);
}

static void killed(int sig)
{
	kill_running();
	_exit(128 + sig);
}

/* Run `sh -c CMD` in a process group of its own; {SOCK} in CMD stands for the socket path. */
void daemon_start(struct daemon *d, const struct opts *o)
{
	char cmd[8192];
	size_t n = 0;
	for (const char *p = o->restart; *p && n < sizeof cmd - 200;) {
		if (!strncmp(p, "{SOCK}", 6)) {
			n += snprintf(cmd + n, 200, "%s", o->sock);
			p += 6;
		} else {
			cmd[n++] = *p++;
		}
	}
	cmd[n] = 0;
	unlink(o->sock);
	fflush(NULL);
	d->pid = fork();
	if (d->pid < 0)
		die("fork: %s", strerror(errno));
	if (!d->pid) {
		int fd = open(o->log ? o->log : "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0644);
		setpgid(0, 0);
		pin_cpus(o->daemon_cpu);
		dup2(open("/dev/null", O_RDONLY), 0);
		dup2(fd, 1);
		dup2(fd, 2);
		execl("/bin/sh", "sh", "-c", cmd, NULL);
		_exit(127);
	}
	setpgid(d->pid, d->pid);
	static bool once;
	if (!once) {
		once = !atexit(kill_running);
		signal(SIGINT, killed);
		signal(SIGTERM, killed);
	}
	running = d->pid;
	d->running = true;
	d->status = 0;
}

bool daemon_alive(struct daemon *d)
{
	if (d->running && waitpid(d->pid, &d->status, WNOHANG) == d->pid)
		d->running = false;
	return d->running;
}

void daemon_kill(struct daemon *d)
{
	if (!d->pid)
		return;
	kill(-d->pid, SIGKILL);
	if (d->running) {
		waitpid(d->pid, &d->status, 0);
		d->running = false;
	}
	for (int i = 0; i < 1000 && proc_stat(d->pid).procs; i++)	/* the rest of the group, lest it unlink its successor's socket */
		usleep(1000);
	d->pid = running = 0;
}

/* CPU seconds of the whole machine since boot; stolen time counts as busy. */
void machine_cpu(double *busy, double *all)
{
	unsigned long v[8] = { 0 };
	FILE *f = fopen("/proc/stat", "re");
	if (f && fscanf(f, "cpu %lu %lu %lu %lu %lu %lu %lu %lu", v, v + 1, v + 2, v + 3, v + 4, v + 5, v + 6, v + 7) != 8)
		memset(v, 0, sizeof v);
	if (f)
		fclose(f);
	*busy = (double)(v[0] + v[1] + v[2] + v[5] + v[6] + v[7]) / sysconf(_SC_CLK_TCK);
	*all = *busy + (double)(v[3] + v[4]) / sysconf(_SC_CLK_TCK);
}

/* One word of a file in /proc, read in one go; returns the bytes read. */
static ssize_t slurp(char *buf, size_t cap, const char *fmt, int pid, const char *tid)
{
	char path[300];
	snprintf(path, sizeof path, fmt, pid, tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, buf, cap - 1);
	if (fd >= 0)
		close(fd);
	buf[n > 0 ? n : 0] = 0;
	return n;
}

/* Seconds run, summed over the threads of a process, and the busiest thread's wait for a CPU (schedstat counts in ns).
 * Only that thread's: the threads of one daemon keep each other waiting too. */
static void sched_times(int pid, struct procstat *p)
{
	char path[64], buf[128];
	snprintf(path, sizeof path, "/proc/%d/task", pid);
	DIR *d = opendir(path);
	struct dirent *e;
	while (d && (e = readdir(d))) {
		unsigned long long run, wait;
		if (e->d_name[0] == '.' || slurp(buf, sizeof buf, "/proc/%d/task/%s/schedstat", pid, e->d_name) <= 0)
			continue;
		if (sscanf(buf, "%llu %llu", &run, &wait) == 2) {
			p->cpu += run / 1e9;
			if (run / 1e9 > p->busiest) {
				p->busiest = run / 1e9;
				p->delay = wait / 1e9;
			}
		}
	}
	if (d)
		closedir(d);
}

double self_delay(void)
{
	struct procstat p = { 0 };
	sched_times(getpid(), &p);
	return p.delay;
}

static void one_proc(int id, struct procstat *p)
{
	char path[64], buf[4096];
	p->procs++;
	sched_times(id, p);
	snprintf(path, sizeof path, "/proc/%d/fd", id);
	DIR *f = opendir(path);
	struct dirent *e;
	while (f && (e = readdir(f)))
		p->fds += e->d_name[0] != '.';
	if (f)
		closedir(f);
	if (slurp(buf, sizeof buf, "/proc/%d/status%s", id, "") <= 0)
		return;
	const struct { const char *key; uint64_t *at; } want[] = {
		{ "\nVmHWM:", &p->hwm_kb }, { "\nVmRSS:", &p->rss_kb }, { "\nRssShmem:", &p->shmem_kb },
	};
	for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
		const char *at = strstr(buf, want[i].key);
		if (at)
			*want[i].at += strtoul(at + strlen(want[i].key), NULL, 10);
	}
}

/* Sums over `pid`, its children and its process group: CPU seconds, open fds, resident size. */
struct procstat proc_stat(pid_t pid)
{
	struct procstat p = { 0 };
	DIR *d = opendir("/proc");
	struct dirent *e;
	while (pid && d && (e = readdir(d))) {
		char buf[1024], *rp;
		int id = atoi(e->d_name), ppid, pgrp;
		if (id <= 0 || slurp(buf, sizeof buf, "/proc/%d/stat%s", id, "") <= 0)
			continue;
		rp = strrchr(buf, ')');
		if (!rp || rp[2] == 'Z' || sscanf(rp + 2, "%*c %d %d", &ppid, &pgrp) != 2)
			continue;
		if (id == pid || ppid == pid || pgrp == pid)
			one_proc(id, &p);
	}
	if (d)
		closedir(d);
	return p;
}

/* Does a socket listen at `path`? Asked of the kernel, since a connection would use up a virtiofsd. */
bool proc_listening(const char *path)
{
	char line[400];
	bool found = false;
	FILE *f = fopen("/proc/net/unix", "re");
	while (f && !found && fgets(line, sizeof line, f)) {
		unsigned flags;
		char name[256] = "";
		if (sscanf(line, "%*s %*s %*s %x %*s %*s %*s %255s", &flags, name) == 2)
			found = (flags & 0x10000) && !strcmp(name, path);	/* __SO_ACCEPTCON */
	}
	if (f)
		fclose(f);
	return found;
}

static double cpu_ms(pid_t pid)
{
	clockid_t clock;
	struct timespec t;
	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
		return 0;
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

/* CPU time of a process since its start, through every exec(), and of the children that it has. */
double proc_cpu_ms(pid_t pid)
{
	char path[64];
	double sum = cpu_ms(pid);
	int child;
	snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)pid, (int)pid);
	FILE *f = fopen(path, "r");
	if (!f)
		return sum;
	while (fscanf(f, "%d", &child) == 1)
		sum += cpu_ms(child);
	fclose(f);
	return sum;
}

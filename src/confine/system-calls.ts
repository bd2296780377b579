/**
 * System calls that neither Node nor the daemon makes after the start, with their numbers on x86-64 and arm64
 * (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h); null: arm64 does not have it.
 */
type Numbers = readonly [x64: number, arm64: number | null];

/** Answered by the action of --seccomp. */
export const FORBIDDEN = {
  // Other programs and processes
  execve: [59, 221], execveat: [322, 281], fork: [57, null], vfork: [58, null], ptrace: [101, 117], process_vm_readv: [310, 270],
  process_vm_writev: [311, 271], process_madvise: [440, 440], pidfd_open: [434, 434], pidfd_getfd: [438, 438], pidfd_send_signal: [424, 424],
  kcmp: [312, 272], tkill: [200, 130], rt_sigqueueinfo: [129, 138], rt_tgsigqueueinfo: [297, 240],
  // Mounts and namespaces
  mount: [165, 40], umount2: [166, 39], pivot_root: [155, 41], chroot: [161, 51], move_mount: [429, 429], open_tree: [428, 428],
  fsopen: [430, 430], fsconfig: [431, 431], fsmount: [432, 432], fspick: [433, 433], mount_setattr: [442, 442],
  setns: [308, 268],
  // The kernel and the whole machine
  init_module: [175, 105], finit_module: [313, 273], delete_module: [176, 106], kexec_load: [246, 104], kexec_file_load: [320, 294],
  bpf: [321, 280], perf_event_open: [298, 241], userfaultfd: [323, 282], add_key: [248, 217], request_key: [249, 218], keyctl: [250, 219],
  swapon: [167, 224], swapoff: [168, 225], reboot: [169, 142], sethostname: [170, 161], setdomainname: [171, 162], settimeofday: [164, 170],
  clock_settime: [227, 112], clock_adjtime: [305, 266], adjtimex: [159, 171], acct: [163, 89], quotactl: [179, 60], quotactl_fd: [443, 443],
  syslog: [103, 116], vhangup: [153, 58], fanotify_init: [300, 262], personality: [135, 92], iopl: [172, null], ioperm: [173, null],
  modify_ldt: [154, null], uselib: [134, null], _sysctl: [156, null], nfsservctl: [180, 42],
} as const satisfies Record<string, Numbers>;

/** Forbidden, too, where the options do not need them: a handle reaches all of a file system, and a socket whoever listens. */
export const FILE_HANDLES = { open_by_handle_at: [304, 265] } as const satisfies Record<string, Numbers>;
export const SOCKETS = { connect: [42, 203], bind: [49, 200], listen: [50, 201] } as const satisfies Record<string, Numbers>;

/**
 * Answered with ENOSYS, whereupon the C library and libuv take another way: clone3 has its flags in memory, where a filter
 * cannot look, and io_uring makes system calls that no filter sees. The rest change how other processes of the same user are run; an engine that asks for that goes on without.
 */
export const ABSENT = {
  clone3: [435, 435], io_uring_setup: [425, 425], io_uring_enter: [426, 426], io_uring_register: [427, 427],
  setpriority: [141, 140], ioprio_set: [251, 30], sched_setparam: [142, 118], sched_setscheduler: [144, 119], sched_setaffinity: [203, 122], sched_setattr: [314, 274],
  migrate_pages: [256, 238], move_pages: [279, 239], process_mrelease: [448, 448],
} as const satisfies Record<string, Numbers>;

/**
 * Allowed or not by an argument: threads but no processes, a thread's own umask but no namespaces, Unix sockets, signals to and limits of the
 * daemon itself, ioctls that are no typing, and neither ioctls nor fcntls that have a signal sent to somebody by a descriptor.
 */
export const EXAMINED = {
  clone: [56, 220], unshare: [272, 97], socket: [41, 198], socketpair: [53, 199], kill: [62, 129], tgkill: [234, 131], ioctl: [16, 29], fcntl: [72, 25], prlimit64: [302, 261],
} as const satisfies Record<string, Numbers>;

"""
What a notebook kernel, and whatever it starts, may ask of Linux.

A profile that grants less (programs, sockets, machine code of one's own) gets a table of its own: see VARIANTS.

What ordinary programs were seen to use, and their kin, is granted. What a sandbox exists to refuse answers EPERM and
tells the supervisor. What libraries ask for every day and do without is refused silently. Everything else, and every
call newer than this page, answers ENOSYS: to a library that is an older Linux, and it falls back.
"""

from __future__ import annotations

from errno import EAFNOSUPPORT, EINVAL, ENOPROTOOPT, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM, EPROTONOSUPPORT, ESOCKTNOSUPPORT
from itertools import combinations

from isolated_python.record import replace

from . import (
    ALLOW,
    NOTIFY,
    WITHHELD,
    Group,
    Match,
    Table,
    When,
    any_of,
    exactly,
    none_of,
    one_of,
    otherwise,
    refuse,
    variant,
)

GRANTED = (
    Group(
        "read, write and arrange files: the mounted view and Landlock say which",
        ALLOW,
        (
            *("read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2"),
            *("close", "close_range", "lseek", "dup", "dup2", "dup3", "fcntl", "flock", "sendfile", "copy_file_range"),
            *(
                "stat",
                "fstat",
                "lstat",
                "newfstatat",
                "statx",
                "statfs",
                "fstatfs",
                "access",
                "faccessat",
                "faccessat2",
            ),
            *("readlink", "readlinkat", "getdents", "getdents64", "getcwd", "chdir", "fchdir", "umask"),
            *("ftruncate", "truncate", "fallocate", "fadvise64", "readahead", "fsync", "fdatasync", "sync_file_range"),
            *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat"),
            *("mkdir", "mkdirat", "rmdir", "utime", "utimes", "utimensat", "futimesat"),
            *("getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr"),
            *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
            *("inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch"),
        ),
    ),
    Group(
        "use memory: the cgroup says how much",
        ALLOW,
        (
            *("mmap", "munmap", "mremap", "mprotect", "brk", "madvise", "msync", "membarrier"),
            *("mlock", "mlock2", "mlockall", "munlock", "munlockall", "memfd_create"),
        ),
    ),
    Group(
        "start, end, wait for and signal processes: the pid namespace says which exist",
        ALLOW,
        (
            *("fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid"),
            *("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal"),
            *("getpid", "getppid", "gettid", "getpgid", "getpgrp", "setpgid", "getsid", "setsid"),
            *("getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "capget"),
            *("set_tid_address", "set_robust_list", "get_robust_list", "rseq", "futex", "futex_waitv"),
            *("getrlimit", "setrlimit", "prlimit64", "getrusage", "times", "sysinfo", "uname", "getcpu", "getrandom"),
            *("getpriority", "setpriority", "ioprio_get", "ioprio_set", "sched_yield"),
            *("sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_setparam", "sched_getscheduler"),
            *("sched_setscheduler", "sched_getattr", "sched_setattr", "sched_get_priority_max"),
            *("sched_get_priority_min", "sched_rr_get_interval"),
        ),
    ),
    Group(
        "wait: signals, timers, descriptors",
        ALLOW,
        (
            *("rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigreturn"),
            *("sigaltstack", "restart_syscall", "pause", "alarm", "getitimer", "setitimer"),
            *("timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete"),
            *("timerfd_create", "timerfd_settime", "timerfd_gettime", "eventfd", "eventfd2", "signalfd", "signalfd4"),
            *("nanosleep", "clock_nanosleep", "clock_gettime", "clock_getres", "gettimeofday", "time"),
            *("poll", "ppoll", "select", "pselect6", "pipe", "pipe2"),
            *("epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2"),
        ),
    ),
    Group(
        "talk over sockets that could be made: the network namespace says with whom",
        ALLOW,
        (
            *("bind", "connect", "listen", "accept", "accept4", "shutdown", "getsockname", "getpeername"),
            *("getsockopt", "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg"),
        ),
    ),
)

AUDITED = (
    Group(
        "change what is mounted, or what the root is",
        NOTIFY,
        (
            *("mount", "umount2", "umount", "pivot_root", "chroot", "open_tree", "move_mount", "mount_setattr"),
            *("fsopen", "fsconfig", "fsmount", "fspick", "statmount", "listmount"),
        ),
    ),
    Group("enter or make a namespace", NOTIFY, ("setns", "unshare")),
    Group(
        "see into, or take from, another process",
        NOTIFY,
        (
            *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"),
            *("process_madvise", "process_mrelease"),
        ),
    ),
    Group(
        "reach files past the mounted view",
        NOTIFY,
        ("name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark"),
    ),
    Group("load programs into Linux itself", NOTIFY, ("bpf", "perf_event_open", "userfaultfd", "seccomp")),
    Group("use keyrings, which know no namespaces", NOTIFY, ("keyctl", "add_key", "request_key")),
    Group(
        "administer the machine",
        NOTIFY,
        (
            *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot"),
            *("swapon", "swapoff", "quotactl", "quotactl_fd", "acct", "syslog", "vhangup", "iopl", "ioperm"),
            *("clock_settime", "clock_adjtime", "adjtimex", "settimeofday", "sethostname", "setdomainname"),
        ),
    ),
    Group("change how this process is executed", NOTIFY, ("personality", "modify_ldt")),
    Group(
        "become someone else",
        NOTIFY,
        (
            *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid"),
            *("setgroups", "capset"),
        ),
    ),
    Group(
        "share System V or POSIX queues, which outlive their processes",
        NOTIFY,
        (
            *("shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semtimedop", "semctl"),
            *("msgget", "msgsnd", "msgrcv", "msgctl"),
            *("mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr"),
        ),
    ),
)

SILENT = (
    Group(
        "give files away: archives and sqlite ask, and do without",
        refuse(EPERM),
        ("chown", "fchown", "lchown", "fchownat"),
    ),
    Group(
        "place memory on nodes: OpenBLAS and OpenMP ask, and do without",
        refuse(EPERM),
        ("mbind", "set_mempolicy", "get_mempolicy", "migrate_pages", "move_pages", "set_mempolicy_home_node"),
    ),
    Group("see which pages of a file somebody has read: libunwind asks, and does without", refuse(EPERM), ("mincore",)),
    Group("write out every user's files, at every user's cost", refuse(EPERM), ("sync", "syncfs")),
)

ABSENT = (
    Group(
        "a structure that no filter can read stands behind a pointer; the older call does the same",
        refuse(ENOSYS),
        ("clone3", "openat2"),
    ),
    Group(
        "work that other filters would not see, or that has a record of holes in Linux; every caller has a fallback",
        refuse(ENOSYS),
        (
            *("io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup", "io_submit", "io_getevents"),
            *(
                "io_pgetevents",
                "io_cancel",
                "io_destroy",
                "splice",
                "tee",
                "vmsplice",
                "memfd_secret",
                "remap_file_pages",
            ),
        ),
    ),
    Group(
        "a sandbox within the sandbox",
        refuse(ENOSYS),
        ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
    ),
)

# linux/sched.h. CLONE_NEWTIME shares its bit with the exit signal and means nothing to clone(2).
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

SET_UID, SET_GID = 0o4000, 0o2000  # linux/stat.h
KIND = 0o170000
FIFO, CHARACTER, BLOCK, SOCKET, REGULAR = 0o010000, 0o020000, 0o060000, 0o140000, 0o100000
CREATES = 0o100 | 0o20000000  # O_CREAT, __O_TMPFILE: without either, open(2) reads no mode

UNIX, INET, INET6, NETLINK = 1, 2, 10, 16  # linux/socket.h
STREAM, DGRAM = 1, 2
TYPE = 0xF  # the kernel refuses any other bit than SOCK_NONBLOCK and SOCK_CLOEXEC itself
TCP, UDP = 6, 17

# What libraries of every day set on a socket, by level; Linux answers any other option as if it did not know it. Among
# those: SO_ATTACH_FILTER and its kin (programs in Linux), SO_ZEROCOPY, TCP_ULP (TLS in Linux), TCP_REPAIR, headers and
# source lists of multicast, and the tables of netfilter, which have a record of holes.
SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_IPV6 = 1, 0, 6, 41
OPTIONS: dict[int, tuple[int, ...]] = {
    SOL_SOCKET: (
        *(1, 2, 5, 6, 7, 8),  # DEBUG REUSEADDR DONTROUTE BROADCAST SNDBUF RCVBUF
        *(9, 10, 11, 12, 13, 15),  # KEEPALIVE OOBINLINE NO_CHECK PRIORITY LINGER REUSEPORT
        *(16, 18, 19, 20, 21, 25),  # PASSCRED RCVLOWAT SNDLOWAT RCVTIMEO SNDTIMEO BINDTODEVICE
        *(29, 34, 35, 37, 40, 42, 46),  # TIMESTAMP PASSSEC TIMESTAMPNS TIMESTAMPING RXQ_OVFL PEEK_OFF BUSY_POLL
        *(47, 49, 63, 64, 65, 66, 67, 76),  # MAX_PACING_RATE INCOMING_CPU, those of time with 64 bits, PASSPIDFD
    ),
    IPPROTO_IP: (
        *(1, 2, 8, 10, 11, 12, 13, 15, 20, 24),  # TOS TTL PKTINFO MTU_DISCOVER RECVERR RECVTTL RECVTOS FREEBIND …
        *(32, 33, 34, 35, 36, 49, 51),  # MULTICAST_IF _TTL _LOOP {ADD,DROP}_MEMBERSHIP _ALL LOCAL_PORT_RANGE
    ),
    IPPROTO_TCP: (
        *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),  # NODELAY MAXSEG CORK KEEPIDLE KEEPINTVL KEEPCNT SYNCNT LINGER2 …
        *(12, 13, 18, 23, 25, 30, 36),  # QUICKACK CONGESTION USER_TIMEOUT FASTOPEN NOTSENT_LOWAT FASTOPEN_CONNECT INQ
    ),
    IPPROTO_IPV6: (
        *(16, 17, 18, 19, 20, 21, 23, 25, 26, 29),  # UNICAST_HOPS MULTICAST_* {ADD,DROP}_MEMBERSHIP … V6ONLY
        *(49, 51, 66, 67, 70, 78),  # RECVPKTINFO RECVHOPLIMIT RECVTCLASS TCLASS AUTOFLOWLABEL FREEBIND
    ),
}

TERMINAL = (
    *(0x5401, 0x5402, 0x5403, 0x5404),  # TCGETS TCSETS TCSETSW TCSETSF
    *(0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D),  # the same with 2: glibc 2.42 on
    *(0x5409, 0x5425, 0x540A, 0x540B),  # TCSBRK TCSBRKP TCXONC TCFLSH
    *(0x540E, 0x5422, 0x540F, 0x5410, 0x5429),  # TIOCSCTTY TIOCNOTTY TIOCGPGRP TIOCSPGRP TIOCGSID
    *(0x5411, 0x5413, 0x5414),  # TIOCOUTQ TIOCGWINSZ TIOCSWINSZ
    *(0x80045430, 0x40045431, 0x80045439, 0x5441),  # TIOCGPTN TIOCSPTLCK TIOCGPTLCK TIOCGPTPEER
)
DESCRIPTOR = (0x541B, 0x5421, 0x5450, 0x5451, 0x5452)  # FIONREAD FIONBIO FIONCLEX FIOCLEX FIOASYNC
COPY = (0x40049409, 0x4020940D)  # FICLONE FICLONERANGE: what cp(1) tries first
INTERFACES = (  # SIOCGIF NAME CONF FLAGS ADDR BRDADDR NETMASK MTU HWADDR INDEX: reading, of our own network only
    *(0x8910, 0x8912, 0x8913, 0x8915, 0x8919, 0x891B, 0x8921, 0x8927, 0x8933),
)
INJECT = (0x5412, 0x541C)  # TIOCSTI TIOCLINUX: type into somebody's terminal
ETHTOOL = 0x8946  # psutil reads this errno as "no cable"

PRCTL = (
    *(15, 16, 0x53564D41),  # PR_SET_NAME PR_GET_NAME PR_SET_VMA: names of threads and of memory
    *(1, 2, 36, 37),  # PR_SET_PDEATHSIG PR_GET_PDEATHSIG PR_SET_CHILD_SUBREAPER PR_GET_CHILD_SUBREAPER
    *(29, 30, 41, 42),  # PR_SET_TIMERSLACK PR_GET_TIMERSLACK PR_SET_THP_DISABLE PR_GET_THP_DISABLE
    *(3, 21, 23, 27, 38, 39),  # PR_GET_DUMPABLE _SECCOMP PR_CAPBSET_READ _SECUREBITS PR_{SET,GET}_NO_NEW_PRIVS
    *(65, 66),  # PR_SET_MDWE PR_GET_MDWE
)
PRCTL_AUDITED = (22, 24, 28, 35, 47)  # PR_SET_SECCOMP PR_CAPBSET_DROP PR_SET_SECUREBITS PR_SET_MM PR_CAP_AMBIENT
ARCH_PRCTL = (
    *(0x1001, 0x1002, 0x1003, 0x1004),  # ARCH_SET_GS ARCH_SET_FS ARCH_GET_FS ARCH_GET_GS
    *(0x1011, 0x1021, 0x1022, 0x1023),  # ARCH_GET_CPUID, ARCH_GET_XCOMP_SUPP _PERM, ARCH_REQ_XCOMP_PERM: AMX for oneDNN
    *(0x3001, 0x5001, 0x5002, 0x5003, 0x5005),  # the loader asks for shadow stacks
)


def family(domain: int) -> tuple[When, ...]:
    """Streams and datagrams of one family; raw sockets are refused aloud, other types as a Linux without them does."""
    protocols = (0,) if domain == UNIX else (0, TCP, UDP)

    def socket(verdict: int, *matches: Match) -> When:
        return When("socket", verdict, (exactly(0, domain), *matches))

    return (
        *(
            socket(ALLOW, Match(1, kind, TYPE), exactly(2, protocol))
            for kind in (STREAM, DGRAM)
            for protocol in protocols
        ),
        *(socket(refuse(EPROTONOSUPPORT), Match(1, kind, TYPE), otherwise(2)) for kind in (STREAM, DGRAM)),
        socket(NOTIFY, Match(1, 3, TYPE)),  # SOCK_RAW
        socket(refuse(ESOCKTNOSUPPORT), Match(1, 0, TYPE)),
        socket(refuse(ESOCKTNOSUPPORT), Match(1, 4, 0xC)),  # 4 to 7
        socket(refuse(ESOCKTNOSUPPORT), Match(1, 8, 0x8)),  # 8 to 15
    )


def option(level: int) -> tuple[When, ...]:
    return (
        *(When("setsockopt", ALLOW, (exactly(1, level), exactly(2, number))) for number in OPTIONS[level]),
        When("setsockopt", refuse(ENOPROTOOPT), (exactly(1, level), otherwise(2))),
    )


def mode(call: str, argument: int, *also: Match) -> tuple[When, ...]:
    """No set-uid or set-gid bit: a program in the workspace would lend its owner's rights to whoever starts it.

    The set-gid bit alone, which tar and cp copy with folders, is refused silently.
    """
    return (
        When(call, ALLOW, (*also, none_of(argument, SET_UID | SET_GID))),
        When(call, NOTIFY, (*also, Match(argument, SET_UID, SET_UID))),
        When(call, refuse(EPERM), (*also, Match(argument, SET_GID, SET_UID | SET_GID))),
    )


def opening(call: str, flags: int) -> tuple[When, ...]:
    """The mode is the argument after the flags, and only means something where a file is made."""
    making = any_of(flags, CREATES)
    return (
        When(call, ALLOW, (none_of(flags, CREATES),)),
        *(rule for made in making for rule in mode(call, flags + 1, made)),
    )


def node(call: str, argument: int) -> tuple[When, ...]:
    """Pipes may be made; devices never, and nothing else this way."""
    return (
        When(call, ALLOW, (Match(argument, FIFO, KIND | SET_UID | SET_GID),)),
        When(call, NOTIFY, (Match(argument, CHARACTER, KIND),)),
        When(call, NOTIFY, (Match(argument, BLOCK, KIND),)),
        *(When(call, refuse(EPERM), (Match(argument, kind, KIND),)) for kind in (0, REGULAR, SOCKET)),
    )


RULES = (
    *family(UNIX),
    *family(INET),
    *family(INET6),
    # libzmq aborts the process when its question to netlink is answered by almost anything else.
    When("socket", refuse(EOPNOTSUPP), (exactly(0, NETLINK),)),
    When("socket", refuse(EAFNOSUPPORT), (otherwise(0),)),
    When("socketpair", ALLOW, (exactly(0, UNIX), Match(1, STREAM, TYPE), exactly(2, 0))),
    When("socketpair", ALLOW, (exactly(0, UNIX), Match(1, DGRAM, TYPE), exactly(2, 0))),
    When("socketpair", refuse(EAFNOSUPPORT), (otherwise(0),)),
    *(rule for level in OPTIONS for rule in option(level)),
    When("setsockopt", refuse(ENOPROTOOPT), (otherwise(1),)),
    When("clone", ALLOW, (none_of(0, NAMESPACES),)),
    *(When("clone", NOTIFY, (match,)) for match in any_of(0, NAMESPACES)),
    *mode("chmod", 1),
    *mode("fchmod", 1),
    *mode("fchmodat", 2),
    *mode("fchmodat2", 2),
    *mode("creat", 1),
    *opening("open", 1),
    *opening("openat", 2),
    *node("mknod", 1),
    *node("mknodat", 2),
    *one_of("ioctl", 1, (*TERMINAL, *DESCRIPTOR, *COPY, *INTERFACES)),
    *one_of("ioctl", 1, INJECT, verdict=NOTIFY),
    *one_of("ioctl", 1, (ETHTOOL,), verdict=refuse(EOPNOTSUPP)),
    When("ioctl", refuse(ENOTTY), (otherwise(1),)),
    *one_of("prctl", 0, PRCTL),
    *one_of("prctl", 0, PRCTL_AUDITED, verdict=NOTIFY),
    When("prctl", refuse(EINVAL), (otherwise(0),)),
    *one_of("arch_prctl", 0, ARCH_PRCTL),
    When("arch_prctl", refuse(EINVAL), (otherwise(0),)),
)

# ---- what a profile may grant less of ------------------------------------------------------------------------------

CLONE_THREAD = 0x00010000
PROT_WRITE, PROT_EXEC, MAP_ANONYMOUS = 2, 4, 0x20

# Not granted: the calls that are refused, and the rules that take the place of those for the same calls.
WITHOUT: dict[str, tuple[Group, tuple[When, ...]]] = {
    "subprocess": (
        Group("start programs, or another process", NOTIFY, ("fork", "vfork", "execve", "execveat")),
        (
            # A thread is a clone that shares everything; a process, however it is made, is one that does not.
            When("clone", ALLOW, (Match(0, CLONE_THREAD, CLONE_THREAD | NAMESPACES),)),
            When("clone", NOTIFY, (none_of(0, CLONE_THREAD | NAMESPACES),)),
            *(When("clone", NOTIFY, (match,)) for match in any_of(0, NAMESPACES)),
        ),
    ),
    # A pair of sockets is connected to itself alone, and every event loop wants one.
    "sockets": (
        Group("", NOTIFY, ()),
        (
            When("socket", refuse(EOPNOTSUPP), (exactly(0, NETLINK),)),
            When("socket", NOTIFY, (otherwise(0),)),
        ),
    ),
    # The mounts run nothing that the kernel wrote; here is the rest: memory that was written never runs.
    "native_code": (
        Group("make a file that no mount forbids to run", NOTIFY, ("memfd_create",)),
        (
            When("mmap", ALLOW, (none_of(2, PROT_EXEC),)),
            When("mmap", NOTIFY, (Match(2, PROT_EXEC | PROT_WRITE, PROT_EXEC | PROT_WRITE),)),
            When("mmap", NOTIFY, (Match(2, PROT_EXEC, PROT_EXEC | PROT_WRITE), Match(3, MAP_ANONYMOUS, MAP_ANONYMOUS))),
            When("mmap", ALLOW, (Match(2, PROT_EXEC, PROT_EXEC | PROT_WRITE), none_of(3, MAP_ANONYMOUS))),
            When("mprotect", ALLOW, (none_of(2, PROT_EXEC),)),
            When("mprotect", NOTIFY, (Match(2, PROT_EXEC, PROT_EXEC),)),
        ),
    ),
}


def _table(without: tuple[str, ...]) -> Table:
    groups: list[Group] = [*GRANTED, *AUDITED, *SILENT, *ABSENT]
    rules: list[When] = [*RULES]
    for name in without:
        group, instead = WITHOUT[name]
        taken = {*group.calls, *(rule.call for rule in instead)}
        groups = [replace(one, calls=tuple(call for call in one.calls if call not in taken)) for one in groups]
        groups += [group] if group.calls else []
        rules = [*(rule for rule in rules if rule.call not in taken), *instead]
    return Table(
        name=variant(without),
        reason="what a notebook kernel, and whatever it starts, may ask of Linux",
        default=refuse(ENOSYS),
        groups=tuple(groups),
        rules=tuple(rules),
    )


VARIANTS = tuple(_table(some) for count in range(len(WITHHELD) + 1) for some in combinations(WITHHELD, count))
KERNEL = VARIANTS[0]

"""
What the relay may ask of Linux, once it has imported everything and holds its sockets: to move bytes between them.

What is not here answers EPERM and nothing happens; a kill instead would let one new habit of a libc end every notebook
of a server. What no slip of a byte broker explains, only somebody else's code in it, ends the process at once: the
supervisor starts another relay, and the kernels live on.
"""

from __future__ import annotations

from errno import EAFNOSUPPORT, EPERM, EPROTONOSUPPORT

from . import ALLOW, KILL, Group, Match, Table, When, exactly, none_of, one_of, otherwise, refuse
from .kernel import DESCRIPTOR, STREAM, TYPE, UNIX

PROT_EXEC = 4

GROUPS = (
    Group(
        "move bytes between descriptors that it holds",
        ALLOW,
        (
            *("read", "write", "readv", "writev", "recvfrom", "sendto", "recvmsg", "sendmsg", "splice", "close"),
            *("accept4", "connect", "shutdown", "getsockopt", "setsockopt", "getsockname", "getpeername"),
            *("pipe2", "fcntl", "fstat", "lseek", "eventfd2", "timerfd_create", "timerfd_settime", "timerfd_gettime"),
            *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll"),
        ),
    ),
    Group(
        "go on living: memory, time, signals, the end",
        ALLOW,
        (
            *("munmap", "mremap", "brk", "madvise", "futex", "rseq", "membarrier", "getrandom", "sched_yield"),
            *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time"),
            *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "sigaltstack"),
            *("restart_syscall", "getpid", "gettid", "getppid", "getuid", "geteuid", "getrusage", "exit", "exit_group"),
        ),
    ),
    Group(
        "what only somebody else's code would ask for",
        KILL,
        (
            *("execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"),
            *("mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "setns", "unshare"),
            *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl", "add_key", "request_key"),
            *("init_module", "finit_module", "kexec_load", "reboot", "open_by_handle_at", "personality", "modify_ldt"),
        ),
    ),
)

RULES = (
    When("socket", ALLOW, (exactly(0, UNIX), Match(1, STREAM, TYPE), exactly(2, 0))),
    When("socket", refuse(EPROTONOSUPPORT), (exactly(0, UNIX), Match(1, STREAM, TYPE), otherwise(2))),
    When("socket", refuse(EAFNOSUPPORT), (otherwise(0),)),
    When("mmap", ALLOW, (none_of(2, PROT_EXEC),)),
    When("mprotect", ALLOW, (none_of(2, PROT_EXEC),)),
    *one_of("ioctl", 1, DESCRIPTOR),
)

RELAY = Table(
    name="relay",
    reason="what the relay may ask of Linux: to move bytes between descriptors that it holds",
    default=refuse(EPERM),
    groups=GROUPS,
    rules=RULES,
)

"""What the attacker wants: to reach rarely used code of Linux, where the next hole is.

A call that never gets to Linux cannot have a hole. So each is made with arguments that Linux itself would refuse, and
the attack has succeeded as soon as the refusal is Linux's own: a bad address, a bad descriptor, an invalid value.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import pty
import socket
import struct
import termios
from errno import EINVAL, ENOSYS, ENOTTY, EPERM
from typing import Any

from isolated_python.linux.libc import MACHINE

from tests.escapes.attack import NAMESPACES, ROOT, Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.targets import Loot, Reached, Workspace
from tests.escapes.tools import WORD, call, must

BAD = WORD  # -1: no address, no descriptor, no flag, no process
HIGH = 1 << 32  # a bit that Linux does not look at where it reads an int, and that a careless filter does

# Names and numbers of x86-64; what is not to be called with six times -1 says with what. linux/unistd.h
CALLS: dict[str, tuple[str, dict[str, tuple[int, tuple[int, ...]]]]] = {
    "calls_that_mount": (
        "mount, unmount or change the root",
        {
            "mount": (165, ()), "umount2": (166, ()), "pivot_root": (155, ()), "chroot": (161, ()),
            "open_tree": (428, ()), "move_mount": (429, ()), "fsopen": (430, ()), "fsconfig": (431, ()),
            "fsmount": (432, ()), "fspick": (433, ()), "mount_setattr": (442, ()), "statmount": (457, ()),
            "listmount": (458, ()), "open_tree_attr": (467, ()),
        },
    ),
    "calls_that_change_namespaces": ("enter or make namespaces", {"setns": (308, ()), "unshare": (272, ())}),
    "calls_into_other_processes": (
        "look into other processes or take from them",
        {
            "ptrace": (101, ()), "process_vm_readv": (310, ()), "process_vm_writev": (311, ()),
            "pidfd_getfd": (438, ()), "kcmp": (312, ()), "process_madvise": (440, ()), "process_mrelease": (448, ()),
        },
    ),
    "calls_past_the_view": (
        "reach files past every mount",
        {
            "name_to_handle_at": (303, ()), "open_by_handle_at": (304, ()),
            "fanotify_init": (300, ()), "fanotify_mark": (301, ()),
        },
    ),
    "calls_that_load_programs": (
        "load programs into Linux, or wait inside of it",
        {"bpf": (321, ()), "perf_event_open": (298, ()), "userfaultfd": (323, ()), "seccomp": (317, ())},
    ),
    "calls_on_keyrings": (
        "use keyrings, which know no namespace",
        {"keyctl": (250, ()), "add_key": (248, ()), "request_key": (249, ())},
    ),
    "calls_that_administer": (
        "administer the machine, its modules and its clock",
        {
            "init_module": (175, ()), "finit_module": (313, ()), "delete_module": (176, ()),
            "kexec_load": (246, ()), "kexec_file_load": (320, ()),
            "reboot": (169, ()), "swapon": (167, ()), "swapoff": (168, ()), "quotactl": (179, ()),
            "quotactl_fd": (443, ()), "acct": (163, ()), "syslog": (103, ()), "iopl": (172, ()), "ioperm": (173, ()),
            "clock_settime": (227, ()), "clock_adjtime": (305, ()), "adjtimex": (159, ()), "settimeofday": (164, ()),
            "sethostname": (170, ()), "setdomainname": (171, ()), "vhangup": (153, ()),
        },
    ),
    "calls_that_change_the_machine_code": (
        "change how its own process is executed",
        {"personality": (135, (0xFFFFFFFF,)), "modify_ldt": (154, (0, 0, 0))},
    ),
    "calls_that_change_identity": (
        "become someone else",
        {
            "setuid": (105, ()), "setgid": (106, ()), "setreuid": (113, ()), "setregid": (114, ()),
            "setresuid": (117, ()), "setresgid": (119, ()), "setfsuid": (122, ()), "setfsgid": (123, ()),
            "setgroups": (116, ()), "capset": (126, ()),
        },
    ),
    "calls_of_system_v": (
        "share System V or POSIX objects, which outlive their makers",
        {
            "shmget": (29, (1, 0, 0)), "shmat": (30, ()), "shmctl": (31, ()), "shmdt": (67, ()),
            "semget": (64, ()), "semop": (65, ()), "semtimedop": (220, ()), "semctl": (66, ()),
            "msgget": (68, (1, 0)), "msgsnd": (69, ()), "msgrcv": (70, ()), "msgctl": (71, ()),
            "mq_open": (240, ()), "mq_unlink": (241, ()), "mq_timedsend": (242, ()), "mq_timedreceive": (243, ()),
            "mq_notify": (244, ()), "mq_getsetattr": (245, ()),
        },
    ),
    "calls_that_give_files_away": (
        "give files to others",
        {"chown": (92, ()), "fchown": (93, ()), "lchown": (94, ()), "fchownat": (260, ())},
    ),
    "calls_on_memory_nodes": (
        "place or move memory, also that of others",
        {
            "mbind": (237, ()), "set_mempolicy": (238, ()), "get_mempolicy": (239, ()), "migrate_pages": (256, ()),
            "move_pages": (279, ()), "set_mempolicy_home_node": (450, ()),
        },
    ),
    "calls_that_flush_everything": ("make everybody wait for the disk", {"sync": (162, ()), "syncfs": (306, ())}),
    "calls_with_hidden_arguments": (
        "hide arguments from every filter behind a pointer",
        {"clone3": (435, ()), "openat2": (437, ())},
    ),
    "calls_that_work_in_the_background": (
        "let Linux work on its behalf where no filter looks",
        {
            "io_uring_setup": (425, ()), "io_uring_enter": (426, ()), "io_uring_register": (427, ()),
            "io_setup": (206, ()), "io_submit": (209, ()), "io_getevents": (208, ()), "io_pgetevents": (333, ()),
            "io_cancel": (210, ()), "io_destroy": (207, ()),
        },
    ),
    "calls_that_move_pages": (
        "move pages between pipes, as the Dirty Pipe did",
        {"splice": (275, ()), "tee": (276, ()), "vmsplice": (278, ()), "remap_file_pages": (216, ())},
    ),
    "calls_that_nest": (
        "build a sandbox within the sandbox",
        {
            "landlock_create_ruleset": (444, ()), "landlock_add_rule": (445, ()), "landlock_restrict_self": (446, ()),
        },
    ),
    "calls_newer_than_the_profile": (
        "use what Linux learned after the profile was written",
        {
            "futex_wake": (454, ()), "futex_wait": (455, ()), "futex_requeue": (456, ()),
            "lsm_get_self_attr": (459, ()), "lsm_set_self_attr": (460, ()), "lsm_list_modules": (461, ()),
            "mseal": (462, ()), "setxattrat": (463, ()),
            "getxattrat": (464, ()), "listxattrat": (465, ()), "removexattrat": (466, ()), "cachestat": (451, ()),
            "file_getattr": (468, ()), "file_setattr": (469, ()),
        },
    ),
    "calls_of_another_age": (
        "use what nobody has used for twenty years",
        {
            "sysfs": (139, ()), "ustat": (136, ()), "pkey_mprotect": (329, ()), "pkey_free": (331, ()),
            "pkey_alloc": (330, ()), "map_shadow_stack": (453, ()), "uselib": (134, ()), "mincore": (27, ()),
        },
    ),
}  # fmt: skip


def test_kernel_surface(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


def _try_each(target: Any) -> list[str]:
    """Make every call, and say which were answered by Linux itself."""
    # In a process of its own: one that kills is one that was refused.
    reached = []
    for name, number, arguments in target.calls:
        try:
            pid = os.fork()
        except PermissionError:  # where no process may be made, what kills ends the kernel itself
            code = max(0, -call(number, *arguments))
        else:
            if pid == 0:
                os._exit(min(max(0, -call(number, *arguments)), 200))
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code >= 0 and code not in target.refusals:
            reached.append(name)
    return reached


SURFACE = [
    attack(
        Reached,
        stopped_by="seccomp",
        control=ROOT,
        name=name,
        wants=f"Get to Linux's code to {purpose}, past every check of ours.",
        facts={
            "calls": [(one, number, arguments or (BAD,) * 6) for one, (number, arguments) in calls.items()],
            "refusals": [EPERM, ENOSYS],
        },
    )(_try_each)
    for name, (purpose, calls) in CALLS.items()
    if MACHINE == "x86_64"
]

BITS = 1 << 30  # of a number: the x32 entry
OTHER_ENTRIES: dict[str, tuple[str, tuple[int, ...]]] = {
    "calls_by_the_x32_entry": (
        "enter by the second door of the processor, where numbers and structures are others",
        (
            BITS | 0,
            BITS | 57,
            BITS | 165,
            BITS | 166,
            BITS | 272,
            BITS | 308,
            BITS | 321,
            BITS | 512,
            BITS | 520,
            BITS | 547,
        ),
    ),
    "numbers_beyond_every_table": (
        "call by numbers that no table has, in the hope of one that is not looked at",
        (BITS - 1 | BITS, 0x50000000, 0x7FFFFFFF, 0x80000000, 0x80000000 | 165, 0xC0000000 | 165, 0xFFFFFFFE),
    ),
}

SURFACE += [
    attack(
        Reached,
        stopped_by="seccomp",
        name=name,
        wants=f"{purpose[0].upper()}{purpose[1:]}.",
        # Linux answers that it has no such call, and an answer is too much: here nothing may come back at all.
        facts={"calls": [(hex(number), number, (BAD,) * 6) for number in numbers], "refusals": []},
    )(_try_each)
    for name, (purpose, numbers) in OTHER_ENTRIES.items()
    if MACHINE == "x86_64"
]

SURFACE += [
    attack(
        Reached,
        stopped_by="seccomp",
        control=ROOT,
        name="numbers_with_a_high_half",
        wants="Call what is refused by a number with bits that Linux does not read.",
        facts={
            "calls": [
                (name, HIGH | number, (BAD,) * 6)
                for name, number in (("mount", 165), ("setns", 308), ("unshare", 272), ("bpf", 321), ("ptrace", 101))
            ],
            "refusals": [EPERM, ENOSYS],
        },
    )(_try_each)
    for _ in range(MACHINE == "x86_64")
]

IOCTL = 16
REQUESTS: dict[str, tuple[str, dict[str, int]]] = {
    "requests_to_terminals": (
        "do to a terminal what no program needs: take the console, its keys, its lights",
        {
            "TIOCSTI": 0x5412, "TIOCLINUX": 0x541C, "TIOCCONS": 0x541D, "TIOCSETD": 0x5423, "TIOCVHANGUP": 0x5437,
            "KDSETMODE": 0x4B3A, "KDSKBENT": 0x4B47, "VT_ACTIVATE": 0x5606, "TIOCSSERIAL": 0x541F, "TIOCPKT": 0x5420,
        },
    ),
    "requests_to_file_systems": (
        "freeze, trim, encrypt or number file systems",
        {
            "FIFREEZE": 0xC0045877, "FITHAW": 0xC0045878, "FITRIM": 0xC0185879, "FS_IOC_SETFLAGS": 0x40086602,
            "FS_IOC_FSSETXATTR": 0x401C5820, "FS_IOC_SETVERSION": 0x40087602, "FS_IOC_FIEMAP": 0xC020660B,
            "FIBMAP": 1, "FIDEDUPERANGE": 0xC0189436, "EXT4_IOC_MOVE_EXT": 0xC028660F,
            "FS_IOC_ENABLE_VERITY": 0x40806685,
        },
    ),
    "requests_to_disks": (
        "read the tables of disks again, or speak to them directly",
        {
            "BLKRRPART": 0x125F, "BLKDISCARD": 0x1277, "SG_IO": 0x2285, "LOOP_SET_FD": 0x4C00,
            "LOOP_CTL_GET_FREE": 0x4C82,
        },
    ),
    "requests_to_networks": (
        "configure cards, bridges, tunnels and routes",
        {
            "SIOCSIFFLAGS": 0x8914, "SIOCSIFADDR": 0x8916, "SIOCADDRT": 0x890B, "SIOCBRADDBR": 0x89A0,
            "SIOCDEVPRIVATE": 0x89F0, "SIOCSIFNAME": 0x8923, "TUNSETIFF": 0x400454CA, "SIOCGSKNS": 0x894C,
            "SIOCADDTUNNEL": 0x89F1, "SIOCSHWTSTAMP": 0x89B0,
        },
    ),
    "requests_to_rare_devices": (
        "speak to devices that almost nobody uses",
        {
            "KVM_CREATE_VM": 0xAE01, "VHOST_SET_OWNER": 0xAF01, "UI_DEV_CREATE": 0x5501,
            "PERF_EVENT_IOC_ENABLE": 0x2400,
            "USERFAULTFD_NEW": 0xAA00, "NS_GET_USERNS": 0xB701, "NS_GET_PARENT": 0xB702, "RNDADDENTROPY": 0x40085203,
            "SECCOMP_IOCTL_NOTIF_RECV": 0xC0502100, "PTP_PEROUT_REQUEST": 0x40383D03,
        },
    ),
}  # fmt: skip

SURFACE += [
    attack(
        Reached,
        stopped_by="seccomp",
        name=f"{name}{ending}",
        wants=f"{purpose[0].upper()}{purpose[1:]}{', with a bit that Linux does not read' if high else ''}.",
        # Linux looks at the descriptor first, and finds none; a request that is refused does not get so far.
        facts={
            "calls": [(one, IOCTL, (BAD, number | high, BAD)) for one, number in requests.items()],
            "refusals": [EPERM, ENOTTY],
        },
    )(_try_each)
    for name, (purpose, requests) in REQUESTS.items()
    for ending, high in (("", 0), ("_with_a_high_half", HIGH))
    if MACHINE == "x86_64"
]

# prctl(2) and arch_prctl(2) as calls: option first. What Linux does not know it answers with EINVAL, and so do we.
PRCTL, ARCH_PRCTL = 157, 158
TRICKS: dict[str, tuple[str, dict[str, tuple[int, tuple[int, ...]]]]] = {
    "prctl_that_bares_the_memory": (
        "change who may look into its memory",
        {"PR_SET_DUMPABLE": (PRCTL, (4, 1, 0, 0, 0)), "PR_GET_TID_ADDRESS": (PRCTL, (40, BAD, 0, 0, 0))},
    ),
    "prctl_that_keeps_capabilities": (
        "keep capabilities over a change of user",
        {"PR_SET_KEEPCAPS": (PRCTL, (8, 0, 0, 0, 0))},
    ),
    "prctl_that_slows_the_processor": (
        "switch the processor's safeguards and clocks",
        {
            "PR_SET_TSC": (PRCTL, (26, 1, 0, 0, 0)), "PR_MCE_KILL": (PRCTL, (33, 0, 0, 0, 0)),
            "PR_GET_SPECULATION_CTRL": (PRCTL, (52, 0, 0, 0, 0)), "PR_MCE_KILL_GET": (PRCTL, (34, 0, 0, 0, 0)),
        },
    ),
    "prctl_that_counts": (
        "switch performance counters",
        {
            "PR_TASK_PERF_EVENTS_DISABLE": (PRCTL, (31, 0, 0, 0, 0)),
            "PR_TASK_PERF_EVENTS_ENABLE": (PRCTL, (32, 0, 0, 0, 0)),
        },
    ),
    "prctl_that_rewrites_calls": (
        "have its system calls handled by code of its own",
        {"PR_SET_SYSCALL_USER_DISPATCH": (PRCTL, (59, 0, 0, 0, 0))},
    ),
    "prctl_with_a_high_half": (
        "get a refused option through with a bit that Linux does not read",
        {
            "PR_SET_DUMPABLE": (PRCTL, (4 | HIGH, 1, 0, 0, 0)), "PR_SET_KEEPCAPS": (PRCTL, (8 | HIGH, 0, 0, 0, 0)),
            "PR_SET_SYSCALL_USER_DISPATCH": (PRCTL, (59 | HIGH, 0, 0, 0, 0)),
        },
    ),
    "arch_prctl_tricks": (
        "map code or hide instructions by the processor's own controls",
        {"ARCH_GET_UNTAG_MASK": (ARCH_PRCTL, (0x4001, BAD)), "ARCH_SET_CPUID": (ARCH_PRCTL, (0x1012, 1))},
    ),
}  # fmt: skip

SURFACE += [
    attack(
        Reached,
        stopped_by="seccomp",
        name=name,
        wants=f"{purpose[0].upper()}{purpose[1:]}.",
        facts={
            "calls": [(one, number, arguments) for one, (number, arguments) in calls.items()],
            "refusals": [EPERM, ENOSYS, EINVAL],
        },
    )(_try_each)
    for name, (purpose, calls) in TRICKS.items()
    if MACHINE == "x86_64"
]


def machine_code(code: bytes) -> int:
    """Run a few instructions; what they leave in the accumulator."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()


@attack(Loot, stopped_by="seccomp")
def the_thirty_two_bit_entry(target: Any) -> str:
    """Ask by int 0x80, where the numbers mean other calls than the filter thinks."""
    pid = machine_code(b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\xc3")  # getpid
    return f"Linux says: process {pid}"


@attack(Loot, stopped_by="seccomp")
def a_refused_call_by_the_thirty_two_bit_entry(target: Any) -> str:
    """Call mount by its 32-bit number, which is that of an allowed 64-bit call."""
    answer = machine_code(b"\x53\x31\xdb\x31\xc9\x31\xd2\xb8\x15\x00\x00\x00\xcd\x80\x5b\xc3")  # mount(0, 0, 0)
    return f"Linux says: {answer}" if answer != -ENOSYS else ""


def pair_with_terminal() -> tuple[int, int]:
    """A process group leader with a terminal of its own."""
    ours, theirs = pty.openpty()
    if os.getpid() != os.getsid(0):
        os.setsid()
    fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
    return ours, theirs


@attack(Loot, stopped_by="seccomp")
def type_into_a_terminal(target: Any) -> str:
    """Type commands into the terminal that one was started from: TIOCSTI."""
    _ours, theirs = pair_with_terminal()
    must(16, theirs, termios.TIOCSTI, b"x")
    return "typed"


@attack(Loot, stopped_by="seccomp")
def type_into_a_terminal_with_a_high_half(target: Any) -> str:
    """The same with a bit that Linux does not read: how Flatpak and snap were left in 2017 and 2019."""
    _ours, theirs = pair_with_terminal()
    must(16, theirs, termios.TIOCSTI | HIGH, b"x")
    return "typed"


@attack(Loot, stopped_by="seccomp")
def another_line_discipline(target: Any) -> str:
    """Have Linux speak another protocol on a terminal, most of which are as old as modems."""
    _ours, theirs = pty.openpty()
    must(16, theirs, 0x5423, array.array("i", [0]).tobytes())  # TIOCSETD
    return "set"


@attack(Loot, stopped_by="seccomp")
def the_owner_of_a_namespace(target: Any) -> str:
    """Ask a namespace for the namespaces above it, which are the host's: NS_GET_USERNS."""
    with open("/proc/self/ns/uts") as one:
        return f"descriptor {must(16, one.fileno(), 0xB701, 0) > 0}"


@attack(Loot, stopped_by="seccomp")
def the_random_devices_own_requests(target: Any) -> str:
    """Ask the random device how much it knows: RNDGETENTCNT."""
    with open("/dev/urandom") as one:
        return f"entropy {must(16, one.fileno(), 0x80045200, array.array('i', [0]).tobytes()) == 0}"


@attack(Loot, stopped_by="seccomp")
def the_disks_own_requests(target: Any) -> str:
    """Ask the file system where on the disk a file lies, and for its flags: FS_IOC_GETFLAGS."""
    with open(f"flags-{os.getpid()}", "w") as one:
        try:
            return f"flags {must(16, one.fileno(), 0x80086601, array.array('l', [0]).tobytes()) == 0}"
        finally:
            os.unlink(one.name)


@attack(Loot, stopped_by="seccomp", control=ROOT)
def an_immutable_file(target: Any) -> str:
    """Leave a file in the workspace that not even its owner can delete."""
    name = f"stone-{os.getpid()}"
    with open(name, "w") as one:
        must(16, one.fileno(), 0x40086602, array.array("l", [0x10]).tobytes())  # FS_IOC_SETFLAGS, immutable
        must(16, one.fileno(), 0x40086602, array.array("l", [0]).tobytes())
    os.unlink(name)
    return "left"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def a_network_card_of_its_own(target: Any) -> str:
    """Configure network interfaces: SIOCSIFFLAGS, the door to many old drivers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        must(16, one.fileno(), 0x8914, struct.pack("16sH22x", b"lo", 1))
    return "configured"


FAMILIES = {"AF_PACKET": (17, 3), "AF_NETLINK": (16, 3), "AF_VSOCK": (40, 1), "AF_XDP": (44, 3), "AF_KEY": (15, 3)}


@attack(Loot, stopped_by="seccomp", control=ROOT)
def sockets_of_rare_families(target: Any) -> list[int]:
    """Open sockets of the families that almost nobody uses: each is a protocol of its own inside of Linux."""
    made = []
    for family in range(64):
        if family not in (1, 2, 10):
            results = [call(41, family, kind, 0) for kind in (1, 2, 3, 5)]
            made += [family] if any(result >= 0 for result in results) else []
    return made


@attack(Loot, stopped_by="seccomp", control=ROOT)
def rare_families_with_a_high_half(target: Any) -> list[int]:
    """The same with bits that Linux does not read."""
    made = []
    for family in (16, 17, 40, 44):
        results = [call(41, family | high, kind, 0) for kind in (1, 2, 3) for high in (HIGH, 1 << 63)]
        made += [family] if any(result >= 0 for result in results) else []
    return made


@attack(Loot, stopped_by="seccomp", control=ROOT)
def a_raw_socket(target: Any) -> str:
    """Write packets by hand, also with a bit in the type that Linux does not read."""
    kinds = (3, 3 | HIGH)
    made = [kind for kind in kinds for protocol in (1, 6, 255) if call(41, socket.AF_INET, kind, protocol) >= 0]
    return f"{len(made)} made" if made else ""


@attack(Loot, stopped_by="seccomp")
def rare_protocols(target: Any) -> list[int]:
    """Open sockets of the common families for protocols that almost nobody uses: MPTCP, SCTP, UDP-Lite."""
    protocols = (132, 136, 262, 33)
    kinds = (1, 2, 5)
    return [protocol for protocol in protocols if any(call(41, 2, kind, protocol) >= 0 for kind in kinds)]


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def a_namespace_with_a_high_half(target: Any) -> str:
    """Be born in a namespace of its own, with a bit in the flags that Linux does not read."""
    pid = must(56, HIGH | 0x10000000 | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "born"


@attack(Workspace, stopped_by="seccomp")
def a_setuid_program_with_a_high_half(target: Any) -> str:
    """Set the set-user-ID bit with bits in the mode that Linux does not read."""
    must(85, target.name.encode(), 0o755)  # creat
    must(90, target.name.encode(), HIGH | 0o4755)  # chmod
    return "left"


@attack(Loot, stopped_by="seccomp", control=ROOT)
def a_device_with_a_high_half(target: Any) -> str:
    """Make a device node with bits in the mode that Linux does not read."""
    name = f"device-{os.getpid()}"
    must(133, name.encode(), HIGH | 0o020600, os.makedev(1, 5))
    os.unlink(name)
    return "made"


@attack(Loot, stopped_by="seccomp")
def memory_that_not_even_linux_sees(target: Any) -> str:
    """Hide memory from Linux itself, also from whoever looks for what an attack left."""
    return f"descriptor {must(447, 0) > 0}"  # memfd_secret


@attack(Loot, stopped_by="seccomp")
def watch_page_faults(target: Any) -> str:
    """Stop Linux in the middle of a copy, the lever of most races: userfaultfd."""
    return f"descriptor {must(323, 1) > 0}"  # UFFD_USER_MODE_ONLY


@attack(Loot, stopped_by="seccomp")
def an_asynchronous_ring(target: Any) -> str:
    """Have Linux open, read and connect on its behalf, where no filter sees the calls: io_uring."""
    return f"descriptor {must(425, 1, ctypes.create_string_buffer(120)) > 0}"


@attack(Loot, stopped_by="seccomp")
def a_performance_counter(target: Any) -> str:
    """Count what the processor does, and learn what others do on it."""
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0) + bytes(96), 112)
    attributes[40] = 0x60  # exclude_kernel, exclude_hv
    return f"descriptor {must(298, attributes, 0, BAD, BAD, 0) > 0}"

"""What the attacker wants: a right that the kernel does not have, as root, by a capability or by a namespace."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from typing import Any

from tests.escapes.attack import NAMESPACES, ORDINARY, ROOT, Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.targets import Loot, SetUid, Workspace
from tests.escapes.tools import call, first, must, read

# linux/sched.h
NEW = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "time": 0x00000080,
}


def test_gain_privilege(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


def _by_unshare(target: Any) -> str:
    """Make a namespace of its own."""
    must(272, target.flag)
    return "made"


def _by_clone(target: Any) -> str:
    """Be born in a namespace of its own."""
    pid = must(56, target.flag | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "born"


def _by_clone3(target: Any) -> str:
    """Be born in a namespace of its own, by the newer call."""
    arguments = struct.pack("11Q", target.flag, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    pid = must(435, ctypes.create_string_buffer(arguments), len(arguments))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "born"


WANTS = "Get a {name} namespace of its own by {call}, where it would be root, or reach code that only root reaches."
NAMESPACES_WANTED = [
    attack(
        Loot, stopped_by="seccomp", control=NAMESPACES, name=f"a_{name}_namespace_{function.__name__[1:]}",
        wants=WANTS.format(name=name, call=function.__name__[4:]), facts={"flag": flag},
    )(function)
    for name, flag in NEW.items()
    for function in (_by_unshare, _by_clone, _by_clone3)
    if not (name == "time" and function is _by_clone)
]  # fmt: skip


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def enter_the_namespaces_of_process_one(target: Any) -> str:
    """Move into the namespaces of process 1, which are those of the host where nothing stands between."""
    must(308, os.pidfd_open(os.getppid() if os.getpid() == 1 else os.getpid()), NEW["uts"])
    return "entered"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def mount_a_file_system(target: Any) -> str:
    """Mount a file system over a folder of the view."""
    must(165, b"none", b"/tmp", b"tmpfs", 0, None)
    return "mounted"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def mount_a_new_proc(target: Any) -> str:
    """Mount a second /proc without what hides in the first."""
    must(165, b"proc", b"/tmp", b"proc", 0, None)
    return "mounted"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def bind_a_folder_elsewhere(target: Any) -> str:
    """Show a read-only folder at a second place, where it could be written."""
    must(165, b"/usr", b"/tmp", None, 4096, None)
    return "bound"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def make_the_view_writable(target: Any) -> str:
    """Mount the root of the view again, without its read-only flag."""
    must(165, b"none", b"/", None, 4096 | 32, None)  # MS_BIND | MS_REMOUNT
    return "mounted again"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def uncover_what_lies_below(target: Any) -> str:
    """Unmount a folder, and find what was there before."""
    call(165, b"none", b"/tmp", b"tmpfs", 0, None)
    must(166, b"/tmp", 2)  # MNT_DETACH
    return "unmounted"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def mount_by_the_newer_calls(target: Any) -> str:
    """Make a file system by fsopen and fsmount, which older filters do not know."""
    context = must(430, b"tmpfs", 0)
    must(431, context, 6, None, None, 0)  # FSCONFIG_CMD_CREATE
    return f"mounted as {must(432, context, 0, 0) > 0}"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def clone_a_tree(target: Any) -> str:
    """Take a detached copy of a mount."""
    return f"copied as {must(428, -100, b'/', 0x8001) > 0}"  # OPEN_TREE_CLONE | AT_RECURSIVE


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def loosen_a_mount(target: Any) -> str:
    """Take the read-only flag off a mount by mount_setattr."""
    must(442, -100, b"/", 0, ctypes.create_string_buffer(struct.pack("4Q", 0, 2, 0, 0)), 32)  # clear NOSUID
    return "loosened"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def a_root_of_its_own(target: Any) -> str:
    """Change the root folder, the first half of the oldest way out of a chroot."""
    os.chroot(".")
    return "changed"


@attack(Loot, stopped_by="seccomp", control=ROOT)
def become_root_by_asking(target: Any) -> str:
    """Become user 0 by each call that can."""
    calls = ((105, 0), (113, 0, 0), (117, 0, 0, 0), (106, 0), (114, 0, 0), (119, 0, 0, 0))
    return first(lambda one=one: f"{one} gave {must(*one)}" for one in calls)


@attack(Loot, stopped_by="seccomp", control=ROOT)
def join_groups(target: Any) -> list[int]:
    """Become a member of the groups that may read the host's disks and logs."""
    os.setgroups([4, 6])
    return os.getgroups()


@attack(SetUid, stopped_by="privileges", control=ORDINARY)
def become_root_by_a_setuid_program(target: Any) -> str:
    """Start a program in the workspace that belongs to root and carries the set-user-ID bit."""
    return subprocess.run([target.program], capture_output=True, text=True, check=True).stdout


@attack(Workspace, stopped_by="seccomp")
def leave_a_setuid_program(target: Any) -> str:
    """Leave a program in the workspace that runs with its owner's rights, whoever starts it."""
    with open(target.name, "w") as file:
        file.write("#!/bin/sh")
    os.chmod(target.name, 0o4755)
    return "left"


@attack(Workspace, stopped_by="seccomp")
def create_a_setuid_program_at_once(target: Any) -> str:
    """Create a file whose very first mode has the set-user-ID bit."""
    os.umask(0)
    os.close(os.open(target.name, os.O_CREAT | os.O_WRONLY, 0o4755))
    return "left"


@attack(Workspace, stopped_by="seccomp")
def a_setuid_program_by_a_descriptor(target: Any) -> str:
    """Set the bit on an open file."""
    descriptor = os.open(target.name, os.O_CREAT | os.O_WRONLY, 0o755)
    os.fchmod(descriptor, 0o6755)
    return "left"


@attack(Workspace, stopped_by="seccomp")
def a_setuid_program_by_the_newest_call(target: Any) -> str:
    """Set the bit by fchmodat2, which no libseccomp of 2022 knows."""
    os.close(os.open(target.name, os.O_CREAT | os.O_WRONLY, 0o755))
    must(452, -100, target.name.encode(), 0o4755, 0)
    return "left"


@attack(Workspace, stopped_by="seccomp")
def a_setgid_folder(target: Any) -> str:
    """Leave a folder that gives its group to whatever is put into it."""
    os.mkdir(target.name)
    os.chmod(target.name, 0o2777)
    return "left"


@attack(Workspace, stopped_by="capabilities", control=ROOT)
def a_program_with_a_capability(target: Any) -> str:
    """Leave a program that gains a capability when somebody starts it."""
    with open(target.name, "w") as file:
        file.write("#!/bin/sh")
    os.setxattr(target.name, "security.capability", struct.pack("5I", 0x02000001, 1 << 21, 0, 0, 0))
    return "left"


@attack(Loot, stopped_by="capabilities", control=NAMESPACES, runs="cell")
def hold_a_capability(target: Any) -> str:
    """Still hold one of the capabilities that the sandbox was built with."""
    status = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
    return "".join(status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))


@attack(Loot, stopped_by="capabilities", control=NAMESPACES, runs="cell")
def a_port_that_only_root_may_have(target: Any) -> str:
    """Listen on a port below 1024."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 80))
        return "bound"


@attack(Loot, stopped_by="capabilities", control=NAMESPACES, runs="cell")
def the_firewall_of_its_network(target: Any) -> str:
    """Reach the firewall's code by setsockopt, as CVE-2021-22555 did; a capability in the own network is enough."""
    with socket.socket() as one:
        try:
            return repr(one.getsockopt(socket.SOL_IP, 64, 84))  # IPT_SO_GET_INFO
        except PermissionError:
            raise
        except OSError as error:
            return f"the firewall's own answer is {error.strerror}"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def raise_an_ambient_capability(target: Any) -> str:
    """Give capabilities to the programs it starts."""
    must(157, 47, 2, 10, 0, 0) if call(157, 47, 1, 10, 0, 0) < 0 else None  # PR_CAP_AMBIENT
    must(157, 24, 10, 0, 0, 0)  # PR_CAPBSET_DROP asks for CAP_SETPCAP
    return "changed"


@attack(Loot, stopped_by="seccomp", control=NAMESPACES)
def change_the_rules_for_root(target: Any) -> str:
    """Change the secure bits, by which a later setuid would keep its capabilities."""
    must(157, 28, 1, 0, 0, 0)  # PR_SET_SECUREBITS
    return "changed"


@attack(Loot, stopped_by="pid", control=NAMESPACES)
def write_a_setting_of_linux(target: Any) -> str:
    """Allow itself namespaces again, by a setting that the root of a user namespace may write."""
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("100")
    return "written"


@attack(Loot, stopped_by="pid", control=ROOT)
def choose_what_handles_crashes(target: Any) -> str:
    """Name a program that Linux starts, as root and outside, whenever something crashes."""
    value = read("/proc/sys/kernel/core_pattern")
    with open("/proc/sys/kernel/core_pattern", "w") as file:
        file.write(value)
    return "written"


@attack(Loot, stopped_by="landlock", control=NAMESPACES)
def map_another_user(target: Any) -> str:
    """Write a map of user ids once more."""
    descriptor = os.open("/proc/self/uid_map", os.O_WRONLY)
    os.close(descriptor)
    return "opened"


@attack(Loot, stopped_by="landlock")
def escape_the_memory_killer(target: Any) -> str:
    """Tell Linux whom to kill when memory runs out."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")
    return read("/proc/self/oom_score_adj")


@attack(Loot, stopped_by="landlock")
def feed_the_random_pool(target: Any) -> str:
    """Write to a device of the host's."""
    with open("/dev/urandom", "wb", 0) as file:
        return f"{file.write(bytes(8))} bytes"


@attack(Loot, stopped_by="seccomp")
def load_a_filter_that_lies(target: Any) -> str:
    """Load a seccomp filter of its own, which lets calls seem to succeed that did not."""
    must(157, 38, 1, 0, 0, 0)
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    must(317, 1, 0, ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(program))))
    return "loaded"


@attack(Loot, stopped_by="seccomp")
def load_a_filter_by_prctl(target: Any) -> str:
    """The same, by the older call."""
    must(157, 38, 1, 0, 0, 0)
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    must(157, 22, 2, ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(program))))
    return "loaded"


@attack(Loot, stopped_by="seccomp", control=ROOT)
def load_a_program_into_linux(target: Any) -> str:
    """Load an eBPF program."""
    code = ctypes.create_string_buffer(struct.pack("BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    words = struct.pack("IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence))
    return f"loaded as {must(321, 5, ctypes.create_string_buffer(words, 120), 120) > 0}"


@attack(Loot, stopped_by="mount", control=ROOT)
def a_virtual_machine(target: Any) -> str:
    """Open the devices by which one builds virtual machines, file systems, disks and network cards."""
    names = ("/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/loop-control", "/dev/loop0", "/dev/mapper/control")
    return first(lambda name=name: os.open(name, os.O_RDWR) and name for name in names)


@attack(Loot, stopped_by="mount", control=ROOT)
def leave_its_control_group(target: Any) -> str:
    """Move into a control group without limits."""
    files = ("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs")
    return first(lambda name=name: os.open(name, os.O_WRONLY) and name for name in files)


@attack(Loot, stopped_by="mount", control=ROOT)
def the_release_agent(target: Any) -> str:
    """Name a program that Linux starts outside when a control group empties, as in CVE-2022-0492."""
    value = read("/sys/fs/cgroup/memory/release_agent")
    with open("/sys/fs/cgroup/memory/release_agent", "w") as file:
        file.write(value)
    return "written"


@attack(Loot, stopped_by="mount", control=ROOT)
def programs_for_strange_files(target: Any) -> str:
    """Register an interpreter for files of a kind, which then runs for everybody."""
    must(165, b"none", b"/proc/sys/fs/binfmt_misc", b"binfmt_misc", 1, None)
    try:
        return str(os.listdir("/proc/sys/fs/binfmt_misc"))
    finally:
        call(166, b"/proc/sys/fs/binfmt_misc", 0)


@attack(Loot, stopped_by="seccomp")
def the_address_layout(target: Any) -> str:
    """Switch off the randomised address layout for what it starts, which makes a stolen pointer useful."""
    must(135, 0x0040000)  # personality, ADDR_NO_RANDOMIZE
    return "switched off"


@attack(Loot, stopped_by="seccomp", control=ROOT)
def give_a_file_away(target: Any) -> int:
    """Give a file in the workspace to root."""
    name = f"given-{os.getpid()}"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600))
    try:
        os.chown(name, 0, 12)
        return os.stat(name).st_gid == 12
    finally:
        os.unlink(name)

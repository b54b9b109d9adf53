"""What the attacker wants: what another kernel knows, writes or shows."""

from __future__ import annotations

import ctypes
import os
import re
import socket
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.targets import Memory, Neighbour, Output, PathFiles, Terminal
from tests.escapes.tools import first, must, read


def test_read_another_users_output(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


@attack(Neighbour, stopped_by="mount")
def in_its_workspace(target: Any) -> str:
    """Read a file in the folder of another notebook."""
    return read(target.folder + "/secret.txt")


@attack(Neighbour, stopped_by="mount")
def beside_the_own_workspace(target: Any) -> str:
    """Climb from the own workspace to that of another notebook."""
    return read("../" + os.path.basename(target.folder) + "/secret.txt")


@attack(Neighbour, stopped_by="mount")
def by_a_link_to_its_workspace(target: Any) -> str:
    """Leave a link to the other's folder in the own workspace, and read through it."""
    link = f"link-{os.getpid()}"
    os.symlink(target.folder, link)
    try:
        return read(link + "/secret.txt")
    finally:
        os.unlink(link)


@attack(Neighbour, stopped_by="pid")
def in_its_temporary_files(target: Any) -> str:
    """Read another kernel's /tmp through its /proc/PID/root."""
    return read(f"/proc/{target.kernel}/root/tmp/secret.txt")


@attack(Neighbour, stopped_by="pid")
def in_its_home(target: Any) -> str:
    """Read another kernel's home, where its history lies."""
    return read(f"/proc/{target.kernel}/root/home/user/secret.txt")


@attack(Neighbour, stopped_by="pid")
def in_its_shared_memory(target: Any) -> str:
    """Read what another kernel put into /dev/shm."""
    return read(f"/proc/{target.kernel}/root/dev/shm/secret.txt")


@attack(Neighbour, stopped_by="pid")
def in_its_working_folder(target: Any) -> str:
    """Enter the folder that another kernel works in."""
    return read(f"/proc/{target.kernel}/cwd/secret.txt")


@attack(Neighbour, stopped_by="pid")
def in_the_files_it_has_open(target: Any) -> str:
    """Open another kernel's descriptors a second time."""
    folder = f"/proc/{target.kernel}/fd"
    return "".join(read(f"{folder}/{name}", 4096) for name in os.listdir(folder) if regular(f"{folder}/{name}"))


def regular(path: str) -> bool:
    return os.path.isfile(path) and os.readlink(path).endswith("secret.txt")


@attack(Memory, stopped_by="pid")
def in_its_memory_by_proc(target: Any) -> str:
    """Read another process's memory through /proc/PID/mem."""
    with open(f"/proc/{target.pid}/mem", "rb", 0) as memory:
        memory.seek(target.address)
        return memory.read(32).decode()


@attack(Memory, stopped_by="pid")
def in_its_memory_by_a_call(target: Any) -> str:
    """Read another process's memory with process_vm_readv."""
    buffer = ctypes.create_string_buffer(32)
    mine = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 32)
    theirs = (ctypes.c_size_t * 2)(target.address, 32)
    must(310, target.pid, mine, 1, theirs, 1, 0)
    return buffer.raw.decode()


@attack(Memory, stopped_by="seccomp")
def in_its_memory_by_a_debugger(target: Any) -> str:
    """Attach to another process as a debugger does, and read its memory a word at a time."""
    must(101, 16, target.pid, 0, 0)  # ptrace, PTRACE_ATTACH
    os.waitpid(target.pid, 0x40000000)  # __WALL
    found = b""
    for offset in range(0, 32, 8):
        word = ctypes.c_long()
        must(101, 1, target.pid, target.address + offset, ctypes.byref(word))  # PTRACE_PEEKTEXT
        found += word.value.to_bytes(8, "little", signed=True)
    must(101, 17, target.pid, 0, 0)  # PTRACE_DETACH
    return found.decode()


@attack(Memory, stopped_by="seccomp")
def by_taking_its_descriptor(target: Any) -> str:
    """Take an open file out of another process with pidfd_getfd."""
    mine = must(438, os.pidfd_open(target.pid), target.descriptor, 0)
    return os.pread(mine, 100, 0).decode()


@attack(Memory, stopped_by="pid")
def in_its_environment(target: Any) -> str:
    """Read the environment that another process was started with."""
    return read(f"/proc/{target.pid}/environ")


@attack(Memory, stopped_by="pid")
def in_the_map_of_its_memory(target: Any) -> str:
    """Learn which files another process has mapped."""
    return read(f"/proc/{target.pid}/maps")


@attack(Output, stopped_by="mount")
def by_subscribing_to_its_output(target: Any) -> str:
    """Connect to the socket where another kernel publishes its output; to listen, no key is needed."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(target.iopub)
        peer.sendall(b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL".ljust(65, b"\0")[:65])
        return f"it greets with {len(peer.recv(64))} bytes"


@attack(Output, stopped_by="mount")
def by_finding_its_sockets(target: Any) -> list[str]:
    """List the folder in which the sockets of all kernels lie."""
    return os.listdir(os.path.dirname(target.iopub))


@attack(Output, stopped_by="net")
def by_the_list_of_sockets(target: Any) -> list[str]:
    """Learn the names of everybody's sockets from /proc/net/unix."""
    return re.findall(r"/\S*/clients/\S+", read("/proc/net/unix"))


@attack(PathFiles, stopped_by="mount", facts={"folder": "/tmp"})
def in_the_common_tmp(target: Any) -> str:
    """Read what another user left in /tmp."""
    return read(target.path)


@attack(PathFiles, stopped_by="mount", facts={"folder": "/dev/shm"})
def in_the_common_shared_memory(target: Any) -> str:
    """Read what another user left in /dev/shm."""
    return read(target.path)


@attack(PathFiles, stopped_by="mount", facts={"folder": "/var/tmp"})
def in_what_outlives_a_reboot(target: Any) -> str:
    """Read what another user left in /var/tmp."""
    return read(target.path)


@attack(Terminal, stopped_by="mount")
def on_its_terminal(target: Any) -> str:
    """Read what another user types into a terminal."""
    descriptor = os.open(target.path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    return os.read(descriptor, 100).decode()


@attack(Terminal, stopped_by="mount")
def on_any_terminal(target: Any) -> str:
    """Try every terminal there is."""
    numbers = range(int(os.path.basename(target.path)) + 8)
    return first(lambda number=number: read(f"/dev/pts/{number}", 100) for number in numbers)

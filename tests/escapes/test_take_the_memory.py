"""What the attacker wants: more of the machine's memory than was granted."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from isolated_python.policy.profile import MiB

from tests.escapes.attack import CGROUP, ROOT, Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.shares import LITTLE, MOST_MEMORY, MOST_SCRATCH, Taken
from tests.escapes.tools import call, must, read

MEMORY: dict[str, Any] = {
    "stopped_by": "cgroup",
    "needs": ("cgroup",),
    "control": CGROUP,
    "overrides": LITTLE,
    "facts": {"most": MOST_MEMORY, "wanted": 2 * MOST_MEMORY, "children": 8},
    "seconds": 30.0,
}
SCRATCH: dict[str, Any] = {
    "stopped_by": "mount",
    "overrides": LITTLE,
    "facts": {"most": MOST_SCRATCH, "wanted": 2 * MOST_SCRATCH},
}


def test_take_the_memory(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


def touched(memory: mmap.mmap, step: int = 4096) -> int:
    """Write to a page in every `step` bytes; how many there were."""
    pages = len(memory) // step
    for number in range(pages):
        memory[number * step] = 1
    return pages


def held_together(target: Any, hold: Callable[[Any, int], int]) -> int:
    """What children hold at one time: each takes its part and waits; those count that are alive in the end."""
    stay, go = os.pipe()
    children: dict[int, int] = {}
    held = 0
    try:
        for _ in range(target.children):
            said, say = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(go)
                os.write(say, str(hold(target, target.wanted // target.children)).encode())
                os.read(stay, 1)
                os._exit(0)
            os.close(say)
            children[pid] = said
        amounts = {pid: int(os.read(said, 20) or 0) for pid, said in children.items()}
        for pid, amount in amounts.items():
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                held += amount
            else:
                del children[pid]
    finally:
        os.close(go)
        for pid in children:
            os.waitpid(pid, 0)
    return held


KEPT: list[Any] = []  # by a child, until it ends


def in_anonymous_memory(target: Any, wanted: int) -> int:
    KEPT.append(mmap.mmap(-1, wanted))
    return touched(KEPT[-1]) * 4096


@attack(Taken, **MEMORY)
def a_balloon(target: Any) -> int:
    """Ask for memory and write to all of it."""
    return in_anonymous_memory(target, target.wanted)


@attack(Taken, **MEMORY)
def a_balloon_of_children(target: Any) -> int:
    """Let each of many children take a little."""
    return held_together(target, in_anonymous_memory)


@attack(Taken, **MEMORY)
def a_balloon_of_threads(target: Any) -> int:
    """Let many threads take memory at the same moment."""
    parts: list[int] = []
    each = target.wanted // target.children
    workers = [threading.Thread(target=lambda: parts.append(in_anonymous_memory(target, each))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(parts)


@attack(Taken, **MEMORY)
def memory_that_children_share(target: Any) -> int:
    """Take memory that is shared, and counted to nobody in particular."""
    memory = mmap.mmap(-1, target.wanted, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    pid = os.fork()
    if pid == 0:
        touched(memory)
        os._exit(0)
    os.waitpid(pid, 0)
    return touched(memory) * 4096


@attack(Taken, **MEMORY)
def memory_in_a_file_without_a_name(target: Any) -> int:
    """Fill a file that lies in no file system with a size: memfd_create."""
    file = os.memfd_create("balloon")
    return sum(os.write(file, bytes(MiB)) for _ in range(target.wanted // MiB))


@attack(Taken, **MEMORY)
def memory_that_stays_locked(target: Any) -> int:
    """Take memory and forbid Linux to take it back: mlockall for all that is to come, then a balloon."""
    call(151, 3)  # mlockall, MCL_CURRENT | MCL_FUTURE
    return in_anonymous_memory(target, target.wanted)


@attack(Taken, **MEMORY)
def memory_that_hides_from_the_killer(target: Any) -> int:
    """Take memory after asking Linux to spare it when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("0")
    except OSError:
        pass
    return held_together(target, in_anonymous_memory)


@attack(Taken, **MEMORY)
def the_file_cache(target: Any) -> int:
    """Keep a large file of the workspace in memory by mapping it."""
    name = f"cached-{os.getpid()}"
    with open(name, "w+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, target.wanted)
            memory = mmap.mmap(file.fileno(), target.wanted, prot=mmap.PROT_READ)
            sum(memory[number] for number in range(0, target.wanted, 4096))
            return int(read("/proc/self/statm").split()[2]) * 4096
        finally:
            os.unlink(name)


def in_pipes(target: Any, wanted: int) -> int:
    """Pipes as large as Linux makes them, and filled."""
    held = 0
    try:
        for _ in range(480):
            KEPT.append(os.pipe())
            write = KEPT[-1][1]
            call(72, write, 1031, MiB)  # fcntl, F_SETPIPE_SZ; beyond a user's share they stay small
            os.set_blocking(write, False)
            held += os.write(write, bytes(MiB))
            if held >= wanted:
                break
    except OSError:
        pass
    return held


@attack(Taken, **{**MEMORY, "facts": {**MEMORY["facts"], "children": 40}})
def memory_in_pipes(target: Any) -> int:
    """Fill pipes that nobody reads."""
    return held_together(target, in_pipes)


def filled(one: socket.socket) -> int:
    """Send until nobody takes any more."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MiB)
    one.setblocking(False)
    held = 0
    try:
        while True:
            held += one.send(bytes(65536))
    except BlockingIOError:
        return held


@attack(Taken, **MEMORY)
def memory_in_unix_sockets(target: Any) -> int:
    """Fill sockets that nobody reads."""
    held = 0
    try:
        while held < target.wanted:
            KEPT.append(socket.socketpair())
            held += filled(KEPT[-1][0]) + filled(KEPT[-1][1])
    except OSError:
        pass
    return held


# With cgroup v1 the smallest buffer of each socket is not counted, so that the number of descriptors is a limit, too.
@attack(Taken, **{**MEMORY, "overrides": {"resources": {**LITTLE["resources"], "open_files": 4096}}})
def memory_in_network_sockets(target: Any) -> int:
    """Fill connections to itself; what they hold, Linux may count to the machine as a whole."""
    held = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            while held < target.wanted:
                mine = socket.create_connection(listener.getsockname())
                KEPT.append((mine, listener.accept()[0]))
                held += filled(mine) + filled(KEPT[-1][1])
        except OSError:
            pass
    return held


@attack(Taken, **MEMORY)
def memory_in_page_tables(target: Any) -> int:
    """Touch one page in every two megabytes, so that Linux needs as much again for its tables."""
    memory = mmap.mmap(-1, target.wanted // 8192 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    memory.madvise(15)  # MADV_NOHUGEPAGE
    return touched(memory, 1 << 21) * 8192


@attack(Taken, **{**MEMORY, "stopped_by": "rlimits", "needs": (), "control": ROOT, "overrides": {},
                  "facts": {"most": 64 * MiB, "wanted": 96 * MiB}})  # fmt: skip
def more_locked_memory(target: Any) -> int:
    """Lock memory, so that everybody else's must go when memory runs out."""
    memory = mmap.mmap(-1, target.wanted)
    must(149, ctypes.addressof(ctypes.c_char.from_buffer(memory)), target.wanted)  # mlock
    return target.wanted


def written_to(folder: str, wanted: int) -> int:
    """How much of a file could be written there."""
    path, held = f"{folder}/fill-{os.getpid()}", 0
    with open(path, "wb", 0) as file:
        try:
            while held < wanted:
                held += file.write(bytes(MiB))
        except OSError:
            pass
        finally:
            os.unlink(path)
    return held


@attack(Taken, **SCRATCH)
def files_in_tmp(target: Any) -> int:
    """Fill /tmp, which is memory."""
    return written_to("/tmp", target.wanted)


@attack(Taken, **SCRATCH)
def files_in_the_home(target: Any) -> int:
    """Fill the home folder, which is memory."""
    return written_to(os.path.expanduser("~"), target.wanted)


@attack(Taken, **SCRATCH)
def files_in_shared_memory(target: Any) -> int:
    """Fill /dev/shm, which is memory."""
    return written_to("/dev/shm", target.wanted)


def named_in(folder: str, wanted: int) -> int:
    """How many empty files could be made there: each is a kilobyte of Linux's own memory."""
    place = f"{folder}/many-{os.getpid()}"
    os.mkdir(place)
    made = 0
    try:
        for made in range(wanted):
            os.close(os.open(f"{place}/{made}", os.O_CREAT | os.O_WRONLY))
    except OSError:
        pass
    finally:
        for name in os.listdir(place):
            os.unlink(f"{place}/{name}")
        os.rmdir(place)
    return made


@attack(Taken, **{**SCRATCH, "facts": {"most": 4096, "wanted": 5000}})
def many_files_in_tmp(target: Any) -> int:
    """Make empty files in /tmp, which take no space there and yet memory."""
    return named_in("/tmp", target.wanted)


@attack(Taken, **{**SCRATCH, "facts": {"most": 4096, "wanted": 5000}})
def many_files_in_shared_memory(target: Any) -> int:
    """Make empty files in /dev/shm."""
    return named_in("/dev/shm", target.wanted)

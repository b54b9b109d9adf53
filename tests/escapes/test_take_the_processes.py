"""What the attacker wants: so many processes, or other things of Linux's own, that nobody else gets any."""

from __future__ import annotations

import _thread
import ctypes
import os
import pty
import resource
import select
import signal
import struct
import subprocess
from collections.abc import Callable
from typing import Any

from tests.escapes.attack import CGROUP, Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.shares import FEW, ProcessOne, Taken
from tests.escapes.tools import must

PROCESSES: dict[str, Any] = {
    "stopped_by": "rlimits",
    "control": CGROUP,
    "overrides": FEW,
    "facts": {"most": 64, "wanted": 200},
}


def test_take_the_processes(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


def alive_together(wanted: int, make: Callable[[], int]) -> int:
    """How many children could be made, all of which wait for the end of a pipe."""
    stay, go = os.pipe()
    children: list[int] = []
    try:
        while len(children) < wanted:
            try:
                pid = make()
            except OSError:
                break
            if pid == 0:
                os.close(go)
                os.read(stay, 1)
                os._exit(0)
            children.append(pid)
    finally:
        os.close(go)
        for pid in children:
            os.waitpid(pid, 0x40000000)  # __WALL
    return len(children)


def tried(wanted: int, make: Callable[[], object]) -> int:
    """How often it worked."""
    for done in range(wanted):
        try:
            make()
        except OSError:
            return done
    return wanted


@attack(Taken, **PROCESSES)
def a_fork_bomb(target: Any) -> int:
    """Fork for as long as it works."""
    return alive_together(target.wanted, os.fork)


@attack(Taken, **PROCESSES)
def a_bomb_of_clones(target: Any) -> int:
    """The same with processes that send no signal when they end, which ordinary waiting does not find."""
    return alive_together(target.wanted, lambda: must(56, 0, 0, 0, 0, 0))


@attack(Taken, **PROCESSES)
def a_bomb_of_sessions(target: Any) -> int:
    """Fork children that each leave for a session of their own, where no interrupt finds them."""

    def make() -> int:
        pid = os.fork()
        if pid == 0:
            os.setsid()
        return pid

    return alive_together(target.wanted, make)


def branch(depth: int, say: int, stay: int) -> None:
    """Two children, each of which has two children."""
    for _ in range(2 if depth else 0):
        try:
            pid = os.fork()
        except OSError:
            continue
        if pid == 0:
            os.write(say, b"x")
            branch(depth - 1, say, stay)
            os.read(stay, 1)
            os._exit(0)


@attack(Taken, **PROCESSES)
def a_bomb_that_branches(target: Any) -> int:
    """Let every child fork again, so that whoever kills one has lost."""
    stay, go = os.pipe()
    said, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        branch(7, say, stay)
        os.read(stay, 1)
        os._exit(0)
    born = 0
    while select.select([said], [], [], 1.0)[0]:
        born += len(os.read(said, 4096))
    os.close(go)
    os.waitpid(pid, 0)
    return born


@attack(Taken, **PROCESSES)
def a_thread_bomb(target: Any) -> int:
    """Start threads for as long as it works."""
    gate = _thread.allocate_lock()
    gate.acquire()
    _thread.stack_size(1 << 16)
    started = 0
    try:
        while started < target.wanted:
            _thread.start_new_thread(gate.__enter__, ())
            started += 1
    except RuntimeError:
        pass
    for _ in range(started):
        gate.release() if gate.locked() else None
    return started


@attack(Taken, **PROCESSES)
def an_army_of_zombies(target: Any) -> int:
    """Never ask after children that have ended: each keeps its number."""
    children = []
    try:
        while len(children) < target.wanted:
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            children.append(pid)
    except OSError:
        pass
    for pid in children:
        os.waitpid(pid, 0)
    return len(children)


@attack(Taken, **PROCESSES)
def an_army_of_orphans(target: Any) -> int:
    """Start processes whose parents have ended, so that nobody knows whose they are."""
    stay, go = os.pipe()
    said, say = os.pipe()
    for _ in range(target.wanted):
        try:
            pid = os.fork()
        except OSError:
            break
        if pid == 0:
            os.close(go)
            try:
                if os.fork() == 0:
                    os.write(say, b"x")
                    os.read(stay, 1)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    os.close(say)
    os.close(go)
    born = b""
    while part := os.read(said, 4096):
        born += part
    return len(born)


@attack(Taken, **PROCESSES)
def an_army_of_programs(target: Any) -> int:
    """Start programs and let them wait."""
    held: list[Any] = []
    count = tried(target.wanted, lambda: held.append(subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)))
    for one in held:
        one.communicate()
    return count


@attack(Taken, **PROCESSES)
def more_processes_than_the_limit_by_raising_it(target: Any) -> int:
    """Raise the own limit first."""
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096))
    except (OSError, ValueError):
        pass
    return alive_together(target.wanted, os.fork)


@attack(Taken, stopped_by="rlimits", overrides={"resources": {"open_files": 256}}, facts={"most": 256, "wanted": 400})
def many_descriptors(target: Any) -> int:
    """Open more files than were granted, after raising the limit."""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
    except (OSError, ValueError):
        pass
    held = []

    def make() -> None:
        held.append(os.open("/dev/null", os.O_RDONLY))

    count = tried(target.wanted, make)
    for descriptor in held:
        os.close(descriptor)
    return count


@attack(Taken, stopped_by="mount", facts={"most": 128, "wanted": 160})
def all_the_terminals(target: Any) -> int:
    """Open terminals, of which the machine as a whole has so many and no more."""
    held = []

    def make() -> None:
        held.extend(pty.openpty())

    count = tried(target.wanted, make)
    for descriptor in held:
        os.close(descriptor)
    return count


@attack(Taken, stopped_by="user", facts={"most": 32, "wanted": 100})
def all_the_watchers_of_files(target: Any) -> int:
    """Take inotify instances, of which a user of the machine has 128, and all kernels may be one user."""
    held: list[int] = []
    count = tried(target.wanted, lambda: held.append(must(294, 0)))  # inotify_init1
    for descriptor in held:
        os.close(descriptor)
    return count


@attack(Taken, stopped_by="rlimits", facts={"most": 4096, "wanted": 6000})
def all_the_timers(target: Any) -> int:
    """Make timers, each a piece of Linux's own memory."""
    number = ctypes.create_string_buffer(4)
    made: list[int] = []

    def make() -> None:
        must(222, 0, None, number)  # timer_create
        made.append(struct.unpack("i", number.raw)[0])

    count = tried(target.wanted, make)
    for one in made:
        must(226, one)  # timer_delete
    return count


@attack(Taken, stopped_by="rlimits", facts={"most": 4096, "wanted": 6000})
def all_the_signals(target: Any) -> int:
    """Queue signals to itself and never take them."""
    real_time = signal.SIGRTMIN + 5
    signal.pthread_sigmask(signal.SIG_BLOCK, {real_time})
    information = ctypes.create_string_buffer(struct.pack("iii", real_time, 0, -1), 128)  # SI_QUEUE
    thread = _thread.get_native_id()
    count = tried(target.wanted, lambda: must(297, os.getpid(), thread, real_time, information))  # rt_tgsigqueueinfo
    while signal.sigtimedwait({real_time}, 0):
        pass
    return count


@attack(ProcessOne, stopped_by="pid")
def stop_process_one(target: Any) -> str:
    """Stop the process that ends the sandbox, so that nobody can."""
    os.kill(target.pid, signal.SIGSTOP)
    return "sent"


@attack(ProcessOne, stopped_by="pid")
def kill_process_one(target: Any) -> str:
    """Kill the process that collects the dead."""
    os.kill(target.pid, signal.SIGKILL)
    return "sent"

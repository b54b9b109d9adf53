"""What the attacker wants: to end, stop or slow down processes that are not its own."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import struct
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.targets import Victim
from tests.escapes.tools import must, read


def test_signal_other_processes(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


@attack(Victim, stopped_by="pid")
def kill_it_by_its_pid(target: Any) -> str:
    """Kill a process of the server's owner by the pid that the host knows it by."""
    os.kill(target.pid, signal.SIGKILL)
    return "sent"


@attack(Victim, stopped_by="pid")
def kill_its_group(target: Any) -> str:
    """Kill a process group of the owner's."""
    os.killpg(target.pid, signal.SIGKILL)
    return "sent"


@attack(Victim, stopped_by="pid")
def kill_it_by_a_pidfd(target: Any) -> str:
    """Open a process of the owner's as a descriptor and kill it by that."""
    signal.pidfd_send_signal(os.pidfd_open(target.pid), signal.SIGKILL)
    return "sent"


@attack(Victim, stopped_by="pid")
def stop_it(target: Any) -> str:
    """Stop a process of the owner's without ending it."""
    os.kill(target.pid, signal.SIGSTOP)
    return ""


@attack(Victim, stopped_by="pid")
def take_its_cpu_time(target: Any) -> str:
    """Lower another process's limits until Linux ends it."""
    resource.prlimit(target.pid, resource.RLIMIT_CPU, (0, 0))
    return "set"


@attack(Victim, stopped_by="pid")
def slow_it_down(target: Any) -> str:
    """Give another process the lowest priority there is."""
    os.setpriority(os.PRIO_PROCESS, target.pid, 19)
    return "set"


@attack(Victim, stopped_by="pid")
def see_its_command_line(target: Any) -> str:
    """Read the arguments of the host's processes, where people leave passwords."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.append(read(f"/proc/{name}/cmdline"))
            except OSError:
                pass
    return "\n".join(found)


@attack(Victim, stopped_by="pid")
def kill_one_of_its_threads(target: Any) -> str:
    """Kill a process by naming one of its threads."""
    must(234, target.pid, target.pid, signal.SIGKILL)  # tgkill
    return "sent"


@attack(Victim, stopped_by="pid")
def queue_a_signal_to_it(target: Any) -> str:
    """Send a signal with a payload that claims to come from a timer."""
    information = ctypes.create_string_buffer(struct.pack("iii", signal.SIGTERM, 0, -1), 128)  # SI_QUEUE
    must(129, target.pid, signal.SIGTERM, information)  # rt_sigqueueinfo
    return "sent"


@attack(Victim, stopped_by="pid")
def let_a_pipe_signal_it(target: Any) -> str:
    """Make another process the owner of a pipe, so that Linux signals it whenever there is something to read."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(read_end, 10, signal.SIGKILL)  # F_SETSIG
    fcntl.fcntl(read_end, fcntl.F_SETOWN, target.pid)
    fcntl.fcntl(read_end, fcntl.F_SETFL, os.O_ASYNC)
    os.write(write_end, b"x")
    return "sent"


@attack(Victim, stopped_by="pid")
def move_it_to_the_idle_class(target: Any) -> str:
    """Let another process run only when nobody else wants to."""
    os.sched_setscheduler(target.pid, os.SCHED_IDLE, os.sched_param(0))
    return "set"


@attack(Victim, stopped_by="pid")
def bind_it_to_one_core(target: Any) -> str:
    """Take all cores but one from another process."""
    os.sched_setaffinity(target.pid, {max(os.sched_getaffinity(0))})
    return "set"


@attack(Victim, stopped_by="pid")
def starve_its_disk(target: Any) -> str:
    """Give another process the idle class for reading and writing."""
    must(251, 1, target.pid, 3 << 13)  # ioprio_set, IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE
    return "set"


@attack(Victim, stopped_by="pid")
def take_its_descriptors(target: Any) -> str:
    """Lower the number of files that another process may open."""
    resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (3, 3))
    return "set"


@attack(Victim, stopped_by="seccomp")
def trace_it_and_leave_it_stopped(target: Any) -> str:
    """Seize another process as a debugger and never let it go on."""
    must(101, 0x4206, target.pid, 0, 0x00100000)  # ptrace, PTRACE_SEIZE, PTRACE_O_EXITKILL
    return "seized"


@attack(Victim, stopped_by="pid")
def offer_it_to_the_memory_killer(target: Any) -> str:
    """Make another process the first to die when memory runs out."""
    with open(f"/proc/{target.pid}/oom_score_adj", "w") as file:
        file.write("1000")
    return "set"

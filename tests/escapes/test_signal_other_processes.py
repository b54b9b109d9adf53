"""What the attacker wants: to end, stop or slow down processes that are not its own."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.targets import Victim
from tests.escapes.tools import read


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

"""What the attacker wants: more of the machine's processor than its share."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import time
from typing import Any

from tests.escapes.attack import ROOT, Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.shares import Taken
from tests.escapes.targets import Loot
from tests.escapes.tools import must, read

SLOWED: dict[str, Any] = {
    "stopped_by": "cgroup",
    "needs": ("cgroup",),
    "overrides": {"resources": {"cpu": 0.1}},
    "facts": {"most": 0.2, "windows": 6},  # cores; a window may hold what a period before it has left
    "seconds": 30.0,
}


def test_take_the_processor(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


def largest_share(windows: int, enough: float) -> float:
    """The most cores that this process had in any half second of several."""
    found = 0.0
    for _ in range(windows):
        began, used = time.monotonic(), time.process_time()
        while time.monotonic() - began < 0.5:
            pass
        found = max(found, (time.process_time() - used) / (time.monotonic() - began))
        if found > enough:
            break
    return found


@attack(Taken, **SLOWED)
def an_endless_loop(target: Any) -> float:
    """Compute without end."""
    return largest_share(target.windows, target.most)


@attack(Taken, **SLOWED)
def loops_in_many_processes(target: Any) -> float:
    """Compute in many processes, each of which takes its share."""
    began = time.monotonic()
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            while time.monotonic() - began < 2:
                pass
            os._exit(0)
    for _ in range(4):
        os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / (time.monotonic() - began)


@attack(Taken, **SLOWED)
def a_loop_in_a_session_of_its_own(target: Any) -> float:
    """Leave for a session of its own, to which Linux gives a share of its own."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        said = largest_share(target.windows, target.most)
        os._exit(min(100, int(100 * said)))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) / 100


def _scheduled(target: Any) -> str:
    """Run before everybody else, in a class that nobody ordinary may enter."""
    attributes = ctypes.create_string_buffer(struct.pack("IIQiIQQQ", 48, *target.attributes), 48)
    must(314, 0, attributes, 0)  # sched_setattr
    return "scheduled"


# policy, flags, nice, priority, runtime, deadline, period: sched_setattr(2)
SCHEDULED = [
    attack(
        Loot, stopped_by="user", control=ROOT, name=f"the_class_{name}", facts={"attributes": attributes},
        wants=f"Run {how}.",
    )(_scheduled)
    for name, how, attributes in (
        ("first_in_first_out", "until it gives the processor back of its own will", (1, 0, 0, 1, 0, 0, 0)),
        ("round_robin", "before everybody who is not of the same class", (2, 0, 0, 1, 0, 0, 0)),
        ("of_deadlines", "for as long as it says it must", (6, 0, 0, 0, 5_000_000, 10_000_000, 10_000_000)),
    )
]  # fmt: skip


@attack(Loot, stopped_by="user", control=ROOT)
def the_highest_priority(target: Any) -> str:
    """Be served twenty steps before everybody else."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return f"priority {os.getpriority(os.PRIO_PROCESS, 0)}"


@attack(Loot, stopped_by="rlimits", control=ROOT)
def a_priority_back(target: Any) -> str:
    """Give up priority, and take back more than there was."""
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    os.setpriority(os.PRIO_PROCESS, 0, -1)
    return "taken back"


@attack(Loot, stopped_by="user", control=ROOT)
def the_disk_before_everybody(target: Any) -> str:
    """Read and write in the real-time class of the disk."""
    must(251, 1, 0, 1 << 13)  # ioprio_set, IOPRIO_WHO_PROCESS, IOPRIO_CLASS_RT
    return "set"


@attack(Loot, stopped_by="landlock", control=ROOT)
def the_share_of_its_session(target: Any) -> str:
    """Raise the share of the whole session, which Linux keeps in a file of its own."""
    before = read("/proc/self/autogroup").split()[-1]
    with open("/proc/self/autogroup", "w") as file:
        file.write("-1")
    return f"was {before}"

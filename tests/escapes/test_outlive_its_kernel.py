"""What the attacker wants: to run when its kernel has ended, where nobody looks for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.shares import Survivor
from tests.escapes.tools import must

WAITS = "import signal\nwhile True: signal.pause()"
DEAF = """
import signal
for one in {*range(1, 65)} - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
    signal.signal(one, signal.SIG_IGN)
"""
HYDRA = """
import subprocess, sys
for _ in range(300):
    command = [sys.executable, "-I", "-S", "-c", "import signal; signal.pause()", sys.argv[1]]
    subprocess.Popen(command, start_new_session=True).wait()
"""


def test_outlive_its_kernel(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


def started(target: Any, code: str, **more: Any) -> subprocess.Popen[bytes]:
    """A program with the word on its command line, and with nothing of ours open."""
    null = subprocess.DEVNULL
    command = [sys.executable, "-I", "-S", "-c", code, target.word]
    return subprocess.Popen(command, stdin=null, stdout=null, stderr=null, **more)


@attack(Survivor, stopped_by="pid", alone=True)
def as_a_child(target: Any) -> str:
    """Leave a child behind."""
    return f"left {started(target, WAITS).pid}"


@attack(Survivor, stopped_by="pid", alone=True)
def as_a_daemon(target: Any) -> str:
    """Leave a process that has left its session, its group and its parent, as servers do."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        started(target, WAITS, start_new_session=True)
        os._exit(0)
    os.waitpid(pid, 0)
    return "left"


@attack(Survivor, stopped_by="pid", alone=True)
def deaf_to_every_signal(target: Any) -> str:
    """Leave a process that ignores every signal that can be ignored."""
    return f"left {started(target, DEAF + WAITS, start_new_session=True).pid}"


@attack(Survivor, stopped_by="pid", alone=True)
def stopped(target: Any) -> str:
    """Leave a process that is stopped, and hears of nothing until somebody wakes it."""
    one = started(target, WAITS, start_new_session=True)
    one.send_signal(signal.SIGSTOP)
    return f"left {one.pid}"


@attack(Survivor, stopped_by="pid", alone=True)
def as_an_heir(target: Any) -> str:
    """Leave a process that collects those whose parents have gone, in the place of process 1."""
    must(157, 36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    must(157, 1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG
    return as_a_daemon(target)


@attack(Survivor, stopped_by="pid", alone=True)
def as_a_crowd(target: Any) -> str:
    """Leave more processes than anybody kills one by one."""
    return f"left {len([started(target, WAITS, start_new_session=True) for _ in range(20)])}"


@attack(Survivor, stopped_by="pid", alone=True)
def as_a_hydra(target: Any) -> str:
    """Leave a process that starts another as soon as the last has been killed."""
    return f"left {started(target, HYDRA, start_new_session=True).pid}"


@attack(Survivor, stopped_by="pid", alone=True)
def as_a_program_of_another_name(target: Any) -> str:
    """Leave a program of the system's under another name."""
    null = subprocess.DEVNULL
    one = subprocess.Popen(
        ["[kworker/0:1]", target.word], executable="/usr/bin/yes", stdin=null, stdout=null, stderr=null
    )
    one.send_signal(signal.SIGSTOP)  # it would be busy
    return f"left {one.pid}"


@attack(Survivor, stopped_by="pid", alone=True)
def when_the_kernel_ends(target: Any) -> str:
    """Start only when the kernel is being ended: its end is what the process waits for."""
    code = "import os, select, sys; select.select([int(sys.argv[2])], [], [])\n" + WAITS
    read_end, _write_end = os.pipe()
    null = subprocess.DEVNULL
    command = [sys.executable, "-I", "-S", "-c", code, target.word, str(read_end)]
    one = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, pass_fds=(read_end,), start_new_session=True)
    return f"left {one.pid}"

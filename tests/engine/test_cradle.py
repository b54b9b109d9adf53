"""The cradle has a group for whoever asks, as soon as there can be one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
from isolated_python.engine.cradle import Cradle
from isolated_python.engine.loop import Loop
from isolated_python.engine.mover import Mover
from isolated_python.errors import HostError
from isolated_python.layers import cgroup
from isolated_python.layers.cgroup import v2


def run(loop: Loop, mover: Mover) -> None:
    """Until somebody has heard enough."""
    try:
        loop.run()
    except SystemExit:
        mover.close()
    os.wait()


def test_a_group_that_could_not_be_made_once_is_made_for_the_next_who_asks(tmp_path: Path) -> None:
    """Too many groups, or a mover that was killed: one start is refused, and not every start from then on."""
    (tmp_path / "cgroup.procs").touch()
    loop, results = Loop(), iter([HostError("not now", remedy="try again"), v2.Group(str(tmp_path), "kernel")])
    mover = Mover(loop)

    def make() -> cgroup.Group:
        match next(results):
            case HostError() as error:
                raise error
            case group:
                return group

    heard = []

    def want(found: cgroup.Group | HostError) -> bool:
        heard.append(found)
        raise SystemExit

    cradle = Cradle(mover, make, os.getpid())
    cradle.go_on()
    cradle.ask(want)
    run(loop, mover)

    assert [type(found) for found in heard] == [v2.Group]
    assert (tmp_path / "cgroup.procs").read_text() == str(os.getpid())


def test_nobody_is_born_where_the_zygote_has_grown(tmp_path: Path) -> None:
    """What it imports after its first birth lies in a group of its own, which goes unused."""
    loop, made, heard = Loop(), [], []
    mover = Mover(loop)

    def make() -> cgroup.Group:
        place = tmp_path / f"kernel-{len(made) + 1}"
        place.mkdir()
        (place / "cgroup.procs").touch()
        made.append(v2.Group(str(place), place.name))
        return made[-1]

    def it_stands_there(found: cgroup.Group | HostError) -> bool:
        heard.append(found)
        cradle.renew()
        cradle.ask(want)
        return False

    def want(found: cgroup.Group | HostError) -> bool:
        heard.append(found)
        raise SystemExit

    cradle = Cradle(mover, make, os.getpid())
    cradle.go_on()
    cradle.ask(it_stands_there)
    run(loop, mover)

    assert heard == made
    assert (tmp_path / "kernel-2" / "cgroup.procs").read_text() == str(os.getpid())


def test_a_pid_that_waits_to_be_moved_is_given_to_nobody_else(tmp_path: Path) -> None:
    """A zygote ends while the mover has still to write its pid into a group: whoever got that pid would be moved."""
    (tmp_path / "cgroup.procs").touch()
    loop, others = Loop(), psutil.Process().children()
    mover = Mover(loop)
    (helper,) = (one for one in psutil.Process().children() if one not in others)
    zygote = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    cradle = Cradle(mover, lambda: v2.Group(str(tmp_path), "kernel"), zygote.pid)
    heard = []

    def is_ours() -> bool:
        """Whether the pid is that of a child of ours, if only of one that has ended."""
        try:
            os.waitid(os.P_PID, zygote.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def ended(reap: Callable[[], None]) -> None:
        cradle.end(reap)
        heard.append(is_ours())
        cradle.go_on()  # what it said last is heard now
        helper.resume()

    def look() -> None:
        if is_ours():
            loop.later(0.01, look)
        else:
            raise SystemExit

    helper.suspend()
    cradle.go_on()
    loop.at_end_unreaped(zygote.pid, ended)
    loop.later(0, look)
    zygote.kill()
    run(loop, mover)

    assert heard == [True]
    assert (tmp_path / "cgroup.procs").read_text() == str(zygote.pid)
    zygote.returncode = -9
    assert zygote.stdin is not None
    zygote.stdin.close()


def test_who_asks_a_mover_that_has_just_ended_is_told_so() -> None:
    """Nobody has noticed yet; a supervisor must not end for it, and the next mover serves whoever comes next."""
    loop = Loop()
    mover = Mover(loop)
    pid = int(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1])
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    heard: list[str] = []

    def then(error: str) -> None:
        heard.append(error)
        raise SystemExit

    mover.soon()
    mover.move(os.getpid(), [os.open(os.devnull, os.O_WRONLY)], then)
    run(loop, mover)
    assert heard == ["the helper that does it has ended"]

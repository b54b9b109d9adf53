"""kill -9 of each of our processes in turn: what should go goes within seconds, nothing is left, all else goes on."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Ordinary
from tests.kernel.conftest import (
    SOON,
    Server,
    cgroups_of,
    commands,
    environment,
    has_cgroup,
    outlive,
    serve,
    soon,
    watched,
)

ONE = {"kernel", "init"}  # victims whose kernel ends, and no other
REPLACED = {"zygote", "relay", "mover"}  # victims that no kernel misses


def processes(server: Server, *inits: int) -> dict[str, int]:
    """Of our own processes, the pid by name; `inits` are those of kernels."""
    supervisor = psutil.Process(server.ask("supervisor")["pid"])
    found = {"server": server.process.pid, "supervisor": supervisor.pid}
    for pid, words in commands(supervisor.children()).items():
        if pid not in inits:  # who is forked from the zygote has its command line, and so has the mover
            name = {"launcher.zygote": "zygote", "relay.broker": "relay", "engine.supervisor": "mover"}
            found[next(name[word] for word in name if word in words)] = pid
    return found


def left(pid: int, folder: str) -> dict[str, Any]:
    """What there is of a supervisor, by kind."""
    try:
        one = psutil.Process(pid)
        return {
            "children": len(one.children()),
            "zombies": [child.pid for child in one.children() if child.status() == psutil.STATUS_ZOMBIE],
            "descriptors": one.num_fds(),
            "mounts": len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()),
            "sockets": sorted(len(os.listdir(f"{folder}/{part}")) for part in ("clients", "kernels")),
            "cgroups": len(cgroups_of(pid)),
        }
    except (psutil.Error, OSError):  # it has gone, or is just going
        return {"folder": os.path.exists(folder), "cgroups": cgroups_of(pid)}


def prepared(pid: int) -> None:
    """Waits until the zygote has imported all it means to: it leaves the group where it grew for another, the third.

    For a server's first kernel. An ordinary user's zygote on a host with version 1 stands in none.
    """

    def groups() -> set[str]:
        return {os.path.basename(path) for path in cgroups_of(pid)} & {"kernel-1", "kernel-2", "kernel-3"}

    soon(lambda: groups() in ({"kernel-1", "kernel-3"}, set()), True)


@pytest.mark.parametrize("victim", ["kernel", "init", "zygote", "relay", "mover", "supervisor", "server"])
def test_who_is_killed_takes_along_what_hangs_on_it_and_nothing_else(server: Server, victim: str) -> None:
    server.start("b", pool=False)
    where = server.ask("supervisor")
    supervisor, folder = where["pid"], where["folder"]
    server.text("x = 41", "b")
    prepared(supervisor)
    alone = left(supervisor, folder)
    init = server.start("a", pool=False)["pid"]
    # With a child in a session of its own that listens to no signal.
    stubborn = "import os, signal\nif not os.fork(): os.setsid(); signal.signal(15, signal.SIG_IGN); signal.pause()"
    server.text(stubborn, "a")
    both = left(supervisor, folder)
    kernel = psutil.Process(init).children()[0]
    inside = watched([psutil.Process(init), *psutil.Process(init).children(recursive=True)])
    everybody = watched(server.ours())
    inits = [one.pid for one in psutil.Process(supervisor).children() if one.children()]
    pids = {**processes(server, *inits), "kernel": kernel.pid, "init": init}

    os.kill(pids[victim], signal.SIGKILL)

    if victim in ONE:
        assert not outlive(inside, SOON)
        assert server.ask("ended", name="a")["status"] == -signal.SIGKILL
        assert server.ask("alive", name="a") == {"alive": False}
        server.ask("stop", name="a", now=True)
        soon(lambda: left(supervisor, folder), alone)
    elif victim in REPLACED:
        for name in ("a", "b"):
            assert "error" not in server.ask("ready", name=name)  # clients connect again by themselves
        server.text("print(os.getpid())", "a")
        server.start("c", pool=False)
        assert server.text("print(1)", "c") == "1"
        server.ask("stop", name="c", now=True)
        soon(lambda: left(supervisor, folder), both)
    else:
        assert not outlive(everybody, SOON)
        soon(lambda: left(supervisor, folder), {"folder": False, "cgroups": []})
    if victim == "supervisor":
        assert server.ask("alive", name="b") == {"alive": False}
        server.start("c", pool=False)  # by another
        assert server.text("print(1)", "c") == "1"
    elif victim != "server":
        assert server.text("print(x + 1)", "b") == "42"


def test_a_server_that_ends_together_with_its_supervisor_is_told_nothing_of_it(server: Server) -> None:
    """As systemd stops a unit. jupyter_server, when a signal to a kernel fails, gives up ending and stays."""
    server.start()
    assert server.ask("interrupt_as_all_ends", name="kernel") == {}
    assert server.ask("alive", name="kernel") == {"alive": False}
    server.ask("stop", name="kernel")


def test_who_is_stopped_ends_with_its_supervisor_all_the_same(server: Server) -> None:
    """It cannot notice that its supervisor was killed; and nobody sweeps, since server and mover are stopped, too."""
    init = server.start("a", pool=False)["pid"]
    supervisor = psutil.Process(server.ask("supervisor")["pid"])
    pids = processes(server, init)
    everybody = watched([one for one in supervisor.children(recursive=True) if one.pid != pids["mover"]])
    stopped = [init, *(pids[name] for name in ("zygote", "relay", "mover", "server"))]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        supervisor.kill()
        assert not outlive(everybody, SOON)
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# A child when it is imported, and another at the first fork, which is the first kernel's.
HOSTILE = """
import os, signal, sys

def child():
    if os.fork() == 0:
        os.setsid()
        os.closerange(3, 1024)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()

def forked():
    forks.append(1)
    if len(forks) == 1:
        child()

forks = []
if "launcher.zygote" in " ".join(sys.orig_argv):
    child()
    os.register_at_fork(after_in_parent=forked)
"""


def test_what_an_environment_starts_in_a_zygote_is_never_out_of_reach(life: bool, ordinary: Ordinary) -> None:
    """What it starts as it is imported ends with the import, and all else with the supervisor, also one that is killed
    while nobody can sweep.
    """
    if not has_cgroup(root=life):
        pytest.skip("an ordinary user has no cgroup on this host")
    with environment("/var/tmp", HOSTILE) as python, serve(life, ordinary, python=python) as server:
        init = server.start("a")["pid"]
        supervisor, zygote = (psutil.Process(processes(server, init)[name]) for name in ("supervisor", "zygote"))
        soon(lambda: sum(one.status() != psutil.STATUS_ZOMBIE for one in zygote.children()), 1)
        everybody = watched(supervisor.children(recursive=True))
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            supervisor.kill()
            assert not outlive(everybody, SOON)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)


@pytest.mark.parametrize("then", ["given up", "killed"])
def test_a_start_that_ends_before_its_kernel_is_born_leaves_nothing(server: Server, then: str) -> None:
    """Its zygote has the order, and has not carried it out: the person gives up, or the zygote is killed."""
    server.start("b", pool=False)
    where = server.ask("supervisor")
    prepared(where["pid"])
    before = left(where["pid"], where["folder"])
    inits = [one.pid for one in psutil.Process(where["pid"]).children() if one.children()]
    zygote = processes(server, *inits)["zygote"]
    os.kill(zygote, signal.SIGSTOP)
    try:
        begun = server.ask("begin", name="a", **server.wanted(pool=False))["id"]
        if then == "given up":
            server.ask("forget", id=begun)
        else:
            os.kill(zygote, signal.SIGKILL)
        assert "could not be started" in server.ask("begun")["error"]
        assert ["could not be started" in one["reason"] for one in server.records("start-refused")] == [True]
    finally:
        with suppress(ProcessLookupError):
            os.kill(zygote, signal.SIGCONT)
    server.start("c", pool=False)  # from the same zygote, or from another
    server.ask("stop", name="c", now=True)
    soon(lambda: left(where["pid"], where["folder"]), before)
    assert server.text("print(1)", "b") == "1"


def test_the_lock_of_host_identities_goes_with_the_last_supervisor(ordinary: Ordinary) -> None:
    """One that is killed leaves it to the next, which removes it when it ends."""
    if os.geteuid() != 0:
        pytest.skip("needs root, and these tests are run without")
    folder = ordinary.home / "identities"
    with serve(True, ordinary) as server:
        server.ask("identities", folder=str(folder))
        server.start("a")
        os.kill(server.ask("supervisor")["pid"], signal.SIGKILL)
        server.ask("ended", name="a")
        server.start("b")
        assert os.listdir(folder) == ["lock"]
    assert not folder.exists()

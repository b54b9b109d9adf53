"""What a kernel and all it starts may use together: each limit holds, and the cell that meets it is told its name."""

from __future__ import annotations

import select
import time
from pathlib import Path

import psutil
import pytest
from isolated_python.engine.weights import ANSWERS, COMPUTES
from isolated_python.linux import cgroups

from tests.kernel.conftest import Server

MEMORY = {"resources": {"memory": "200 MiB", "tmp": "40 MiB", "shm": "16 MiB"}}


def test_more_memory_than_granted_is_told_in_the_cell(limited: Server) -> None:
    """The kernel dies, and the cell says of what: the limit, what was used, the key of the profile."""
    limited.start(overrides=MEMORY)
    answer = limited.run("x = bytearray(400 << 20)")
    assert answer["status"] == "error"
    assert "200 MiB of memory" in answer["text"]
    assert "resources.memory" in answer["text"]
    assert limited.ask("ended", name="kernel")["status"] == -9


def test_a_child_that_needs_too_much_memory_dies_alone(limited: Server) -> None:
    limited.start(overrides=MEMORY)
    code = (
        "import os\nif not (child := os.fork()): x = bytearray(400 << 20); os._exit(0)\nprint(os.waitpid(child, 0)[1])"
    )
    assert limited.text(code) == "9"
    assert limited.text("print('still here')") == "still here"


def test_neighbours_of_one_that_needs_too_much_go_on(limited: Server) -> None:
    limited.start("a", overrides=MEMORY)
    limited.start("b")
    limited.text("x = 1", "b")
    assert "resources.memory" in limited.run("x = bytearray(400 << 20)", "a")["text"]
    assert limited.text("print(x)", "b") == "1"


def test_more_cpu_time_than_granted_is_told_in_the_cell(limited: Server) -> None:
    """Counted for all its processes together: here two children burn it while the kernel waits."""
    limited.start(overrides={"resources": {"cpu_time": "4 s"}})
    code = "import os\nfor _ in range(2):\n    if not os.fork():\n        while True: pass\nos.wait()"
    answer = limited.run(code)
    assert answer["status"] == "error"
    assert "resources.cpu_time" in answer["text"]


def test_who_answers_comes_before_who_computes(limited: Server) -> None:
    """A kernel that spins has an eighth of the weight of one that does not, and gets it back when it has ended."""
    limited.start("spins")
    limited.start("answers")

    def weighs(name: str, wanted: int) -> bool:
        until = time.monotonic() + 30
        while limited.ask("listed", name=name)["cpu_weight"] != wanted:
            assert time.monotonic() < until, "its weight does not change"
        return True

    code = "import threading\nspin = True\ndef work():\n    while spin: pass\nthreading.Thread(target=work).start()"
    limited.text(code, "spins")
    assert weighs("spins", COMPUTES)
    assert weighs("answers", ANSWERS)
    limited.text("spin = False", "spins")
    assert weighs("spins", ANSWERS)


def test_a_share_of_a_core_is_no_more_than_that(limited: Server) -> None:
    """Two processes that want a core each get the granted half of one together."""
    limited.start(overrides={"resources": {"cpu": 0.5}})
    code = (
        "import os, time\n"
        "def busy():\n    end = time.monotonic() + 4\n    while time.monotonic() < end: pass\n    os._exit(0)\n"
        "before, used = time.monotonic(), lambda: sum(os.times()[2:4])\n"
        "for _ in range(2):\n    if not os.fork(): busy()\n"
        "os.wait(); os.wait()\n"
        "print(used() / (time.monotonic() - before))"
    )
    assert float(limited.text(code)) < 0.75


def test_a_storm_of_forks_ends_at_its_limit(limited: Server) -> None:
    """One process too many is refused, and the limit named; when the others are gone, there is room again."""
    limited.start(overrides={"resources": {"processes": 40}})
    code = (
        "import os, signal\npids = []\ntry:\n"
        "    while True:\n        pids.append(os.fork())\n        if not pids[-1]: signal.pause()\n"
        "finally:\n    for pid in pids: os.kill(pid, 9); os.waitpid(pid, 0)"
    )
    answer = limited.run(code)
    assert "BlockingIOError" in answer["text"], answer
    assert "resources.processes" in answer["text"]
    assert limited.text("print(len(pids) < 40, os.system('true'))") == "True 0"


def test_the_kernel_says_what_it_was_given(limited: Server) -> None:
    """Linux's own files of the kernel's group, as they are read outside; swap is not granted."""
    pid = limited.start(overrides={"resources": {"memory": "1500 MiB", "processes": 77, "cpu": 1.5}})["pid"]
    group = group_of(pid)
    if (group["memory"] / "memory.max").exists():
        wanted = {"memory.max": str(1500 << 20), "pids.max": "77", "cpu.max": "150000 100000"}
        wanted |= {"memory.swap.max": "0"} if (group["memory"] / "memory.swap.max").exists() else {}
    else:
        wanted = {"memory.limit_in_bytes": str(1500 << 20), "pids.max": "77", "cpu.cfs_quota_us": "150000"}
    found = {name: (group[name.partition(".")[0]] / name).read_text().strip() for name in wanted}
    assert found == wanted


def test_every_process_of_a_kernel_is_in_its_group(limited: Server) -> None:
    pid = limited.start()["pid"]
    limited.text("import os, signal\nif not (child := os.fork()): signal.pause()")
    inside = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    assert len(inside) == 3
    wanted = group_of(pid)
    assert all(group_of(one) == wanted for one in inside)
    assert group_of(limited.ask("supervisor")["pid"]) != wanted
    limited.text("os.kill(child, 9); os.waitpid(child, 0)")


def test_a_stopped_kernel_leaves_no_group(limited: Server) -> None:
    """Nor does one that left a child in a session of its own, deaf to whom it can be."""
    pid = limited.start()["pid"]
    folders = group_of(pid)
    code = "import os, signal\nif not os.fork():\n    os.setsid(); signal.signal(15, signal.SIG_IGN); signal.pause()"
    limited.text(code)
    limited.ask("stop", name="kernel", now=True)
    assert not left_after(5, {*folders.values()})  # its last process may be just leaving


def test_a_killed_mover_is_replaced(limited: Server) -> None:
    """Who moves zygotes into groups is a fork of the supervisor; the kernels after the next have theirs by another."""
    limited.start("a", pool=False)
    supervisor = psutil.Process(limited.ask("supervisor")["pid"])
    (mover,) = (child for child in supervisor.children() if child.cmdline() == supervisor.cmdline())
    mover.kill()
    psutil.wait_procs([mover], timeout=5)
    for name in ("b", "c"):
        pid = limited.start(name, overrides=MEMORY, pool=False)["pid"]
        assert group_of(pid) != group_of(supervisor.pid)
        assert "resources.memory" in limited.run("x = bytearray(400 << 20)", name)["text"]
    assert limited.text("print(1)", "a") == "1"


def test_without_a_cgroup_the_start_is_refused_and_says_what_to_do(server: Server) -> None:
    """Limits cannot be kept for an ordinary user without a user manager: nothing runs unless the profile says so."""
    if server.cgroup:
        pytest.skip("here is a cgroup for whoever runs the tests")
    error = server.refused(overrides={"layers": {"cgroup": "require"}})["error"]
    assert error.startswith("HostError: ")
    assert 'cgroup = "prefer"' in error
    server.start()
    assert server.text("print(1)") == "1"


def left_after(seconds: float, folders: set[Path]) -> list[Path]:
    """Which groups are still there; waits for them to go, at most so long."""
    end = time.monotonic() + seconds
    while any(folder.exists() for folder in folders) and time.monotonic() < end:
        select.poll().poll(20)  # Linux tells nobody that a group is removed
    return [folder for folder in folders if folder.exists()]


def group_of(pid: int) -> dict[str, Path]:
    """Where a process stands, for each of the controllers that limit it."""
    own = cgroups.own(pid)
    folders = dict.fromkeys(("memory", "pids", "cpu"), own.v2) | dict(own.v1)
    return {name: Path(folders[name]) for name in ("memory", "pids", "cpu")}

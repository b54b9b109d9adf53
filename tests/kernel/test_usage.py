"""What a kernel uses is told from its cgroup: to whoever asks by usage_request, and by `list`."""

from __future__ import annotations

import sys
from typing import Any

import psutil

from tests.kernel.conftest import Server

LIMITS = {"resources": {"memory": "600 MiB", "processes": 90, "cpu": 0.5, "tmp": "40 MiB", "shm": "16 MiB"}}


def usage(server: Server, name: str = "kernel") -> dict[str, Any]:
    answer = server.ask("request", name=name, channel="control", type="usage_request", content={})
    return answer["content"]  # type: ignore[no-any-return]


def test_a_usage_request_is_answered_with_what_the_sandbox_uses_and_may_use(limited: Server) -> None:
    """In ipykernel's words, which the usual extensions read; its children and its files in memory are counted."""
    limited.start(overrides=LIMITS)
    limited.text("import os, signal, time")  # what a kernel starts for its first cell stands
    before = usage(limited)
    limited.text("x = b'x' * (150 << 20)\nopen('/tmp/big', 'wb').write(bytes(20 << 20)) and None")
    limited.text("import os, signal\nfor _ in range(5):\n    if not os.fork(): signal.pause()")
    limited.text("import time; end = time.process_time() + 1\nwhile time.process_time() < end: pass")
    after = usage(limited)

    assert (after["hostname"], after["pid"], after["cpu_count"]) == ("sandbox", 2, 1)
    assert after["kernel_memory"] - before["kernel_memory"] > 160 << 20
    assert after["kernel_cpu"] > 1
    assert 0 < after["host_cpu_percent"] <= 100
    memory = after["host_virtual_memory"]
    assert {"total", "available", "percent", "used", "free", "active", "inactive", "wired"} == {*memory}
    assert (memory["total"], memory["used"]) == (600 << 20, after["kernel_memory"])
    assert memory["used"] + memory["available"] <= memory["total"]
    assert after["sandbox"]["processes"] == before["sandbox"]["processes"] + 5
    assert after["sandbox"]["limits"] == {"memory": 600 << 20, "processes": 90, "cpu": 0.5}
    listed = limited.ask("listed", name="kernel")
    assert listed["limits"] == after["sandbox"]["limits"]
    assert listed["processes"] == after["sandbox"]["processes"]
    assert abs(listed["memory"] - after["kernel_memory"]) < 50 << 20


def test_a_kernel_that_listens_to_nobody_is_asked_nothing(limited: Server) -> None:
    """The answer does not hang on the kernel: it comes while a stopped one does nothing. Every client gets its own."""
    init = psutil.Process(limited.start("kernel")["pid"])
    limited.ask("connect", name="kernel", **{"as": "second"})
    # What a cell prints just before it stops itself would stay inside.
    limited.text("import os, signal, threading\nthreading.Timer(0.3, os.kill, (0, signal.SIGSTOP)).start()")
    while init.children()[0].status() != psutil.STATUS_STOPPED:
        continue
    for name in ("kernel", "second", "kernel"):
        assert usage(limited, name)["kernel_memory"] > 1 << 20


def test_usage_of_a_kernel_of_another_program_and_of_one_that_was_restarted(limited: Server) -> None:
    program = "from ipykernel.kernelapp import launch_new_instance as launch; launch()"
    limited.start(spec={"argv": [sys.executable, "-c", program, "-f", "{connection_file}"]})
    assert usage(limited)["hostname"] == "sandbox"
    limited.ask("restart", name="kernel", now=True)
    assert usage(limited)["sandbox"]["processes"] > 1


def test_what_is_not_limited_or_not_known_is_not_made_up(server: Server) -> None:
    """Without limits there are none in the answer; where there is no cgroup the kernel answers, by what it sees."""
    server.start(overrides={"layers": {"cgroup": "off"}})
    answer = usage(server)
    assert answer["kernel_memory"] > 1 << 20
    assert ("sandbox" in answer) == server.cgroup
    if server.cgroup:
        assert answer["sandbox"]["limits"] == {"memory": None, "processes": None, "cpu": None}


def test_asking_what_a_kernel_uses_does_not_keep_it_from_being_idle(limited: Server) -> None:
    limited.start(overrides={"resources": {"idle": "2 s"}})
    while limited.ask("alive", name="kernel")["alive"]:
        limited.ask("request", name="kernel", channel="control", type="usage_request", content={}, timeout=1)
    assert "resources.idle" in limited.ask("ended", name="kernel")["reason"]

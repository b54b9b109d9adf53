"""A kernel that nobody has talked to for as long as its profile says, and that runs no cell, is ended."""

from __future__ import annotations

import os
import select

from tests.kernel.conftest import Server

IDLE = {"resources": {"idle": "1 s"}}


def lives_for(pid: int, seconds: float) -> bool:
    """Whether a process is still there after so long; returns as soon as it is not."""
    pidfd = os.pidfd_open(pid)
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    try:
        return not waiting.poll(seconds * 1000)
    finally:
        os.close(pidfd)


def test_an_idle_kernel_is_ended_and_everybody_is_told(server: Server) -> None:
    """The server's log, the audit record, and the next cell. What is started in its place waits for somebody."""
    name = server.start(overrides=IDLE)["id"]
    server.text("x = 1")

    ended = server.ask("ended", name="kernel")

    assert "resources.idle" in ended["reason"]
    assert ended["status"] == -9
    assert server.ask("alive", name="kernel") == {"alive": False}
    assert ended["reason"] in server.ask("logged")["text"]
    assert [one["reason"] for one in server.records("kernel-ended", kernel=name)] == [ended["reason"]]
    assert server.records("limit-reached", kernel=name, limit="resources.idle")
    second = server.ask("restart", name="kernel", now=True)["pid"]
    assert lives_for(second, 1.6)
    said = server.text("print('x' in globals())")
    assert "resources.idle" in said
    assert said.endswith("False")
    assert "resources.idle" not in server.text("print(1)")
    assert not lives_for(second, 10)


def test_a_kernel_that_works_or_is_talked_to_is_not_idle(server: Server) -> None:
    pid = server.start(overrides=IDLE)["pid"]
    assert server.text("import time; time.sleep(1.6); print('done')") == "done"
    for _ in range(16):
        assert lives_for(pid, 0.1)  # and the rest of the second is for a machine that is busy
        server.ask("request", name="kernel", channel="shell", type="comm_info_request", content={})
    assert not lives_for(pid, 10)

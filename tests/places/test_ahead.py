"""A server that makes ready for its first kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.places.conftest import SMALL
from tests.places.server import Server

ON = {"ServerApp": {"jpserver_extensions": {"isolated_python.ahead": True}}}


def config(overrides: dict[str, Any] = SMALL) -> dict[str, Any]:
    return {**ON, "IsolatedProvisioner": {"overrides": overrides}}


def zygotes(server: Server) -> list[psutil.Process]:
    """Their children look alike, and live in pid namespaces of their own."""
    ours = os.readlink("/proc/self/ns/pid")
    alive = [one for one in server.below() if one.status() != psutil.STATUS_ZOMBIE]
    found = [one for one in alive if "isolated_python.launcher.zygote" in " ".join(one.cmdline())]
    return [one for one in found if os.readlink(f"/proc/{one.pid}/ns/pid") == ours]


def test_the_first_kernel_of_a_server_comes_from_a_zygote_that_was_there(start: Callable[..., Server]) -> None:
    """Nobody has asked for a kernel, and there is a zygote; the kernel that is then asked for needs no other."""
    server = start(config())
    deadline = time.monotonic() + 30
    while not (before := zygotes(server)) and time.monotonic() < deadline:
        server.ask("GET", "api/kernels")
    assert len(before) == 1, server.log
    assert server.ask("GET", "api/kernels") == (200, [])
    status, kernel = server.ask("POST", "api/kernels", {"name": "isolated-python", "path": ""})
    assert status == 201, kernel
    assert zygotes(server) == before
    assert server.ask("DELETE", f"api/kernels/{kernel['id']}")[0] == 204


def test_what_cannot_be_made_ready_is_logged_and_told_by_the_start(start: Callable[..., Server]) -> None:
    server = start(config({"resources": {"memory": "a-lot"}}))
    deadline = time.monotonic() + 30
    while "nothing could be made ready" not in server.log and time.monotonic() < deadline:
        server.ask("GET", "api/kernels")
    assert "nothing could be made ready for isolated-python: " in server.log
    assert "a-lot" in server.log
    told = server.log.count("a-lot")
    assert server.ask("POST", "api/kernels", {"name": "isolated-python"})[0] == 500
    while server.log.count("a-lot") == told and time.monotonic() < deadline:
        server.ask("GET", "api/kernels")
    assert server.log.count("a-lot") > told

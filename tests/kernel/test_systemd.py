"""A logged-in user's kernels have a cgroup: systemd's user manager is asked for one over D-Bus."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from isolated_python.linux import cgroups

from tests.kernel.conftest import Server
from tests.kernel.test_limits import group_of, left_after

LIMITS = {"memory": "300 MiB", "tmp": "40 MiB", "shm": "16 MiB", "processes": 77}
BUS = f"/run/user/{os.geteuid()}/bus"
pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 or not os.path.exists(BUS) or not cgroups.own().v2 or bool(cgroups.own().v1),
    reason="this is about an ordinary user with a user manager and cgroup v2",
)


def test_a_supervisor_gets_a_scope_of_its_own_and_its_server_stays_where_it_was(server: Server) -> None:
    """The scope holds the supervisor and its kernels, is delegated to the user, and is not what the server is in."""
    before = cgroups.own(server.process.pid).v2
    kernel = server.start()["pid"]
    supervisor = server.ask("supervisor")["pid"]
    scope = scope_of(supervisor)

    shown = systemctl("show", scope.name, "-P", "Delegate", "-P", "ActiveState", "-P", "Description").splitlines()

    assert scope.name == f"isolated-python-{supervisor}.scope"
    assert scope in group_of(kernel)["memory"].parents
    assert cgroups.own(server.process.pid).v2 == before
    assert {"yes", "active", "Isolated Python's supervisor and its kernels"} == {*shown}
    assert os.access(scope / "cgroup.procs", os.W_OK)


def test_nothing_of_the_kernel_is_weakened(server: Server) -> None:
    """Asked strictly: the layer is required, and the log of the supervisor names nothing that is missing."""
    server.start(overrides={"layers": {"cgroup": "require"}})
    log = server.folder.parent / ".local" / "state" / "isolated-python" / "audit.jsonl"
    assert '"weakened":[]' in log.read_text().replace(" ", "")


def test_two_servers_of_one_user_have_a_scope_each(server: Server) -> None:
    """A second supervisor of the same server, after the first was killed: the old scope goes, a new one comes."""
    server.start("a")
    first = scope_of(server.ask("supervisor")["pid"])
    os.kill(server.ask("supervisor")["pid"], 9)
    server.ask("ended", name="a")  # from here on the server knows
    server.start("b")
    second = scope_of(server.ask("supervisor")["pid"])
    assert first != second
    assert server.text("print(1)", "b") == "1"
    assert not left_after(5, {first})


def test_a_scope_goes_with_its_server(server: Server) -> None:
    server.start()
    scope = scope_of(server.ask("supervisor")["pid"])
    server.process.kill()
    assert not left_after(10, {scope})
    assert scope.name not in systemctl("list-units", "--all", "--plain", "--no-legend", "--type=scope")


def test_limits_outlive_a_reload_of_systemd(server: Server) -> None:
    """The group below the scope is ours: the manager that reads its files again leaves it alone."""
    group = group_of(server.start(overrides={"resources": LIMITS})["pid"])
    names = ("memory.max", "pids.max", "cpu.max")
    before = [(group["memory"] / name).read_text() for name in names]
    systemctl("daemon-reload")
    assert [(group["memory"] / name).read_text() for name in names] == before
    assert before[0].strip() == str(300 << 20)
    assert "resources.memory" in server.run("x = bytearray(600 << 20)")["text"]


def test_a_limit_that_is_not_the_profiles_is_not_called_so(server: Server) -> None:
    """An administrator limits all of a person's kernels: who dies of that is told that it was not their own grant."""
    server.start(overrides={"resources": {"memory": "1 GiB", "tmp": "40 MiB", "shm": "16 MiB"}})
    scope = scope_of(server.ask("supervisor")["pid"])
    systemctl("set-property", "--runtime", scope.name, "MemoryMax=300M", "MemorySwapMax=0")
    answer = server.run("x = bytearray(600 << 20)")
    assert answer["status"] == "error"
    assert "a group that it shares with others, had no memory left" in answer["text"]
    assert server.start("b")["pid"]


def scope_of(pid: int) -> Path:
    """The scope that a process is in, or in a group below which it is."""
    here = Path(cgroups.own(pid).v2)
    return next(folder for folder in (here, *here.parents) if folder.suffix == ".scope")


def systemctl(*words: str) -> str:
    environment = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": os.path.dirname(BUS)}
    return subprocess.run(
        ["systemctl", "--user", *words], env=environment, capture_output=True, text=True, check=True
    ).stdout

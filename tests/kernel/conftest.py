"""Kernels for the tests: real ones, started by a process of its own, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from isolated_python.audit import events
from isolated_python.audit.read import Reader
from isolated_python.engine import ROOT
from isolated_python.layers.cgroup import systemd
from isolated_python.linux import cgroups

from tests.conftest import Ordinary

SOON = 5.0  # seconds in which what is on its way has happened
DRIVER = Path(__file__).with_name("driver.py").read_text()

# Read strictly: what a schema does not name must not be in a record.
CHECKS = jsonschema.FormatChecker()
SCHEMAS = {
    schema["properties"]["event"]["const"]: jsonschema.Draft7Validator(schema, format_checker=CHECKS)
    for schema in events.schemas()
}


def has_cgroup(*, root: bool) -> bool:
    """Whether a kernel of such a server must get a cgroup: an ordinary user has none on a host with version 1, and the
    user that root makes for these tests has no user manager. Where there must be one, its lack fails the test.
    """
    if root:
        return True
    return os.geteuid() != 0 and (systemd.wanted() or cgroups.find(cgroups.own(), root=False).version != "none")


class Server:
    """A process that starts kernels, and a folder for their notebooks."""

    def __init__(
        self, process: subprocess.Popen[str], folder: Path, audit: Path, *, root: bool, pool: bool = False
    ) -> None:
        self.process, self.folder, self.audit, self.root, self.pool = process, folder, audit, root, pool
        self.cgroup = has_cgroup(root=root)

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the server of kernels ended"
        return json.loads(line)  # type: ignore[no-any-return]

    def start(self, name: str = "kernel", overrides: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
        """Start a kernel; fails where it does not start."""
        answer = self.refused(name, overrides, **values)
        assert "error" not in answer, answer["error"]
        return answer

    def refused(self, name: str = "kernel", overrides: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
        return self.ask("start", name=name, **self.wanted(overrides, **values))

    def wanted(self, overrides: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
        """What a kernel is asked for with, where nothing else is said."""
        wanted = dict(overrides or {})
        if not self.cgroup:
            wanted["layers"] = {"cgroup": "prefer", **wanted.get("layers", {})}
        return {"overrides": wanted, "cwd": str(self.folder), "pool": self.pool, **values}

    def run(self, code: str, name: str = "kernel", **values: Any) -> dict[str, Any]:
        answer = self.ask("run", name=name, code=code, **values)
        if answer.get("status") == "timeout":
            answer["relay"] = [*self.records("relay-ended"), *self.records("relay-deaf")]
        return answer

    def text(self, code: str, name: str = "kernel", **values: Any) -> str:
        """What a cell printed; fails where the cell fails."""
        answer = self.run(code, name, **values)
        assert answer.get("status") == "ok", answer
        return str(answer["text"]).strip()

    def give(self, name: str, text: str) -> None:
        """Put a file into the workspace, as its owner would."""
        path = self.folder / name
        path.write_text(text)
        os.chown(path, self.folder.stat().st_uid, self.folder.stat().st_gid)

    def ours(self) -> list[psutil.Process]:
        """Every process below this server, sandboxes included."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def records(self, event: str = "", **wanted: Any) -> list[dict[str, Any]]:
        """What its supervisor has written, of one event or of all, each found to be what its schema says."""
        reader = Reader(str(self.audit / "audit.jsonl"))
        found = [*reader.older(), *reader.newer()]
        reader.close()
        for record in found:
            SCHEMAS[record["event"]].validate(record)
        found = [record for record in found if event in ("", record["event"])]
        return [record for record in found if wanted.items() <= record.items()]

    def close(self) -> None:
        """End as a server ends: its standard input is closed."""
        assert self.process.stdin is not None
        below = watched(self.ours())
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        left = outlive(below, 10)
        self.records()
        assert not left, f"left behind: {left}"


def commands(processes: list[psutil.Process]) -> dict[int, str]:
    """Their command lines by pid; who has ended since the look, or is just ending, has none."""
    found = {}
    for process in processes:
        with suppress(psutil.Error):
            found[process.pid] = " ".join(process.cmdline())
    return found


def watched(processes: list[psutil.Process]) -> dict[int, str]:
    """A pidfd for each process, with its command line for whoever wonders what outlived. Opened while it lives."""
    found = {}
    for process in processes:
        try:
            words = f"{process.pid} {' '.join(process.cmdline())[-80:]}"
            found[os.pidfd_open(process.pid)] = words
        except (ProcessLookupError, psutil.Error):  # gone by itself
            continue
    return found


def soon(what: Callable[[], Any], wanted: Any, seconds: float = SOON) -> None:
    """Waits until it is as wanted, at most so long; for what nobody tells of."""
    end = time.monotonic() + seconds
    while what() != wanted and time.monotonic() < end:
        select.poll().poll(20)
    assert what() == wanted


def outlive(processes: dict[int, str], seconds: float) -> list[str]:
    """Which of the watched are still there after `seconds`; returns as soon as none is."""
    waiting = select.poll()
    for descriptor in processes:
        waiting.register(descriptor, select.POLLIN)
    left, deadline = dict(processes), time.monotonic() + seconds
    while left and (rest := deadline - time.monotonic()) > 0:
        for descriptor, _ in waiting.poll(rest * 1000):
            waiting.unregister(descriptor)
            del left[descriptor]
    for descriptor in processes:
        os.close(descriptor)
    return [*left.values()]


@pytest.fixture
def server(request: pytest.FixtureRequest, life: bool, ordinary: Ordinary) -> Iterator[Server]:
    """A server in either life."""
    with serve(life, ordinary, pool=request.config.getoption("--pool")) as one:
        yield one


@pytest.fixture
def limited(server: Server) -> Server:
    """A server whose kernels have a cgroup."""
    if not server.cgroup:
        pytest.skip("an ordinary user has no cgroup on this host")
    return server


@pytest.fixture
def root_server(request: pytest.FixtureRequest, ordinary: Ordinary) -> Iterator[Server]:
    if os.geteuid() != 0:
        pytest.skip("needs root, and these tests are run without")
    with serve(True, ordinary, pool=request.config.getoption("--pool")) as one:
        yield one


@contextmanager
def environment(below: str, at_start: str = "") -> Iterator[str]:
    """A virtual environment in a new folder `below`, which has all that this one has; its interpreter.

    `at_start`: what every Python of it runs as it starts.
    """
    place = Path(tempfile.mkdtemp(prefix="isolated-environment-", dir=below))
    try:
        place.chmod(0o755)
        venv.create(place)
        packages = next(place.glob("lib/python*/site-packages"))
        (packages / "at_start.py").write_text(at_start)
        (packages / "more.pth").write_text("\n".join([ROOT, *site.getsitepackages(), "import at_start\n"]))
        shutil.copytree(Path(sys.prefix) / "share/jupyter/kernels", place / "share/jupyter/kernels")
        yield str(place / "bin/python")
    finally:
        shutil.rmtree(place)


@contextmanager
def serve(
    root: bool, ordinary: Ordinary, *, pool: bool = False, left_open: tuple[int, ...] = (),
    python: str = sys.executable, **more: str,
) -> Iterator[Server]:  # fmt: skip
    """`more`: what its environment holds beside the ordinary. `left_open`: its descriptors. `python`: what runs it."""
    folder = ordinary.home / "course"
    folder.mkdir()
    environment = ordinary.environment | {"JUPYTERHUB_API_TOKEN": "a-token", "JUPYTER_TOKEN": "a-token"} | more
    audit = ordinary.home / ".local" / "state" / "isolated-python"
    if root:
        mine = ordinary.home / "root"
        mine.mkdir(mode=0o700, exist_ok=True)
        audit = mine / "audit"
        environment |= {"HOME": str(mine), "ISOLATED_PYTHON_AUDIT_DIR": str(audit)}
        process = subprocess.Popen(
            [python, "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            pass_fds=left_open,
        )
    else:
        shutil.chown(folder, ordinary.uid, ordinary.gid)
        command = [python, "-c", DRIVER]
        process = ordinary.start(command, stdin=subprocess.PIPE, stderr=None, env=environment, pass_fds=left_open)
    one = Server(process, folder, audit, root=root, pool=pool)
    try:
        yield one
    finally:
        one.close()


def cgroups_of(pid: int) -> list[str]:
    """The groups that a supervisor has made, its own first."""
    its = re.compile(rf"isolated-python-{pid}\D")  # and not those of one whose pid begins with the same digits
    return sorted(folder for folder, _, _ in os.walk("/sys/fs/cgroup") if its.search(folder))


def processes_of(group: str) -> list[int]:
    with open(f"{group}/cgroup.procs") as file:
        return [int(line) for line in file]

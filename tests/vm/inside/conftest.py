"""Inside the machine, as root: the service as a unit of systemd's, set up as docs/how-to/jupyterhub.md says."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from isolated_python.engine.identities import COUNT, FIRST
from isolated_python.policy import SOCKET

from tests.conftest import Ordinary
from tests.kernel.conftest import outlive, watched
from tests.machine import USERS, user

ROOT = Path(__file__).resolve().parents[3]
UNITS = ("isolated-python.socket", "isolated-python.service")
PLACE = Path("/etc/systemd/system")
GROUP = Path("/sys/fs/cgroup/system.slice/isolated-python.service")
SETTINGS = Path("/etc/isolated-python/service.toml")
SECONDS = 120  # that the end of what was told to end may take here


def systemctl(*words: str) -> str:
    return run("systemctl", *words)


def run(*command: str | Path) -> str:
    """Run a command to its end; fails with what it said."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def processes_below(group: Path) -> list[psutil.Process]:
    """All that are in a group, or in one below it, less those that are just ending, and groups that go with them."""
    found = []
    for folder, _, _ in os.walk(group):
        with contextlib.suppress(FileNotFoundError):
            for pid in Path(folder, "cgroup.procs").read_text().split():
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(int(pid)))
    return found


class Unit:
    """The service, under systemd."""

    def shows(self, name: str) -> str:
        return systemctl("show", UNITS[1], "-P", name)

    @property
    def main(self) -> psutil.Process:
        return psutil.Process(int(self.shows("MainPID")))

    def processes(self) -> list[psutil.Process]:
        return processes_below(GROUP)

    def supervisor(self, who: Ordinary) -> psutil.Process:
        """Of a user: known by its folder of sockets."""
        for one in self.main.children():
            sockets = next(Path(SOCKET).parent.glob(f"isolated-{one.pid}-*/clients/*"), None)
            if sockets is not None and sockets.stat().st_uid == who.uid:
                return one
        raise AssertionError("this user has no supervisor with a kernel")


@pytest.fixture(scope="session")
def installed() -> Iterator[None]:
    """What comes from PyPI is on the disk already, but for the product."""
    (wheel,) = ROOT.glob("isolated_python-*.whl")
    run("/opt/isolated-python/bin/pip", "install", "-q", "--no-deps", "--no-index", "--force-reinstall", wheel)
    for name in UNITS:
        shutil.copy(ROOT / "deploy" / "systemd" / name, PLACE)
    systemctl("enable", "--now", UNITS[0])
    yield
    systemctl("stop", *UNITS)
    systemctl("disable", UNITS[0])
    for name in UNITS:
        (PLACE / name).unlink()
    systemctl("daemon-reload")


@pytest.fixture
def unit(installed: None) -> Iterator[Unit]:
    """With its door open and nobody served. Whatever a test did, when both units are stopped nothing is left."""
    systemctl("stop", *UNITS)
    before = left()
    systemctl("start", UNITS[0])
    try:
        one = Unit()
        yield one
        below = watched(one.processes())
    finally:
        systemctl("stop", *UNITS)
        SETTINGS.unlink(missing_ok=True)
    assert outlive(below, 1) == []
    assert left() == before


def left() -> dict[str, set[str]]:
    """What there is of the product on this machine."""
    mounts = Path("/proc/1/mountinfo").read_text().splitlines()
    folder = Path(SOCKET).parent
    mine = (one for one in psutil.process_iter(["uids"]) if FIRST <= one.info["uids"].real < FIRST + COUNT)
    return {
        "processes": {str(one) for one in mine},
        "groups": {path for path, _, _ in os.walk("/sys/fs/cgroup") if "isolated-python" in path},
        "mounts": {" ".join(line.split()[2:6]) for line in mounts},
        "files": {path.name for path in folder.iterdir()} - {"lock"} if folder.exists() else set(),
    }


@pytest.fixture
def alice() -> Iterator[Ordinary]:
    with user(USERS[0]) as one:
        yield one


@pytest.fixture
def bob() -> Iterator[Ordinary]:
    with user(USERS[1]) as one:
        yield one

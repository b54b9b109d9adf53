"""What every test may ask for: an ordinary user, and a folder that such a user can reach."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

TESTER = "isolated-tester"
HOMES = "isolated-"  # and the pid of the run that has them, in the names of their folders
BIN = str(Path(sys.executable).parent)


def pytest_configure(config: pytest.Config) -> None:
    """A run that is told to end takes down what it has set up, as one does that is interrupted at a terminal."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # timeout(1) tells the process, and then its group
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    _sweep()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pool", action="store_true", help="let the tests' kernels be ones that stood before")
    every = "tests/escapes: every attack in every life, profile and path"
    parser.addoption("--every-combination", action="store_true", help=every)
    without = "tests/escapes: one layer off, to see attacks succeed"
    parser.addoption("--without", default="", metavar="LAYER", help=without)


@dataclass(frozen=True)
class Ordinary:
    """A person without rights, with a home of their own; where the tests run without root, whoever runs them."""

    uid: int
    gid: int
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """A clean one: this interpreter's scripts first, nothing of ours."""
        path = f"{BIN}:/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, command: list[str], **more: object) -> subprocess.Popen[str]:
        """Start a command as this person, in their home, in a process group of its own."""
        asked: dict[str, object] = {"cwd": self.home, "env": self.environment, "stdin": subprocess.DEVNULL}
        asked |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        if os.geteuid() == 0:
            asked |= {"user": self.uid, "group": self.gid, "extra_groups": [], "umask": 0o022}
        return subprocess.Popen(command, **asked | more)  # type: ignore[call-overload, no-any-return]

    def run(self, command: list[str], *, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. A failure shows what the command said; `timeout` is in seconds."""
        process = self.start(command)
        try:
            said, complained = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if check:
            assert process.returncode == 0, f"{command} ended with {process.returncode}:\n{said}\n{complained}"
        return subprocess.CompletedProcess(command, process.returncode, said, complained)

    def python(self, source: str, *, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a snippet in this very interpreter, as this person."""
        return self.run([sys.executable, "-c", source], timeout=timeout, check=check)


def _sweep() -> None:
    """The homes of a run that was killed: nobody else would remove them."""
    for home in Path(tempfile.gettempdir()).glob(f"{HOMES}*-*"):
        pid = home.name.removeprefix(HOMES).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(home, ignore_errors=True)


def _tester() -> pwd.struct_passwd:
    """The user made for the purpose. It is left in place: making one at each run would wear out the uids."""
    try:
        return pwd.getpwnam(TESTER)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", TESTER]
        subprocess.run(command, check=True)
        return pwd.getpwnam(TESTER)


@pytest.fixture
def ordinary() -> Iterator[Ordinary]:
    with somebody() as person:
        yield person


@contextlib.contextmanager
def somebody() -> Iterator[Ordinary]:
    """An ordinary user with a new home, until the end of the block."""
    person = _tester() if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    # Not tmp_path: pytest's own folders let nobody else through.
    home = Path(tempfile.mkdtemp(prefix=f"{HOMES}{os.getpid()}-"))
    try:
        if os.geteuid() == 0:
            os.chown(home, person.pw_uid, person.pw_gid)
        yield Ordinary(person.pw_uid, person.pw_gid, home)
    finally:
        shutil.rmtree(home)


@pytest.fixture(params=["root", "ordinary"])
def life(request: pytest.FixtureRequest) -> bool:
    """Either life: of root (True), and of a user without rights."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("needs root, and these tests are run without")
    return bool(request.param == "root")

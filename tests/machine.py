"""A machine that two users share, with the privileged service: for the tests of both."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
from isolated_python.engine import ROOT, interpreters, visits
from isolated_python.linux import packets
from isolated_python.linux.process import Person

from tests.conftest import BIN, Ordinary
from tests.kernel.conftest import outlive, watched

USERS = ("isolated-alice", "isolated-bob")

# As a provisioner would have it written inside.
CHANNELS = {f"{name}_port": number for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
CONNECTION = [
    "/home/user/.local/share/jupyter/runtime/kernel-x.json",
    json.dumps({"transport": "ipc", "ip": "/run/kernel", "key": "key", "signature_scheme": "hmac-sha256", **CHANNELS}),
]


@contextlib.contextmanager
def user(name: str) -> Iterator[Ordinary]:
    """A user made for the purpose, with a folder below their home. The account is left in place."""
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", f"/home/{name}"]
        subprocess.run([*command, "--shell", "/bin/sh", name], check=True)
        account = pwd.getpwnam(name)
    os.makedirs(account.pw_dir, mode=0o700, exist_ok=True)
    os.chown(account.pw_dir, account.pw_uid, account.pw_gid)
    folder = Path(tempfile.mkdtemp(dir=account.pw_dir))
    os.chown(folder, account.pw_uid, account.pw_gid)
    try:
        yield Ordinary(account.pw_uid, account.pw_gid, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not any(name.startswith("tmp") for name in os.listdir(account.pw_dir)):  # another run's
            shutil.rmtree(account.pw_dir, ignore_errors=True)


def person(who: Ordinary) -> Person:
    return Person(who.uid, who.gid)


class Service:
    """A real one, in the foreground, with a socket of its own."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder, self.path, self.audit = folder, str(folder / "service.sock"), folder / "audit" / "log"
        file = folder / "service.toml"
        first = f'socket = "{self.path}"\npolicy = ["{folder}/policy"]\naudit = "{self.audit}"\n'
        (folder / "policy" / "profiles").mkdir(parents=True, exist_ok=True)
        file.write_text(first + config)
        command = [f"{BIN}/jupyter-isolated", "service", "--config", str(file)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/")
        assert self.process.stdout is not None
        assert "serves" in self.process.stdout.readline()

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def below_now(self) -> list[psutil.Process]:
        """As `below`, between two things that the service does: who has ended is there, or has been cleared away."""
        with Caller(self.path, Ordinary(0, 0, Path("/")), hello=False) as root:
            assert "root needs no service" in root.ask("hello")["message"]
        return self.below()

    def supervisor(self, who: Ordinary) -> psutil.Process:
        """The supervisor of a user: known by its folder of sockets."""
        for one in psutil.Process(self.process.pid).children():
            with contextlib.suppress(OSError, psutil.Error):
                sockets = next(self.folder.glob(f"isolated-{one.pid}-*/clients/*"), None)
                if sockets is not None and sockets.stat().st_uid == who.uid:
                    return one
        raise AssertionError("this user has no supervisor with a kernel")

    def clear(self, seconds: float = 30) -> None:
        """Wait until no user has a supervisor, and whoever clears up after the last has ended, too."""
        deadline = time.monotonic() + seconds
        while below := self.below_now():
            left = outlive(watched(below), deadline - time.monotonic())
            assert not left, f"left behind: {left}"
        assert [path.name for path in self.folder.glob("isolated-*")] == []

    def close(self) -> None:
        below = watched(self.below())
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        left = outlive(below, 5)
        assert not left, f"left behind: {left}"


@contextlib.contextmanager
def service(config: str = "") -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp(prefix="isolated-test-", dir="/run"))
    folder.chmod(0o755)
    try:
        one = Service(folder, config)
        try:
            yield one
        finally:
            one.close()
    finally:
        shutil.rmtree(folder)


class Caller:
    """A client of the service that says whatever the test wants. Linux takes us for whom we were when we connected."""

    def __init__(self, path: str, who: Ordinary, *, hello: bool = True) -> None:
        self.who = who
        with person(who).acting():
            self.socket = visits.connect(path)
        self.socket.settimeout(30)
        self._numbers = itertools.count(1)
        self.answers: dict[Any, dict[str, Any]] = {}
        self.folder = ""
        if hello:
            answer = self.ask("hello")
            assert "error" not in answer, answer
            self.folder = answer["folder"]

    def send(self, verb: str, descriptors: list[int] | None = None, **values: Any) -> int:
        number = next(self._numbers)
        packets.send(self.socket, {"id": number, "verb": verb, **values}, descriptors or [])
        return number

    def answer(self, number: int) -> dict[str, Any]:
        while number not in self.answers:
            message, _ = packets.receive(self.socket)
            assert message is not None, "the service has hung up"
            self.answers[message.get("id")] = message
        return self.answers.pop(number)

    def ask(self, verb: str, descriptors: list[int] | None = None, **values: Any) -> dict[str, Any]:
        return self.answer(self.send(verb, descriptors, **values))

    def hung_up(self, seconds: float = 10) -> bool:
        """Whether the service hangs up."""
        waiting, deadline = select.poll(), time.monotonic() + seconds
        waiting.register(self.socket, select.POLLIN)
        while (rest := deadline - time.monotonic()) > 0:
            waiting.poll(rest * 1000)
            with contextlib.suppress(TimeoutError):
                try:
                    if not self.socket.recv(1 << 17):
                        return True
                except ConnectionError:
                    return True
        return False

    def order(self, name: str = "kernel", **changed: Any) -> dict[str, Any]:
        return {
            "kernel": name, "owner": "", "named": "standard", "overrides": {"files": {"workspace": "none"}}, "view": "",
            "root": ROOT, "trees": [*interpreters.own_trees()], "interpreter": interpreters.own_interpreter(),
            "argv": None, "arguments": [], "cwd": "/", "connection": CONNECTION,
            "environment": {"HOME": "/home/user", "PATH": "/usr/bin:/bin"}, "key": "key",
            "sockets": "0123abcd",
            "streams": {"stdin": False, "stdout": False, "stderr": False}, "ports": [20001, 20002, 20003, 20004, 20005],
            "pool": 0,
            **changed,
        }  # fmt: skip

    def start(self, name: str = "kernel", descriptors: list[int] | None = None, **changed: Any) -> dict[str, Any]:
        return self.ask("start", descriptors, **self.order(name, **changed))

    def started(self, name: str = "kernel", descriptors: list[int] | None = None, **changed: Any) -> int:
        """The pid of the kernel's process 1."""
        answer = self.start(name, descriptors, **changed)
        assert "error" not in answer, answer
        return int(answer["pid"])

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def seqpacket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


PYTHON = sys.executable

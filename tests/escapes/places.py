"""Where attacks are run: in kernels, one for all attacks that leave it whole, and outside, for the controls."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from isolated_python.layers import cgroup
from isolated_python.policy import sources
from isolated_python.policy.profile import MiB, Profile, Resources

from tests.conftest import Ordinary
from tests.escapes.attack import CGROUP, NAMESPACES, ORDINARY, ROOT, Attack, program, reported
from tests.escapes.frames import in_namespaces
from tests.kernel.conftest import Server

LIVES = ("root", "ordinary") if os.geteuid() == 0 else ("ordinary",)
SHIPPED = {path.stem: sources.load(path.stem, folders=[sources.SHIPPED]).profile for path in sources.SHIPPED.iterdir()}
PROFILES = tuple(sorted(SHIPPED))
PATHS = ("zygote", "pool", "exec")  # forked when it is asked for; before that; executed, as another language would be

# With -u the command is not one that a zygote serves.
FOREIGN = [sys.executable, "-u", "-m", "ipykernel_launcher", "-f", "{connection_file}"]

# What a control may use at most, should it be an attack on the machine as a whole.
CONTROL = Resources(memory=1536 * MiB, processes=1024)

# The guard of imports finds out about a cell by its builtins. It is courtesy, and these are the builtins themselves.
UNGUARDED = "{'__builtins__': print.__self__}"

CELL = """
def _help(program):
    import subprocess, sys
    if not program:
        _help.process.communicate()
        return
    command = [sys.executable, "-I", "-S", "-c", program]
    _help.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in _help.process.stdout:
        print(line)
        if line.startswith("==="):
            break

def _attack(program, seconds):
    import subprocess, sys
    command = [sys.executable, "-I", "-S", "-c", program]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[0] + b"(out of time)"
    print(said.decode("utf-8", "replace"), "status", process.returncode)
"""


@dataclass(frozen=True, slots=True)
class Combination:
    life: str
    profile: str
    path: str

    def __str__(self) -> str:
        return f"{self.life}-{self.profile}-{self.path}"


def exists(profile: str, path: str) -> bool:
    """Whether the product starts kernels of a profile in this way."""
    granted = SHIPPED[profile]
    if path == "exec":  # the program is executed, and makes its own sockets
        return granted.capabilities.subprocess and granted.capabilities.sockets
    return path != "pool" or granted.files.workspace != "copy-on-write"


WAYS = tuple((profile, path) for profile in PROFILES for path in PATHS if exists(profile, path))
EVERY = tuple(Combination(life, profile, path) for life in LIVES for profile, path in WAYS)
# Each way once, the lives in turn: over these the attacks are spread where each runs once.
SPREAD = tuple(Combination(LIVES[number % len(LIVES)], *way) for number, way in enumerate(WAYS))


@dataclass(frozen=True, slots=True)
class Said:
    """What a program reported, and all that it wrote besides."""

    loot: str
    refused: str
    raw: str

    @staticmethod
    def of(raw: str) -> Said:
        found = next(reported(raw), {})
        loot = found.get("loot")
        text = loot if isinstance(loot, str) else "" if loot is None else json.dumps(loot)
        return Said(text, found.get("refused", ""), raw)

    @property
    def ran(self) -> bool:
        """Whether the program was one, and came to an end of some kind: what is refused must have been tried."""
        broken = ("NameError", "SyntaxError", "ImportError", "ModuleNotFoundError", "AttributeError", "TypeError")
        if self.refused:
            return not self.refused.startswith(broken)
        return bool(next(reported(self.raw), None)) or any(
            end in self.raw for end in ("status -", "cell dead", "KernelDied")
        )

    def __str__(self) -> str:
        return self.loot[:500] or self.refused or self.raw[-2000:]


class Place:
    """One combination of life, profile and path, with its kernels.

    `token`: the secret in the server's environment. `without`: a layer that is off, for the mutations.
    """

    def __init__(self, server: Server, person: Ordinary, combination: Combination, token: str, without: str) -> None:
        self.server, self.person, self.combination = server, person, combination
        self.token, self.without = token, without
        self.left_open = -1  # a descriptor that the server holds, and that the controls are given
        self.running: dict[str, str] = {}
        self.pids: dict[str, int] = {}

    # ---- the owner of the server -----------------------------------------------------------------------------------

    @property
    def root(self) -> bool:
        return self.combination.life == "root"

    @property
    def private(self) -> Path:
        """A folder of the owner's that no kernel was granted: their home."""
        return self.person.home / "root" if self.root else self.person.home

    def belongs_to_owner(self, *paths: Path) -> None:
        if os.geteuid() == 0 and not self.root:
            for path in paths:
                os.chown(path, self.person.uid, self.person.gid, follow_symlinks=False)

    @property
    def environment(self) -> dict[str, str]:
        """What the owner's programs have in their environment."""
        return self.person.environment | {"HOME": str(self.private), "JUPYTERHUB_API_TOKEN": self.token}

    def start(self, command: list[str], **more: Any) -> subprocess.Popen[str]:
        """Start a plain process of the owner's."""
        asked: dict[str, Any] = {"env": self.environment, **more}
        if not self.root:
            return self.person.start(command, **asked)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        asked = {"cwd": self.private, "text": True, "start_new_session": True, **pipes, **asked}
        return subprocess.Popen(command, **asked)

    # ---- outside ---------------------------------------------------------------------------------------------------

    def outside(self, attack: Attack, facts: dict[str, Any]) -> Said:
        """The same program as a plain process, with the power that it needs and no more."""
        text = attack.program(facts)
        if attack.control == NAMESPACES:
            text = program(in_namespaces, {"program": text})
        command = [sys.executable, "-I", "-S", "-c", text]
        where = self.workspace("outside")
        if attack.control == CGROUP:
            with _limited() as group:
                # It waits for a line: until then it is not in its group.
                command[-1] = "import sys; sys.stdin.readline(); exec(" + repr(text) + ")"
                process = self.start(command, stdin=subprocess.PIPE, cwd=where)
                group.attach(process.pid)
                return self._to_the_end(process, attack.seconds, "\n")
        if attack.control == ROOT and not self.root:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=where, text=True,
                start_new_session=True,
            )  # fmt: skip
        elif attack.control == ORDINARY:
            process = self.person.start(command, cwd=where)
        else:
            process = self.start(command, cwd=where, pass_fds=(self.left_open,))
        return self._to_the_end(process, attack.seconds)

    @staticmethod
    def _to_the_end(process: subprocess.Popen[str], seconds: float, given: str | None = None) -> Said:
        try:
            said, complained = process.communicate(given, timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, complained = process.communicate()
        return Said.of(said + complained + f" status {process.returncode}")

    def workspace(self, name: str) -> Path:
        folder = self.server.folder / f"{self.combination}-{name}"
        if not folder.exists():
            folder.mkdir()
            self.belongs_to_owner(folder)
        return folder

    # ---- inside ----------------------------------------------------------------------------------------------------

    def inside(self, attack: Attack, facts: dict[str, Any]) -> Said:
        """The program in a kernel: started by a cell, or as a cell."""
        key = json.dumps(attack.overrides) if attack.overrides else "attacker"
        key += f" {attack.name}" if attack.alone else ""
        name = self.kernel(key, attack.overrides)
        text = attack.program(facts)
        program = attack.runs == "program" and self.granted.capabilities.subprocess
        cell = f"_attack({text!r}, {attack.seconds})" if program else f"exec({text!r}, {UNGUARDED})"
        answer = self.server.run(cell, name, timeout=attack.seconds + 20)
        said = str(answer.get("text", ""))
        dead = answer.get("status") in ("dead", "timeout") or "error" in answer or "KernelDied" in said
        if dead or attack.alone:
            self.drop(key)
        return Said.of(f"{said} cell {'dead' if 'KernelDied' in said else answer.get('status', answer)}")

    def kernel(self, key: str, overrides: dict[str, Any] | None = None) -> str:
        """The name of the kernel that is known here as `key`; started if it does not run."""
        if key not in self.running:
            name = f"{self.combination}-{secrets.token_hex(4)}"
            wanted = dict(overrides or {})
            if self.without:
                wanted["layers"] = {**wanted.get("layers", {}), self.without: "off"}
            profile, path = self.combination.profile, self.combination.path
            if key == "neighbour":
                # It must be able to do what accomplices do: start programs, and write into its folder.
                capable = self.granted.capabilities.subprocess and self.granted.files.workspace == "read-write"
                profile, path = profile if capable else "standard", "zygote"
            folder = self.workspace("neighbour" if key == "neighbour" else "attacker")
            self.pids[key] = self._start(path, name, wanted, cwd=str(folder), profile=profile)
            self.running[key] = name
            self.server.text(f"_ours = {UNGUARDED}; exec({CELL!r}, _ours); globals().update(_ours)", name)
        return self.running[key]

    def _start(self, path: str, name: str, wanted: dict[str, Any], **values: Any) -> int:
        """The pid of a new kernel's process 1."""
        if path == "exec":
            values["spec"] = {"argv": FOREIGN}
        if path != "pool":
            return int(self.server.start(name, wanted, **values)["pid"])
        for _ in range(10):  # kernels of other kinds come from the pool as well, and one of those may have been awaited
            answer = self.server.start(name, wanted, pool=True, **values)
            asked = time.clock_gettime(time.CLOCK_BOOTTIME) - answer["seconds"]
            if _born(answer["pid"]) < asked - 0.012:  # births are known to 10 ms, and none takes less than 15
                return int(answer["pid"])
            self.server.ask("stop", name=name, now=True)
        raise AssertionError("no kernel comes from the pool")

    @property
    def granted(self) -> Profile:
        return SHIPPED[self.combination.profile]

    def drop(self, key: str) -> None:
        name = self.running.pop(key, None)
        if name is not None:
            self.server.ask("stop", name=name, now=True)

    def neighbour(self) -> tuple[int, Path]:
        """Another kernel beside the attacker's: the host's pid of its process 1, and its workspace."""
        self.kernel("neighbour")
        return self.pids["neighbour"], self.workspace("neighbour")

    def help(self, text: str, *, inside: bool) -> Said:
        """Start a helper beside the attacker, in another kernel or as a plain process; an empty text ends it."""
        if inside:
            return Said.of(self.text(f"_help({text!r})", "neighbour"))
        if text:
            command = [sys.executable, "-I", "-S", "-c", text]
            self.helper = self.start(command, stdin=subprocess.PIPE, cwd=self.workspace("outside"))
            assert self.helper.stdout is not None
            return Said.of(self._first_report(self.helper.stdout))
        self.helper.communicate("")
        return Said.of("")

    @staticmethod
    def _first_report(stream: IO[str]) -> str:
        for line in stream:
            if any(reported(line)):
                return line
        return ""

    def kernel_below(self, pid: int) -> int:
        """The host's pid of the kernel itself, which is the first child of process 1."""
        return psutil.Process(pid).children()[0].pid

    def text(self, code: str, key: str) -> str:
        return self.server.text(f"exec({code!r}, _ours)", self.kernel(key))

    def close(self) -> None:
        for key in [*self.running]:
            self.drop(key)


@contextmanager
def _limited() -> Iterator[Any]:
    """A group of the test's own for a control that must not take the machine along."""
    parent = cgroup.choose().open(f"{cgroup.name_for(os.getpid())}")
    group = parent.group("control", CONTROL)
    try:
        yield group
    finally:
        group.kill()
        group.remove()
        parent.close()


def _born(pid: int) -> float:
    """When a process was, in seconds since the machine started. proc_pid_stat(5)"""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[19]) / os.sysconf("SC_CLK_TCK")

"""What all figures share: what a figure is, servers of kernels in a folder of their own, rounds that end in time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

HERE = Path(__file__).parent
SERVER = HERE / "server.py"
SCIENCE = ("numpy", "pandas", "matplotlib.pyplot")
IMPORTS = f"import {', '.join(SCIENCE)}"

# The kernelspecs of a run. Each pool has a size of its own; what the size means is the provisioner's affair.
ISOLATED: dict[str, dict[str, Any]] = {
    "isolated": {"profile": "standard"},
    "isolated-science": {"profile": "bench-science"},
    "pool": {"profile": "standard", "pool": 4},
    "pool-science": {"profile": "bench-science", "pool": 4},
    "pool-30": {"profile": "standard", "pool": 30},
}


@dataclass(frozen=True, slots=True)
class Figure:
    name: str  # part.what
    title: str
    unit: str
    bar: float | None = None
    # What the bar bounds: a ratio to the stock kernel's median or 99th percentile, or our own median.
    by: Literal["ratio", "p99", "value"] = "ratio"
    side: str = "isolated"  # who stands beside the stock kernel
    slow: bool = False  # left out of the quick run, unless it is asked for by name


class Absent(Exception):
    """A figure cannot be taken here; the sentence goes into the table."""


class Server:
    """A process of server.py."""

    def __init__(self, folder: Path, environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as words:
            self.process = subprocess.Popen(
                [sys.executable, str(SERVER), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=words, text=True, env=environment, cwd=folder, start_new_session=True,
            )  # fmt: skip

    def ask(self, do: str, **values: Any) -> Any:
        """One deed. Raises Absent with what went wrong: such a figure is left out, and the run goes on."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line or '{"error": "the server of kernels ended"}')
        if "error" in answer:
            raise Absent(answer["error"])
        return answer["is"]

    def end(self) -> None:
        """With all its kernels, also in the middle of a deed; by force where it does not end within 20 s."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        below = []
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            if sys.exc_info()[0] is not None:
                self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            self.process.stdout.close()
            _, left = psutil.wait_procs(below, timeout=5)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


@dataclass
class Bench:
    """One run: where its files are, how long it may take, what it has found."""

    folder: Path
    figures: Sequence[Figure]  # those that are wanted
    quick: bool = False
    found: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # figure → side → values
    absent: dict[str, str] = field(default_factory=dict)  # figure → why
    until: float = 0.0  # time.monotonic() at which this part's time is over
    progress: Any = None
    task: Any = None

    def __post_init__(self) -> None:
        self.environment = prepare(self.folder)

    def wants(self, *names: str) -> bool:
        return any(figure.name in names for figure in self.figures)

    def note(self, name: str, side: str, *values: float) -> None:
        if self.wants(name):
            self.found.setdefault(name, {}).setdefault(side, []).extend(values)

    def leave(self, reason: str, *names: str) -> None:
        """Those figures are not there, and this is why."""
        for name in names:
            if self.wants(name) and name not in self.found:
                self.absent.setdefault(name, reason)

    @contextlib.contextmanager
    def taking(self, *names: str) -> Iterator[bool]:
        """What goes wrong below concerns these figures alone. Yields whether any of them is wanted."""
        late = time.monotonic() > self.until
        if late:
            self.leave("no time was left for it", *names)
        try:
            yield self.wants(*names) and not late
        except Absent as reason:
            for name in names:
                self.found.pop(name, None)
            self.leave(str(reason), *names)

    @contextlib.contextmanager
    def servers(self, *specs: str) -> Iterator[dict[str, Server]]:
        """A server for each kernelspec; all end with the block."""
        made: dict[str, Server] = {}
        try:
            for spec in specs:
                made[spec] = Server(self.folder, self.environment, self.folder / "servers.log")
            yield made
        finally:
            for server in made.values():
                server.end()

    def rounds(self, what: str, full: int, quick: int) -> Iterator[int]:
        """So many rounds, at least one; no further one begins when the time is over."""
        most = quick if self.quick else full
        self.progress.update(self.task, description=what)
        for number in range(most):
            if number and time.monotonic() > self.until:
                break
            self.progress.update(self.task, description=f"{what}, {number + 1} of {most}")
            yield number


def turns(servers: dict[str, Server], number: int) -> list[tuple[str, Server]]:
    """Each server once, another one first in each round."""
    pairs = list(servers.items())
    first = number % len(pairs)
    return pairs[first:] + pairs[:first]


def pooled() -> bool:
    from isolated_python.provisioner import IsolatedProvisioner

    return "pool" in IsolatedProvisioner.class_trait_names()


NO_POOL = "not there: the provisioner has no setting `pool`"


def prepare(folder: Path) -> dict[str, str]:
    """Kernelspecs and a profile in a folder of their own; the environment in which a server finds no others."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY_"))}
    for name in ("data", "config", "runtime", "ipython"):
        (folder / name).mkdir(mode=0o700)
    profiles = folder / "config" / "isolated-python" / "profiles"
    profiles.mkdir(parents=True)
    preload = ", ".join(f'"{name}"' for name in SCIENCE)
    (profiles / "bench-science.toml").write_text(f"preload = [{preload}]\n")
    # An ordinary user can only be given a cgroup by systemd; where that is not there, the table's head says so.
    layers = {} if os.geteuid() == 0 else {"overrides": {"layers": {"cgroup": "prefer"}}}
    ours = ["python", "-m", "isolated_python.launcher.argv", "-f", "{connection_file}"]
    for name, config in ISOLATED.items():
        provisioner = {"provisioner_name": "isolated-python", "config": config | layers}
        _spec(folder, name, ours, {"kernel_provisioner": provisioner, "debugger": True})
    _spec(folder, "stock", stock(), {"debugger": True})
    return environment | {
        "JUPYTER_PATH": str(folder / "data"),
        "JUPYTER_CONFIG_PATH": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
    }


def stock(connection: str = "{connection_file}") -> list[str]:
    """The stock kernel's own command."""
    return [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", connection]


def _spec(folder: Path, name: str, argv: list[str], metadata: dict[str, Any]) -> None:
    place = folder / "data" / "kernels" / name
    place.mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": "python", "metadata": metadata}
    (place / "kernel.json").write_text(json.dumps(spec | {"kernel_protocol_version": "5.5"}))

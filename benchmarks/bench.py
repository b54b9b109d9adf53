"""What all figures share: what a figure is, servers of kernels in a folder of their own, rounds that end in time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from isolated_python.linux import prctl

HERE = Path(__file__).parent
SERVER = HERE / "server.py"
SCIENCE = ("numpy", "pandas", "matplotlib.pyplot")
IMPORTS = f"import {', '.join(SCIENCE)}"
LISTED = ("numpy", "@stdlib-safe", "@notebook")  # a list of modules; the issue is what it costs, and not what it says
LATE = "out of time"

# The kernelspecs of a run. Each pool has a size of its own; what the size means is the provisioner's affair.
ISOLATED: dict[str, dict[str, Any]] = {
    "isolated": {"profile": "standard"},
    "isolated-science": {"profile": "bench-science"},
    "isolated-listed": {"profile": "bench-listed"},
    "pool": {"profile": "standard", "pool": 4},
    "pool-science": {"profile": "bench-science", "pool": 4},
    "pool-30": {"profile": "standard", "pool": 30},
}

UNISOLATED: dict[str, tuple[str, dict[str, Any]]] = {  # for the floors: see unisolated.py
    "forked": ("forked", {}),
    "forked-helped": ("forked", {"helped": True}),
    "forked-science": ("forked", {"preload": SCIENCE}),
    "waiting": ("waiting", {}),
    "waiting-30": ("waiting", {"count": 30}),
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
    beneath: tuple[str, ...] = ()  # the figures that this is the floor of


class Absent(Exception):
    """A figure cannot be taken here, or no further; the sentence goes into its row."""


class Server:
    """A process of server.py."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        with bench.log.open("ab") as words:
            self.process = subprocess.Popen(
                [sys.executable, str(SERVER), str(bench.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=words, text=True, env=bench.environment, cwd=bench.folder, start_new_session=True,
            )  # fmt: skip

    def ask(self, do: str, **values: Any) -> Any:
        """One deed. Raises Absent with what went wrong, or when the time is over: the server is then of no more use."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Absent("the server of kernels ended") from None
        if not select.select([self.process.stdout], [], [], max(0.0, self.bench.until - time.monotonic()))[0]:
            raise Absent(f"{LATE}, waiting for `{do}`")
        answer = json.loads(self.process.stdout.readline() or '{"error": "the server of kernels ended"}')
        if "error" in answer:
            raise Absent(answer["error"])
        return answer["is"]

    def end(self) -> None:
        """With all its kernels, also in the middle of a deed; by force where it does not end within 15 s."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


def sweep() -> None:
    """Nothing is left below this process, which adopts all orphans: most end by themselves, the others by force."""
    _, left = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=10)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)


def mind() -> None:
    """From here on a signal to end is an exception, so that all is taken down; and who loses their parent is ours."""
    prctl.set_child_subreaper()
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, _end)


def _end(number: int, _: object) -> None:
    for told in (signal.SIGINT, signal.SIGTERM):  # timeout(1) tells the process, and then its group
        signal.signal(told, signal.SIG_IGN)
    sys.exit(128 + number)


@dataclass
class Bench:
    """One run: where its files are, how long it may take, what it has found."""

    folder: Path
    figures: Sequence[Figure]  # those that are wanted
    quick: bool = False
    found: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # figure → side → values
    notes: dict[str, str] = field(default_factory=dict)  # figure → why it is not there, or not whole
    over: float = 0.0  # time.monotonic() at which this part's time is over,
    until: float = 0.0  # and that of what is being measured
    progress: Any = None
    task: Any = None

    def __post_init__(self) -> None:
        self.log = self.folder / "servers.log"
        self.environment = prepare(self.folder)
        self.waiting = [figure.name for figure in self.figures]
        self.done = ""

    def wants(self, name: str) -> bool:
        return any(figure.name == name for figure in self.figures)

    def note(self, name: str, side: str, *values: float) -> None:
        if self.wants(name):
            self.found.setdefault(name, {}).setdefault(side, []).extend(values)

    def leave(self, reason: str, *names: str) -> None:
        """No more values of those come, and this is why."""
        for name in [name for name in names if name in self.waiting]:
            self.notes[name] = f"{reason}{self.done}" if name in self.found else reason
            self.waiting.remove(name)

    @contextlib.contextmanager
    def taking(self, *names: str) -> Iterator[bool]:
        """Yields whether any of these figures is wanted. What goes wrong below concerns them alone.

        They may take their share of the part's time; what they do not need is for those that follow.
        """
        wanted = [name for name in names if name in self.waiting]
        part = names[0].partition(".")[0]
        waiting = sum(name.startswith(f"{part}.") for name in self.waiting)
        now = time.monotonic()
        self.until = now + (self.over - now) * len(wanted) / max(1, waiting)
        self.done = ""
        try:
            yield bool(wanted)
        except Absent as reason:
            self.leave(str(reason), *wanted)
        except Exception as error:
            self.leave(f"{type(error).__name__}: {error}", *wanted)
        self.waiting = [name for name in self.waiting if name not in wanted]

    @contextlib.contextmanager
    def servers(self, *specs: str) -> Iterator[dict[str, Server]]:
        """A server for each kernelspec; all end with the block, and nothing of them is left."""
        with contextlib.ExitStack() as stack:
            stack.callback(sweep)
            made = {}
            for spec in specs:
                made[spec] = Server(self)
                stack.callback(made[spec].end)
            yield made

    def rounds(self, what: str, full: int, quick: int) -> Iterator[int]:
        """So many rounds. Raises Absent where a further one, as long as the longest so far, would end too late."""
        most, longest = quick if self.quick else full, 0.0
        for number in range(most):
            self.done = f", after {number} of {most} rounds"
            self.progress.update(self.task, description=f"{what}, {number + 1} of {most}")
            began = time.monotonic()
            if number and began + longest > self.until:
                raise Absent(LATE)
            yield number
            longest = max(longest, time.monotonic() - began)


def turns(servers: dict[str, Server], number: int) -> list[tuple[str, Server]]:
    """Each server once, another one first in each round."""
    pairs = list(servers.items())
    first = number % len(pairs)
    return pairs[first:] + pairs[:first]


def prepare(folder: Path) -> dict[str, str]:
    """Kernelspecs and a profile in a folder of their own; the environment in which a server finds no others."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY_"))}
    for name in ("data", "config", "runtime", "ipython"):
        (folder / name).mkdir(mode=0o700)
    profiles = folder / "config" / "isolated-python" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "bench-science.toml").write_text(f"preload = {json.dumps(SCIENCE)}\n")
    (profiles / "bench-listed.toml").write_text(f"[modules]\ngrant = {json.dumps(LISTED)}\n")
    # An ordinary user can only be given a cgroup by systemd; where that is not there, the table's head says so.
    layers = {} if os.geteuid() == 0 else {"overrides": {"layers": {"cgroup": "prefer"}}}
    ours = ["python", "-m", "isolated_python.launcher.argv", "-f", "{connection_file}"]
    for name, config in ISOLATED.items():
        provisioner = {"provisioner_name": "isolated-python", "config": config | layers}
        _spec(folder, name, ours, {"kernel_provisioner": provisioner, "debugger": True})
    _spec(folder, "stock", stock(), {"debugger": True})
    for name, (kind, config) in UNISOLATED.items():
        _spec(folder, name, stock(), {"kernel_provisioner": {"provisioner_name": kind, "config": config}})
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

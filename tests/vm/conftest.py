"""The machine of this run, our product installed in it, and the suites that run there, each in one life."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from tests.vm import image
from tests.vm.machine import Machine
from tests.vm.product import PLACE, PYTHON, install

EACH = 600  # seconds that one test may take inside, where everything is some thirteen times slower
LAYERS = ("tests/layers", "tests/linux")
LIMITS = ("tests/kernel/test_limits.py", "tests/kernel/test_life.py")
KERNEL = (*LIMITS, *(f"tests/kernel/test_{part}.py" for part in ("inside", "kill", "reasons", "bad_input", "systemd")))
SERVICE = ("tests/vm/inside/test_unit.py", "tests/vm/inside/test_hub.py", "tests/engine/test_service.py")
UNIT = (
    *("systemd-run", "--pipe", "--wait", "--collect", "--quiet", f"--working-directory={PLACE}"),
    *("-p", f"User={image.PERSON}", "-p", "Delegate=yes"),
)
# Left out: programs whose packages are not on the disk; what is slow, and the same on every machine; what counts the
# seconds of a processor, of which this one needs thirteen for one.
NOWHERE = (
    *("[numbers", "[tables", "[learn", "[plot"),
    "the_compiled_filter_says_what_its_table_says",
    "a_flood_of_raw_output_and_of_refused_calls_stops_nobody_else",
)


@dataclass(frozen=True)
class Life:
    """Who runs a suite inside, started by what, and which of its tests are about such a life."""

    user: str
    prefix: tuple[str, ...]
    suites: tuple[str, ...]
    without: tuple[str, ...] = ()  # parameters and tests that are about another life


LIVES = {
    # Logged in, with a user manager; nothing is delegated, so a scope is asked for over D-Bus.
    "session": Life(image.PERSON, (), KERNEL, ("[root",)),
    # Root in a session of its own, without asking systemd for anything. The user without rights that it makes has no
    # user manager: of that one only the refusal is of interest here.
    "root": Life(
        "root", (), (*LAYERS, *KERNEL, "tests/kernel/test_images.py"), ("([ordinary and not without_a_cgroup)",)
    ),
    # Started in a scope that is delegated already.
    "delegated": Life(
        image.PERSON,
        ("systemd-run", "--user", "--scope", "--quiet", "-p", "Delegate=yes"),
        (*LAYERS, *LIMITS),
        ("[root",),
    ),
    # A unit of the system's manager with a user of its own, as JupyterHub's systemdspawner starts a person's server.
    "unit": Life("root", UNIT, LIMITS[:1], ("[root",)),
    # The privileged service, as a unit of the system's manager and in the foreground, and a hub with such units.
    "service": Life("root", (), SERVICE),
}


@cache
def nodes(suites: tuple[str, ...]) -> list[str]:
    """The tests of the suites, each once: what its parameters are is found out inside."""
    asked = ("-q", "--collect-only", "-p", "no:randomly", "-p", "no:cacheprovider", "-o", "norecursedirs=")
    command = [sys.executable, "-P", "-m", "pytest", *asked, *suites]
    found = subprocess.run(command, cwd=image.ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return [*dict.fromkeys(line.partition("[")[0] for line in found.stdout.splitlines() if "::" in line)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"as_whom", "node"} <= {*metafunc.fixturenames}:
        pairs = [(name, node) for name, life in LIVES.items() for node in nodes(life.suites)]
        metafunc.parametrize(("as_whom", "node"), pairs, ids=["-".join(pair) for pair in pairs])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One life after the other, whatever the order was: each is one run inside."""
    items.sort(key=lambda item: [*LIVES].index(_asked(item)["as_whom"]) if "as_whom" in _asked(item) else -1)


def _asked(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    say = reporter.write_line if reporter else print
    say("")
    machine = Machine(image.build(say), say)
    try:
        say("Installing what is tested …")
        install(machine)
        yield machine
    finally:
        machine.close()


class Run:
    """One life's suite, running inside: its reports are read as they come."""

    def __init__(self, machine: Machine, name: str, wanted: list[str]) -> None:
        life = LIVES[name]
        # pytest-randomly has mixed the tests out here already.
        options = ["-v", "-p", "no:cacheprovider", "-p", "no:randomly", "-o", "norecursedirs=", f"--timeout={EACH}"]
        without = " and ".join(f"not {word}" for word in (*life.without, *NOWHERE))
        storage = f"HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis-{name}"
        command = [*life.prefix, "env", storage, PYTHON, "-P", "tests/vm/report.py", *options, "-k", without]
        self.log = machine.folder / f"{name}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                machine.ssh(life.user, ["sh", "-c", f'cd {PLACE} && exec "$@"', "sh", *command]),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write("\n".join(wanted))
        self.process.stdin.close()
        self.told: dict[str, list[dict[str, Any]]] = {}

    def ended(self, node: str) -> list[dict[str, Any]]:
        """How a test ended inside, with each of its parameters; waits for it."""
        assert self.process.stdout is not None
        while node not in self.told:
            line = self.process.stdout.readline()
            if not line:
                end = self.log.read_text()[-4000:]
                raise AssertionError(f"the run ended with {self.process.wait()} before this test:\n{end}")
            report = json.loads(line)
            self.told[report["node"]] = report["ended"]
        return self.told[node]

    def counts(self) -> Counter[str]:
        return Counter(one["outcome"] for ended in self.told.values() for one in ended)

    def close(self) -> None:
        """Wait for the end, unless nobody waits for its tests any more."""
        assert self.process.stdout is not None
        self.process.terminate()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, machine: Machine) -> Iterator[dict[str, Run]]:
    """The runs, each begun when its first test is asked for; only what is selected out here runs inside."""

    class Runs(dict[str, Run]):
        def __missing__(self, name: str) -> Run:
            asked = (_asked(item) for item in request.session.items)
            self[name] = Run(machine, name, [one["node"] for one in asked if one.get("as_whom") == name])
            return self[name]

    runs = Runs()
    yield runs
    request.config.stash[COUNTS] = {name: run.counts() for name, run in runs.items()}
    for run in runs.values():
        run.close()


COUNTS = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How many ended how inside: with parameters they are more than the tests out here."""
    for name, counts in config.stash.get(COUNTS, {}).items():
        terminalreporter.write_line(
            f"inside, as {name}: " + ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
        )

"""Attacks become tests: each once in one combination, or in all of them with --every-combination."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.conftest import Ordinary, somebody
from tests.escapes.attack import CGROUP, ROOT, Attack, attacks_of
from tests.escapes.places import EVERY, SPREAD, Combination, Place
from tests.kernel.conftest import Server, has_cgroup, serve


def combinations(attack: Attack, config: pytest.Config) -> list[Combination]:
    """Where this attack is run: in every combination in which it means something, or in one of those."""

    def apt(one: Combination) -> bool:
        if attack.profiles and one.profile not in attack.profiles:
            return False
        return one.path in attack.paths and ("cgroup" not in attack.needs or has_cgroup(root=one.life == "root"))

    without = config.getoption("--without")
    if without:
        mutant = [one for one in EVERY if (one.profile, one.path) == ("standard", "zygote") and apt(one)]
        return mutant if attack.stopped_by == without else []
    if config.getoption("--every-combination"):
        return [one for one in EVERY if apt(one)]
    found = [one for one in SPREAD if apt(one)] or [one for one in EVERY if apt(one)]
    # Each attack keeps its combination from run to run.
    return [found[zlib.crc32(attack.name.encode()) % len(found)]] if found else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "attack" not in metafunc.fixturenames:
        return
    cases = []
    for attack in attacks_of(metafunc.module):
        if os.geteuid() and (attack.control == ROOT or (attack.control == CGROUP and not has_cgroup(root=False))):
            continue  # without root there is no control, and without a control no proof
        found = combinations(attack, metafunc.config)
        cases += [pytest.param(attack, one, id=f"{attack}-{one}") for one in found]
    metafunc.parametrize(("attack", "combination"), cases)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One combination after the other, whatever the order, so that only the kernels of one run at a time."""
    if config.getoption("--without"):
        items[:] = [item for item in items if _combination(item)]
    ours = [number for number, item in enumerate(items) if _combination(item)]
    order = {one: number for number, one in enumerate(dict.fromkeys(_combination(items[each]) for each in ours))}
    grouped = sorted((items[number] for number in ours), key=lambda item: order[_combination(item)])
    for number, item in zip(ours, grouped, strict=True):
        items[number] = item


def _combination(item: pytest.Item) -> Combination | None:
    return (
        item.callspec.params.get("combination")
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else None
    )


class Places:
    """The servers of both lives, each made when the first attack asks for it, and one place in them at a time."""

    def __init__(self, stack: ExitStack, without: str) -> None:
        self.stack, self.without = stack, without
        self.token = secrets.token_hex(16)
        self.left_open: dict[str, int] = {}
        self.servers: dict[str, tuple[Server, Ordinary]] = {}
        self.made: dict[Combination, Place] = {}
        self.proven: set[tuple[str, str]] = set()  # attacks whose control has been seen to work, by life

    def at(self, combination: Combination) -> Place:
        if combination not in self.made:
            for place in self.made.values():
                place.close()
            self.made.clear()
            if combination.life not in self.servers:
                person = self.stack.enter_context(somebody())
                root = combination.life == "root"
                more = {"JUPYTERHUB_API_TOKEN": self.token}
                (person.home / "root").mkdir(mode=0o700, exist_ok=True)
                left_open = left_open_folder(person.home / "root" if root else person.home, self.token)
                self.stack.callback(os.close, left_open)
                server = self.stack.enter_context(serve(root, person, left_open=(left_open,), **more))
                self.left_open[combination.life] = left_open
                self.servers[combination.life] = (server, person)
            server, person = self.servers[combination.life]
            self.made[combination] = Place(server, person, combination, self.token, self.without)
            self.made[combination].left_open = self.left_open[combination.life]
        return self.made[combination]


def left_open_folder(home: Path, token: str) -> int:
    """A folder with a secret, open: the server has it, as one forgets a descriptor, and nobody else must get it."""
    folder = home / "open"
    folder.mkdir(mode=0o755)
    (folder / "notes.txt").write_text(token)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


@pytest.fixture(scope="session")
def places(request: pytest.FixtureRequest) -> Iterator[Places]:
    left: list[psutil.Process] = []
    with ExitStack() as stack:
        stack.callback(lambda: [process.kill() for process in left if process.is_running()])
        found = Places(stack, request.config.getoption("--without"))
        yield found
        if found.without:  # without a layer, an attack may well leave something, which a server then complains about
            left += [process for server, _ in found.servers.values() for process in server.ours()]


@pytest.fixture
def place(places: Places, combination: Combination) -> Place:
    return places.at(combination)


@pytest.fixture
def proven(places: Places) -> set[tuple[str, str]]:
    return places.proven

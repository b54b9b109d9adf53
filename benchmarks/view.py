"""
What a list of modules costs: the view of a large environment once, and a warm start with a list beside one without.

    python benchmarks/view.py [--distributions N] [--rounds N] [--json FILE]

The environment is made for the purpose, with as many distributions as asked for, a hundred files each, among them
namespace packages, programs and chains of requirements. Nothing here is a test. Times are in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from isolated_python.engine import interpreters, packages, sight
from isolated_python.engine.packages import Interpreter
from isolated_python.policy.profile import Modules, Profile
from jupyter_client.manager import KernelManager
from rich.console import Console
from rich.table import Table

VERSION = (sys.version_info[0], sys.version_info[1])
FILES = 100  # of a distribution
GRANTED = ["numpy", "@stdlib-safe", "@notebook"]  # of the warm start


def environment(prefix: Path, count: int) -> Interpreter:
    """Every distribution requires the one before it but every tenth, so a grant takes others along."""
    site = prefix / "lib" / f"python{VERSION[0]}.{VERSION[1]}" / "site-packages"
    site.mkdir(parents=True)
    (prefix / "bin").mkdir()
    for number in range(count):
        name = "ipykernel" if number == 0 else f"package-{number}"
        top = "shared/part" if number % 10 == 5 else "package_"
        requires = [f"Requires-Dist: package-{number - 1}"] if number % 10 > 1 else []
        about = site / f"{name.replace('-', '_')}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            "\n".join([f"Name: {name}", "Version: 1.0", *requires]) + "\n\n" + "text\n" * 200
        )
        files = [f"{name if number == 0 else f'{top}{number}'}/module{one}.py" for one in range(FILES)]
        for file in (files[0], files[-1]):
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).touch()
        own = [f"{about.name}/METADATA", f"{about.name}/RECORD", f"../../../bin/program{number}"]
        (about / "RECORD").write_text("".join(f"{file},sha256=abc,1\n" for file in (*files, *own)))
    return Interpreter(VERSION, (str(site),))


def timed(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - began)


def views(count: int, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"view, first": [], "view, another list": [], "view, kept": []}
    with tempfile.TemporaryDirectory() as folder:
        interpreter = environment(Path(folder), count)
        for number in range(rounds):
            packages._environment.cache_clear()
            sight._view.cache_clear()
            for name, grant in (("view, first", 9), ("view, another list", 19), ("view, kept", 19)):
                modules = Modules(grant=(f"package-{grant}", f"package-{25 + 10 * number % (count - 30)}"))
                profile = replace(Profile(), modules=modules)
                found[name].append(timed(lambda profile=profile: sight.view(profile, interpreter, ())))  # type: ignore[misc]
    modules = Modules(grant=("@stdlib", "ipykernel"))
    found["view of this environment, first"] = []
    for _ in range(rounds):
        packages._environment.cache_clear()
        sight._view.cache_clear()
        act = lambda: sight.view(replace(Profile(), modules=modules), interpreters.own(), interpreters.own_trees())  # noqa: E731
        found["view of this environment, first"].append(timed(act))
    return found


def start(overrides: dict[str, Any]) -> float:
    """To the reply of the first cell, as in benchmarks/run.py."""
    manager = KernelManager(kernel_name="isolated-python")
    manager.kernel_spec.metadata["kernel_provisioner"]["config"] = {"overrides": overrides}
    began = time.perf_counter()
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    asked = client.execute("1")
    while client.get_shell_msg(timeout=120)["parent_header"].get("msg_id") != asked:
        pass
    seconds = time.perf_counter() - began
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return 1000 * seconds


def starts(rounds: int) -> dict[str, list[float]]:
    kinds: dict[str, dict[str, Any]] = {
        "start, everything granted": {},
        "start, a list": {"modules": {"grant": GRANTED}},
    }
    for overrides in kinds.values():
        start(overrides)  # from here on each has its zygote
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, overrides in kinds.items():
            found[name].append(start(overrides))
    fresh = (
        "ctypes",
        "socket",
        "subprocess",
        "multiprocessing",
        "select",
    )  # each a list that nobody has asked for: a view and a zygote
    found["start, a new list"] = [start({"modules": {"grant": [*GRANTED, name]}}) for name in fresh]
    return found


def main() -> None:
    words = argparse.ArgumentParser(description="What a list of modules costs.")
    words.add_argument("--distributions", type=int, default=300, help="in the environment of the view (300)")
    words.add_argument("--rounds", type=int, default=20, help="of each (20)")
    words.add_argument("--json", type=Path, help="write all values to this file")
    asked = words.parse_args()
    found = views(asked.distributions, asked.rounds) | starts(asked.rounds)
    table = Table("figure", "median", "least", "most", box=None)
    for name, values in found.items():
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(values), min(values), max(values))))
    plain, listed = found["start, everything granted"], found["start, a list"]
    added = [ours - theirs for ours, theirs in zip(listed, plain, strict=True)]
    table.add_row("added by the list", f"{statistics.median(added):.2f}", f"{min(added):.2f}", f"{max(added):.2f}")
    Console(width=100).print(table)
    if asked.json:
        asked.json.write_text(json.dumps(found))


main()

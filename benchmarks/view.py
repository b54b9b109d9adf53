"""
What a list of modules costs in an environment of 300 distributions: once, and at each warm start.

The distributions are made for the purpose and lie beside those that the server has already. Each has a hundred files;
among them are namespace packages, programs and chains of requirements.
"""

from __future__ import annotations

import site
from pathlib import Path

from bench import LISTED, Bench, Figure
from start import warm_up

FIGURES = (
    Figure("view.build", "view of an environment of 300 distributions", "ms", 2000, by="value"),
    Figure("view.first", "the first start with a list of modules, less one without", "ms", by="value"),
    Figure("view.warm", "a warm start with a list of modules, less one without", "ms", 5, by="value"),
)
COUNT = 300
FILES = 100  # of a distribution
KINDS = ("isolated", "isolated-listed")


def measure(bench: Bench) -> None:
    prefix = str(environment(bench.folder / "environment"))
    with bench.taking("view.build") as wanted:
        if wanted:
            with bench.servers("isolated") as servers:
                servers["isolated"].ask("dwell", prefix=prefix)
                for number in bench.rounds("views", 20, 5):
                    grant = [*LISTED, "package-9", f"package-{25 + 10 * number}"]
                    bench.note("view.build", "isolated", servers["isolated"].ask("view", grant=grant))
    with bench.taking("view.first") as wanted:
        for number in bench.rounds("first starts with a list", 10, 2) if wanted else ():
            took = {}
            for kind in turned(number):
                with bench.servers(kind) as servers:
                    servers[kind].ask("dwell", prefix=prefix)
                    took[kind] = servers[kind].ask("start", name="a", spec=kind)
            bench.note("view.first", "isolated", added(took))
    with bench.taking("view.warm") as wanted:
        if wanted:
            with bench.servers("isolated") as servers:
                server = servers["isolated"]  # one for both
                server.ask("dwell", prefix=prefix)
                for kind in KINDS:
                    warm_up(kind, server)
                for number in bench.rounds("warm starts with a list", 60, 15):
                    took = {}
                    for kind in turned(number):
                        took[kind] = server.ask("start", name="a", spec=kind)
                        server.ask("stop", names=["a"])
                    bench.note("view.warm", "isolated", added(took))


def turned(number: int) -> tuple[str, ...]:
    return KINDS[:: -1 if number % 2 else 1]


def added(took: dict[str, float]) -> float:
    without, listed = (took[kind] for kind in KINDS)
    return listed - without


def environment(prefix: Path) -> Path:
    """Every distribution requires the one before it but every tenth, so a grant takes others along."""
    folder = Path(site.getsitepackages([str(prefix)])[0])
    folder.mkdir(parents=True)
    (prefix / "bin").mkdir()
    for number in range(COUNT):
        top = "shared/part" if number % 10 == 5 else "package_"
        requires = [f"Requires-Dist: package-{number - 1}"] if number % 10 > 1 else []
        about = folder / f"package_{number}-1.0.dist-info"
        about.mkdir()
        words = "\n".join([f"Name: package-{number}", "Version: 1.0", *requires])
        (about / "METADATA").write_text(f"{words}\n\n{'text' * 200}")
        files = [f"{top}{number}/module{one}.py" for one in range(FILES)]
        for file in (files[0], files[-1]):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        own = [f"{about.name}/METADATA", f"{about.name}/RECORD", f"../../../bin/program{number}"]
        (about / "RECORD").write_text("".join(f"{file},sha256=abc,1\n" for file in (*files, *own)))
    return prefix

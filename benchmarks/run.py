"""
The isolated kernel beside the stock one: one run, interleaved, medians with spread, and their ratio.

    python benchmarks/run.py                     # everything; some twenty minutes, at most 25
    python benchmarks/run.py --quick             # fewer rounds, without what is slow; some three minutes, at most 10
    python benchmarks/run.py start.warm trip     # some figures, or whole parts
    python benchmarks/run.py --list              # what there is

Nothing here is a test, and nothing fails by being slow: the exit status is 1 only where a figure with a bar could not
be taken. Each part has its time; one that has no more keeps what it has, and says so. Told to end (Ctrl-C, SIGTERM), a
run takes down all that it has started and shows what there is; its exit status is then 128 and the signal.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import floors
import iopub
import life
import memory
import neighbours
import others
import psutil
import report
import start
import trip
import view
import work
from bench import Bench, Figure, mind
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PARTS: dict[str, tuple[ModuleType, float]] = {  # and how many minutes it may take
    "start": (start, 8),
    "view": (view, 1.5),
    "others": (others, 2),
    "trip": (trip, 1),
    "iopub": (iopub, 3),
    "life": (life, 2),
    "memory": (memory, 3.5),
    "work": (work, 1),
    "neighbours": (neighbours, 2),
    "floor": (floors, 4),
}
PLACE = "/var/tmp"  # a sandbox has a /tmp of its own, so no environment can lie below that
MINUTES, QUICK = 24.0, 9.0  # of a whole run, less what it may take to end what is late


def chosen(names: list[str], *, quick: bool) -> list[Figure]:
    """The figures that `names` name, by glob or by part; else all, in a quick run without the slow ones."""
    every = [figure for module, _ in PARTS.values() for figure in module.FIGURES]
    if not names:
        return [figure for figure in every if not (quick and figure.slow)]
    patterns = [f"{name}.*" if name in PARTS else name for name in names]
    for pattern in patterns:
        if not any(fnmatch.fnmatch(figure.name, pattern) for figure in every):
            sys.exit(f"There is no figure {pattern!r}. `--list` shows them all.")
    return [figure for figure in every if any(fnmatch.fnmatch(figure.name, pattern) for pattern in patterns)]


def measure(bench: Bench, most: float) -> None:
    """`most`: the minutes that all of it may take."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    parts = [name for name in PARTS if any(figure.name.startswith(f"{name}.") for figure in bench.figures)]
    scale = min(1.0, most / sum(PARTS[name][1] for name in parts))
    left = [scale * PARTS[name][1] for name in parts]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bench.progress:
        bench.task = bench.progress.add_task("", total=len(parts))
        for number, name in enumerate(parts):
            words = f"{name}, {number + 1} of {len(parts)}: at most {left[number]:.1f} min"
            bench.progress.console.print(f"{words}; with what follows, {sum(left[number:]):.1f}", highlight=False)
            bench.over = time.monotonic() + 60 * left[number]
            PARTS[name][0].measure(bench)
            bench.progress.advance(bench.task)


def machine() -> dict[str, str]:
    """Where the figures come from."""
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "when": time.strftime("%Y-%m-%d"),
        "processor": f"{psutil.cpu_count()} × {models[0] if models else platform.machine()}",
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.1f} GiB",
        "linux": platform.release(),
        "python": platform.python_version(),
        "life": "root" if os.geteuid() == 0 else "an ordinary user",
        "load": f"{os.getloadavg()[0]:.1f} when it began",
    }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("figures", nargs="*", metavar="FIGURE", help="a figure, a glob of figures, or a part")
    words.add_argument("--quick", action="store_true", help="fewer rounds, without what is slow")
    words.add_argument("--list", action="store_true", help="show the figures, and take none")
    words.add_argument(
        "--minutes", type=float, metavar="N", help=f"how long it may take ({MINUTES:g}, quick {QUICK:g})"
    )
    words.add_argument("--json", type=Path, metavar="FILE", help="where all values go (.cache/bench/bench.json)")
    asked = words.parse_args()
    figures = chosen(asked.figures, quick=asked.quick)
    if asked.list:
        for figure in figures:
            print(f"{figure.name:22} {figure.title}")
        return
    status = 0
    about = machine()
    mind()
    with tempfile.TemporaryDirectory(prefix="isolated-bench-", dir=PLACE) as folder:
        os.chmod(folder, 0o755)
        bench = Bench(Path(folder), figures, quick=asked.quick)
        try:
            measure(bench, asked.minutes or (QUICK if asked.quick else MINUTES))
        except SystemExit as told_to_end:
            status = int(told_to_end.code or 0)
            bench.leave("the run was ended", *bench.waiting)
    target = asked.json or Path(".cache/bench/bench.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    results = report.Results.of(about, figures, bench.found, bench.notes)
    results.write(target)
    report.plot(results, target.with_suffix(".svg"))
    report.show(results)
    print(f"All values: {target}; the plot: {target.with_suffix('.svg')}")
    sys.exit(status or int(any(row.figure.bar is not None and row.reached is None for row in results.rows)))


if __name__ == "__main__":
    main()

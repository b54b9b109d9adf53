"""
The isolated kernel beside the stock one: one run, interleaved, medians with spread, and their ratio.

    python benchmarks/run.py                     # everything; some twenty minutes
    python benchmarks/run.py --quick             # two minutes: fewer rounds, without what is slow
    python benchmarks/run.py start.warm trip     # some figures, or whole parts
    python benchmarks/run.py --list              # what there is

Nothing here is a test, and nothing fails by being slow: the exit status is 1 only where a figure could not be taken.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import iopub
import life
import memory
import neighbours
import others
import psutil
import report
import start
import trip
import work
from bench import Bench, Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PARTS: dict[str, tuple[ModuleType, float]] = {  # and how many minutes it may take
    "start": (start, 8),
    "others": (others, 2),
    "trip": (trip, 1),
    "iopub": (iopub, 3),
    "life": (life, 2),
    "memory": (memory, 4),
    "work": (work, 1.5),
    "neighbours": (neighbours, 2),
}
QUICK = 0.25  # minutes of a part in the quick run


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


def measure(bench: Bench, share: float) -> None:
    """`share`: of the time that each part may take."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    parts = [name for name in PARTS if any(figure.name.startswith(f"{name}.") for figure in bench.figures)]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bench.progress:
        bench.task = bench.progress.add_task("", total=len(parts))
        for name in parts:
            module, minutes = PARTS[name]
            bench.until = time.monotonic() + 60 * (QUICK if bench.quick else minutes * share)
            module.measure(bench)
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


def end(*_: object) -> None:
    """Told to end, a run takes down all that it has started, and its folder."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # timeout(1) tells the process, and then its group
    sys.exit(143)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("figures", nargs="*", metavar="FIGURE", help="a figure, a glob of figures, or a part")
    words.add_argument("--quick", action="store_true", help="fewer rounds, without what is slow")
    words.add_argument("--list", action="store_true", help="show the figures, and take none")
    words.add_argument("--minutes", type=float, default=24, metavar="N", help="about how long it may take at most (24)")
    words.add_argument("--json", type=Path, metavar="FILE", help="where all values go (.cache/bench/bench.json)")
    asked = words.parse_args()
    figures = chosen(asked.figures, quick=asked.quick)
    if asked.list:
        for figure in figures:
            print(f"{figure.name:22} {figure.title}")
        return
    signal.signal(signal.SIGTERM, end)
    about = machine()
    with tempfile.TemporaryDirectory(prefix="isolated-bench-") as folder:
        os.chmod(folder, 0o755)
        bench = Bench(Path(folder), figures, quick=asked.quick)
        measure(bench, min(1.0, asked.minutes / sum(minutes for _, minutes in PARTS.values())))
    target = asked.json or Path(".cache/bench/bench.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    results = report.Results.of(about, figures, bench.found, bench.absent)
    results.write(target)
    report.plot(results, target.with_suffix(".svg"))
    report.show(results)
    print(f"All values: {target}; the plot: {target.with_suffix('.svg')}")
    sys.exit(1 if any(figure.name in bench.absent and figure.bar is not None for figure in figures) else 0)


if __name__ == "__main__":
    main()

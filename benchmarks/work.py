"""What the sandbox costs a cell that works: computing, and calling the system."""

from __future__ import annotations

from bench import Bench, Figure, Server, turns
from start import side

FIGURES = (
    Figure("work.compute", "CPU-bound cell", "ms", 1.01),
    Figure("work.getppid", "syscall-bound cell: getppid", "ms", 1.10),
    Figure("work.stat", "syscall-bound cell: stat", "ms", 1.10),
    Figure("work.open", "syscall-bound cell: open and close", "ms", 1.10),
    Figure("work.pipe", "syscall-bound cell: write to and read from a pipe", "ms", 1.10),
)
BEFORE = "import os, time\nopen('a-file', 'w').close()\nthere, here = os.pipe()"

# The line that is repeated, and how often: about a tenth of a second each. The cell itself holds the clock.
LINES = {
    "work.compute": ("sum(j * j for j in range(1000))", 1_500),
    "work.getppid": ("os.getppid()", 300_000),
    "work.stat": ("os.stat('a-file')", 60_000),
    "work.open": ("os.close(os.open('a-file', os.O_RDONLY))", 30_000),
    "work.pipe": ("os.write(here, b'x'); os.read(there, 1)", 60_000),
}
CELL = "began = time.perf_counter()\nfor i in range({}): {}\ntook = time.perf_counter() - began"


def measure(bench: Bench) -> None:
    names = [figure.name for figure in FIGURES]
    with bench.taking(*names) as wanted:
        if not wanted:
            return
        # Where a process lies in memory makes it a percent or two faster or slower for its life, and a zygote's kernels
        # all lie where it does: so the servers begin anew.
        for _ in bench.rounds("servers with working cells", 8, 1):
            with bench.servers("stock", "isolated") as servers:
                _work(bench, servers, [*filter(bench.wants, names)])


def _work(bench: Bench, servers: dict[str, Server], names: list[str]) -> None:
    for kind, server in servers.items():
        server.ask("start", name="a", spec=kind, code=BEFORE)
        server.ask("settle")
    for number in range(5):
        for name in names:
            line, times = LINES[name]
            for kind, server in turns(servers, number):
                bench.note(name, side(kind), server.ask("inside", name="a", code=CELL.format(times, line)))

"""How long until a kernel answers: cold, warm, from the pool, with the scientific stack, and many at once."""

from __future__ import annotations

import psutil
from bench import IMPORTS, Absent, Bench, Figure, Server, turns

FIGURES = (
    Figure("start.cold", "first reply, cold: a server just started", "ms", 1.15),
    Figure("start.warm", "first reply, warm, no pool", "ms", 0.14),
    Figure("start.pool", "first reply, from the pool", "ms", 0.05),
    Figure("start.ready", "wait_for_ready, as nbclient waits, warm", "ms"),
    Figure("start.cold.science", "first reply of a cell that imports numpy, pandas, matplotlib, cold", "ms", slow=True),
    Figure("start.science", "the same, warm, preloaded", "ms", 0.06),
    Figure("start.pool.science", "the same, from the pool", "ms"),
    Figure("start.30", "30 at once, last one ready", "ms", 0.14),
    Figure("start.30.science", "30 at once, scientific", "ms", 0.06, slow=True),
    Figure("start.30.pool", "30 at once, from the pool", "ms", 0.05, slow=True),
    Figure("start.100", "100 at once, last one ready", "ms", slow=True),
)

# Figure, what stands beside the stock kernel, the first cell, rounds in full and quick.
ONE = (
    (("start.warm", "isolated"), ("start.pool", "pool"), "1", 30, 5),
    (("start.science", "isolated-science"), ("start.pool.science", "pool-science"), IMPORTS, 15, 2),
)
COLD = (("start.cold", "isolated", "1", 12, 2), ("start.cold.science", "isolated-science", IMPORTS, 5, 1))
MANY = (
    ("start.30", "isolated", 30, "1", 5, 1),
    ("start.30.science", "isolated-science", 30, IMPORTS, 3, 1),
    ("start.30.pool", "pool-30", 30, "1", 5, 1),
    ("start.100", "isolated", 100, "1", 2, 1),
)
NEED = {"1": 80e6, IMPORTS: 200e6}  # bytes of memory that a stock kernel may take


def measure(bench: Bench) -> None:
    for name, spec, code, full, quick in COLD:
        cold(bench, name, spec, code, full, quick)
    for (warm, spec), (from_pool, pool), code, full, quick in ONE:
        single(bench, {warm: spec, from_pool: pool}, code, full, quick)
    with bench.taking("start.ready") as wanted:
        if wanted:
            _ready(bench)
    for name, spec, count, code, full, quick in MANY:
        many(bench, name, spec, count, code, full, quick)


def side(spec: str) -> str:
    return "stock" if spec == "stock" else "isolated"


def warm_up(kind: str, server: Server, code: str = "1") -> None:
    """From here on there is a supervisor, a zygote and whatever the file system keeps in memory."""
    server.ask("start", name="first", spec=kind, code=code)
    server.ask("stop", names=["first"])
    server.ask("settle")


def cold(bench: Bench, name: str, spec: str, code: str, full: int, quick: int) -> None:
    with bench.taking(name) as wanted:
        for number in bench.rounds("cold starts", full, quick) if wanted else ():
            for kind in ("stock", spec) if number % 2 else (spec, "stock"):
                with bench.servers(kind) as servers:
                    bench.note(name, side(kind), servers[kind].ask("start", name="a", spec=kind, code=code))


def single(bench: Bench, figures: dict[str, str], code: str, full: int, quick: int) -> None:
    """One start after the other. `figures`: what each is called → the kernelspec."""
    with bench.taking(*figures) as wanted:
        if wanted:
            _single(bench, figures, code, full, quick)


def _single(bench: Bench, figures: dict[str, str], code: str, full: int, quick: int) -> None:
    with bench.servers("stock", *figures.values()) as servers:
        for kind, server in servers.items():
            warm_up(kind, server, code)
        for number in bench.rounds("starts", full, quick):
            for kind, server in turns(servers, number):
                took = server.ask("start", name="a", spec=kind, code=code)
                for name, spec in figures.items():
                    if kind in ("stock", spec):
                        bench.note(name, side(kind), took)
                server.ask("stop", names=["a"])
                if kind.startswith(("pool", "waiting")):
                    server.ask("settle")  # the pool is full again


def _ready(bench: Bench) -> None:
    with bench.servers("stock", "isolated") as servers:
        for kind, server in servers.items():
            warm_up(kind, server)
        for number in bench.rounds("starts as nbclient's", 15, 3):
            for kind, server in turns(servers, number):
                bench.note("start.ready", side(kind), server.ask("ready", name="a", spec=kind))
                server.ask("stop", names=["a"])


def many(bench: Bench, name: str, spec: str, count: int, code: str, full: int, quick: int) -> None:
    """All at the same time, until the last has answered."""
    with bench.taking(name) as wanted:
        if wanted:
            _many(bench, name, spec, count, code, full, quick)


def _many(bench: Bench, name: str, spec: str, count: int, code: str, full: int, quick: int) -> None:
    need = count * NEED[code]
    if psutil.virtual_memory().available < need:
        raise Absent(f"{count} stock kernels may need {need / 1e9:.0f} GB of memory, which are not free")
    names = [str(number) for number in range(count)]
    with bench.servers("stock", spec) as servers:
        for kind, server in servers.items():
            warm_up(kind, server, code)
        for number in bench.rounds(f"{count} at once", full, quick):
            for kind, server in turns(servers, number):
                server.ask("settle")
                bench.note(name, side(kind), _together(server, names, kind, code))
                server.ask("stop", names=names)


def _together(server: Server, names: list[str], spec: str, code: str) -> float:
    """Stock kernels get ports that somebody else may have taken when they come to bind them: they may try again."""
    for left in (2, 1, 0) if spec == "stock" else (0,):
        try:
            return float(server.ask("start_many", names=names, spec=spec, code=code))
        except Absent as reason:
            if not left:
                raise Absent(f"{side(spec)}: {reason}") from None
    raise AssertionError

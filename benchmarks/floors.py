"""What would be left to pay if isolation cost nothing: the least that a figure could be here."""

from __future__ import annotations

import memory
from bench import IMPORTS, Bench, Figure, turns
from start import cold, many, side, single
from work import BEFORE, CELL, LINES

_FORK = "a fork that has imported all, no sandbox, no relay"
_STOOD = "stock kernels that run already, and have run a cell"
FIGURES = (
    Figure("floor.cold", f"first reply of {_FORK}, cold, by a helper", "ms", beneath=("start.cold",)),
    Figure("floor.warm", f"first reply of {_FORK}", "ms", beneath=("start.warm",)),
    Figure("floor.pool", f"first reply of {_STOOD}", "ms", beneath=("start.pool",)),
    Figure("floor.science", "first reply of such a fork, scientific", "ms", beneath=("start.science",)),
    Figure("floor.30", "30 such forks at once", "ms", beneath=("start.30",), slow=True),
    Figure("floor.30.science", "30 such forks at once, scientific", "ms", beneath=("start.30.science",), slow=True),
    Figure("floor.30.pool", f"first reply of 30 {_STOOD}, at once", "ms", beneath=("start.30.pool",), slow=True),
    Figure("floor.memory", "PSS per further fork that has imported all, no sandbox, from 1 to 10", "MB",
           beneath=("memory.10", "memory.40")),
    Figure("floor.open", "open and close with the least filter and Landlock, nothing else", "ms",
           beneath=("work.open",)),
    Figure("floor.open.filter", "open and close with the least filter, nothing else", "ms"),
    Figure("floor.open.landlock", "open and close with Landlock, nothing else", "ms"),
)  # fmt: skip

# Loads the call's number and its third argument, and allows it. Linux remembers of which calls a filter always lets
# through whatever their arguments are, and runs none for those; one that looks at the flags of openat is run.
FILTER = """
import struct
from isolated_python.linux import prctl, seccomp
prctl.set_no_new_privs()
seccomp.load(b"".join(struct.pack("=HxxI", *one) for one in ((0x20, 0), (0x20, 32), (0x06, 0x7FFF0000))))
"""
LANDLOCK = """
from isolated_python.layers import landlock
from isolated_python.linux import prctl
from isolated_python.linux.landlock import abi
prctl.set_no_new_privs()
landlock.RestrictFiles(landlock.READABLE, (os.getcwd(), *landlock.WRITABLE), landlock.TERMINALS, abi()).execute({})
"""
OPEN = {"floor.open": LANDLOCK + FILTER, "floor.open.filter": FILTER, "floor.open.landlock": LANDLOCK}


def measure(bench: Bench) -> None:
    cold(bench, "floor.cold", "forked-helped", "1", 10, 2)
    single(bench, {"floor.warm": "forked", "floor.pool": "waiting"}, "1", 12, 3)
    single(bench, {"floor.science": "forked-science"}, IMPORTS, 6, 2)
    many(bench, "floor.30", "forked", 30, "1", 2, 1)
    many(bench, "floor.30.science", "forked-science", 30, IMPORTS, 1, 1)
    many(bench, "floor.30.pool", "waiting-30", 30, "1", 1, 1)
    with bench.taking("floor.memory") as wanted:
        for _ in bench.rounds("memory of a fork", 3, 1) if wanted else ():
            for kind in ("stock", "forked"):
                with bench.servers(kind) as servers:
                    memory.grow(bench, kind, servers[kind], "1", "floor.memory", "")
    with bench.taking(*OPEN) as wanted:
        if wanted:
            _open(bench)


def _open(bench: Bench) -> None:
    """Each in a stock kernel of its own."""
    line, times = LINES["work.open"]
    with bench.servers("stock") as servers:
        server = servers["stock"]
        kernels = {"stock": server} | dict.fromkeys(OPEN, server)
        for name in kernels:
            server.ask("start", name=name, spec="stock", code=BEFORE + OPEN.get(name, ""))
        server.ask("settle")
        for number in bench.rounds("open and close", 40, 5):
            for kernel, _ in turns(kernels, number):
                took = server.ask("inside", name=kernel, code=CELL.format(times, line))
                for name in OPEN if kernel == "stock" else [kernel]:
                    bench.note(name, side(kernel), took)

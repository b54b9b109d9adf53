"""
The isolated kernel beside the stock one, in one run, interleaved: medians with spread, and their ratio.

    python benchmarks/run.py [--rounds N] [--json FILE]

Nothing here is a test. Times are in milliseconds, memory in MB (PSS: shared pages are divided among those who share).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import KernelManager
from rich.console import Console
from rich.progress import track
from rich.table import Table

KINDS = ("python3", "isolated-python")


class Kernel:
    def __init__(self, kind: str) -> None:
        self.manager = KernelManager(kernel_name=kind)
        self.kind = kind
        began = time.perf_counter()
        self.manager.start_kernel()
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.run("1")
        self.first_reply = 1000 * (time.perf_counter() - began)

    def run(self, code: str) -> None:
        asked = self.client.execute(code)
        while self.client.get_shell_msg(timeout=120)["parent_header"].get("msg_id") != asked:
            pass

    def round_trip(self) -> float:
        began = time.perf_counter()
        self.run("1")
        return 1000 * (time.perf_counter() - began)

    def pss(self) -> float:
        """Of the kernel and, for a sandbox, of its process 1."""
        first = psutil.Process(self.manager.provisioner.pid)
        return sum(one.memory_full_info().pss for one in (first, *first.children(recursive=True))) / 1e6

    def restart(self) -> float:
        began = time.perf_counter()
        self.manager.restart_kernel(now=True)
        self.run("1")
        return 1000 * (time.perf_counter() - began)

    def close(self) -> float:
        self.client.stop_channels()
        began = time.perf_counter()
        self.manager.shutdown_kernel(now=True)
        return 1000 * (time.perf_counter() - began)


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Name of the figure → kind of kernel → values."""
    found: dict[str, dict[str, list[float]]] = {}

    def note(name: str, kind: str, value: float) -> None:
        found.setdefault(name, {}).setdefault(kind, []).append(value)

    Kernel("isolated-python").close()  # from here on there is a zygote
    for _ in track(range(rounds), "starts", console=Console(stderr=True), transient=True):
        for kind in KINDS:
            kernel = Kernel(kind)
            note("first reply, warm", kind, kernel.first_reply)
            note("shutdown, now", kind, kernel.close())
    kept = {kind: [Kernel(kind) for _ in range(4)] for kind in KINDS}
    for _ in track(range(rounds * 20), "round trips", console=Console(stderr=True), transient=True):
        for kind in KINDS:
            note("round trip of 1", kind, kept[kind][0].round_trip())
    for kind in KINDS:
        for kernel in kept[kind][1:]:
            note("PSS of an idle kernel", kind, kernel.pss())
    deeds: dict[str, Callable[[Any], None]] = {
        "100k prints": lambda kernel: kernel.run("for i in range(100_000): print(i)"),
        "CPU-bound cell": lambda kernel: kernel.run("sum(i * i for i in range(1_000_000))"),
        "system calls": lambda kernel: kernel.run("import os\nfor i in range(50_000): os.stat('/tmp')"),
    }
    for name, deed in deeds.items():
        for _ in range(max(3, rounds // 3)):
            for kind in KINDS:
                began = time.perf_counter()
                deed(kept[kind][0])
                note(name, kind, 1000 * (time.perf_counter() - began))
    for kind in KINDS:
        for kernel in kept[kind]:
            kernel.close()
    return found


def main() -> None:
    words = argparse.ArgumentParser(description="The isolated kernel beside the stock one, in one run.")
    words.add_argument("--rounds", type=int, default=12, help="starts of each kind (12)")
    words.add_argument("--json", type=Path, help="write all values to this file")
    asked = words.parse_args()
    found = measure(asked.rounds)
    table = Table("figure", "stock", "isolated", "ratio", box=None)
    for name, kinds in found.items():
        middle = {kind: statistics.median(values) for kind, values in kinds.items()}
        stock, isolated = (f"{middle[kind]:.1f} ({min(kinds[kind]):.1f}–{max(kinds[kind]):.1f})" for kind in KINDS)
        table.add_row(name, stock, isolated, f"{middle['isolated-python'] / middle['python3']:.2f}")
    trips = {kind: statistics.quantiles(found["round trip of 1"][kind], n=100)[98] for kind in KINDS}
    ratio = trips["isolated-python"] / trips["python3"]
    table.add_row("round trip of 1, p99", f"{trips['python3']:.1f}", f"{trips['isolated-python']:.1f}", f"{ratio:.2f}")
    Console(width=120).print(table)
    if asked.json:
        asked.json.write_text(json.dumps(found))
    sys.exit(0)


main()

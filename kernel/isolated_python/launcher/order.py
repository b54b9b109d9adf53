"""
Puts the code of what every kernel calls into pages of its own.

Python counts references to a function's code while it runs, and how often it has run. So each call writes to the page
that the code lies in, and a child has its own copy of that page from then on. Before its first reply a kernel calls a
thousand functions, of fourteen thousand that are there.
"""

from __future__ import annotations

import gc
from pathlib import Path
from types import CodeType, FunctionType

from isolated_python.linux import heap

# Names, one a line; benchmarks/order.py writes them. One that is not there, or that nobody calls now, does no harm.
LIST = Path(__file__).with_name("order.txt")


def name(module: object, code: CodeType) -> str:
    return f"{module}:{code.co_qualname}"


def put_together() -> int:
    """Give each function of the list a copy of its code, beside the one before; returns how many there are."""
    names = frozenset(LIST.read_text().split())
    gc.unfreeze()  # what is frozen is not among the objects that are told of
    chosen = [
        one
        for one in gc.get_objects()
        if isinstance(one, FunctionType) and name(one.__globals__.get("__name__"), one.__code__) in names
    ]
    heap.fill_gaps()
    copies = [one.__code__.replace() for one in chosen]  # all, before the first of the old ones leaves a gap
    for function, copy in zip(chosen, copies, strict=True):
        function.__code__ = copy
    return len(chosen)

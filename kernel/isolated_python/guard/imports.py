"""
Tells a cell that imports what its profile does not grant, in one sentence.

A cell's code finds `__import__` by the `__builtins__` of its own namespace. So that namespace gets a copy with an
`__import__` of ours, and nobody else's imports ever pass by here: not a library's, not IPython's, not those of %run,
%load_ext or a pickle.
"""

from __future__ import annotations

import builtins
import difflib
import os
import types
from collections.abc import Collection
from typing import Any


class ModuleNotGranted(ImportError):
    """The profile does not grant this module to cells."""


ModuleNotGranted.__module__ = "builtins"  # its plain name in a traceback


def sentence(profile: str, name: str, granted: Collection[str]) -> str:
    near = difflib.get_close_matches(name, [*granted], 3, 0.7)
    like = f"; near it, it grants {', '.join(near)}" if near else ""
    return f"the profile {profile} does not grant the module {name}{like} (modules.grant; %sandbox modules lists them)"


def prune(error: Any, code: types.CodeType) -> None:
    """Take the frames of `code` out of the traceback of an error, and of those that it came from."""
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            if place.tb_next.tb_frame.f_code is code:
                place.tb_next = place.tb_next.tb_next
            else:
                place = place.tb_next
        error = error.__cause__ or error.__context__


def install(shell: Any, profile: str, granted: Collection[str], refused: Collection[str]) -> None:
    """Look at the imports of cells in `shell`. A module beside the notebook is its own, whatever it is called."""
    not_granted = frozenset(refused)
    ours = types.ModuleType("builtins", builtins.__doc__)

    def __import__(  # noqa: N807
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        top = name.partition(".")[0]
        # C code that a cell calls, such as pickle's, comes by with a list; an import statement never does.
        cells = level == 0 and not isinstance(fromlist, list)
        if cells and top in not_granted and not (os.path.exists(f"{top}.py") or os.path.isdir(top)):
            raise ModuleNotGranted(sentence(profile, top, granted), name=top)
        return builtins.__import__(name, globals, locals, fromlist, level)

    def refresh(*_: Any) -> None:
        """ipykernel exchanges `input` for each cell, and a cell may add builtins of its own."""
        ours.__dict__.update(builtins.__dict__)
        ours.__dict__["__import__"] = __import__
        shell.user_ns["__builtins__"] = ours

    def without_us(*arguments: Any) -> Any:
        found = exc_info(*arguments)
        prune(found[1], __import__.__code__)
        return found

    exc_info = shell._get_exc_info
    shell._get_exc_info = without_us
    refresh()
    shell.events.register("pre_run_cell", refresh)

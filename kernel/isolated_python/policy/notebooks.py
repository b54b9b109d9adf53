"""Reads notebooks for what they import: the list of modules that a profile would have to grant them."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from isolated_python.errors import ProfileError
from isolated_python.policy.modules import ALWAYS
from isolated_python.record import Record

MAGIC = re.compile(r"\s*[%!?]|.*\?\s*$")
ASSIGNED = re.compile(r"^(\s*)[\w., ()\[\]]+?=\s*[!%]")
PYTHON_CELLS = ("time", "timeit", "capture", "prun")  # cell magics whose body is Python
FOREIGN = {"matplotlib": "matplotlib", "pylab": "matplotlib", "sql": "ipython-sql"}  # line magics that import
BY_NAME = ("import_module", "__import__")


class Wanted(Record):
    """What notebooks import. `here`: modules that lie beside a notebook; `unread`: cells that are not Python."""

    modules: frozenset[str]
    here: frozenset[str]
    unread: tuple[str, ...]


def read(paths: Collection[Path]) -> Wanted:
    """Raises ProfileError for what is no notebook."""
    modules: set[str] = set()
    here: set[str] = set()
    unread: list[str] = []
    for path in paths:
        for number, source in _cells(path):
            try:
                found = {*imports(source)}
            except SyntaxError as error:
                unread.append(f"{path.name}, cell {number}: {error.msg}")
                continue
            beside = {name for name in found if (path.parent / f"{name}.py").exists() or (path.parent / name).is_dir()}
            modules |= found - beside
            here |= beside
    return Wanted(frozenset(modules - ALWAYS), frozenset(here), tuple(unread))


def _cells(path: Path) -> Iterator[tuple[int, str]]:
    try:
        book: Any = json.loads(path.read_text(encoding="utf-8"))
        cells = book["cells"] if "cells" in book else [cell for sheet in book["worksheets"] for cell in sheet["cells"]]
        for number, cell in enumerate(cells, 1):
            if cell["cell_type"] == "code":
                source = cell.get("source", cell.get("input", ""))
                yield number, source if isinstance(source, str) else "".join(source)
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}", remedy="check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ProfileError(f"{path} is not a whole notebook", remedy="save it again") from None


def imports(source: str) -> Iterator[str]:
    """The top-level modules that a cell imports, functions and branches included. Raises SyntaxError."""
    plain, magics = python(source)
    for magic in magics:
        if magic in FOREIGN:
            yield FOREIGN[magic]
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in BY_NAME and isinstance(node.args[0].value, str):
                yield node.args[0].value.partition(".")[0]


def python(source: str) -> tuple[str, list[str]]:
    """A cell without what only IPython understands, line for line, and the names of its magics."""
    lines, magics = source.splitlines(), []
    first = next((line for line in lines if line.strip()), "").strip()
    if first.startswith("%%"):
        words = first[2:].split() or [""]
        if words[0] not in PYTHON_CELLS:
            return "", words[:1]
        lines = ["" if line.strip() == first else line for line in lines]
    for place, line in enumerate(lines):
        if MAGIC.match(line):
            words = line.strip().lstrip("%!?").split() or [""]
            magics += words[:1] if line.strip().startswith("%") else []
            indent = line[: len(line) - len(line.lstrip())]
            rest = line.strip().partition(" ")[2] if words[0] in ("time", "timeit") else ""
            lines[place] = f"{indent}{rest or 'pass'}"
        else:
            lines[place] = ASSIGNED.sub(r"\1_ = 0 #", line)
    return "\n".join(lines), magics


def grants(wanted: Wanted, installed: Mapping[str, Collection[str]]) -> tuple[list[str], list[str]]:
    """The list to grant: modules of the standard library by name, others by distribution; and what is not installed."""
    owners: dict[str, list[str]] = {}
    for name, modules in installed.items():
        for module in modules:
            owners.setdefault(module, []).append(name)
    plain = sorted(name for name in wanted.modules if name in sys.stdlib_module_names)
    others = [name for name in wanted.modules if name not in sys.stdlib_module_names]
    found = sorted(
        {min(owners[name], key=lambda one: (one != name, len(one), one)) for name in others if name in owners}
    )
    return [*plain, *found], sorted(name for name in others if name not in owners)

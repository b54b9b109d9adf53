"""Notebooks of a course show the same in a sandbox as in the stock kernel: every output of every cell."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from isolated_python.policy import sources

from tests.conftest import BIN
from tests.kernel.conftest import Server

BOOKS = sorted((Path(__file__).parent.with_name("notebooks") / "courses").glob("*.ipynb"))
FIRST = ("numpy-linear-algebra", "pandas-tables", "ipywidgets-controls", "sqlite-queries", "magics-and-errors")

# What differs between two runs of the stock kernel, too: ids and addresses, and files that are named after them.
VOLATILE = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|[0-9a-f]{8}-[0-9a-f]{24}_\d+_\d+|0x[0-9a-f]{6,}|ipykernel_\d+/\d+"
)


def shown(server: Server, name: str, book: Path) -> list[list[Any]]:
    """What every cell shows, with ids in the order of their appearance."""
    found = []
    for cell in json.loads(book.read_text())["cells"]:
        if cell["cell_type"] == "code":
            asked = {"code": "".join(cell["source"]), "silent": False, "store_history": True, "user_expressions": {}}
            answer = server.ask(
                "send",
                name=name,
                type="execute_request",
                content=asked | {"allow_stdin": False, "stop_on_error": False},
            )
            assert "error" not in answer, (asked["code"], answer)
            found.append(joined(answer["heard"]))
    seen: dict[str, str] = {}
    text = VOLATILE.sub(lambda match: seen.setdefault(match[0], f"id-{len(seen)}"), json.dumps(found))
    return json.loads(text)  # type: ignore[no-any-return]


def joined(heard: list[list[Any]]) -> list[list[Any]]:
    """Without the echo of the code; what is written to one stream in pieces is one text."""
    found: list[list[Any]] = []
    for kind, content, buffers in heard:
        if kind in ("status", "execute_input"):
            continue
        if kind == "stream" and found and found[-1][0] == kind and found[-1][1]["name"] == content["name"]:
            found[-1][1]["text"] += content["text"]
        else:
            found.append([kind, content, buffers])
    return found


def folder(server: Server, name: str) -> str:
    path = server.folder / name
    path.mkdir()
    os.chown(path, server.folder.stat().st_uid, server.folder.stat().st_gid)
    return str(path)


def every() -> Iterator[Any]:
    """Each in each life; a few of them, in one life, always."""
    for book in BOOKS:
        for life in (True, False) if os.geteuid() == 0 else (False,):
            always = book.stem in FIRST and life == (os.geteuid() == 0)
            name = f"{book.stem}-{'root' if life else 'ordinary'}"
            yield pytest.param(book, life, marks=() if always else pytest.mark.thorough, id=name)


def stock(server: Server, book: Path) -> list[list[Any]]:
    """What the book shows in the stock kernel, in this same run."""
    server.start("stock", kernel="python3", spec={"metadata": {}}, pool=False, cwd=folder(server, "stock"))
    assert server.text("print('Seccomp:\\t0' in open('/proc/self/status').read())", "stock") == "True"  # stock indeed
    found = shown(server, "stock", book)
    server.ask("stop", name="stock")
    assert any(outputs for outputs in found)
    return found


def isolated(server: Server, book: Path, profile: str, overrides: dict[str, Any] | None = None) -> list[list[Any]]:
    """What it shows in a kernel of this profile."""
    server.start(profile, overrides, profile=profile, cwd=folder(server, profile))
    assert server.text("print('Seccomp:\\t2' in open('/proc/self/status').read())", profile) == "True"
    found = shown(server, profile, book)
    server.ask("stop", name=profile)
    return found


@pytest.mark.parametrize(("book", "life"), [*every()])
def test_a_notebook_shows_the_same_as_in_the_stock_kernel(server: Server, book: Path) -> None:
    wanted = stock(server, book)
    for profile in ("classroom", "data-science"):
        found = isolated(server, book, profile)
        for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True), 1):
            assert ours == theirs, f"code cell {number} in {profile}"


@pytest.mark.thorough
@pytest.mark.parametrize("life", [os.geteuid() == 0])
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_a_notebook_shows_the_same_in_every_profile_that_grants_it(server: Server, book: Path) -> None:
    """In an examination, too, what it displays; but for a workspace to write to, and magics that start programs."""
    wanted = stock(server, book)
    for profile in ("standard", "shared", "grading", "open"):
        assert isolated(server, book, profile) == wanted, profile
    if book.stem in EXAMINED:
        kinds = sources.load("exam").profile.capabilities.display or ()
        found = isolated(server, book, "exam", {"files": {"workspace": "copy-on-write"}})
        assert displayed(found, kinds) == displayed(wanted, kinds)


@pytest.mark.thorough
@pytest.mark.parametrize("life", [os.geteuid() == 0])
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_the_list_that_a_notebook_is_said_to_need_is_enough(server: Server, book: Path) -> None:
    """As `jupyter isolated modules` prints it, with what it says that these may use."""
    done = subprocess.run([f"{BIN}/jupyter-isolated", "modules", "--json", book], capture_output=True, text=True)
    said = json.loads(done.stdout)
    grant = [*said["grant"], *(name for used in said["used if there"].values() for name in used)]
    assert isolated(server, book, "standard", {"modules": {"grant": grant}}) == stock(server, book)


EXAMINED = ("numpy-linear-algebra", "pandas-tables", "matplotlib-figures", "scipy-optimisation")


def displayed(cells: list[list[Any]], kinds: tuple[str, ...]) -> list[list[Any]]:
    """Without what `kinds` do not name."""
    for _, content, _ in (out for outs in cells for out in outs):
        for bundle in ("data", "metadata"):
            if isinstance(content.get(bundle), dict):
                content[bundle] = {kind: data for kind, data in content[bundle].items() if _named(kind, kinds)}
    return cells


def _named(kind: str, kinds: tuple[str, ...]) -> bool:
    return any(fnmatchcase(kind, pattern) for pattern in kinds)

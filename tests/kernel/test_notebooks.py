"""Notebooks of a course show the same in a sandbox as in the stock kernel: every output of every cell."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize(("book", "life"), [*every()])
def test_a_notebook_shows_the_same_as_in_the_stock_kernel(server: Server, book: Path) -> None:
    server.start("stock", kernel="python3", spec={"metadata": {}}, pool=False, cwd=folder(server, "stock"))
    assert server.text("print('Seccomp:\\t0' in open('/proc/self/status').read())", "stock") == "True"  # stock indeed
    wanted = shown(server, "stock", book)
    server.ask("stop", name="stock")
    assert any(outputs for outputs in wanted)
    for profile in ("classroom", "data-science"):
        server.start(profile, profile=profile, cwd=folder(server, profile))
        assert server.text("print('Seccomp:\\t2' in open('/proc/self/status').read())", profile) == "True"
        found = shown(server, profile, book)
        for number, (ours, stock) in enumerate(zip(found, wanted, strict=True), 1):
            assert ours == stock, f"code cell {number} in {profile}"

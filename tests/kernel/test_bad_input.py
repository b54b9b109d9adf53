"""What a person gets wrong ends in one sentence with a remedy, and leaves nothing behind."""

from __future__ import annotations

import os
from typing import Any

import psutil
import pytest

from tests.kernel.conftest import Server

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("a typo in a profile", {"overrides": {"resources": {"memry": "1 GiB"}}}, "did you mean memory"),
    ("a wrong unit", {"overrides": {"resources": {"memory": "1 G"}}}, "no unit that is known"),
    ("a contradiction", {"overrides": {"resources": {"memory": "64 MiB"}}}, "more than half"),
    ("a host that is too broad", {"overrides": {"network": {"reach": ["*.com"]}}}, "too broad"),
    ("a profile that is not there", {"profile": "standart"}, "did you mean standard"),
    ("a folder that is not there", {"cwd": "/nowhere/at/all"}, "No such file"),
    ("a file for a folder", {"cwd": "/etc/passwd"}, "Not a directory"),
    ("the whole machine for a folder", {"cwd": "/"}, "a whole home folder"),
]


@pytest.mark.parametrize(("name", "values", "words"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_start_that_cannot_be_is_refused_in_one_sentence(
    server: Server, name: str, values: dict[str, Any], words: str
) -> None:
    answer = server.refused(**values)
    assert words in answer["error"], answer
    assert "\n" not in answer["error"]
    nothing_is_left(server)


def test_a_missing_granted_folder_is_named(server: Server) -> None:
    mounts = [{"source": "/nowhere/data", "target": "/data"}]
    assert "/nowhere/data" in server.refused(overrides={"files": {"mounts": mounts}})["error"]
    nothing_is_left(server)


def test_without_a_cgroup_an_ordinary_user_is_refused_with_a_remedy(server: Server) -> None:
    """On a host with version 1 alone nothing limits what a sandbox uses together: nothing starts, unless asked."""
    if server.root or os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return
    answer = server.ask("start", name="kernel", overrides={}, cwd=str(server.folder))
    assert 'cgroup = "prefer"' in answer["error"], answer
    nothing_is_left(server)


ODD = ["with space", "with 'quotes\"", "with\nnewline", "with,comma:colon\\", "ü", "x" * 250]


@pytest.mark.parametrize("name", ODD, ids=["space", "quotes", "newline", "overlay", "unicode", "long"])
def test_a_folder_of_an_odd_name_is_a_workspace_like_any_other(server: Server, name: str) -> None:
    folder = server.folder / name
    folder.mkdir()
    os.chown(folder, server.folder.stat().st_uid, server.folder.stat().st_gid)
    for mode in ("read-write", "copy-on-write"):
        server.start(mode, overrides={"files": {"workspace": mode}}, cwd=str(folder))
        assert server.text("import os; open('x', 'w').close(); print(os.listdir())", mode) == "['x']"


def test_a_link_to_a_folder_leads_where_it_leads(server: Server) -> None:
    (server.folder / "link").symlink_to(server.folder)
    server.give("given", "given")
    server.start(cwd=str(server.folder / "link"))
    assert server.text("print(open('given').read())") == "given"


def nothing_is_left(server: Server) -> None:
    """The server, its supervisor, relay and zygotes: no sandbox, no socket, no folder of a kernel."""
    where = server.ask("supervisor")
    assert [name for part in ("clients", "kernels") for name in os.listdir(f"{where['folder']}/{part}")] == []
    for process in psutil.Process(where["pid"]).children():
        words = " ".join(process.cmdline())
        assert not (process.children() and "zygote" in words), words

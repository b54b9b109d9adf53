"""A list of modules: what is not granted is not there, for a cell, its subprocesses and its zygote alike."""

from __future__ import annotations

import os
import time
from typing import Any

import psutil
import pytest

from tests.kernel.conftest import Server

LIST = {"modules": {"grant": ["@stdlib", "numpy"]}}
FIND = "import importlib.util as u; print([n for n in ('numpy', 'pandas', 'click', 'pytest', 'pip') if u.find_spec(n)])"


def test_what_is_not_granted_is_not_there(server: Server) -> None:
    server.start()
    assert server.text(FIND) == "['numpy', 'pandas', 'click', 'pytest', 'pip']"  # the control: they are installed
    server.start("listed", overrides=LIST)
    assert server.text(FIND, "listed") == "['numpy']"
    assert server.text(f'!python -c "{FIND}"', "listed") == "['numpy']"
    assert server.text("import numpy; print(numpy.arange(3).sum())", "listed") == "3"
    assert server.text("import os; print(os.listdir('/run/trees'), os.listdir('/run/hidden'))", "listed") == "[] []"


def test_two_lists_are_two_views(server: Server) -> None:
    """Each has a zygote of its own, and what one imports ahead is not in the other's memory."""
    server.start("a", overrides=LIST)
    server.start("b", overrides={"modules": {"grant": ["@stdlib", "pandas"]}})
    loaded = "import sys; print(sorted({'pandas', 'click', 'nbclient'} & sys.modules.keys()))"
    assert server.text(FIND, "a") == "['numpy']"
    assert server.text(FIND, "b") == "['numpy', 'pandas']"
    assert server.text(loaded, "a") == "[]"


def test_hidden_is_for_choice(server: Server) -> None:
    server.start(overrides={"modules": {"grant": ["numpy"], "hidden": False, "guard": False}})
    assert server.text(FIND) == "['numpy', 'pandas', 'click', 'pytest', 'pip']"


@pytest.mark.parametrize(("grant", "words"), [("nunpy", "or numpy"), ("no-such-thing", "nothing here is called")])
def test_a_name_of_nothing_starts_nothing(server: Server, grant: str, words: str) -> None:
    answer = server.refused(overrides={"modules": {"grant": [grant]}})
    assert words in answer["error"]
    assert "\n" not in answer["error"]


def pooled(server: Server, name: str, grant: list[str]) -> psutil.Process:
    """Start a kernel with this list whose kind has a pool; its process 1."""
    overrides: dict[str, Any] = {"modules": {"grant": grant}}
    if not server.cgroup:
        overrides["layers"] = {"cgroup": "prefer"}
    stanza = {"provisioner_name": "isolated-python", "config": {"overrides": overrides, "pool": 1}}
    answer = server.start(name, spec={"metadata": {"kernel_provisioner": stanza}}, pool=False)
    return psutil.Process(answer["pid"])


@pytest.mark.parametrize("life", [os.geteuid() == 0])
def test_a_kernel_that_stood_before_has_the_view_and_the_guard_of_its_list(server: Server) -> None:
    """Two lists, and a kernel of each waits: whoever asks is handed the one of their own."""
    lists = {"numpy": ["@stdlib-safe", "numpy"], "joblib": ["@stdlib-safe", "joblib"]}
    for name, grant in lists.items():
        pooled(server, f"first-{name}", grant)
    deadline = time.monotonic() + 30
    while len(server.ask("spares")["names"]) < len(lists):
        assert time.monotonic() < deadline, "no kernel of each list stands ready"
    asked = time.time()
    for name, grant in lists.items():
        assert pooled(server, name, grant).create_time() < asked
        other = next(one for one in lists if one != name)
        assert server.text(f"import {name}; print({name}.__name__)", name) == name
        assert (
            server.text(f"import IPython.utils.importstring as i; print(i.import_item('{name}').__name__)", name)
            == name
        )
        for cell, words in {
            f"import {other}": f"does not grant the module {other}",
            f"import IPython.utils.importstring as i; i.import_item('{other}')": f"No module named '{other}'",
            "import socket": "does not grant the module socket",
        }.items():
            answer = server.run(cell, name)
            assert words in answer["text"], (cell, answer)
        assert "No module named 'click'" in server.text("!python -c 'import click'", name)
        assert name in server.text("%sandbox modules", name)
        assert other not in server.text("%sandbox modules", name)
        assert "(hidden, guard)" in server.text("%sandbox", name)

"""A list of modules: what is not granted is not there, for a cell, its subprocesses and its zygote alike."""

from __future__ import annotations

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

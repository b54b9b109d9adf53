"""The pages of the shipped profiles are made of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from isolated_python.policy import parse, sources
from isolated_python.policy.page import page

from tests.policy.test_profiles import SHIPPED

DOCS = Path(__file__).parents[2] / "docs" / "profiles"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_page_of_a_profile_is_up_to_date(name: str) -> None:
    command = f"jupyter isolated profile show {name} --page > docs/profiles/{name}.md"
    assert (DOCS / f"{name}.md").read_text() == page(name), f"run: {command}"


def test_every_shipped_profile_has_a_page_and_no_other() -> None:
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages == {path.stem for path in sources.SHIPPED.glob("*.toml")} == {*SHIPPED}


def test_a_page_tells_every_value_that_is_written() -> None:
    """Of the profile, of what it extends, and of the default below both; each key once, with its comment."""
    told = page("exam")
    for line in (
        "| `resources.memory` | 1 GiB |",
        "| `capabilities.sockets` | no |",
        "| `resources.cpu_time` | unlimited |",
    ):
        assert told.count(line) == 1
    assert told.count("shorten it to what the questions need") == 1
    assert "`@notebook`: ipython, ipywidgets" in told
    keys = {f"{table}.{key}" for table in ("resources", "capabilities", "cells") for key in parse.TABLES[table][1]}
    assert {key for key in keys if f"`{key}`" not in told} == set()

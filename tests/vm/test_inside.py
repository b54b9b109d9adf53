"""Our own suite, inside a machine with cgroup v2 and systemd; every test there is a test here."""

from __future__ import annotations

from typing import Any

import pytest

WORST = ("failed", "skipped")


def test_it_holds_inside(as_whom: str, node: str, runs: Any) -> None:
    """In the life of a logged-in user, of a delegated scope, and of root."""
    ended = runs[as_whom].ended(node)
    words = {word: [f"{one['node']}\n{one['text']}" for one in ended if one["outcome"] == word] for word in WORST}
    if words["failed"]:
        pytest.fail("\n\n".join(words["failed"]), pytrace=False)
    if len(words["skipped"]) == len(ended):
        pytest.skip("; ".join({one["text"] for one in ended}))

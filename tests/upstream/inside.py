"""
Runs pytest in this process, and writes one JSON line for every report that counts.

    python inside.py RECORD pytest-arguments…

Junit's file loses the node id and the short summary loses the reason; both are needed to compare two runs.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest


class Recorder:
    """Appends reports to a file as they come, so that a run that hangs still leaves what it knew."""

    def __init__(self, path: str) -> None:
        self.path = path

    def note(self, node: str, outcome: str, reason: str) -> None:
        with open(self.path, "a") as file:
            print(json.dumps([node, outcome, reason]), file=file)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.note(nodeid, "started", "")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash else str(report.longrepr or "")
            self.note(report.nodeid, report.outcome, _reason(reason) if report.failed else "")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.note(report.nodeid, "failed", "not collected: " + str(report.longrepr).strip().splitlines()[-1])


def _reason(text: str) -> str:
    """The first line that says something, short enough for a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "no reason given")[:200]


if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[2:], plugins=[Recorder(sys.argv[1])]))

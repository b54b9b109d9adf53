"""
Runs pytest in this process, inside the machine, and tells how each test ended: one JSON object a line.

    python report.py pytest-arguments… <NODES

The nodes to run are read from standard input. What pytest itself prints goes to standard error. A test with parameters
is told once, when the last of them is over: what the parameters are may depend on the machine.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Any

import pytest


class Reporter:
    def __init__(self) -> None:
        self.told = open(os.dup(1), "w")  # noqa: SIM115 - it is ours until the process ends
        os.dup2(2, 1)
        self.left: Counter[str] = Counter()
        self.elsewhere: set[str] = set()
        self.phases: list[Any] = []
        self.ended: dict[str, list[dict[str, Any]]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.left.update(_function(item.nodeid) for item in session.items)
        for node in self.elsewhere - self.left.keys():
            self.tell(node, [{"node": node, "outcome": "skipped", "text": "it is about another life", "seconds": 0}])

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.elsewhere |= {_function(item.nodeid) for item in items}

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            sys.stderr.write(f"{report.nodeid} was not collected: {report.longrepr}\n")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.phases.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Set-up, call and tear-down are one outcome."""
        phases, self.phases = self.phases, []
        outcomes = [report.outcome for report in phases]
        outcome = next((word for word in ("failed", "skipped") if word in outcomes), "passed")
        text = "\n".join(_words(report) for report in phases if report.outcome != "passed")
        node, seconds = _function(nodeid), sum(report.duration for report in phases)
        ended = self.ended.setdefault(node, [])
        ended.append({"node": nodeid, "outcome": outcome, "text": text, "seconds": seconds})
        if len(ended) == self.left[node]:
            self.tell(node, ended)

    def tell(self, node: str, ended: list[dict[str, Any]]) -> None:
        print(json.dumps({"node": node, "ended": ended}), file=self.told, flush=True)


def _function(node: str) -> str:
    """Without the parameters."""
    return node.partition("[")[0]


def _words(report: Any) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    captured = [f"---- {title}\n{text}" for title, text in report.sections]
    return "\n".join([f"{report.when}:", report.longreprtext, *captured])


if __name__ == "__main__":
    sys.exit(pytest.main([*sys.argv[1:], *sys.stdin.read().splitlines()], plugins=[Reporter()]))

"""Does it matter? Each layer is switched off in turn; then an attack must succeed, and the failure must name the layer.

    python -P tests/escapes/mutations.py [LAYER …]

A layer that carries all others cannot be switched off at all: then it must be the profile that refuses.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import parse

from isolated_python.policy.parse import CARRIERS
from isolated_python.policy.profile import LAYERS

HERE = Path(__file__).parent


@dataclass
class Mutant:
    """What became of the attacks that a layer stops, without that layer."""

    layer: str
    ran: int = 0
    succeeded: set[str] = field(default_factory=set)  # the attacks' names
    refused: int = 0  # starts that the profile refused: it cannot be without this layer
    odd: Counter[str] = field(default_factory=Counter)  # what failed otherwise

    @property
    def killed(self) -> bool:
        return bool(self.refused if self.layer in CARRIERS else self.succeeded)

    def __str__(self) -> str:
        if self.layer in CARRIERS:
            what = "cannot be off: the profile refuses" if self.refused else "can be off, and must not"
        else:
            names = sorted(self.succeeded)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            what = f"{len(names)} succeed: {', '.join(names[:3])}{more}" if names else "NOBODY NOTICES"
        return f"| {self.layer} | {self.ran} | {what} |"


def without(layer: str) -> Mutant:
    """Run the attacks that `layer` stops, without it."""
    found = Mutant(layer)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-P", "-m", "pytest", "-q", str(HERE), "--without", layer, "--junitxml", str(report)]
        said = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if not report.exists():
            raise SystemExit(f"pytest has no report of the tests without {layer}:\n{said.stdout}{said.stderr}")
        for case in parse(report).iter("testcase"):
            found.ran += 1
            for failure in (*case.iter("failure"), *case.iter("error")):
                _judge(found, failure.get("message", ""))
    return found


def _judge(found: Mutant, message: str) -> None:
    worked = re.search(r"(\w+) succeeded: .* The layer (\w+) should stop it", message, re.DOTALL)
    if worked and worked[2] == found.layer:
        found.succeeded.add(worked[1])
    elif f"layers.{found.layer} carries all others" in message or f"layers.{found.layer} is off" in message:
        found.refused += 1
    else:
        found.odd[" ".join(message.split())[:300]] += 1


def main() -> int:
    print("| layer switched off | attacks run | of those |\n|---|---|---|", flush=True)
    mutants = []
    for layer in sys.argv[1:] or LAYERS:
        mutants.append(without(layer))
        print(mutants[-1], flush=True)
        for line, times in mutants[-1].odd.items():
            print(f"  failed in another way, {times}×: {line}", file=sys.stderr, flush=True)
    unnoticed = [one.layer for one in mutants if not one.killed]
    if unnoticed:
        print(f"No attack fails without: {', '.join(unnoticed)}", file=sys.stderr)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    raise SystemExit(main())

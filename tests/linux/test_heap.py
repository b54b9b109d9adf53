from __future__ import annotations

import subprocess
import sys

import pytest
from isolated_python.engine import ROOT

# In an interpreter of its own: how many gaps there are elsewhere depends on what ran there before.
ASK = """
import sys
sys.path.insert(0, sys.argv[2])
from isolated_python.linux import heap
size = int(sys.argv[1])
blocks = [bytes(size) for _ in range(400)]
gaps = {id(block) for block in blocks[::2]}
del blocks[::2]
if sys.argv[3:] != ["control"]:
    heap.fill_gaps()
print(len(gaps & {id(block) for block in [bytes(size) for _ in range(400)]}))
"""


def taken(size: int, *words: str) -> int:
    command = [sys.executable, "-I", "-c", ASK, str(size), ROOT, *words]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("size", [40, 300, 700, 5000, 40_000])
def test_nothing_new_goes_into_a_gap(size: int) -> None:
    """What is allocated after fill_gaps lies where nothing was before; without it, in the gaps."""
    assert taken(size) == 0
    assert taken(size, "control") > 100

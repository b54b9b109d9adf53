from __future__ import annotations

import pytest
from isolated_python.linux import heap


@pytest.mark.parametrize("size", [40, 300, 700, 5000, 40_000])
def test_nothing_new_goes_into_a_gap(size: int) -> None:
    """What is allocated after fill_gaps lies where nothing was before."""
    blocks = [bytes(size) for _ in range(400)]
    gaps = {id(block) for block in blocks[::2]}
    del blocks[::2]

    heap.fill_gaps()

    assert not gaps & {id(block) for block in [bytes(size) for _ in range(400)]}

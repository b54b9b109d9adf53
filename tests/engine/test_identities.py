"""Each kernel has a uid of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from isolated_python.engine.identities import SPARE, Identities, identities_file
from isolated_python.errors import HostError


def test_a_uid_that_is_in_use_is_not_given_again_when_all_were_given_once(tmp_path: Path) -> None:
    """A supervisor that lives long comes round to the first of them again."""
    with open(identities_file(str(tmp_path / "lock"))) as file:
        identities = Identities(file.fileno(), count=SPARE + 3)
        taken = [identities.take() for _ in range(3)]
        assert len({*taken}) == 3
        with pytest.raises(HostError, match="all 3 host identities"):
            identities.take()
        identities.give_back(taken[1])
        assert identities.take() == taken[1]

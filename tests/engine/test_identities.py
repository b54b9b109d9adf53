"""Each kernel has a uid of its own, also where the next one was taken before anybody asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from isolated_python.engine.identities import SPARE, Ahead, Identities, identities_file
from isolated_python.engine.loop import Loop
from isolated_python.errors import HostError


def prepare(ahead: Ahead, loop: Loop) -> None:
    def stop() -> None:
        raise SystemExit

    ahead.prepare()
    loop.later(0.2, stop)
    with pytest.raises(SystemExit):
        loop.run()


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


def test_a_uid_that_was_taken_ahead_is_nobody_elses(tmp_path: Path) -> None:
    """Two supervisors share three uids: what one has taken ahead, the other does not get, until the first has ended."""
    path, loop, made = str(tmp_path / "lock"), Loop(), list[int]()
    with open(identities_file(path)) as first, open(identities_file(path)) as second:
        mine, theirs = (Identities(file.fileno(), count=SPARE + 3) for file in (first, second))
        ahead = Ahead(loop, mine, made.append)
        taken = [ahead.take()]
        prepare(ahead, loop)
        assert made
        assert made[0] not in taken
        taken += [theirs.take()]
        with pytest.raises(HostError, match="all 3 host identities"):
            theirs.take()
        taken += [ahead.take()]
        assert taken[2] == made[0]
        assert len({*taken}) == 3

        mine.give_back(taken[2])
        prepare(ahead, loop)
        prepare(ahead, loop)
        assert made == [taken[2]] * 3, "it takes no second one while the first is not wanted"
        with pytest.raises(HostError):
            theirs.take()
        first.close()
        assert theirs.take() in (taken[0], taken[2])


def test_where_none_is_left_to_be_taken_ahead_the_next_who_asks_is_told(tmp_path: Path) -> None:
    loop = Loop()
    with open(identities_file(str(tmp_path / "lock"))) as file:
        identities = Identities(file.fileno(), count=SPARE + 1)
        ahead = Ahead(loop, identities, lambda _: None)
        uid = ahead.take()
        prepare(ahead, loop)
        with pytest.raises(HostError, match="all 1 host identities"):
            ahead.take()
        identities.give_back(uid)
        assert ahead.take() == uid

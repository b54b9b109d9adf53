"""Each kernel has a uid of its own, also where the next one was taken before anybody asked."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from isolated_python.engine.identities import F_OFD_SETLK, SPARE, Ahead, Identities, identities_file, leave
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


def test_the_last_who_leaves_takes_the_file_along(tmp_path: Path) -> None:
    """Also where one has it from another, as supervisors have it from the service."""
    path = tmp_path / "folder" / "lock"
    first, second = identities_file(str(path)), identities_file(str(path))
    given = os.dup(first)
    os.close(first)
    leave(second, str(path))
    assert path.exists()
    leave(given, str(path))
    assert os.listdir(tmp_path) == []


def test_what_lies_beside_the_file_stays(tmp_path: Path) -> None:
    """The service's socket does."""
    path = tmp_path / "lock"
    (tmp_path / "service.sock").touch()
    leave(identities_file(str(path)), str(path))
    assert os.listdir(tmp_path) == ["service.sock"]


def test_whoever_comes_next_removes_what_the_killed_have_left(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    leave(identities_file(str(path)), str(path))
    assert path.exists(), "somebody has it"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert path.exists()
    leave(identities_file(str(path)), str(path))
    assert os.listdir(tmp_path) == []


HOLD = """
import signal, sys
from isolated_python.engine.identities import identities_file
file = identities_file(sys.argv[1])
print("held", flush=True)
signal.pause()
"""


def test_who_opens_the_file_as_it_is_removed_gets_the_next_one(tmp_path: Path) -> None:
    """Else two would keep their uids apart in different files, and not at all."""
    path = tmp_path / "folder" / "lock"
    leaving = identities_file(str(path))
    everything = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(leaving, F_OFD_SETLK, everything)  # as leave does
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as comes:
        try:
            until = time.monotonic() + 30
            while not any("->" in line and f":{path.stat().st_ino} " in line for line in open_locks()):
                assert time.monotonic() < until, "it does not wait"
            path.unlink()
            path.parent.rmdir()
            os.close(leaving)
            assert comes.stdout is not None
            assert comes.stdout.readline() == b"held\n"
            leave(identities_file(str(path)), str(path))
            assert path.exists(), "what it holds is not what others find"
        finally:
            comes.kill()


def open_locks() -> list[str]:
    return Path("/proc/locks").read_text().splitlines()


def test_who_comes_while_another_leaves_never_shares_a_uid_with_a_third(tmp_path: Path) -> None:
    """There is one uid. Whoever got it makes a folder that nobody else may find, and removes it: again and again."""
    path, mark = tmp_path / "folder" / "lock", tmp_path / "mark"
    command = [sys.executable, "-c", RACE, str(path), str(mark)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in "1234"]
    won = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert sum(won) > 0
    assert os.listdir(tmp_path) == []


RACE = """
import os, sys
from isolated_python.engine.identities import SPARE, Identities, identities_file, leave
from isolated_python.errors import HostError
path, mark = sys.argv[1:]
won = 0
for _ in range(600):
    file = identities_file(path)
    identities = Identities(file, count=SPARE + 1)
    try:
        uid = identities.take()
    except HostError:
        pass
    else:
        os.mkdir(mark)
        won += 1
        os.rmdir(mark)
        identities.give_back(uid)
    leave(file, path)
print(won)
"""

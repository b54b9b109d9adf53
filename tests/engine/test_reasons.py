"""Why a kernel died, as its group's files of cgroup v2 tell it; that Linux writes them so is asked in tests/vm."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from isolated_python.engine import reasons
from isolated_python.layers.cgroup import v2
from isolated_python.policy.profile import MiB, Profile, Resources
from isolated_python.record import replace

GRANTED = replace(Profile(name="small"), resources=Resources(memory=64 * MiB))
UNLIMITED = replace(Profile(name="large"), resources=Resources(memory=None))


def died(folder: Path, profile: Profile, oom: int, kills: int) -> str:
    """What is said of a kernel that ended by SIGKILL, whose group met its limit `oom` times and lost `kills`."""
    for name, text in {
        "memory.current": "0\n",
        "memory.peak": f"{60 * MiB}\n",
        "memory.events": f"low 0\nhigh 0\nmax 0\noom {oom}\noom_kill {kills}\noom_group_kill 0\n",
        "pids.current": "0\n",
        "pids.events": "max 0\n",
        "cpu.stat": "usage_usec 0\n",
    }.items():
        (folder / name).write_text(text)
    return reasons.why(-signal.SIGKILL, profile, v2.Group(str(folder), "kernel"))


def test_memory_that_ran_out_at_the_profiles_limit_is_the_profiles(tmp_path: Path) -> None:
    said = died(tmp_path, GRANTED, 1, 1)
    assert "more than the 64 MiB of memory that the profile small grants (it had used 60 MiB)" in said


@pytest.mark.parametrize("profile", [GRANTED, UNLIMITED], ids=["limited", "unlimited"])
def test_memory_that_ran_out_above_the_profiles_limit_is_not(tmp_path: Path, profile: Profile) -> None:
    """Killed without meeting a limit of its own: a larger grant would not help, and nobody is told so."""
    said = died(tmp_path, profile, 0, 1)
    assert "had no memory left" in said
    assert "more than" not in said


def test_a_kill_that_somebody_asked_for_has_no_reason_of_ours(tmp_path: Path) -> None:
    assert died(tmp_path, GRANTED, 0, 0) == ""

"""What the attacker wants: files of the host that nobody granted."""

from __future__ import annotations

import os
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.targets import Secret
from tests.escapes.tools import first, read


def test_read_host_files(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


@attack(Secret, stopped_by="mount")
def by_its_path(target: Any) -> str:
    """Read a file of the server's owner by its path."""
    return read(target.path)


@attack(Secret, stopped_by="mount")
def through_many_parents(target: Any) -> str:
    """Climb out of the workspace with more .. than there are folders."""
    return read("../" * 64 + target.path)


@attack(Secret, stopped_by="mount")
def through_a_symlink_in_the_workspace(target: Any) -> str:
    """Leave a link in the workspace that leads to a file of the owner's, and read through it."""
    link = f"link-{os.getpid()}"
    os.symlink(target.path, link)
    try:
        return read(link)
    finally:
        os.unlink(link)


@attack(Secret, stopped_by="mount")
def through_a_hard_link_in_the_workspace(target: Any) -> str:
    """Give a file of the owner's a second name in the workspace."""
    link = f"hard-{os.getpid()}"
    os.link(target.path, link)
    try:
        return read(link)
    finally:
        os.unlink(link)


@attack(Secret, stopped_by="mount")
def through_the_root_of_any_process(target: Any) -> str:
    """Find a process whose root is the host's, and go through its /proc/PID/root."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return first(lambda pid=pid: read(f"/proc/{pid}/root{target.path}") for pid in pids)


@attack(Secret, stopped_by="mount")
def through_the_folder_of_any_process(target: Any) -> str:
    """Find a process that works in a folder of the host's, and climb from there."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    climb = "../" * 32
    return first(lambda pid=pid: read(f"/proc/{pid}/cwd/{climb}{target.path}") for pid in pids)

"""
The cgroup: what a kernel and everything it starts may use together, and the end of all of it at once.

Runs:     in the supervisor; systemd.py in the Jupyter server
Trusts:   the kernel's cgroup files
Imports:  errors, record, linux, policy

v1.py and v2.py are of one shape: Hierarchy → Parent (one supervisor) → Group (one kernel).
The choice is made here, once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from isolated_python.errors import HostError
from isolated_python.linux import cgroups, host

from . import files, v1, v2
from .files import Events, Usage, name_for

Hierarchy = v1.Hierarchy | v2.Hierarchy
Parent = v1.Parent | v2.Parent
Group = v1.Group | v2.Group

__all__ = ["Events", "Group", "Hierarchy", "Parent", "Usage", "choose", "name_for", "staying", "sweep"]


def choose(own: cgroups.Own | None = None) -> Hierarchy:
    """The hierarchy that this process may use. Raises HostError with cause and remedy where there is none."""
    found = cgroups.find(own if own is not None else cgroups.own(), root=host.privileged())
    if found.version == "v2":
        return v2.Hierarchy(found.folders[0][1])
    if found.version == "v1":
        return v1.Hierarchy(found.folders)
    raise HostError(found.cause, remedy=found.remedy)


def sweep() -> list[str]:
    """Remove what dead supervisors have left where we may; the names of it. Never raises for want of a hierarchy."""
    try:
        return choose().sweep()
    except HostError:
        return []


@contextlib.contextmanager
def staying() -> Iterator[Callable[[], None]]:
    """What moves this process to where it is. That changes nothing, but waits for what the next move need not wait for.

    A v2 group of which only the leaf may have processes is left alone until we are in that leaf.
    """
    own = cgroups.own()
    folder = dict(own.v1).get(v1.FIRST) or (own.v2 if os.path.basename(own.v2) == cgroups.LEAF else "")
    try:
        entrance = files.entrance(f"{folder}/cgroup.procs") if folder else None
    except OSError:  # it is not ours to write to: somebody waits later
        entrance = None
    if entrance is None:
        yield lambda: None
        return
    try:
        yield lambda: _write(entrance)
    finally:
        os.close(entrance)


def _write(entrance: int) -> None:
    with contextlib.suppress(OSError):
        os.write(entrance, str(os.getpid()).encode())

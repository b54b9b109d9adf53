"""
The cgroup: what a kernel and everything it starts may use together, and the end of all of it at once.

Runs:     in the supervisor; systemd.py in the Jupyter server
Trusts:   the kernel's cgroup files
Imports:  errors, record, linux, policy

v1.py and v2.py are of one shape: Hierarchy → Parent (one supervisor) → Group (one kernel).
The choice is made here, once.
"""

from __future__ import annotations

import os

from isolated_python.errors import HostError
from isolated_python.linux import cgroups, host

from . import files, v1, v2
from .files import Events, Usage, name_for

Hierarchy = v1.Hierarchy | v2.Hierarchy
Parent = v1.Parent | v2.Parent
Group = v1.Group | v2.Group

__all__ = ["Events", "Group", "Hierarchy", "Parent", "Usage", "choose", "here", "name_for", "sweep"]


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


def here() -> int | None:
    """The entrance of the group where this process is, open; the caller's to close. Who writes 0 to it stays there.

    None where it is not ours to write to; and in a v2 group of which only the leaf may have processes, until we are in
    that leaf.
    """
    own = cgroups.own()
    folder = dict(own.v1).get(v1.FIRST) or (own.v2 if os.path.basename(own.v2) == cgroups.LEAF else "")
    if not folder:
        return None
    try:
        return files.entrance(f"{folder}/cgroup.procs")
    except OSError:
        return None

"""The order of the sandbox, written once. It reads as a table of contents of all that a kernel is put through."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from isolated_python.errors import HostError
from isolated_python.layers import files, identity, landlock, limits, loopback, privileges, seccomp, view
from isolated_python.layers.step import Descriptors, Step
from isolated_python.linux import namespaces, packets
from isolated_python.policy.profile import Profile

if TYPE_CHECKING:
    from isolated_python.linux.host import Host


@dataclass(frozen=True, slots=True)
class JoinCgroup(Step):
    """Wait for the word that we are in our cgroup. Nothing was used up so far, and nobody was born.

    The move takes Linux 10 ms at worst, which the mounts before this step make use of.
    """

    def describe(self) -> str:
        return "be in a cgroup of its own before it has children"

    def execute(self, descriptors: Descriptors) -> None:
        with socket.socket(fileno=os.dup(descriptors["supervisor"])) as supervisor:
            message, _ = packets.receive(supervisor)
        if message is None:
            raise OSError(errno.EPIPE, "the supervisor went away")


@dataclass(frozen=True, slots=True)
class Leave(Step):
    """Leave a namespace that could not be left at birth: the cgroup one shows the group that we are in by now."""

    namespace: str

    def describe(self) -> str:
        return f"live in a {self.namespace.replace('_', ' ')} of its own"

    def execute(self, descriptors: Descriptors) -> None:
        namespaces.unshare(namespaces.FLAGS[self.namespace])


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be done to one kernel, in order."""

    view: list[Step]  # by the zygote, once, before it imports anything
    namespaces: int  # flags of clone3(2): born in these
    init: list[Step]  # by process 1
    kernel: list[Step]  # by the kernel itself, after the fork
    check: list[Step]  # by the kernel, when the listener of refused calls is in the supervisor's hands
    notes: list[str] = field(default_factory=list)  # what was weakened, because the profile says "prefer"


def plan(
    profile: Profile, host: Host, trees: tuple[str, ...] = (), filter: seccomp.Filter | None = None,
    hidden: view.Hidden = (), modules: str = "", *, workspace_later: bool = False,
) -> Plan:  # fmt: skip
    """What this profile means on this host. Raises HostError where a required layer cannot be had.

    `trees`: host folders that the view shows. `filter`: the compiled seccomp filter, None where there is none.
    `hidden`: what of the trees is not there; `modules`: what the guard is told of it.
    `workspace_later`: the sandbox begins with an empty workspace, over which another is mounted while it stands.
    """
    layers, notes = profile.layers, []

    def on(name: str) -> bool:
        wanted = getattr(layers, name)
        if wanted == "off":
            notes.append(f"{name} is off")
            return False
        cause, remedy = host.lacks(name)
        if not cause:
            return True
        if wanted == "require":
            raise HostError(
                f"this host cannot give the layer {name}, and the profile requires it: {cause}", remedy=remedy
            )
        notes.append(f"{name} is missing: {cause}")
        return False

    born = 0
    for name, flag in namespaces.FLAGS.items():
        if name != "cgroup_namespace" and on(name):
            born |= flag
    shown = view.shown(trees)
    shared = shown if on("overlay") else ()
    parted = tuple(number for number, tree in enumerate(shown) if view.below(tree, hidden))
    if parted and host.lacks("overlay")[0]:
        cause, remedy = host.lacks("overlay")
        raise HostError(
            f"packages cannot be hidden on this host: {cause}", remedy=f"{remedy}, or modules.hidden = false"
        )
    targets = tuple(grant.target for grant in profile.files.mounts)

    init: list[Step] = [identity.BecomeUser(), *files.plan(profile, shared, parted, workspace_later=workspace_later)]
    if born & namespaces.CLONE_NEWNET:
        init.append(loopback.RaiseLoopback())
    if born & namespaces.CLONE_NEWUTS:
        init.append(identity.NameHost())
    if on("rlimits"):
        init += limits.plan(profile)
    init.append(identity.NoFurtherNamespaces())
    if layers.pid != "off":
        init.append(files.MaskProc())
    init.append(JoinCgroup())
    if on("cgroup_namespace"):
        init.append(Leave("cgroup_namespace"))
    init += privileges.plan(profile, core_pattern=host.core_pattern)

    kernel: list[Step] = landlock.plan(profile, host.landlock_abi) if on("landlock") else []
    if on("seccomp"):
        kernel += seccomp.plan(profile, filter)
    check = privileges.SelfCheck(seccomp=layers.seccomp != "off", capabilities=layers.capabilities != "off")
    return Plan(view.plan(trees, targets, hidden, modules), born, init, kernel, [check], notes)

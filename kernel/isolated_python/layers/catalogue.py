"""The order of the sandbox, written once. It reads as a table of contents of all that a kernel is put through."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from isolated_python.errors import HostError
from isolated_python.layers import files, identity, landlock, limits, loopback, privileges, seccomp, view
from isolated_python.layers.step import Step
from isolated_python.linux import namespaces
from isolated_python.linux.process import Person
from isolated_python.policy.profile import Profile
from isolated_python.record import Record

if TYPE_CHECKING:
    from isolated_python.linux.host import Host


class Plan(Record):
    """Everything that will be done to one kernel, in order."""

    view: list[Step]  # by the zygote, once, before it imports anything
    namespaces: int  # flags of clone3(2): born in these
    init: list[Step]  # by process 1
    kernel: list[Step]  # by the kernel itself, after the fork
    check: list[Step]  # by the kernel, when the listener of refused calls is in the supervisor's hands
    notes: list[str]  # what was weakened, because the profile says "prefer"
    image: int | None = None  # bytes of an image for what changes in the workspace; None: that lies in memory


def plan(
    profile: Profile, host: Host, trees: tuple[str, ...] = (), filter: seccomp.Filter | None = None,
    hidden: view.Hidden = (), modules: str = "", *, workspace_later: bool = False, person: Person | None = None,
) -> Plan:  # fmt: skip
    """What this profile means on this host. Raises HostError where a required layer cannot be had.

    `trees`: host folders that the view shows. `filter`: the compiled seccomp filter, None where there is none.
    `hidden`: what of the trees is not there; `modules`: what the guard is told of it.
    `workspace_later`: the sandbox begins with an empty workspace, over which another is mounted while it stands.
    `person`: with whose rights the trees are looked for, where those are not ours.
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
        if on(name):
            born |= flag
    shown = view.shown(trees)
    shared = shown if on("overlay") else ()
    parted = tuple(number for number, tree in enumerate(shown) if view.below(tree, hidden))
    if parted and host.lacks("overlay")[0]:
        cause, remedy = host.lacks("overlay")
        raise HostError(
            f"packages cannot be hidden on this host: {cause}", remedy=f"{remedy}, or modules.hidden = false"
        )
    if not host.lacks("overlay")[0]:
        hidden = (*hidden, *view.private(trees))
        parted = tuple(number for number, tree in enumerate(shown) if view.below(tree, hidden))
    targets = tuple(grant.target for grant in profile.files.mounts)
    image = _image(profile, host, notes)

    init: list[Step] = [identity.BecomeUser()]
    kept, later = view.covered(shown), workspace_later
    init += files.plan(profile, shared, parted, kept, workspace_later=later, image=image is not None)
    if born & namespaces.CLONE_NEWNET:
        init.append(loopback.RaiseLoopback())
    if born & namespaces.CLONE_NEWUTS:
        init.append(identity.NameHost())
    if on("rlimits"):
        init += limits.plan(profile)
    init += [identity.NoFurtherNamespaces(), identity.FewWatchers()]
    if layers.pid != "off":
        init.append(files.MaskProc())
    init += privileges.plan(profile, core_pattern=host.core_pattern, parent_death_signal=signal.SIGKILL)

    kernel: list[Step] = landlock.plan(profile, host.landlock_abi) if on("landlock") else []
    filtered = seccomp.plan(profile, filter if on("seccomp") else None)
    kernel += filtered
    check = privileges.SelfCheck(seccomp=bool(filtered), capabilities=layers.capabilities != "off")
    return Plan(view.plan(trees, targets, hidden, modules, person), born, init, kernel, [check], notes, image)


def _image(profile: Profile, host: Host, notes: list[str]) -> int | None:
    """The size of an image for what changes in the workspace, where the profile asks for one and it can be had."""
    wanted, asked = profile.files.bound, profile.files.image
    if wanted is None or asked == "off":
        return None
    cause, remedy = host.lacks("image")
    if not cause:
        return wanted
    if asked == "require":
        raise HostError(
            "the profile requires that what changes in its workspace lies on the disk, in an image of files.size, and "
            f"this host has none for us: {cause}",
            remedy=f'{remedy}, or write image = "prefer" under [files]',
        )
    notes.append(
        f"what changes in the workspace lies in memory, at most {files.in_memory(profile) >> 20} MiB of it, and not in "
        f"an image on the disk: {cause}"
    )
    return None

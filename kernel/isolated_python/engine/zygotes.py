"""Starting zygotes: one per interpreter, view and list of preloads; none of them has a right or sees a secret."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable

from isolated_python.engine import ROOT
from isolated_python.engine.cradle import Cradle
from isolated_python.engine.words import Words
from isolated_python.launcher.spawn import program, spawn
from isolated_python.layers import cgroup
from isolated_python.layers.step import Step
from isolated_python.linux import caps, namespaces, packets, prctl
from isolated_python.policy.profile import Profile
from isolated_python.record import Record

MOST_KNOWN = 32  # profiles


class Kind(Record):
    """What must be equal for two kernels to come from one zygote."""

    interpreter: str
    flags: tuple[str, ...]
    userbase: str
    trees: tuple[str, ...]  # what the view shows of the host, beside the system
    view: str  # which of their packages it hides, by its digest; empty for none
    places: tuple[str, ...]  # mount points for further grants
    preload: tuple[str, ...]  # empty: a zygote that executes other programs
    network: bool  # whether it may keep the host's network, because the profile has switched the layer off
    root: str = ROOT  # where it finds our package: a server of the service may have one of its own


class Zygote:
    def __init__(self, kind: Kind, pid: int, control: socket.socket, cradle: Cradle, words: Words | None) -> None:
        """`words`: what it writes, where that is not for our log."""
        self.kind, self.pid, self.control, self.cradle, self.words = kind, pid, control, cradle, words
        self.soon = False  # it has said that it will be ready soon
        self.ready = False
        self.prepared = False  # it has imported all that it means to
        # Of which profiles a child of it has become a kernel; and whether that one belonged to nobody first.
        self.stood: deque[tuple[Profile, bool]] = deque(maxlen=MOST_KNOWN)

    def last_words(self) -> str:
        """It has ended, or will: what there is to say of that."""
        if self.words is None:
            return "see the server's log"
        self.words.finish()
        return f"it said: {str(self.words).strip().rpartition(chr(10))[2][:500] or 'nothing'}"


def start(
    kind: Kind, view: list[Step], uid: int | None, cradle: Callable[[int], Cradle], words: Words | None = None,
    nursery: cgroup.Group | None = None,
) -> Zygote:  # fmt: skip
    """Start a zygote that runs as `uid` (None: as who we are) in the view. `cradle`: makes one for a pid.

    `words`: where it writes, if not our log. `nursery`: the group in which it begins, so that no child of what it
    imports is out of our reach.
    """
    ours, theirs = packets.pair()

    def before() -> None:
        if nursery is not None:
            nursery.attach(os.getpid())
        if words is not None:
            os.dup2(words.write_end, 1)
            os.dup2(words.write_end, 2)
        flags = namespaces.CLONE_NEWNS | namespaces.CLONE_NEWIPC
        namespaces.unshare(flags | (0 if kind.network else namespaces.CLONE_NEWNET))
        for step in view:
            step.execute({})
        caps.drop_bounding()  # while we have the right to; the change of uid takes the rest
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        caps.drop_all()
        prctl.set_parent_death_signal(signal.SIGKILL)  # also where it is stopped; what follows changes no credentials

    # What is built ahead remembers some of these: they are the same in every kernel.
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/home/user", "USER": "user"}
    environment |= {"JPY_PARENT_PID": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if kind.userbase:
        environment["PYTHONUSERBASE"] = kind.userbase
    code = program(kind.root, "isolated_python.launcher.zygote")
    argv = [kind.interpreter, *kind.flags, "-c", code, *kind.preload]
    pid = spawn(argv, environment, {3: theirs.fileno()}, before)
    theirs.close()
    ours.setblocking(False)  # a preload that hangs must not make us wait for room in its queue
    if words is not None:
        words.given()
    return Zygote(kind, pid, ours, cradle(pid), words)


def own_interpreter(network: bool, trees: tuple[str, ...], view: str, places: tuple[str, ...]) -> Kind:
    """The zygote that only executes: it needs the standard library and our own package, no environment."""
    return Kind(sys.executable, ("-I", "-S"), "", trees, view, places, (), network)

"""The relay confines itself, before it reads the first byte of anybody's but the supervisor's."""

from __future__ import annotations

import os
import resource
import signal

from isolated_python.layers import landlock as files
from isolated_python.linux import caps, landlock, namespaces, prctl, seccomp

NAMESPACES = namespaces.CLONE_NEWNET | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWUTS | namespaces.CLONE_NEWNS


def confine(folder: int, uid: int | None, program: bytes) -> None:
    """See nothing but `folder`, own nothing, ask Linux for nothing but to move bytes. Raises OSError."""
    os.fchdir(folder)
    if caps.held() == 0:
        # An ordinary user's relay: the rights to give things up come with a user namespace of its own.
        namespaces.unshare(NAMESPACES | namespaces.CLONE_NEWUSER)
    else:
        namespaces.unshare(NAMESPACES)
    os.chroot(".")
    os.close(folder)
    for limit, value in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 1)):
        resource.setrlimit(limit, (value, value))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    caps.drop_bounding()
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    caps.drop_all()
    prctl.set_parent_death_signal(signal.SIGKILL)  # a stopped relay does not notice that its supervisor has gone
    prctl.set_dumpable(False)
    prctl.set_no_new_privs()
    for step in files.no_files(_abi()):
        step.execute({})
    seccomp.load(program)


def _abi() -> int:
    try:
        return landlock.abi()
    except OSError:
        return 0

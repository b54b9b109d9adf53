"""Steps for a sandbox that stands already: a helper joins its namespaces, executes them there, and is gone."""

from __future__ import annotations

import os

from isolated_python.layers.step import Descriptors, Step
from isolated_python.linux import namespaces


def enter(pidfd: int, steps: list[Step], descriptors: Descriptors) -> int:
    """Fork the helper; returns its pid. It exits with 0 when all is done, with 1 when something failed.

    It has every right in the sandbox's user namespace, and is a process of ours: so there must be nobody inside yet
    who could do it harm. The sandbox's pid namespace is not joined; nobody inside sees the helper.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        # Both in one call, so that the right to join the second is there. setns(2), linux 5.8
        namespaces.join(pidfd, namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        for step in steps:
            step.execute(descriptors)
        os._exit(0)
    except BaseException as error:
        os.write(2, f"entering a sandbox failed: {error}\n".encode())
    finally:
        os._exit(1)

"""A porter for a sandbox that stands already: a helper that joins its namespaces, and brings in what comes later."""

from __future__ import annotations

import os
import socket

from isolated_python.layers.step import Step
from isolated_python.linux import namespaces, packets


def hire(pidfd: int, steps: list[Step]) -> tuple[int, socket.socket]:
    """Fork the helper; returns its pid and the channel to it.

    It waits inside for one message, {"descriptors": names} with the descriptors themselves, executes the steps on them,
    answers {"done": true}, and is gone; it goes without an answer where a step fails, or when the channel is closed.

    It has every right in the sandbox's user namespace, and is a process of ours: so there must be nobody inside yet
    who could do it harm. The sandbox's pid namespace is not joined; nobody inside sees the helper.
    """
    ours, theirs = packets.pair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        _close_all_but(theirs.fileno(), pidfd)
        # Both in one call, so that the right to join the second is there. setns(2), linux 5.8
        namespaces.join(pidfd, namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        message, received = packets.receive(theirs)
        if message is not None:
            descriptors = dict(zip(message["descriptors"], received, strict=True))
            for step in steps:
                step.execute(descriptors)
            packets.send(theirs, {"done": True})
        os._exit(0)
    except BaseException as error:
        os.write(2, f"bringing something into a sandbox failed: {error}\n".encode())
    finally:
        os._exit(1)


def _close_all_but(*kept: int) -> None:
    """What we have of the supervisor's would keep alive what it closes. Its standard streams are ours."""
    last = 2
    for number in sorted(kept):
        os.closerange(last + 1, number)
        last = number
    os.closerange(last + 1, 1 << 20)

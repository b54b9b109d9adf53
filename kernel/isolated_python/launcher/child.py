"""
From a fork of the zygote to a confined kernel. This file is the order in which a sandbox closes.

We are born as process 1 of new namespaces, in our cgroup, mapped to nobody yet. All we know comes over one channel,
from the supervisor, who has said who we are before it sends the first byte. Then:

    steps of the first list, as process 1    see layers: identity, mounts, loopback, limits, privileges
    fork                                     process 1 stays behind as init (init.py), outside of all that follows
    steps of the second list, in the kernel  Landlock, seccomp
    self-check                               the kernel itself is asked whether it all holds
    the kernel program                       ipykernel in this process, or an execve of what the kernelspec names

Nothing in between imports a module, reads the environment, or opens a path that an adversary could have written.
Any failure ends process 1, and with it everything in the sandbox.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from isolated_python.errors import LaunchError
from isolated_python.launcher import init
from isolated_python.layers import catalogue  # noqa: F401 - so that every step is known before the sandbox closes
from isolated_python.layers.seccomp import LISTENER
from isolated_python.layers.step import Descriptors, Step
from isolated_python.linux import packets

# The descriptors that the kernel program keeps, by name; all others are closed before it starts.
KEPT = ("shell", "iopub", "stdin-channel", "control", "hb", "handover")

Program = Callable[[dict[str, Any], Descriptors], None]


def run(channel: socket.socket, program: Program) -> None:
    """Become a sandbox. Never returns."""
    status = 1
    try:
        status = _become_sandbox(channel, program)
    except BaseException as error:
        report(channel, error)
    finally:
        os._exit(status)


def report(channel: socket.socket, error: BaseException) -> None:
    """Tell the supervisor why this sandbox cannot be; it ends in any case."""
    try:
        packets.send(channel, {"event": "failed", "reason": " ".join(str(error).split())[:4000] or repr(error)})
    except OSError:
        pass


def _become_sandbox(channel: socket.socket, program: Program) -> int:
    packets.send(channel, {"event": "born"})
    order, received = packets.receive(channel)
    if order is None:
        raise LaunchError("the supervisor went away")
    descriptors: Descriptors = dict(zip(order["descriptors"], received, strict=True))
    _close_all_but({channel.fileno(), *received})
    _attach_standard_streams(descriptors)

    for wire in order["init"]:
        _execute(wire, descriptors)

    pid = os.fork()
    if pid == 0:
        _become_kernel(channel, order, descriptors, program)
    for descriptor in received:
        os.close(descriptor)
    return init.reap(pid, channel)


def _become_kernel(channel: socket.socket, order: dict[str, Any], descriptors: Descriptors, program: Program) -> None:
    """Never returns."""
    try:
        os.setsid()
        for wire in order["kernel"]:
            _execute(wire, descriptors)
        # The listener of refused calls is all that leaves the sandbox, and it leaves before the first cell.
        listener = descriptors.pop(LISTENER, None)
        packets.send(channel, {"event": "confined"}, [] if listener is None else [listener])
        if listener is not None:
            os.close(listener)
        for wire in order["check"]:
            _execute(wire, descriptors)
        packets.send(channel, {"event": "running"})
        os.dup2(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), channel.fileno(), inheritable=False)
        kept = {name: descriptors[name] for name in KEPT if name in descriptors}
        _close_all_but(set(kept.values()))
        channel.detach()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
        program(order["program"], kept)
    except BaseException as error:
        if channel.fileno() >= 0:
            report(channel, error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(1)


def _execute(wire: list[Any], descriptors: Descriptors) -> None:
    step = Step.from_wire(wire)
    try:
        step.execute(descriptors)
    except OSError as error:
        raise LaunchError(f"this kernel could not be made to {step.describe()}: {error.strerror or error}") from error


def _close_all_but(kept: set[int]) -> None:
    """Close every descriptor from 3 on that is not named. Ranges, so that there may be a million of them."""
    low = 3
    for descriptor in sorted(d for d in kept if d >= 3):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 1 << 20)


def _attach_standard_streams(descriptors: Descriptors) -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(descriptors.pop(name), number, inheritable=True)

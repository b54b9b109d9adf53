"""Process 1 of a sandbox: reaps orphans, passes signals on, and takes everything with it when it goes."""

from __future__ import annotations

import os
import select
import signal
import socket

from isolated_python.linux import packets, prctl

MOST_SOCKETS = 32


def reap(kernel: int, channel: socket.socket) -> int:
    """Stay until the kernel ends or the supervisor goes. Returns the exit status for process 1 (128 + signal number).

    The end of process 1 kills every process of its pid namespace: pid_namespaces(7). So there is no clean-up to do.
    """
    prctl.set_dumpable(False)  # same user as the kernel: /proc/1 is not for it to look into
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    waiting.register(wake_read, select.POLLIN)
    while True:
        for descriptor, _ in waiting.poll():
            if descriptor == wake_read:
                os.read(wake_read, 4096)
                status = _collect(kernel)
                if status is not None:
                    return status
            elif not _serve(kernel, channel):
                return 0


def _collect(kernel: int) -> int | None:
    """Reap everybody who has ended; the kernel's status if it was among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == kernel:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code


def _serve(kernel: int, channel: socket.socket) -> bool:
    """One order of the supervisor. False: it has gone."""
    order, _ = packets.receive(channel)
    if order is None:
        return False
    if "signal" in order:
        try:
            os.killpg(kernel, order["signal"])
        except ProcessLookupError:  # it has not made its group yet, and it is not reaped
            os.kill(kernel, order["signal"])
    elif "sockets" in order:
        # A socket belongs to the network namespace it was made in: whoever connects it, connects in here.
        made = [
            socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            for _ in range(min(int(order["sockets"]), MOST_SOCKETS))
        ]
        packets.send(channel, {"event": "sockets"}, [one.fileno() for one in made])
        for one in made:
            one.close()
    return True

"""Calls on the supervisors of this user's servers: what the command line's `list` and `kill` ask."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from isolated_python.engine import places
from isolated_python.errors import HostError, IsolatedPythonError, LaunchError
from isolated_python.linux import packets

PATIENCE = 10.0  # seconds


def supervisors() -> list[str]:
    """The sockets of all supervisors that this user may ask."""
    # In /tmp anybody can make a folder of such a name, and answer what they like.
    folders = [f"{base}/{name}" for base in places.bases() for name in sorted(os.listdir(base))]
    found = [f"{folder}/visits" for folder in folders if _mine(folder) and os.path.exists(f"{folder}/visits")]
    return [*found, *filter(None, [places.service("auto")])]


def connect(path: str) -> socket.socket:
    """A connection to the privileged service at `path`. Raises HostError where it is not root who answers there."""
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        caller.connect(path)
        uid = struct.unpack("iII", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    except OSError as error:
        caller.close()
        raise HostError(
            f"the service at {path} does not answer ({error.strerror or error})",
            remedy="systemctl start isolated-python.socket, or set ISOLATED_PYTHON_SERVICE=off to do without",
        ) from error
    if uid not in (0, os.geteuid()):
        caller.close()
        raise HostError(f"who listens at {path} is the user {uid} and not root", remedy="name another socket")
    return caller


def _mine(folder: str) -> bool:
    try:
        return os.path.basename(folder).startswith("isolated-") and os.lstat(folder).st_uid == os.geteuid()
    except OSError:
        return False


def ask(path: str, verb: str, **values: Any) -> dict[str, Any]:
    """One request, one answer. Raises what the supervisor raises, LaunchError where it does not answer."""
    with connect(path) as caller:
        caller.settimeout(PATIENCE)
        try:
            packets.send(caller, {"id": 1, "verb": verb, **values})
            answer, _ = packets.receive(caller)
        except OSError as error:
            raise LaunchError(f"the supervisor at {path} does not answer: {error}") from error
    if answer is None:
        raise LaunchError(f"the supervisor at {path} hung up")
    if "error" in answer:
        raise IsolatedPythonError.from_wire(answer)
    return answer


def kernels() -> list[dict[str, Any]]:
    """Every sandbox of this user, of all servers; each with the socket of its supervisor under "supervisor"."""
    found = []
    for path in supervisors():
        try:
            count, total = 0, 1
            while count < total:
                answer = ask(path, "list", start=count)
                found += [{**kernel, "supervisor": path} for kernel in answer["kernels"]]
                count, total = count + max(1, len(answer["kernels"])), answer["total"]
        except (HostError, LaunchError):  # it ended between the look and the question
            continue
    return found


def kill(name: str) -> int:
    """End the sandboxes whose id begins with `name`; how many those were."""
    wanted = [kernel for kernel in kernels() if kernel["kernel"].startswith(name)]
    for kernel in wanted:
        ask(kernel["supervisor"], "kill", kernel=kernel["kernel"])
    return len(wanted)

"""Messages with descriptors over a SOCK_SEQPACKET socket: one JSON object each, bounded before it is read. unix(7)"""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any

from isolated_python.errors import ProtocolError

LARGEST = 1 << 17  # bytes of one message
MOST_DESCRIPTORS = 64
_DESCRIPTOR = 4  # bytes of one


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def send(peer: socket.socket, message: dict[str, Any], descriptors: list[int] | tuple[int, ...] = ()) -> None:
    """Raises OSError (EPIPE: the peer has gone), ProtocolError where the message is too large."""
    encoded = json.dumps(message, separators=(",", ":")).encode()
    if len(encoded) > LARGEST:
        raise ProtocolError(f"a message of {len(encoded)} bytes is larger than {LARGEST}")
    socket.send_fds(peer, [encoded], list(descriptors), socket.MSG_NOSIGNAL)


def receive(peer: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its descriptors (close-on-exec, now ours to close); None at the end of the stream.

    Raises ProtocolError where the peer sent anything but one JSON object of at most LARGEST bytes.
    """
    # Not socket.recv_fds: that of Python 3.11 forgets its flags, and what is received would survive an execve.
    space = socket.CMSG_SPACE(MOST_DESCRIPTORS * _DESCRIPTOR)
    encoded, ancillary, flags, _ = peer.recvmsg(LARGEST + 1, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = _descriptors(ancillary)
    if not encoded and not descriptors:
        return None, []
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("a message was cut short")
        message = json.loads(encoded)
        if not isinstance(message, dict):
            raise ProtocolError("a message is not an object")
    except (ValueError, RecursionError, ProtocolError) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise error if isinstance(error, ProtocolError) else ProtocolError("a message is not JSON") from None
    return message, descriptors


def heard(peer: socket.socket) -> dict[str, Any] | None:
    """The next message of a peer from whom we take no descriptor: what comes is closed. None where all is said.

    Nonsense is the end, too.
    """
    try:
        message, descriptors = receive(peer)
    except (OSError, ProtocolError):
        return None
    for descriptor in descriptors:
        os.close(descriptor)
    return message


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    received = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % _DESCRIPTOR])
    return received.tolist()

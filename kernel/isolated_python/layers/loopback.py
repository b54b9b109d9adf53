"""The network of a kernel that is granted none: a loopback of its own, because ipykernel needs one."""

from __future__ import annotations

import fcntl
import socket
import struct

from isolated_python.layers.step import Descriptors, Step

SIOCSIFFLAGS = 0x8914
IFF_UP = 1


class RaiseLoopback(Step):
    def describe(self) -> str:
        return "have no network but a loopback of its own"

    def execute(self, descriptors: Descriptors) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
            fcntl.ioctl(asker, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))

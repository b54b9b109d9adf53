"""Clients of Jupyter's channels that speak ZMTP by hand, and so see every byte that a kernel gets through to them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

from isolated_python.relay.zmtp import frame
from jupyter_client.session import Session

GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32
CLIENTS = {"shell": b"DEALER", "iopub": b"SUB", "stdin": b"DEALER", "control": b"DEALER", "hb": b"REQ"}
KERNELS = {"shell": b"ROUTER", "iopub": b"PUB", "stdin": b"ROUTER", "control": b"ROUTER", "hb": b"REP"}
HELD = 1 << 20  # bytes that a client keeps of what it was told
EACH = 0.1  # seconds between an answer and the next question
PATIENCE = 10.0  # seconds for an answer


def command(name: bytes, rest: bytes = b"") -> bytes:
    body = bytes((len(name),)) + name + rest
    if len(body) < 256:
        return bytes((4, len(body))) + body
    return b"\x06" + len(body).to_bytes(8, "big") + body


def ready(kind: bytes) -> bytes:
    return command(b"READY", b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind)


def connect(info: dict[str, Any], channel: str) -> socket.socket:
    """A connection to one channel of a kernel, the client's half of the handshake sent.

    Whoever wants to be answered reads the kernel's half before it says more: libzmq hangs up on the hasty.
    """
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(PATIENCE)
    try:
        one.connect(f"{info['ip']}-{info[channel + '_port']}")
        one.sendall(GREETING + ready(CLIENTS[channel]))
    except OSError:
        one.close()
        raise
    return one


class Victim:
    """A client that connects again and again, as libzmq would, and counts and keeps what it is told."""

    def __init__(self, info: dict[str, Any], channel: str) -> None:
        self.info, self.channel = info, channel
        self.told = b""
        self.bytes = 0  # of the one connection that brought most
        self.hung_up = 0  # connections that were ended for us
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._live)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()

    def _live(self) -> None:
        while not self.stopped.is_set():
            try:
                with connect(self.info, self.channel) as one:
                    one.settimeout(0.15)
                    self._listen(one)
            except OSError:
                self.stopped.wait(0.02)  # the kernel does not listen yet

    def _listen(self, one: socket.socket) -> None:
        count = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while not self.stopped.is_set():
                data = one.recv(1 << 18)
                if not data:
                    self.hung_up += 1
                    return
                count += len(data)
                self.bytes = max(self.bytes, count)
                self.told = (self.told + data)[-HELD:]


class Neighbour:
    """A client of another kernel, which asks it for one cell again and again and keeps how long the answers took."""

    def __init__(self, info: dict[str, Any], code: str = "1 + 1") -> None:
        self.info, self.code = info, code
        self.seconds: list[float] = []
        self.failure = ""
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._live)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        assert not self.failure, f"the neighbour of the attacker was not answered: {self.failure}"
        assert self.seconds, "the neighbour of the attacker was never answered"

    def _live(self) -> None:
        try:
            with connect(self.info, "shell") as one:
                messages = messages_of(one)
                next(messages)  # the handshake
                while not self.stopped.is_set():
                    began = time.monotonic()
                    execute(one, self.info["key"], self.code)
                    while b'"execute_reply"' not in b"".join(next(messages)):
                        continue
                    self.seconds.append(time.monotonic() - began)
                    self.stopped.wait(EACH)
        except (OSError, StopIteration, RuntimeError) as error:
            self.failure = f"{type(error).__name__} {error} after {len(self.seconds)} answers"


def execute(one: socket.socket, key: str, code: str) -> str:
    """Ask for a cell; returns the id of the request."""
    session = Session(key=key.encode(), session="tests")
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False, "stop_on_error": True}
    message = session.msg("execute_request", content)
    parts = session.serialize(message)
    one.sendall(b"".join(frame(part, more=part is not parts[-1]) for part in parts))
    return str(message["header"]["msg_id"])


def messages_of(one: socket.socket) -> Iterator[list[bytes]]:
    """First the peer's READY, then its messages, as lists of frames. Ends where the connection does."""
    frames: list[bytes] = []
    with one.makefile("rb") as stream:
        stream.read(len(GREETING))
        while len(head := stream.read(1)) == 1:
            size = stream.read(8 if head[0] & 2 else 1)
            body = stream.read(int.from_bytes(size, "big"))
            if head[0] & 4 and not body.startswith(b"\x05READY"):
                continue
            frames.append(body)
            if not head[0] & 1:
                yield frames
                frames = []

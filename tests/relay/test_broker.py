"""The relay as a process: confined, distrusting, between a real client and a real listener of a kernel."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import zmq
from isolated_python.engine.zygotes import ROOT
from isolated_python.launcher.spawn import spawn
from isolated_python.layers import seccomp
from isolated_python.linux import packets
from isolated_python.policy.profile import Channels
from isolated_python.relay.rules import CHANNELS


class Relay:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control, theirs = packets.pair()
        self.control.settimeout(10)
        (folder / "kernels").mkdir()
        place = os.open(folder / "kernels", os.O_RDONLY | os.O_DIRECTORY)
        program = f"import sys; sys.path.insert(0, {ROOT!r}); from isolated_python.relay.broker import main; main()"
        self.pid = spawn(
            [sys.executable, "-I", "-S", "-c", program], {"PATH": "/usr/bin"}, {3: theirs.fileno(), 4: place}
        )
        theirs.close()
        os.close(place)
        bpf = os.memfd_create("filter")
        os.write(bpf, seccomp.compile("relay").program)
        os.lseek(bpf, 0, os.SEEK_SET)
        packets.send(self.control, {"verb": "hello", "uid": None, "filter": True}, [bpf])
        os.close(bpf)
        assert self.event()["event"] == "ready"
        self.listeners: list[socket.socket] = []

    def event(self) -> dict[str, object]:
        return packets.receive(self.control)[0] or {}

    def open(self, **channels: object) -> None:
        """A kernel of five listeners, and its door."""
        door = []
        for channel in CHANNELS:
            inside, outside = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
            inside.bind(str(self.folder / "kernels" / channel))
            outside.bind(str(self.folder / channel))
            for one in (inside, outside):
                one.listen()
            self.listeners.append(inside)
            door.append(outside)
        bounds = {**asdict(Channels()), **channels}
        packets.send(
            self.control,
            {"verb": "open", "kernel": "k", "channels": bounds, "key": "key", "client": "ipc"},
            [one.fileno() for one in door],
        )
        for one in door:
            one.close()
        packets.send(self.control, {"verb": "target", "kernel": "k", "kind": "unix", "paths": [*CHANNELS]})

    def client(self, channel: str) -> socket.socket:
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(10)
        one.connect(str(self.folder / channel))
        return one

    def close(self) -> None:
        self.control.close()
        os.waitpid(self.pid, 0)
        for one in self.listeners:
            one.close()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    one = Relay(tmp_path)
    yield one
    one.close()


def test_it_has_given_everything_up(relay: Relay) -> None:
    """Seccomp 2, NoNewPrivs 1, no capability, an empty root, a network of its own."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{relay.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert (status["Seccomp"], status["NoNewPrivs"], status["CapEff"], status["CapBnd"]) == (
        "2",
        "1",
        "0" * 16,
        "0" * 16,
    )
    if os.geteuid() == 0:
        assert os.listdir(f"/proc/{relay.pid}/root") == []
        assert os.readlink(f"/proc/{relay.pid}/ns/net") != os.readlink("/proc/self/ns/net")


def test_libzmq_speaks_through_it(relay: Relay) -> None:
    """A DEALER and a ROUTER that adopted the inherited listener; a large message comes through, byte for byte."""
    relay.open()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        router.setsockopt(zmq.USE_FD, os.dup(relay.listeners[0].fileno()))
        router.bind("ipc:///nowhere")
        dealer.connect(f"ipc://{relay.folder}/shell")
        for one in (router, dealer):
            one.rcvtimeo = 20_000
            one.linger = 0
        large = os.urandom(1 << 20) * 40
        dealer.send_multipart([b"", b"hello", large])
        identity, *frames = router.recv_multipart()
        assert frames == [b"", b"hello", large]
        router.send_multipart([identity, large, b"answer"])
        assert dealer.recv_multipart() == [large, b"answer"]


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n" * 10, b"\xff" + b"\0" * 8 + b"\x7f\x01"])
def test_what_is_not_zmtp_never_reaches_the_kernel(relay: Relay, said: bytes) -> None:
    relay.open()
    with relay.client("shell") as client:
        client.sendall(said)
        assert client.recv(1) == b""
    inside, _ = relay.listeners[0].accept()
    with inside:
        inside.settimeout(10)
        assert said not in inside.recv(1000)
    event = relay.event()
    assert event["event"] == "refused"


def test_a_handshake_that_never_ends_is_ended(relay: Relay) -> None:
    relay.open(handshake=0.2)
    with relay.client("control") as client:
        client.sendall(b"\xff")
        assert client.recv(100) == b""
    assert relay.event()["rule"] == "handshake time"


def test_no_more_connections_than_granted(relay: Relay) -> None:
    relay.open(connections=2)
    kept = [relay.client("shell") for _ in range(2)]
    with relay.client("shell") as third:
        assert third.recv(1) == b""
    for one in kept:
        one.close()


def test_a_client_that_does_not_read_costs_a_bounded_memory(relay: Relay) -> None:
    """The kernel's own writes stop; the relay holds no more than its bound."""
    relay.open()
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher, context.socket(zmq.SUB) as client:
        publisher.setsockopt(zmq.USE_FD, os.dup(relay.listeners[1].fileno()))
        publisher.setsockopt(zmq.SNDHWM, 0)
        publisher.bind("ipc:///nowhere")
        client.setsockopt(zmq.RCVHWM, 1)
        client.subscribe(b"")
        client.connect(f"ipc://{relay.folder}/iopub")
        publisher.linger = client.linger = 0
        publisher.rcvtimeo = 10_000
        assert publisher.recv() == b"\x01"
        before = psutil.Process(relay.pid).memory_info().rss
        for _ in range(500):
            publisher.send(b"x" * 200_000)
        with relay.client("hb"):  # it goes on serving
            pass
        assert psutil.Process(relay.pid).memory_info().rss - before < 8 << 20

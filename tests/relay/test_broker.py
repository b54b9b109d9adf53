"""The relay as a process: confined, distrusting, between a real client and a real listener of a kernel."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import zmq
from isolated_python.engine import ROOT
from isolated_python.launcher.spawn import spawn
from isolated_python.layers.filters import compiler
from isolated_python.linux import packets
from isolated_python.policy.profile import Channels
from isolated_python.record import asdict
from isolated_python.relay import zmtp
from isolated_python.relay.rules import CHANNELS, CLIENT, KERNEL, SOCKET_TYPES, WAITING, WHOLE, Bounds
from jupyter_client.session import Session

from tests.relay.test_zmtp import GREETING, message, ready


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
        os.write(bpf, compiler.compile("relay").program)
        os.lseek(bpf, 0, os.SEEK_SET)
        packets.send(self.control, {"verb": "hello", "uid": None, "filter": True}, [bpf])
        os.close(bpf)
        assert self.event()["event"] == "ready"
        self.listeners: list[socket.socket] = []

    def event(self) -> dict[str, object]:
        return packets.receive(self.control)[0] or {}

    def open(self, kernel: str = "k", granted: dict[str, object] | None = None, **channels: object) -> None:
        """A kernel of five listeners, and its door."""
        door = []
        for channel in CHANNELS:
            inside, outside = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
            inside.bind(str(self.folder / "kernels" / f"{kernel}-{channel}"))
            outside.bind(str(self.folder / f"{kernel}-{channel}"))
            for one in (inside, outside):
                one.listen()
            inside.settimeout(10)
            self.listeners.append(inside)
            door.append(outside)
        bounds = {**asdict(Channels()), **channels}
        packets.send(
            self.control,
            {
                "verb": "open",
                "kernel": kernel,
                "channels": bounds,
                "granted": granted or {},
                "key": "key",
                "client": "ipc",
            },
            [one.fileno() for one in door],
        )
        for one in door:
            one.close()
        self.tell("target", kernel, kind="unix", paths=[f"{kernel}-{channel}" for channel in CHANNELS])

    def tell(self, verb: str, kernel: str = "k", **values: object) -> None:
        packets.send(self.control, {"verb": verb, "kernel": kernel, **values})

    def client(self, channel: str, kernel: str = "k") -> socket.socket:
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(10)
        one.connect(str(self.folder / f"{kernel}-{channel}"))
        return one

    def pair(self, channel: str) -> tuple[socket.socket, socket.socket]:
        """A client and a kernel that have shaken hands through the relay, by hand."""
        client = self.client(channel)
        kernel, _ = self.listeners[CHANNELS.index(channel)].accept()
        kernel.settimeout(10)
        sides = {client: SOCKET_TYPES[channel, CLIENT][0], kernel: SOCKET_TYPES[channel, KERNEL][0]}
        for one, kind in sides.items():
            one.sendall(GREETING + ready(kind))
        for one, other in ((client, sides[kernel]), (kernel, sides[client])):
            assert exactly(one, len(GREETING + ready(other))) == GREETING + ready(other)
        return client, kernel

    def restart(self, **channels: object) -> None:
        """Another kernel takes the place of the one before: new listeners at the old names, and a new door."""
        self.tell("detach")
        for channel in CHANNELS:
            (self.folder / "kernels" / f"k-{channel}").unlink()
            (self.folder / f"k-{channel}").unlink()
        for one in self.listeners:
            one.close()
        self.listeners.clear()
        self.open(**channels)

    def close(self) -> None:
        """It ends with its supervisor, and did not before: a relay that breaks closes every connection, too."""
        if self.control.fileno() >= 0:
            self.control.shutdown(socket.SHUT_WR)
        _, status = os.waitpid(self.pid, 0)
        for one in (self.control, *self.listeners):
            one.close()
        assert os.waitstatus_to_exitcode(status) == 0


def exactly(one: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (part := one.recv(count - len(found))):
        found += part
    return found


def until(one: socket.socket, last: bytes) -> bytes:
    found = b""
    while not found.endswith(last) and (part := one.recv(1 << 16)):
        found += part
    return found


def waiting(one: socket.socket) -> bytes:
    """What has come by now."""
    return one.recv(1 << 16) if select.select([one], [], [], 0)[0] else b""


def to_the_end(one: socket.socket) -> bytes:
    found = b""
    while part := one.recv(1 << 16):
        found += part
    return found


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
        dealer.connect(f"ipc://{relay.folder}/k-shell")
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
        assert to_the_end(inside) == b""
    event = relay.event()
    assert event["event"] == "refused"


def test_a_supervisor_that_goes_without_hearing_everything_is_no_fault_of_the_relays(relay: Relay) -> None:
    """What it would have been told lies unread; the relay's end says whether that was a fault, see Relay.close."""
    relay.open()
    with relay.client("shell") as one:
        one.sendall(b"this is no greeting" * 10)
        assert select.select([relay.control], [], [], 10)[0]
    relay.control.close()


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


@pytest.mark.parametrize("size", [1000, 200_000], ids=["small", "large"])
def test_a_client_that_does_not_read_costs_a_bounded_memory(relay: Relay, size: int) -> None:
    """The kernel's own writes stop; the relay holds no more than its bound, and goes on serving."""
    relay.open()
    client, kernel = relay.pair("iopub")
    with client:
        before = psutil.Process(relay.pid).memory_info().rss
        assert fill(kernel, message(b"topic", b"x" * size))
        for end in relay.pair("hb"):
            end.close()
        assert psutil.Process(relay.pid).memory_info().rss - before < 8 << 20


SESSION = Session(key=b"key")


def a_cell_runs(relay: Relay) -> dict[str, object]:
    """Ask for a cell on shell; returns the request as a parent."""
    asked = SESSION.msg("execute_request", {"code": "1"})
    client, kernel = relay.pair("shell")
    with client, kernel:
        client.sendall(message(b"", *SESSION.serialize(asked)))
        assert relay.event() == {"event": "activity", "kernel": "k", "msg_id": asked["header"]["msg_id"]}
    return asked  # type: ignore[no-any-return]


def messages(stream: bytes) -> list[list[bytes]]:
    """The messages of a stream after its handshake."""
    found: list[list[bytes]] = []
    walk = zmtp.Walk(Bounds("iopub", KERNEL, 1 << 30, 64), found.append)
    walk.feed(GREETING + ready(b"PUB"))
    assert walk.feed(stream) == stream
    assert walk.between
    return found


def test_our_message_stands_between_two_of_the_kernels(relay: Relay) -> None:
    """While a kernel publishes messages of every size without a pause: ours arrive whole, theirs unchanged."""
    relay.open()
    asked = a_cell_runs(relay)
    sizes = [10, 70_000, 300, 3_000_000, 60_000, 200_000] * 8
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher, context.socket(zmq.SUB) as client:
        publisher.linger = client.linger = 0
        publisher.setsockopt(zmq.USE_FD, os.dup(relay.listeners[1].fileno()))
        publisher.setsockopt(zmq.SNDHWM, 0)
        publisher.bind("ipc:///nowhere")
        client.setsockopt(zmq.RCVHWM, 0)
        client.subscribe(b"")
        client.connect(f"ipc://{relay.folder}/k-iopub")
        publisher.rcvtimeo = client.rcvtimeo = 10_000
        assert publisher.recv() == b"\x01"
        for number, size in enumerate(sizes):
            publisher.send_multipart([b"theirs", b"%d" % number, bytes((number,)) * size])
            if number % 6 == 0:
                relay.tell("notice", text=f"ours {number}")
        theirs, ours = [], []
        while len(theirs) + len(ours) < len(sizes) + 8:
            frames = client.recv_multipart()
            if frames[0] == b"theirs":
                theirs.append(frames)
            else:
                ours.append(SESSION.deserialize(SESSION.feed_identities(frames)[1]))  # raises where it is not signed
    wanted = [[b"theirs", b"%d" % n, bytes((n,)) * size] for n, size in enumerate(sizes)]
    assert theirs == wanted
    assert sorted(one["content"]["text"] for one in ours) == sorted(
        f"Isolated Python: ours {number}\n" for number in range(0, len(sizes), 6)
    )
    assert {one["parent_header"]["msg_id"] for one in ours} == {asked["header"]["msg_id"]}


def test_what_a_dead_kernel_said_comes_before_what_is_said_of_it(relay: Relay) -> None:
    """A client that has not read yet still gets every whole message, then why the kernel died, then the end."""
    relay.open()
    asked = a_cell_runs(relay)
    client, kernel = relay.pair("iopub")
    with client:
        said = fill(kernel, message(b"kernel.x.stream", b"x" * 1000))
        relay.tell("insert", ename="KernelDied", evalue="of something", traceback=["of something"])
        heard = exactly(client, len(said))
        assert relay.event()["event"] == "inserted"
        relay.tell("close")
        heard += to_the_end(client)
    *theirs, died, idle = messages(heard)
    assert theirs == messages(said)
    told = [SESSION.deserialize(SESSION.feed_identities(frames)[1]) for frames in (died, idle)]
    assert [one["msg_type"] for one in told] == ["error", "status"]
    assert told[0]["content"]["evalue"] == "of something"
    assert {one["parent_header"]["msg_id"] for one in told} == {asked["header"]["msg_id"]}


@pytest.mark.parametrize("reads", [True, False])
def test_a_slow_client_gets_the_last_words_and_one_that_never_reads_holds_nobody_up(relay: Relay, reads: bool) -> None:
    """When the supervisor hears that all is told, it lets go of a dead kernel: what waits in the relay is lost."""
    for name in ("k", "other"):
        relay.open(name)
    a_cell_runs(relay)
    client, kernel = relay.pair("iopub")
    with client, kernel:
        said = message(b"kernel.x.stream", b"x" * 10_000) * (WAITING * 3 // 2 // 10_000)  # more than Linux takes
        kernel.sendall(said)
        kernel.shutdown(socket.SHUT_WR)
        assert to_the_end(kernel) == b""  # the relay has noticed its end
        for name in ("k", "other"):
            relay.tell("insert", name, ename="KernelDied", evalue="of something", traceback=[])
        assert relay.event() == {"event": "inserted", "kernel": "other"}, "it does not wait for a slow reader"
        heard = exactly(client, len(said)) if reads else b""
        assert relay.event() == {"event": "inserted", "kernel": "k"}
        relay.tell("close")
        if reads:
            heard += to_the_end(client)
            assert len(messages(heard)) == len(messages(said)) + 2


def fill(kernel: socket.socket, whole: bytes) -> bytes:
    """Say it again and again until the slow reader holds everybody back, and hang up. Returns what was said whole."""
    sent, room = 0, select.poll()
    room.register(kernel, select.POLLOUT)
    kernel.setblocking(False)
    while room.poll(300):
        sent += kernel.send(whole[sent % len(whole) :])
        assert sent < 5_000_000, "nothing holds it back"
    kernel.close()
    return whole * (sent // len(whole))


def test_a_message_that_is_torn_by_a_death_is_not_completed_by_us(relay: Relay) -> None:
    """The kernel dies in the middle of a large body: its client is cut off, and never gets our bytes as part of it."""
    relay.open()
    a_cell_runs(relay)
    client, kernel = relay.pair("iopub")
    with client:
        begun = zmtp.frame(b"x" * 1_000_000, more=False)[:150_000]
        kernel.sendall(begun)
        kernel.close()
        relay.tell("insert", ename="KernelDied", evalue="of something", traceback=[])
        assert to_the_end(client) == begun


@pytest.mark.parametrize("dead", [True, False])
def test_a_client_does_not_notice_that_another_kernel_takes_the_place(relay: Relay, dead: bool) -> None:
    """It is introduced to the next one in its own words, what it asks waits until that one stands, and nothing it hears
    says that there was one before: neither a second greeting nor half a message of the first kernel's."""
    relay.open()
    client, kernel = relay.pair("shell")
    kernel.sendall(message(b"said before") + message(b"x" * 1000)[:500])
    assert exactly(client, len(message(b"said before"))) == message(b"said before")
    if dead:
        kernel.close()
    relay.restart()
    client.sendall(message(b"a question"))
    following, _ = relay.listeners[0].accept()
    following.settimeout(10)
    opening = GREETING + ready(b"DEALER")
    with client, following:
        assert exactly(following, len(opening)) == opening
        following.sendall(GREETING[:20])
        assert not select.select([following], [], [], 0.3)[0], "libzmq takes what comes before its READY for an error"
        following.sendall(GREETING[20:] + ready(b"ROUTER") + message(b"an answer"))
        assert exactly(following, len(message(b"a question"))) == message(b"a question")
        assert exactly(client, len(message(b"an answer"))) == message(b"an answer")
    kernel.close()


def test_a_question_is_not_lost_with_a_kernel_that_dies_before_it_is_asked(relay: Relay) -> None:
    relay.open()
    client, kernel = relay.pair("shell")
    kernel.close()
    relay.restart()
    client.sendall(message(b"a question"))
    opening = GREETING + ready(b"DEALER")
    second, _ = relay.listeners[0].accept()
    second.settimeout(10)
    with second:
        assert exactly(second, len(opening)) == opening
        second.sendall(GREETING[:30])
    relay.restart()
    third, _ = relay.listeners[0].accept()
    third.settimeout(10)
    with client, third:
        assert exactly(third, len(opening)) == opening
        third.sendall(GREETING + ready(b"ROUTER") + message(b"an answer"))
        assert exactly(third, len(message(b"a question"))) == message(b"a question")
        assert exactly(client, len(message(b"an answer"))) == message(b"an answer")


def test_who_asks_is_heard_by_the_next_kernel_after_who_listens(relay: Relay) -> None:
    relay.open()
    pairs = {channel: relay.pair(channel) for channel in ("shell", "iopub")}
    pairs["iopub"][0].sendall(command(b"SUBSCRIBE", b""))
    exactly(pairs["iopub"][1], len(command(b"SUBSCRIBE", b"")))
    relay.restart()
    pairs["shell"][0].sendall(message(b"a question"))
    following = {}
    for channel in ("shell", "iopub"):
        one, _ = relay.listeners[CHANNELS.index(channel)].accept()
        one.settimeout(10)
        following[channel] = one
        exactly(one, len(GREETING + ready(SOCKET_TYPES[channel, CLIENT][0])))
    following["shell"].sendall(GREETING + ready(b"ROUTER"))
    assert not select.select([following["shell"]], [], [], 0.3)[0], "who listens would have missed the answer"
    following["iopub"].sendall(GREETING + ready(b"PUB"))
    assert exactly(following["iopub"], len(command(b"SUBSCRIBE", b""))) == command(b"SUBSCRIBE", b"")
    assert exactly(following["shell"], len(message(b"a question"))) == message(b"a question")
    for one in (*following.values(), *(end for pair in pairs.values() for end in pair)):
        one.close()


def test_the_next_kernel_knows_what_a_client_wants_to_hear(relay: Relay) -> None:
    relay.open()
    client, kernel = relay.pair("iopub")
    wishes = command(b"SUBSCRIBE", b"a") + command(b"SUBSCRIBE", b"b") + command(b"CANCEL", b"a")
    client.sendall(wishes + command(b"PING", b"\0\0"))
    exactly(kernel, len(wishes + command(b"PING", b"\0\0")))
    kernel.close()
    relay.restart()
    following, _ = relay.listeners[CHANNELS.index("iopub")].accept()
    following.settimeout(10)
    with client, following:
        exactly(following, len(GREETING + ready(b"SUB")))
        following.sendall(GREETING + ready(b"PUB"))
        assert exactly(following, len(wishes)) == wishes
        client.close()
        assert to_the_end(following) == b"", "a wish was said twice"


def command(name: bytes, body: bytes) -> bytes:
    body = bytes((len(name),)) + name + body
    return bytes((zmtp.COMMAND, len(body))) + body


def test_a_client_has_to_come_again_where_the_next_kernel_is_of_another_kind(relay: Relay) -> None:
    relay.open()
    client, kernel = relay.pair("shell")
    kernel.close()
    relay.restart()
    following, _ = relay.listeners[0].accept()
    following.settimeout(10)
    with client, following:
        exactly(following, len(GREETING + ready(b"DEALER")))
        following.sendall(GREETING[:11] + b"\0" + GREETING[12:] + ready(b"ROUTER"))
        assert to_the_end(client) == b""
    assert relay.event()["rule"] == "another opening than that of the kernel before (kernel)"


def test_a_client_has_to_come_again_where_other_rules_hold_or_its_wishes_are_too_many(relay: Relay) -> None:
    relay.open()
    few, kernel = relay.pair("iopub")
    relay.restart(message=1 << 20)
    with few, kernel:
        assert to_the_end(few) == b""
    many, kernel = relay.pair("iopub")
    for _ in range(100):
        many.sendall(command(b"SUBSCRIBE", b"x" * 100))
    exactly(kernel, 100 * len(command(b"SUBSCRIBE", b"x" * 100)))
    relay.restart(message=1 << 20)
    with many, kernel:
        assert to_the_end(many) == b""


def test_a_kernel_that_lives_and_closes_a_connection_is_connected_to_anew(relay: Relay) -> None:
    relay.open()
    client, kernel = relay.pair("shell")
    kernel.close()
    with client:
        assert to_the_end(client) == b""


def test_without_a_running_cell_the_next_one_is_told(relay: Relay) -> None:
    relay.open()
    client, kernel = relay.pair("iopub")
    with client, kernel:
        relay.tell("notice", text="something")
        asked = a_cell_runs(relay)
        heard = b""
        while not heard.endswith(b'something\\n"}'):
            heard += client.recv(1 << 16)
        told = SESSION.deserialize(SESSION.feed_identities(messages(heard)[0])[1])
        assert told["parent_header"]["msg_id"] == asked["header"]["msg_id"]


def test_one_flood_holds_back_one_kernel(relay: Relay) -> None:
    """Above its rate a kernel waits: all it says arrives, late; the supervisor hears of it; a neighbour is served."""
    relay.open(output_rate=1 << 20)
    relay.open("other")
    client, kernel = relay.pair("iopub")
    one = message(b"kernel.x.stream", b"x" * 1000)
    with client, kernel, ThreadPoolExecutor(2) as pool:
        whole = one * 1500
        speaking, hearing = pool.submit(kernel.sendall, whole), pool.submit(exactly, client, len(whole))
        event = relay.event()
        assert (event["event"], event["rule"], event["kernel"]) == ("refused", "output rate", "k")
        with zmq.Context() as context, context.socket(zmq.REP) as server, context.socket(zmq.REQ) as asking:
            server.setsockopt(zmq.USE_FD, os.dup(relay.listeners[9].fileno()))
            server.bind("ipc:///nowhere")
            asking.connect(f"ipc://{relay.folder}/other-hb")
            for end in (server, asking):
                end.rcvtimeo, end.linger = 10_000, 0
            asking.send(b"well?")
            server.send(server.recv())
            assert asking.recv() == b"well?"
        assert hearing.result(10) == whole
        speaking.result(10)


@pytest.mark.parametrize("first", [b"small", b"x" * 100_000], ids=["nothing of it is through", "a part of it is"])
def test_a_message_that_is_too_large_costs_nobody_the_connection(relay: Relay, first: bytes) -> None:
    """The rest of it is dropped, and its cell told; a part that is through already becomes a message of its own."""
    relay.open(message=1 << 20)
    a_cell_runs(relay)
    client, kernel = relay.pair("iopub")
    after = message(b"kernel.x.stream", b"after")
    with client, kernel, ThreadPoolExecutor(1) as pool:
        speaking = pool.submit(kernel.sendall, message(b"topic", first, b"y" * (1 << 20), b"z") + after)
        heard = until(client, after)
        speaking.result(10)
    before = message(b"topic", first, b"") if len(first) > WHOLE else b""
    assert heard.startswith(before)
    told, last = messages(heard[len(before) :])
    text = SESSION.deserialize(SESSION.feed_identities(told)[1])["content"]["text"]
    assert "larger than the 1 MiB" in text
    assert last == [b"kernel.x.stream", b"after"]


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def listener(relay: Relay) -> Iterator[Pair]:
    """Who hears what a kernel publishes, and that kernel."""
    relay.open()
    client, kernel = relay.pair("iopub")
    with client, kernel:
        yield client, kernel


@pytest.fixture
def asker(relay: Relay, listener: Pair) -> Iterator[Pair]:
    """Who asks the same kernel, and the kernel."""
    client, kernel = relay.pair("hb")
    with client, kernel:
        yield client, kernel


def said(number: int) -> bytes:
    return message(b"kernel.x.stream", b"%d" % number)


def heard_before_the_answer(listener: Pair, asker: Pair, number: int) -> bytes:
    """The kernel publishes a message, then a question is asked and answered. What has been published by then."""
    question = message(b"", b"well?")
    listener[1].sendall(said(number))
    for one, other in (asker, asker[::-1]):
        one.sendall(question)
        assert exactly(other, len(question)) == question
    return waiting(listener[0])


def make_it_wait(listener: Pair, asker: Pair) -> int:
    """Publish until a question overtakes what was published before it. The number of the message that waits."""
    for number in range(2000):
        if heard_before_the_answer(listener, asker, number) != said(number):
            return number
    raise AssertionError("no question was answered before what was said before it")


def test_output_after_a_quiet_moment_is_passed_at_once(listener: Pair, asker: Pair) -> None:
    """A question that is asked after it is answered after it."""
    for number in range(4):
        assert heard_before_the_answer(listener, asker, number) == said(number)


def test_a_stream_waits_for_who_asks_and_comes_whole(listener: Pair, asker: Pair) -> None:
    """Every message of it, in order, several at once."""
    first = make_it_wait(listener, asker)
    last = first + 300
    parts = [heard_before_the_answer(listener, asker, number) for number in range(first + 1, last)]
    listener[1].sendall(said(last))
    parts.append(until(listener[0], said(last)))
    assert b"".join(parts) == b"".join(map(said, range(first, last + 1)))
    assert max(map(len, parts)) > len(said(last))


def test_after_a_request_no_output_waits(relay: Relay, listener: Pair, asker: Pair) -> None:
    client, kernel = relay.pair("shell")
    with client, kernel:
        waits = make_it_wait(listener, asker)
        client.sendall(message(b"", *SESSION.serialize(SESSION.msg("execute_request", {"code": "1"}))))
        assert heard_before_the_answer(listener, asker, waits + 1) == said(waits) + said(waits + 1)


def test_what_a_kernel_said_last_is_heard_though_its_end_is_told_of_at_once(
    relay: Relay, listener: Pair, asker: Pair
) -> None:
    waits = make_it_wait(listener, asker)
    listener[1].sendall(said(waits + 1))
    relay.tell("close")
    assert to_the_end(listener[0]) == said(waits) + said(waits + 1)


LONG = bytes((zmtp.LONG,))
MALFORMED = {
    "reserved flags": b"\x80\x01x",
    "a second READY": b"",
    "an unknown command": bytes((zmtp.COMMAND, 5)) + b"\x04EVIL",
    "a huge command": bytes((zmtp.COMMAND | zmtp.LONG,)) + (1 << 40).to_bytes(8, "big"),
    "a message above its bound": LONG + ((1 << 20) + 1).to_bytes(8, "big") + b"x" * 1000,
    "a message of 2^64": LONG + b"\xff" * 8 + b"x" * 1000,
    "more frames than granted": b"\x01\x01x" * 65,
}


@pytest.mark.parametrize("side", [CLIENT, KERNEL])
@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_ends_its_connection_and_no_other(relay: Relay, name: str, side: str) -> None:
    """From either side: nothing of it crosses, both sides are closed, and the audit knows who it was."""
    relay.open(message=1 << 20, frames=64)
    bystander, its_kernel = relay.pair("shell")
    client, kernel = relay.pair("shell")
    guilty, victim = (client, kernel) if side == CLIENT else (kernel, client)
    with bystander, its_kernel, client, kernel:
        guilty.sendall(MALFORMED[name] or ready(SOCKET_TYPES["shell", side][0]))
        assert victim.recv(1) == b""
        event = relay.event()
        assert (event["event"], event["channel"]) == ("refused", "shell")
        assert str(event["rule"]).endswith(f"({side})")
        bystander.sendall(message(b"still", b"here"))
        assert exactly(its_kernel, len(message(b"still", b"here"))) == message(b"still", b"here")


def test_a_kernel_that_floods_and_hangs_up_costs_no_time(relay: Relay) -> None:
    """It is over its rate, so nobody listens to it until the second is over; nor does its end keep the relay busy."""
    relay.open(output_messages=10)
    client, kernel = relay.pair("iopub")
    used = psutil.Process(relay.pid)
    with client:
        with kernel:
            kernel.sendall(b"\0\x01x" * 1000)
            before = sum(used.cpu_times()[:2])
        assert relay.event()["rule"] == "output rate"
        assert client.recv(3000, socket.MSG_WAITALL) == b"\0\x01x" * 1000
        client.settimeout(0.8)
        with pytest.raises(TimeoutError):
            client.recv(1)
    assert sum(used.cpu_times()[:2]) - before < 0.3


def asked(allowed: bool, *, size: int = 0) -> bytes:
    session = Session(key=b"key")
    content = {"code": "x" * size, "allow_stdin": allowed}
    return message(*session.serialize(session.msg("execute_request", content)))


@pytest.mark.parametrize("first", [b"small", b"x" * (WHOLE + 1)], ids=["small", "large"])
def test_a_prompt_reaches_nobody_where_every_client_has_forbidden_it(relay: Relay, first: bytes) -> None:
    """Also one that begins with a part too large to be looked at; nor does a cell too large for that allow it."""
    relay.open()
    client, kernel = relay.pair("shell")
    person, prompting = relay.pair("stdin")
    with client, kernel, person, prompting:
        for size in (0, WHOLE + 1):
            client.sendall(request := asked(bool(size), size=size))
            exactly(kernel, len(request))
        prompting.sendall(message(first, b"input_request"))
        assert person.recv(1) == b""
        while (event := relay.event())["event"] != "refused":
            continue
        assert (event["channel"], event["rule"]) == ("stdin", "a prompt that no cell may make (kernel)")


def test_a_prompt_passes_where_one_cell_was_allowed_it(relay: Relay) -> None:
    """By any client, at any time."""
    relay.open()
    client, kernel = relay.pair("shell")
    person, prompting = relay.pair("stdin")
    with client, kernel, person, prompting:
        for request in (asked(False), asked(True), asked(False)):
            client.sendall(request)
            exactly(kernel, len(request))
        prompting.sendall(message(b"id", b"input_request"))
        assert exactly(person, 19) == message(b"id", b"input_request")

"""The supervisor, when its requests are nonsense, and when a zygote and its children are an attacker's.

One real supervisor serves them all; after each example it must still answer, and must have let go of everything.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import itertools
import json
import os
import select
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from isolated_python.engine import ROOT, interpreters, relays
from isolated_python.engine.supervisor import VISITS
from isolated_python.launcher.spawn import spawn
from isolated_python.linux import packets
from isolated_python.policy import parse
from isolated_python.policy.profile import Profile

SOURCE = Path(__file__).with_name("hostile_zygote.py").read_text()
PROFILE = parse.change(Profile(), {"layers": {"cgroup": "off"}, "files": {"workspace": "none"}}, "test").to_wire()


class Served:
    """A supervisor, and we are its server."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="isolated-fuzz-", dir="/var/tmp"))
        self.folder.chmod(0o755)  # a zygote must see it, so that it is not below /tmp
        (self.folder / "run").mkdir(mode=0o700)
        self.script = self.folder / "zygote"
        self.script.write_text(f"#!{sys.executable} -IS\n" + SOURCE.replace("@ROOT@", ROOT))
        self.script.chmod(0o755)
        self.socket, theirs = packets.pair()
        self.socket.settimeout(20)
        program = f"import sys; sys.path.insert(0, {ROOT!r}); "
        program += "from isolated_python.engine.supervisor import main; main()"
        self.pid = spawn([sys.executable, "-I", "-S", "-c", program], {"PATH": "/usr/bin"}, {3: theirs.fileno()})
        theirs.close()
        self.numbers = itertools.count(1 << 20)  # those of nonsense are smaller, or no numbers
        self.answers: dict[Any, dict[str, Any]] = {}
        self.names = itertools.count(1)
        atexit.register(self.close)
        where = {"cache": self.folder / "cache", "audit": self.folder / "audit" / "log", "folder": self.folder / "run"}
        asked = {key: str(path) for key, path in where.items()}
        answer = self.ask("hello", interpreter=sys.executable, identities="/run/isolated-python", **asked)
        assert "error" not in answer, answer
        self.answer(self.start(self.order(False, [])))  # what is opened for the first kernel is kept for the next ones
        self.quiet()

    def send(self, verb: object, **values: Any) -> int:
        number = next(self.numbers)
        packets.send(self.socket, {"id": number, "verb": verb, **values})
        return number

    def answer(self, number: int) -> dict[str, Any]:
        while number not in self.answers:
            message, _ = packets.receive(self.socket)
            assert message is not None, "the supervisor has ended"
            self.answers[message.get("id")] = message
        return self.answers.pop(number)

    def ask(self, verb: object, **values: Any) -> dict[str, Any]:
        return self.answer(self.send(verb, **values))

    def start(self, order: dict[str, Any]) -> int:
        """Ask for the kernel of an `order`, and wait until its zygote has played, or has been ended for it."""
        said = os.open(self.folder / f"{order['kernel']}.played", os.O_RDONLY | os.O_NONBLOCK)
        number, heard = self.send("start", **order), b""
        while select.select([said], [], [], 20)[0] and (part := os.read(said, 8)):
            heard += part
        os.close(said)
        assert heard, "the zygote was not asked, so that nothing is shown"
        return number

    def quiet(self, descriptors: int = 1 << 20) -> None:
        """Every kernel has been let go of, and all but so many descriptors; those that were killed take a moment."""
        deadline = time.monotonic() + 20
        while self.ask("list")["total"] or self.descriptors() > descriptors:
            assert time.monotonic() < deadline, f"something stays that nobody wants: {self.ask('list')}"

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def order(self, fork: bool, acts: list[tuple[bytes, list[str]]], by: str = "zygote") -> dict[str, Any]:
        """A request for a kernel whose zygote does this."""
        name = f"kernel-{next(self.names)}"
        plan = {"fork": fork, "acts": [[data.hex(), kinds] for data, kinds in acts], "by": by}
        (self.folder / name).write_text(json.dumps(plan))
        fifo = self.folder / f"{name}.played"
        os.mkfifo(fifo)
        fifo.chmod(0o666)
        return {
            "kernel": name, "profile": PROFILE, "trees": [*interpreters.own_trees(), str(self.folder)],
            "interpreter": [str(self.script), [], ""], "argv": None, "arguments": [], "cwd": "/",
            "connection": ["/run/user/kernel.json", "{}"], "environment": {}, "key": "key", "sockets": name[-8:],
            "view": "", "pool": 0, "owner": "",
            "streams": {"stdin": False, "stdout": False, "stderr": False}, "ports": [20001, 20002, 20003, 20004, 20005],
        }  # fmt: skip

    def close(self) -> None:
        self.socket.close()
        os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder)


_served: list[Served] = []


def served() -> Served:
    """One for all examples, and for all tests: its start is dear."""
    if not _served:
        _served.append(Served())
    return _served[0]


# ---- a zygote that lies ----------------------------------------------------------------------------------------------

words = (
    st.sampled_from(["born", "failed", "confined", "running", "sockets", "ready", "forked"]) | st.integers() | st.none()
)
bodies = st.fixed_dictionaries(
    {"event": words},
    optional={"reason": st.text(max_size=2000) | st.integers() | st.lists(st.text(max_size=5)), "pid": st.integers()},
).map(lambda message: json.dumps(message).encode())
deep = st.sampled_from([b'{"failed":' + b"[" * 3000, b'"failed"', b'["failed"]', b'{"event":"failed"}', b"[" * 9000])
kinds = st.lists(st.sampled_from(["pipe", "unix", "tcp", "null", "file"]), max_size=4)
acts = st.lists(st.tuples(bodies | deep | st.binary(max_size=30), kinds), max_size=5)
BORN, CONFINED, RUNNING = ((json.dumps({"event": event}).encode(), []) for event in ("born", "confined", "running"))
TRUTH = [BORN, CONFINED, RUNNING]
SOCKETS = json.dumps({"event": "sockets"}).encode()


def played(fork: bool, what: list[tuple[bytes, list[str]]]) -> None:
    """Start such a kernel, end it, and see that nothing of it is left."""
    one = served()
    assert "error" not in one.ask("warm", **one.order(False, []))
    before = one.descriptors()
    order = one.order(fork, what)
    number = one.start(order)
    assert "kernels" in one.ask("list")
    one.send("forget", kernel=order["kernel"])
    one.answer(number)
    one.quiet(before)
    assert "relay-ended" not in (one.folder / "audit" / "log").read_text()


def test_a_zygote_that_does_as_it_is_told_has_a_kernel() -> None:
    """The control: what is tried with lies and with wrong values comes to something without them."""
    one = served()
    order = one.order(True, TRUTH)
    answer = one.answer(one.start(order))
    assert answer.get("pid"), answer
    assert "error" not in one.ask("forget", kernel=order["kernel"])
    one.quiet()


@given(st.booleans(), acts, st.booleans())
@settings(max_examples=30, deadline=None)
# Each of these ended the supervisor, and with it every kernel of the server.
@example(True, [(CONFINED[0], ["file"])], True)
@example(True, [(CONFINED[0], ["null"])], True)
@example(False, [(b'{"failed":' + b"[" * 3000, [])], False)
@example(False, [(b'["failed"]', [])], False)
# These ended the relay.
@example(True, [CONFINED, RUNNING, (SOCKETS, ["file", "unix"])], True)
@example(True, [CONFINED, RUNNING, *[(SOCKETS, ["tcp"] * 4)] * 3], True)
def test_a_zygote_that_lies_ends_its_own_kernel_alone(fork: bool, what: list[Any], born: bool) -> None:
    played(fork, [BORN, *what] if fork and born else what)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may have no cgroup, and then none is born in one")
def test_a_kernel_that_is_born_outside_its_cgroup_is_ended() -> None:
    one = served()
    first, second = one.order(True, [BORN], by="mother"), one.order(True, [BORN], by="sibling")
    one.start(first)
    before = {process.pid for process in psutil.Process(one.pid).children()}
    answer = one.answer(one.start(second))
    assert "not born in its cgroup" in answer["message"], answer
    one.ask("forget", kernel=second["kernel"])
    deadline = time.monotonic() + 10
    while more := {process.pid for process in psutil.Process(one.pid).children()} - before:
        assert time.monotonic() < deadline, f"it is forgotten, and lives: {more}"
        select.select([], [], [], 0.05)
    one.ask("forget", kernel=first["kernel"])
    one.quiet()


# ---- a server that talks nonsense ------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)
DEEP = b"[" * 900 + b"]" * 900


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a request, as the keys that lead there."""
    found = [path] if path else []
    for key in value if isinstance(value, dict) else ():
        found += places(value[key], (*path, key))
    return found


def changed(request: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    request = copy.deepcopy(request)
    inner = request
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return request


NAMES = ("kernel", "trees", "interpreter", "argv", "arguments", "cwd", "connection", "environment", "key", "sockets",
         "streams", "ports", "profile")  # fmt: skip
orders = st.tuples(st.sampled_from([*((name,) for name in NAMES), *places({"profile": PROFILE})]), values)


@given(orders)
@settings(max_examples=30, deadline=None)
@example((("profile", "resources", "wall_clock"), 1e300))
@example((("profile", "files", "workspace"), "read-write"))  # and no descriptor for it
@example((("profile", "channels", "handshake"), float("inf")))
@example((("kernel",), "../../x"))
@example((("kernel",), []))
@example((("interpreter",), ["/nowhere", [], ""]))
def test_an_order_with_one_wrong_value_is_refused_or_served(change: tuple[tuple[str, ...], Any]) -> None:
    one = served()
    place, value = change
    order = changed(one.order(True, TRUTH), place, value)
    number = one.send("start", **order)
    assert "id" in one.answer(number)
    with contextlib.suppress(TypeError):
        one.ask("forget", kernel=order["kernel"])
    one.quiet()


requests = st.dictionaries(
    st.sampled_from(["verb", "kernel", "signal", "profile", "start"]),
    values | st.sampled_from(["start", "warm", "signal", "forget", "hello", "list", "kill"]),
)


@given(requests.map(lambda request: json.dumps(request).encode()))
@settings(max_examples=100, deadline=None)
@example(b'{"verb": "list", "start": -1}')
@example(b'{"verb": "signal", "kernel": "x", "signal": Infinity}')
@example(b'{"verb": ' + DEEP + b"}")
@example(b'{"verb": "list", "id": ' + DEEP + b"}")
@example(b'{"verb": "list", "id": "' + b"x" * 130_000 + b'"}')  # the answer would be larger than a message can be
@example(b'{"verb": "list", "id": ' + b"9" * 4000 + b"}")
def test_nonsense_is_answered_to_server_and_visitor_alike(request: bytes) -> None:
    """The server and a visitor of the command line; the supervisor goes on for both."""
    one = served()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor:
        visitor.settimeout(10)
        visitor.connect(str(one.folder / "run" / VISITS))
        for peer in (one.socket, visitor):
            peer.send(request)
        assert packets.receive(visitor)[0] is not None
    assert "kernels" in one.ask("list")


@given(st.binary(max_size=300) | st.sampled_from([b"[" * 100_000, b"{}", b"null", bytes(140_000)]))
@settings(max_examples=60, deadline=None)
def test_a_visitor_who_is_no_visitor_is_hung_up_on(data: bytes) -> None:
    one = served()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor:
        visitor.settimeout(10)
        visitor.connect(str(one.folder / "run" / VISITS))
        visitor.send(data)
        try:
            heard = visitor.recv(1 << 17)
        except ConnectionError:
            heard = b""
    assert not heard or (data == b"{}" and "there is no request" in json.loads(heard)["message"])
    assert "kernels" in one.ask("list")


# ---- a relay in hostile hands ----------------------------------------------------------------------------------------


@given(
    st.dictionaries(
        st.sampled_from(["event", "kernel", "count", "channel", "rule", "msg_id", "x"]),
        values | st.sampled_from([*relays.EVENTS]) | st.text(min_size=250, max_size=400),
    )
)
@settings(max_examples=200, deadline=None)
@example({"event": "want", "kernel": "k"})
@example({"event": "want", "kernel": "k", "count": True})
@example({"event": ["want"], "kernel": "k", "count": 1})
def test_what_the_relay_tells_is_in_the_table_or_nothing(message: dict[str, Any]) -> None:
    event = relays.understood(message)
    wanted = relays.EVENTS.get(event.get("event", ""), {})
    assert set(event) in (set(), {"event", *wanted})
    for name, kind in wanted.items():
        assert type(event[name]) is kind
        assert not isinstance(event[name], str) or len(event[name]) <= relays.LONGEST


@pytest.mark.parametrize("name", relays.EVENTS)
def test_what_is_in_the_table_is_understood_and_cut(name: str) -> None:
    given = {str: "x" * 300, int: 7, bool: True}
    message = {"event": name, **{key: given[kind] for key, kind in relays.EVENTS[name].items()}}
    cut = {key: value[: relays.LONGEST] if isinstance(value, str) else value for key, value in message.items()}
    assert relays.understood({**message, "x": 1}) == cut

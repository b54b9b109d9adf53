"""The walk along a ZMTP stream: what is well formed passes unchanged, whatever the pieces it comes in; nothing else."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolated_python.relay import zmtp
from isolated_python.relay.rules import CLIENT, KERNEL, SOCKET_TYPES, WHOLE, Bounds, Refused

GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32
SHELL = Bounds("shell", CLIENT, 1 << 20, 64)


def ready(kind: bytes = b"DEALER") -> bytes:
    body = b"\x05READY" + b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return bytes((zmtp.COMMAND, len(body))) + body


def message(*frames: bytes) -> bytes:
    return b"".join(zmtp.frame(body, more=number < len(frames)) for number, body in enumerate(frames, 1))


def shaken(bounds: Bounds = SHELL, inspect: zmtp.Inspect | None = None) -> zmtp.Walk:
    walk = zmtp.Walk(bounds, inspect)
    opening = GREETING + ready(SOCKET_TYPES[bounds.channel, bounds.side][0])
    assert walk.feed(opening) == opening
    return walk


sizes = st.lists(st.lists(st.integers(0, 300) | st.just(WHOLE + 7), min_size=1, max_size=6), min_size=1, max_size=6)


@given(sizes, st.lists(st.integers(1, 9000), min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
def test_a_stream_in_any_pieces_comes_out_as_it_went_in(lengths: list[list[int]], pieces: list[int]) -> None:
    frames = [[bytes((n % 256,)) * length for n, length in enumerate(one)] for one in lengths]
    stream = GREETING + ready() + b"".join(message(*one) for one in frames)
    seen: list[list[bytes]] = []
    walk = zmtp.Walk(SHELL, seen.append)
    out, place, number = bytearray(), 0, 0
    while place < len(stream):
        size = pieces[number % len(pieces)]
        out += walk.feed(stream[place : place + size])
        assert len(walk.held) <= WHOLE + 9000 + 9 * 64  # what waits is bounded, whatever was announced
        place, number = place + size, number + 1
    assert bytes(out) == stream, "the stream was changed"
    assert walk.between
    assert walk.messages == len(frames)
    small = [one for one in frames if sum(map(len, one)) <= WHOLE]
    rest = iter(seen)  # among them the first frames of those that were too large
    assert all(any(one == other for other in rest) for one in small), "a small message was not seen whole"


@given(st.binary(max_size=4000))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_or_held_and_raises_nothing_else(data: bytes) -> None:
    for opening in (b"", GREETING, GREETING + ready()):
        walk = zmtp.Walk(SHELL)
        try:
            assert len(walk.feed(opening + data)) <= len(opening + data)
        except Refused:
            pass


LONG = bytes((zmtp.LONG,))
REFUSED = {
    "not ZMTP": b"GET / HTTP/1.1\r\n",
    "ZMTP 2": GREETING[:10] + b"\x01" + GREETING[11:],
    "CURVE": GREETING[:12] + b"CURVE".ljust(20, b"\0") + GREETING[32:],
    "a message first": GREETING + message(b"x"),
    "a second READY": GREETING + ready() + ready(),
    "another socket type": GREETING + ready(b"PUB"),
    "an unknown command": GREETING + ready() + bytes((zmtp.COMMAND, 5)) + b"\x04EVIL",
    "a huge command": GREETING + ready() + bytes((zmtp.COMMAND | zmtp.LONG,)) + (1 << 40).to_bytes(8, "big"),
    "reserved flags": GREETING + ready() + b"\x80\x01x",
    "2 GB": GREETING + ready() + LONG + (2 << 30).to_bytes(8, "big"),
    "2^64": GREETING + ready() + LONG + b"\xff" * 8,
    "frames without end": GREETING + ready() + b"\x01\x01x" * 65,
    "metadata past its end": GREETING + bytes((zmtp.COMMAND, 10)) + b"\x05READY\x04abc",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_well_formed_is_refused_before_it_takes_memory(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(Refused):
        zmtp.Walk(SHELL).feed(REFUSED[name])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_large_body_passes_without_being_held() -> None:
    walk = shaken(Bounds("iopub", KERNEL, 1 << 30, 64))
    head = LONG + (100 << 20).to_bytes(8, "big")
    assert walk.feed(head + b"x" * 1000) == head + b"x" * 1000
    assert walk.passing == (100 << 20) - 1000
    assert not walk.between
    walk.skip(walk.passing)
    assert walk.between


def test_a_small_message_crosses_whole_or_not_at_all() -> None:
    """So that a kernel that dies in the middle of one leaves a stream where another can be put in."""
    walk = shaken(Bounds("iopub", KERNEL, 1 << 20, 64))
    one = message(b"topic", b"body" * 100)
    assert walk.feed(one[:-1]) == b""
    assert walk.between
    assert walk.feed(one[-1:]) == one


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(0, 300)), max_size=12), st.integers(1, 2000))
@settings(max_examples=100, deadline=None)
def test_a_message_that_is_kept_back_leaves_no_trace_between_its_neighbours(
    asked: list[tuple[bool, int, int]], size: int
) -> None:
    frames = [
        (kept_back, [b"no" if kept_back else b"yes", *[b"x" * length] * count]) for kept_back, count, length in asked
    ]
    stream = b"".join(message(*one) + message(b"yes") for _, one in frames)
    walk = shaken(inspect=lambda one: one[0] == b"no")
    out = b"".join(walk.feed(stream[place : place + size]) for place in range(0, len(stream), size))
    assert out == b"".join((b"" if kept_back else message(*one)) + message(b"yes") for kept_back, one in frames)
    assert walk.between


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"a.status", b".status", b".statusx", b"", b"x" * 300 + b".status"]), st.integers(0, 3)
        ),
        max_size=8,
    ),
    st.integers(1, 900),
)
@settings(max_examples=100, deadline=None)
def test_who_looks_for_one_kind_is_shown_all_of_it_and_nothing_else(said: list[tuple[bytes, int]], size: int) -> None:
    stream = b"".join(message(topic, *[b".status"] * more) for topic, more in said)
    seen: list[list[bytes]] = []
    walk = zmtp.Walk(SHELL, seen.append, only=b".status")
    walk.feed(GREETING + ready())
    assert b"".join(walk.feed(stream[place : place + size]) for place in range(0, len(stream), size)) == stream
    assert seen == [[topic, *[b".status"] * more] for topic, more in said if topic.endswith(b".status")]

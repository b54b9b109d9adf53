"""What the relay reads of messages, and what it says itself when a kernel has died, whatever was in those it read."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from isolated_python.relay import messages, output, rules, zmtp
from isolated_python.relay.messages import DELIMITER, LONGEST_ID, Cells
from jupyter_client.session import Session

KEY = "a key"

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
names = st.sampled_from(["msg_type", "msg_id", "session", "execution_state"])
usual = st.sampled_from(["execute_request", "status", "idle", "busy", "1", "2"])
dictionaries = st.dictionaries(names, usual | values, max_size=5)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def nested(depth: int, inside: str = "") -> bytes:
    return b'{"msg_type": "execute_request", "msg_id": ' + b"[" * depth + inside.encode() + b"]" * depth + b"}"


depths = st.sampled_from([1, 50, 300, 900, 980, 990, 1000, 5000, 30_000])
parts = st.one_of(dictionaries.map(encoded), values.map(encoded), st.binary(max_size=60), depths.map(nested))
topics = st.sampled_from([b"kernel.1.status", b".status", b"x" * 500 + b".status", b"stream"]) | st.binary(max_size=20)
whole = st.builds(
    lambda topic, rest: [topic, DELIMITER, *rest], topics, st.lists(parts, min_size=3, max_size=6)
) | st.lists(st.binary(max_size=20) | st.just(DELIMITER), max_size=8)


def said(cells: Cells) -> bytes:
    return cells.epitaph(KEY, "KernelDied", "it needed more memory", ["line"])


@given(st.lists(st.tuples(st.booleans(), whole), max_size=6))
@settings(max_examples=200, deadline=None)
@example(
    [(False, [b".status", DELIMITER, b"", nested(n).replace(b"msg_id", b"session")]) for n in (900, 985, 990, 995)]
)
@example([(True, [b"", DELIMITER, b"", b'{"msg_type": "execute_request", "msg_id": 1' + b"0" * 5000 + b"}"])])
@example([(True, [b"", DELIMITER, b"", b'{"msg_type": "execute_request", "msg_id": "\\ud800"}'])])
def test_whatever_was_said_the_last_word_is_a_message(heard: list[tuple[bool, list[bytes]]]) -> None:
    """Nothing raises; what is told of an id is short and printable; the epitaph is two signed, well-formed messages."""
    cells = Cells()
    for asked, frames in heard:
        if asked:
            told = cells.asked(frames)
            assert len(told) <= LONGEST_ID
            assert not told or told.isprintable()
        else:
            cells.published(frames)
    data = said(cells)
    assert cells.running is None
    seen: list[list[bytes]] = []
    walk = zmtp.Walk(rules.Bounds("iopub", rules.KERNEL, 1 << 30, 64), seen.append)
    walk.greeted, walk.ready = zmtp.GREETING, True
    assert walk.feed(data) == data
    assert walk.between
    session = Session(key=KEY.encode())
    kinds = []
    for frames in [*seen]:
        _, signed = session.feed_identities(frames)
        message = session.deserialize(signed, copy=True)
        kinds.append(message["msg_type"])
        assert message["parent_header"] == {} or message["parent_header"]["msg_type"] == "execute_request"
    assert kinds == ["error", "status"]


@given(st.binary(max_size=200), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
@example(b"[" * 100_000, 2)
@example(b"1" * 10_000, 2)
@example(b'"\xff"', 2)
def test_a_part_is_an_object_or_nothing(data: bytes, place: int) -> None:
    assert isinstance(messages._part([DELIMITER, *[data] * 5], place), dict)


def test_a_header_as_deep_as_can_be_read_can_be_written_again() -> None:
    """An id that is no text was kept as it came, and one depth in a thousand ended the relay when it was repeated."""
    for depth in range(900, 1010):
        cells = Cells()
        cells.asked([b"", DELIMITER, b"", nested(depth)])
        assert said(cells)


@given(st.lists(st.tuples(st.booleans(), whole), max_size=6), st.booleans())
@settings(max_examples=200, deadline=None)
@example([(True, [b"", DELIMITER, b"", *[nested(990)] * 4])], True)
def test_whatever_a_kernel_says_what_goes_on_is_a_message_or_nothing(
    heard: list[tuple[bool, list[bytes]]], held: bool
) -> None:
    """Where a profile limits what is shown: nothing raises, and what is put instead is signed and well formed."""
    granted = rules.Granted("test", display=("image/*",), output=1000, messages=3)
    turns = output.Turns()
    edit = output.Output(granted, turns, Cells(), KEY, lambda rule: None).edit
    walk = zmtp.Walk(rules.Bounds("iopub", rules.KERNEL, 1 << 30, 64))
    for asked, frames in heard:
        if asked:
            turns.asked(frames)
            continue
        walk.seen, walk.size = frames, sum(map(len, frames))
        turns.published(frames)
        instead = edit(walk, held)
        walk.bytes += walk.size
        if instead:
            seen: list[list[bytes]] = []
            other = zmtp.Walk(rules.Bounds("iopub", rules.KERNEL, 1 << 30, 64), seen.append)
            other.greeted, other.ready = zmtp.GREETING, True
            assert other.feed(instead) == instead
            assert other.between
            assert all(DELIMITER in one for one in seen)

"""What of a kernel's output goes on: mime types and amounts, asked of the rules in the walk that they stand in."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolated_python.relay.messages import DELIMITER, Cells, signed
from isolated_python.relay.output import Output, Turns, part_of
from isolated_python.relay.rules import EDITED, KERNEL, SOCKET_TYPES, WHOLE, Bounds, Granted
from isolated_python.relay.zmtp import Walk

from tests.relay.test_zmtp import GREETING, ready

KEY = "key"
Said = list[tuple[str, Any]]


def message(
    kind: str, content: dict[str, Any], parent: str = "cell", buffers: tuple[bytes, ...] = (), topic: str = ""
) -> bytes:
    header, about = {"msg_type": kind, "msg_id": "x"}, {"msg_id": parent, "msg_type": "execute_request"}
    parts = [json.dumps(part).encode() for part in (header, about, {}, content)]
    return signed(KEY, [f"kernel.1.{topic or kind}".encode()], parts, [*buffers])


class Stream:
    """A kernel's side of a channel, under the rules of a profile."""

    def __init__(self, channel: str = "iopub", **granted: Any) -> None:
        self.turns, self.rules = Turns(), Granted("test", **granted)
        self.refused: list[str] = []
        output = Output(self.rules, self.turns, Cells(), KEY, self.refused.append)
        bounds = Bounds(channel, KERNEL, 1 << 30, 4096)
        whole = WHOLE if self.rules.display is None else EDITED
        self.walk = Walk(bounds, self.turns.published, output.edit if self.rules.edits(channel) else None, whole)
        opening = GREETING + ready(SOCKET_TYPES[channel, KERNEL][0])
        assert self.walk.feed(opening) == opening

    def ask(self, cell: str) -> None:
        parts = [json.dumps(part).encode() for part in ({"msg_type": "execute_request", "msg_id": cell}, {}, {}, {})]
        self.turns.asked([b"", DELIMITER, b"", *parts])

    def begin(self, cell: str = "cell") -> None:
        self.ask(cell)
        self.say("status", {"execution_state": "busy"}, cell)

    def end(self, cell: str = "cell") -> Said:
        return self.say("status", {"execution_state": "idle"}, cell)

    def say(self, kind: str, content: dict[str, Any], parent: str = "cell", size: int = 1 << 20, **more: Any) -> Said:
        return self.hear(message(kind, content, parent, **more), size)

    def hear(self, data: bytes, size: int = 1 << 20) -> Said:
        """What comes out for what goes in, in pieces of `size` bytes: kinds and contents, signatures checked."""
        out = b"".join(self.walk.feed(data[place : place + size]) for place in range(0, len(data), size))
        assert self.walk.between
        return heard(out)


def heard(data: bytes) -> Said:
    found: Said = []
    frames: list[bytes] = []
    place = 0
    while place < len(data):
        head = 9 if data[place] & 2 else 2
        end = place + head + int.from_bytes(data[place + 1 : place + head], "big")
        frames.append(data[place + head : end])
        if not data[place] & 1:
            parts = frames[frames.index(DELIMITER) + 1 :]
            assert parts[0] == hmac.new(KEY.encode(), b"".join(parts[1:5]), hashlib.sha256).hexdigest().encode()
            found.append((part_of(frames, 2)["msg_type"], part_of(frames, 5)))
            frames = []
        place = end
    assert not frames
    return found


# ---- which kinds -----------------------------------------------------------------------------------------------------


def test_what_is_not_granted_is_taken_out_and_the_rest_signed_again() -> None:
    """Buffers and metadata of what is left stay; the signature is the kernel's own."""
    stream = Stream(display=("image/*",))
    mixed = {
        "data": {"text/html": "<b>", "text/plain": "b", "image/png": "p"},
        "metadata": {"text/html": 1, "image/png": {"width": 1}},
    }
    left = {"data": {"text/plain": "b", "image/png": "p"}, "metadata": {"image/png": {"width": 1}}}
    for kind in ("display_data", "execute_result", "update_display_data"):
        assert stream.say(kind, mixed, buffers=(b"1", b"2")) == [(kind, left)]
    ((_, content),) = stream.say("display_data", {"data": {"application/javascript": "x"}})
    assert "application/javascript: not granted by the profile test" in content["data"]["text/plain"]
    assert stream.say("stream", {"text": "<b>"}) == [("stream", {"text": "<b>"})]
    assert {*stream.refused} == {"capabilities.display"}


def test_replies_are_looked_at_as_well() -> None:
    """Pagers, inspection and user expressions carry mime bundles, too."""
    stream = Stream("shell", display=())
    bundle = {"text/html": "<b>", "text/plain": "b"}
    reply = {"payload": [{"source": "page", "data": {**bundle}}], "user_expressions": {"a": {"data": {**bundle}}}}
    ((_, content),) = stream.say("execute_reply", reply)
    assert content["payload"][0]["data"] == content["user_expressions"]["a"]["data"] == {"text/plain": "b"}
    ((_, content),) = stream.say("inspect_reply", {"data": {**bundle}})
    assert content["data"] == {"text/plain": "b"}
    ((kind, content),) = stream.say("execute_reply", {"payload": "x" * EDITED}, size=1 << 16)
    assert (kind, content["payload"]) == ("execute_reply", [])  # whoever waits for a reply gets one


def test_widgets_are_a_grant_of_their_own() -> None:
    """A comm can show everything, so it crosses only where widgets are granted."""
    for kind in ("comm_open", "comm_msg", "comm_close"):
        assert Stream(display=("text/html",)).say(kind, {"data": {}}) == []
        assert Stream(display=("application/*",)).say(kind, {"data": {}}) == [(kind, {"data": {}})]


ODD: list[tuple[str, bytes]] = [
    ("data that is a text", b'{"data": "<script>"}'),
    ("data that is a list", b'{"data": ["<script>"]}'),
    ("no data", b'{"text/html": "<script>"}'),
    ("data twice", b'{"data": {"text/plain": ""}, "data": {"text/html": "<script>"}}'),
    ("another case", b'{"data": {"TEXT/HTML": "<script>"}}'),
    ("not JSON", b'{"data": {"text/html": "<script>"}'),
    ("UTF-16", '{"data": {"text/html": "<script>"}}'.encode("utf-16")),
    ("a mark at its begin", b'\xef\xbb\xbf{"data": {"text/html": "<script>"}}'),
    ("a byte that is no letter", b'{"data": {"text/html": "<script>", "x": "\xff"}}'),
    ("depth without end", b'{"data": {"text/plain": ' + b"[" * 20_000 + b'"<script>"' + b"]" * 20_000 + b"}}"),
    (
        "depth at the edge",
        b'{"data": {"text/html": 1, "text/plain": ' + b"[" * 985 + b'"<script>"' + b"]" * 985 + b"}}",
    ),
    ("digits without end", b'{"data": {"text/html": "<script>", "x": 1' + b"0" * 5000 + b"}}"),
]


@pytest.mark.parametrize("content", [content for _, content in ODD], ids=[name for name, _ in ODD])
def test_what_can_be_read_in_two_ways_does_not_cross(content: bytes) -> None:
    """Nothing of it, or no more than its text."""
    header, about = b'{"msg_type": "display_data"}', b'{"msg_id": "cell"}'
    stream = Stream(display=())
    for size in (7, 1 << 20):
        said = stream.hear(signed(KEY, [b"kernel.1.display_data"], [header, about, b"{}", content]), size)
        for crossed in (one for kind, one in said if kind != "stream"):
            assert crossed, "it crossed as it came, and we cannot read it"
            assert {*crossed.get("data", ())} <= {"text/plain"}


@pytest.mark.parametrize(
    "header", [b'{"msg_type": "display_data"', b'\xef\xbb\xbf{"msg_type": "display_data"}', b"[]", b"{}"]
)
def test_a_message_whose_kind_cannot_be_read_does_not_cross(header: bytes) -> None:
    parts = [header, b"{}", b"{}", b'{"data": {"text/html": "<script>"}}']
    assert Stream(display=()).walk.feed(signed(KEY, [b"kernel.1.display_data"], parts)) == b""


def test_what_is_too_large_to_be_looked_at_does_not_cross() -> None:
    """What comes after it crosses again."""
    stream = Stream(display=())
    large = {"data": {"text/plain": "x" * (EDITED + 1)}}
    ((kind, content),) = stream.say("display_data", large, size=1 << 16, buffers=(b"y" * 100_000, b"z"))
    assert kind == "stream"
    assert "cannot be looked at" in content["text"]
    assert stream.say("display_data", {"data": {"text/plain": "b"}}) != []
    assert len(stream.say("stream", {"text": "x" * (EDITED + 1)}, size=1 << 16)) == 1  # text is nothing but text


def test_without_a_rule_nobody_looks() -> None:
    assert Stream().walk.edit is None
    assert Stream("shell", output=1).walk.edit is None
    large = {"data": {"text/html": "x" * (EDITED + 1)}}
    assert Stream().say("display_data", large, size=4096) == [("display_data", large)]


# ---- how much --------------------------------------------------------------------------------------------------------


def test_a_cell_has_so_many_messages_and_is_told_what_it_lost() -> None:
    """Each cell anew; a cell that fails still says why, once."""
    stream = Stream(messages=3)
    for cell in ("one", "two"):
        stream.begin(cell)
        said = [stream.say("stream", {"text": str(number)}, cell) for number in range(10)]
        assert [len(one) for one in said] == [1] * 4 + [0] * 6
        assert "grants one cell 3 messages of output" in said[3][0][1]["text"]
        assert len(stream.say("error", {"ename": "x"}, cell)) == 1
        assert stream.say("error", {"ename": "x"}, cell) == []
        told, idle = stream.end(cell)
        assert "8 messages of this cell, 0.0 MiB, were dropped" in told[1]["text"]
        assert idle == ("status", {"execution_state": "idle"})
    assert {*stream.refused} == {"cells.messages"}


@pytest.mark.parametrize("piece", [1000, WHOLE, WHOLE + 1, 500_000])
def test_a_cell_has_so_much_output(piece: int) -> None:
    """However it is cut, in one frame or in many, and with what is too large to be held."""
    for buffers in (False, True):
        stream = Stream(output=1 << 20)
        stream.begin()
        text = "" if buffers else "x" * piece
        more = (b"x" * (piece // 2),) * 2 if buffers else ()
        said = [stream.say("stream", {"text": text}, size=1 << 15, buffers=more) for _ in range((3 << 20) // piece)]
        through = sum(bool(one) for one in said) - 1
        assert through * piece <= (1 << 20) < (through + 2) * (piece + 400)
        assert any("grants one cell 1 MiB of output" in json.dumps(one) for one in said)
        assert "were dropped" in stream.end()[0][1]["text"]
        stream.begin("next")
        assert len(stream.say("stream", {"text": "y"}, "next")) == 1


def test_a_kernel_cannot_begin_a_cell_that_nobody_asked_for() -> None:
    """By a forged status it would have its output counted anew."""
    stream = Stream(messages=2)
    stream.begin()
    found = 0
    for number in range(20):
        stream.say("status", {"execution_state": "busy"}, "cell" if number % 2 else f"forged-{number}")
        found += len(stream.say("stream", {"text": "x"}, f"forged-{number}"))
    assert found == 3


def test_cells_that_wait_are_counted_one_by_one() -> None:
    """Asked for all at once, as by *Run all*."""
    stream = Stream(messages=2)
    for cell in "abc":
        stream.ask(cell)
    for cell in "abc":
        stream.say("status", {"execution_state": "busy"}, cell)
        assert sum(len(stream.say("stream", {"text": "x"}, cell)) for _ in range(5)) == 3
        assert len(stream.end(cell)) == 2


# ---- in pieces -------------------------------------------------------------------------------------------------------

contents = st.sampled_from(
    [
        ("display_data", {"data": {"text/html": "x", "text/plain": "y"}}),
        ("display_data", {"data": {"text/html": "x" * WHOLE}}),
        ("stream", {"text": "z"}),
        ("stream", {"text": "z" * (WHOLE + 1)}),
        ("comm_msg", {"data": {}}),
        ("status", {"execution_state": "busy"}),
        ("status", {"execution_state": "idle"}),
        ("error", {"ename": "x"}),
    ]
)
buffers = st.lists(st.sampled_from([b"", b"x" * 300, b"x" * (WHOLE + 9)]), max_size=2)
cuts = st.lists(st.integers(1, 300) | st.sampled_from([1, 9, 1 << 12, 1 << 16]), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(contents, buffers), max_size=8), cuts,
    st.sampled_from([{"display": ()}, {"messages": 2}, {"output": 1 << 17}, {"display": ("image/*",), "messages": 3}]),
)  # fmt: skip
def test_it_does_not_matter_how_the_bytes_arrive(said: list[Any], sizes: list[int], granted: dict[str, Any]) -> None:
    """Whole or split, the same goes on, well formed and signed; and large bodies do not stay with us."""
    data = b"".join(message(kind, content, buffers=tuple(more)) for (kind, content), more in said)
    whole, cut = Stream(**granted), Stream(**granted)
    for stream in (whole, cut):
        stream.begin()
    out, place, number = b"", 0, 0
    while place < len(data):
        size = sizes[number % len(sizes)]
        out += cut.walk.feed(data[place : place + size])
        assert len(cut.walk.held) <= cut.walk.whole + 9 * 16 + size
        place, number = place + size, number + 1
    want = whole.walk.feed(data)
    assert len(heard(out)) == len(heard(want))
    assert [kind for kind, _ in heard(out)] == [kind for kind, _ in heard(want)]
    assert [one for one in heard(out) if one[0] != "stream"] == [one for one in heard(want) if one[0] != "stream"]
    assert cut.refused == whole.refused
    assert (cut.walk.messages, cut.walk.bytes) == (whole.walk.messages, whole.walk.bytes)

"""The relay's walk along a hostile stream: one named refusal or none, little held, and the pieces change nothing."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st
from isolated_python.relay import zmtp
from isolated_python.relay.rules import CHANNELS, CLIENT, KERNEL, LONGEST_COMMAND, SOCKET_TYPES, WHOLE, Bounds, Refused

GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32
MESSAGE, FRAMES = 200_000, 20  # small bounds, so that they are met
HEADER = 9  # bytes before a frame's body, at most


def command(body: bytes) -> bytes:
    if len(body) < 256:
        return bytes((zmtp.COMMAND, len(body))) + body
    return bytes((zmtp.COMMAND | zmtp.LONG,)) + len(body).to_bytes(8, "big") + body


def ready(kind: bytes, *more: tuple[bytes, bytes]) -> bytes:
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", kind), *more):
        body += bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
    return command(body)


# ---- streams: mostly what libzmq would say, with something wrong in it -----------------------------------------------

bodies = st.binary(max_size=40) | st.sampled_from([255, 256, WHOLE - 1, WHOLE, WHOLE + 1, 90_000]).map(
    lambda size: bytes(range(256)) * (size // 256) + b"x" * (size % 256)
)
frames = st.builds(
    lambda flags, body, long: (
        bytes((flags | zmtp.LONG,)) + len(body).to_bytes(8, "big") + body
        if long or len(body) > 255
        else bytes((flags, len(body))) + body
    ),
    st.sampled_from([0, 0, zmtp.MORE, zmtp.MORE]),
    bodies,
    st.booleans(),
)
announced = st.builds(
    lambda flags, size: bytes((flags | zmtp.LONG,)) + size.to_bytes(8, "big"),
    st.integers(0, 255),
    st.sampled_from([0, 1, WHOLE, WHOLE + 1, MESSAGE, MESSAGE + 1, 2 << 30, 1 << 63, (1 << 64) - 1])
    | st.integers(0, 300),
)
commands = st.builds(
    lambda name, rest: command(bytes((len(name),)) + name + rest),
    st.sampled_from([b"READY", b"SUBSCRIBE", b"CANCEL", b"PING", b"PONG", b"ERROR", b"HELLO", b""]),
    st.binary(max_size=30),
)
pieces = st.one_of(frames, frames, frames, commands, announced, st.binary(max_size=12))


@dataclass(frozen=True)
class Stream:
    bounds: Bounds
    data: bytes

    def __repr__(self) -> str:
        """Short: bodies are long."""
        return f"<{self.bounds.channel} {self.bounds.side}: {self.data.removeprefix(GREETING)[:200]!r}>"


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    channel, side = draw(st.sampled_from(CHANNELS)), draw(st.sampled_from([CLIENT, KERNEL]))
    opening = draw(st.sampled_from([GREETING, GREETING, GREETING, b"", GREETING[:30]]))
    if draw(st.integers(0, 9)):
        opening += ready(draw(st.sampled_from(SOCKET_TYPES[channel, side])))
    data = bytearray(opening + b"".join(draw(st.lists(pieces, max_size=8))))
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2)):
        if data:
            data[place % len(data)] = byte
    return Stream(Bounds(channel, side, MESSAGE, FRAMES), bytes(data))


cuts = st.lists(st.integers(1, 200) | st.sampled_from([1, 9, 64, 1 << 12, 1 << 16, 1 << 18]), min_size=1, max_size=12)


# ---- what must hold --------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    refused: str
    seen: list[list[bytes]]
    forwarded: bytes
    messages: int
    between: bool
    ready: bool


def walked(stream: Stream, sizes: list[int], *, by: bool = False, edit: zmtp.Edit | None = None) -> Outcome:
    """Walk along the stream in pieces of these sizes, over and over. `by`: large bodies go by, as through a pipe."""
    seen: list[list[bytes]] = []
    walk = zmtp.Walk(stream.bounds, seen.append, edit)
    data, out, refused, place, number = stream.data, bytearray(), "", 0, 0
    try:
        while place < len(data):
            size = sizes[number % len(sizes)]
            if by and walk.passing and not walk.dropping:
                size = min(size, walk.passing, len(data) - place)
                walk.skip(size)
                out += data[place : place + size]
            else:
                out += walk.feed(data[place : place + size])
            place, number = place + size, number + 1
            assert len(walk.held) <= max(WHOLE + HEADER * (FRAMES + 1), LONGEST_COMMAND + HEADER), "too much is held"
    except Refused as error:
        refused = error.rule
    return Outcome(refused, seen, bytes(out), walk.messages, walk.between, walk.ready)


SHELL = Bounds("shell", CLIENT, MESSAGE, FRAMES)
OPENED = GREETING + ready(b"DEALER")


@given(streams(), cuts, st.booleans())
@settings(max_examples=250, deadline=None)
# A message above WHOLE in one piece was seen with its large frame, and in two pieces without it.
@example(Stream(SHELL, OPENED + zmtp.frame(b"a", more=True) + zmtp.frame(b"x" * 90_000, more=False)), [1 << 16], False)
@example(Stream(SHELL, OPENED + zmtp.frame(b"x" * 90_000, more=True) + b"\0\0"), [64], True)
# Empty frames up to the bound, and one more.
@example(Stream(SHELL, OPENED + b"\x01\x00" * FRAMES + b"\0\0"), [7], False)
def test_the_pieces_that_a_stream_comes_in_change_nothing(stream: Stream, sizes: list[int], by: bool) -> None:
    """Refused or not, by which rule, which messages are seen, what goes on: the same for every way to cut it."""
    whole = walked(stream, [len(stream.data) or 1])
    cut = walked(stream, sizes, by=by)
    assert stream.data.startswith(whole.forwarded), "what goes on is not what came"
    assert stream.data.startswith(cut.forwarded), "what goes on is not what came"
    if whole.refused:
        # What was complete before the fault may be on its way already; the fault and all behind it never is.
        cut.forwarded = whole.forwarded = b""
    for name in ("refused", "seen", "forwarded", "messages", "between", "ready"):
        assert getattr(cut, name) == getattr(whole, name), name


@st.composite
def nearly(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A message that is usual, and what follows it: messages that begin like it, or nearly."""
    sizes = draw(st.lists(st.integers(0, 40) | st.just(300), min_size=1, max_size=4))
    first = b"".join(zmtp.frame(b"x" * size, more=True) for size in sizes)
    heads = [sum(size + (9 if size > 255 else 2) for size in sizes[:number]) for number in range(len(sizes))]
    follow = bytearray()
    for last, change in draw(st.lists(st.tuples(pieces, st.integers(0, 3)), min_size=1, max_size=4)):
        one = bytearray(first + last)
        if not change:
            one[draw(st.sampled_from(heads)) + draw(st.integers(0, 1))] = draw(st.integers(0, 8))
        follow += one
    return first + zmtp.frame(b"last", more=False), bytes(follow)


@given(nearly(), cuts)
@settings(max_examples=250, deadline=None)
# A message of another shape, one that is too large to be held, one with more frames than granted.
@example((b"\x01\x01x\0\0", b"\x01\x02xx\0\0\x01\x01x\0\0"), [1 << 16])
@example((b"\x01\x01x\0\0", b"\x01\x01x" + zmtp.frame(b"x" * WHOLE, more=False)), [1 << 16])
@example((b"\x01\0" * 3 + b"\0\0", b"\x01\0" * FRAMES + b"\0\0"), [7])
def test_a_message_that_begins_as_usual_is_read_like_any_other(said: tuple[bytes, bytes], sizes: list[int]) -> None:
    usual, follow = said
    before = usual * (zmtp.PATIENCE + 2)
    alone = walked(Stream(SHELL, OPENED + follow), sizes)
    after = walked(Stream(SHELL, OPENED + before + follow), sizes)
    assert after.refused == alone.refused
    assert after.messages == alone.messages + zmtp.PATIENCE + 2
    assert after.seen[zmtp.PATIENCE + 2 :] == alone.seen
    assert after.between == alone.between
    if not alone.refused:
        assert after.forwarded == OPENED + before + alone.forwarded[len(OPENED) :]


OURS = zmtp.frame(b"of ours", more=False)


def edited(walk: zmtp.Walk, whole: bool) -> bytes | None:
    """Some messages go on, some do not, and instead of some goes something else."""
    return (None, b"", OURS)[(sum(map(len, walk.seen)) + whole) % 3]


@given(streams(), cuts, st.booleans())
@settings(max_examples=250, deadline=None)
@example(Stream(SHELL, OPENED + zmtp.frame(b"ab", more=True) + zmtp.frame(b"x" * 90_000, more=False)), [1 << 16], True)
@example(Stream(SHELL, OPENED + zmtp.frame(b"x" * 90_000, more=True) + zmtp.frame(b"y", more=False)), [64, 5], True)
def test_the_pieces_change_nothing_where_something_else_goes_on(stream: Stream, sizes: list[int], by: bool) -> None:
    whole = walked(stream, [len(stream.data) or 1], edit=edited)
    cut = walked(stream, sizes, by=by, edit=edited)
    if whole.refused:
        cut.forwarded = whole.forwarded = b""
    assert cut == whole


@given(st.binary(max_size=600))
@settings(max_examples=300, deadline=None)
@example(b"\x0bSocket-Type\xff\xff\xff\xff")
@example(b"\x00\x00\x00\x00\x00" * 100)
def test_metadata_is_read_or_refused(data: bytes) -> None:
    """Names and values come from the data, and all of it is accounted for."""
    try:
        found = zmtp.properties(data)
    except Refused:
        return
    assert sum(len(name) + len(value) + 5 for name, value in found.items()) <= len(data)

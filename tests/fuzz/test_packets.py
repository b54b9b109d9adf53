"""The messages between our own processes, when one of them is no longer ours: an object, an end, or ProtocolError."""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from isolated_python.errors import ProtocolError
from isolated_python.linux import packets

texts = st.sampled_from(
    [b"{}", b"[]", b"null", b'{"a":1}', b'{"a":NaN}', b'{"a":1e999}', b"{" * 3000, b"[" * 100_000, b'{"a":' * 40_000]
)
hostile = texts | st.binary(max_size=300) | st.sampled_from([packets.LARGEST, packets.LARGEST + 1, 150_000]).map(bytes)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@given(hostile, st.sampled_from([0, 0, 1, 3, packets.MOST_DESCRIPTORS, 200]))
@settings(max_examples=200, deadline=None)
@example(b"\xff\xfe{\0}\0", 1)  # json reads UTF-16, too
@example(b'{"a":' + b"9" * 5000 + b"}", 2)
@example(b"", 0)
@example(b"", 2)
def test_any_bytes_with_any_descriptors_are_read_or_refused(data: bytes, count: int) -> None:
    """No other exception, no descriptor that nobody closes."""
    ours, theirs = packets.pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    before = open_descriptors()
    with ours, theirs:
        given_away = array.array("i", [theirs.fileno()] * count)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given_away)] if count else []
        theirs.sendmsg([data], rights)
        try:
            message, descriptors = packets.receive(ours)
        except ProtocolError:
            pass
        else:
            assert message is None or isinstance(message, dict)
            assert len(descriptors) <= packets.MOST_DESCRIPTORS
            assert message is not None or not descriptors
            for descriptor in descriptors:
                assert not os.get_inheritable(descriptor)
                os.close(descriptor)
        assert open_descriptors() == before


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=5), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_what_is_sent_is_what_arrives(message: dict[str, Any], count: int) -> None:
    ours, theirs = packets.pair()
    with ours, theirs:
        packets.send(theirs, message, [0] * count)
        received, descriptors = packets.receive(ours)
        assert received == json.loads(json.dumps(message))
        assert len(descriptors) == count
        for descriptor in descriptors:
            os.close(descriptor)

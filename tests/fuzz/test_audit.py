"""The audit's readers: whatever a full disk or a stranger has left in the file, records come out, or nothing does."""

from __future__ import annotations

import json
import os
import tempfile

from hypothesis import example, given, settings
from hypothesis import strategies as st
from isolated_python.audit.log import LONGEST, bounded
from isolated_python.audit.read import Reader
from isolated_python.cli.audit import line

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["event", "time", "kernel", "host", "supervisor", "last_words"]) | st.text(max_size=8)
records = st.fixed_dictionaries({"event": values | st.just("supervisor-started")}).flatmap(
    lambda one: st.dictionaries(names, values, max_size=6).map(lambda more: {**more, **one})
)


@given(records)
@example({"event": "supervisor-started", "host": ["release"]})
@example({"event": [], "kernel": "\x1b[2J\x9b1;1H\u202e", "time": {}})
@settings(deadline=None)
def test_a_record_is_one_printable_line(record: dict[str, object]) -> None:
    assert line(record).isprintable()


@given(st.lists(st.binary(max_size=60) | records.map(lambda one: json.dumps(one).encode()), max_size=8))
@example([b"[" * 100_000, b'{"event":1}', b"\xff", b'"event"', b"null"])
@settings(deadline=None)
def test_any_file_is_records_or_nothing(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "audit.jsonl")
        with open(path, "wb") as file:
            file.write(b"\n".join(lines))
        reader = Reader(path)
        found = [*reader.older(), *reader.newer()]
        reader.close()
    assert all(isinstance(record, dict) and "event" in record for record in found)
    assert len(found) <= sum(one.count(b"\n") + 1 for one in lines)


@given(values | st.text(min_size=1000, max_size=2000))
@settings(deadline=None)
def test_what_is_bounded_is_json_of_bounded_texts(value: object) -> None:
    kept = bounded(value)
    json.dumps(kept)
    assert not isinstance(kept, str) or len(kept) <= LONGEST

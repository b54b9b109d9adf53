"""The profile parser: whatever a file, a kernelspec or a setting says becomes values in bounds, or one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from isolated_python.errors import ProfileError
from isolated_python.policy import ceiling, modules, parse, sources, units
from isolated_python.policy.profile import Profile

LONGEST = 4000  # characters of a sentence that is read by a person
HUGE = 10**5000

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([1 << 63, 1 << 64, math.inf, math.nan, -0.0]),
    st.sampled_from([1, -1]).map(lambda sign: sign * HUGE),
)
amounts = st.builds(
    lambda digits, unit: f"{digits}{unit}",
    st.integers(0, 10**30).map(str) | st.sampled_from(["9" * 400, "1." + "0" * 400 + "1", "٣", "0.0000000001", "1e9"]),
    st.sampled_from([*units.SIZES, *units.TIMES, "", " GiB ", "\n"]),
)
scalars = st.one_of(
    st.none(), st.booleans(), numbers, amounts, st.text(max_size=20), st.just("unlimited"), st.just("\ud800")
)
values = st.recursive(
    scalars | st.sampled_from(["require", "prefer", "off", "read-write", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)
paths = st.sampled_from(["/data", "/", "//data", "/data/", "/a/../b", "/proc/1", "/d\0a", "data", "/workspace/x"])
mounts = st.lists(
    st.fixed_dictionaries({}, optional={"source": paths | values, "target": paths | values, "writable": values}),
    max_size=3,
)
tables = st.fixed_dictionaries(
    {},
    optional={
        **{
            name: st.fixed_dictionaries({}, optional=dict.fromkeys((*keys, "unknown"), values)) | values
            for name, (_, keys) in parse.TABLES.items()
            if name != "files"
        },
        "files": st.fixed_dictionaries({}, optional={"workspace": values, "mounts": mounts | values}),
        "preload": st.lists(st.text(max_size=8) | st.sampled_from(["numpy", "os.path"]), max_size=3) | values,
        "description": values,
        "unknown": values,
    },
)

# What a person means who makes no mistake: of the tables above hardly one in twenty becomes a profile.
sizes = st.sampled_from(["1 MiB", "64 MiB", "100 MiB"])
unlimited = st.just("unlimited")
large = st.sampled_from(["2 GiB", "5 GiB", "3 TiB"]) | unlimited
times = st.sampled_from(["1 s", "10 min", "2 d"]) | unlimited
whole = st.integers(64, 4_000_000)
granted = st.lists(st.sampled_from(["numpy", "num*", "pandas", "math", "@stdlib", "@stdlib-safe"]), min_size=1)
RIGHT: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "resources": {
        "memory": large, "processes": whole | unlimited, "cpu": st.floats(0.01, 4096) | unlimited, "cpu_time": times,
        "wall_clock": times, "idle": times, "file_size": large, "open_files": whole, "tmp": sizes, "shm": sizes,
    },
    "channels": {
        "message": sizes, "frames": whole, "connections": whole, "handshake": st.sampled_from(["1 s", "1 min"]),
        "output_rate": sizes, "output_messages": whole,
    },
    "cells": {"wall_clock": times, "output": sizes | unlimited, "messages": whole | unlimited},
    "layers": {
        name: st.sampled_from(ceiling.LAYER_ORDER)
        for name in parse.TABLES["layers"][1] if name not in (*parse.CARRIERS, "seccomp", "landlock")
    },
    "files": {"workspace": st.sampled_from(ceiling.WORKSPACE_ORDER), "links": st.booleans()},
    "modules": {"grant": granted | st.just("everything"), "hidden": st.booleans(), "guard": st.booleans()},
    "capabilities": {
        "subprocess": st.booleans(), "sockets": st.booleans(), "native_code": st.booleans(),
        "threads": whole | unlimited,
        "display": st.lists(st.sampled_from(["text/html", "image/*", "image/png"])) | st.just("everything"),
    },
}  # fmt: skip
right = st.fixed_dictionaries({}, optional={name: st.fixed_dictionaries({}, optional=of) for name, of in RIGHT.items()})


def in_bounds(profile: Profile) -> None:
    """Every value can be sent, kept by Linux, and counted down by a clock."""
    again = Profile.from_wire(json.loads(json.dumps(profile.to_wire(), allow_nan=False)))
    assert again == profile
    granted, channels = profile.resources, profile.channels
    for name in ("memory", "file_size", "tmp", "shm", "processes", "open_files"):
        value = getattr(granted, name)
        assert value is None or (isinstance(value, int) and 0 < value < 1 << 63), name
    for name in ("cpu", "cpu_time", "wall_clock"):
        value = getattr(granted, name)
        assert value is None or (isinstance(value, float) and 0 < value < 1e10), name
    for name in ("message", "frames", "connections", "output_rate", "output_messages"):
        assert 0 < getattr(channels, name) < 1 << 63, name
    assert 0 < channels.handshake < 1e10


def is_a_sentence(refused: ProfileError) -> None:
    """One line, of a length that is read, in letters that a terminal has."""
    assert "\n" not in str(refused)
    assert str(refused).encode("utf-8", "strict")
    assert len(str(refused)) < LONGEST


@given(tables | right)
@settings(max_examples=250, deadline=None)
@example({"resources": {"memory": "9" * 400 + " GiB"}})
@example({"resources": {"wall_clock": "99999999999999999999 d"}})
@example({"channels": {"handshake": "9" * 300 + " d"}})
@example({"resources": {"cpu": math.inf}})
@example({"resources": {"cpu": math.nan}})
@example({"resources": {"cpu": HUGE}})
@example({"resources": {"processes": HUGE}})
@example({"resources": {"processes": -HUGE}})
@example({"resources": {"open_files": 1 << 64}})
@example({"resources": {"tmp": "0.1 B"}})
@example({"resources": HUGE})
@example({"files": {"mounts": [{"source": "/\ud800", "target": "/data"}]}})
@example({"files": {"workspace": HUGE}})
@example({"layers": {"net": [HUGE]}})
@example({"description": HUGE})
@example({"preload": ["os\ud800"]})
def test_tables_become_a_profile_or_a_sentence(changes: dict[str, Any]) -> None:
    try:
        profile = parse.change(Profile(), changes, "the fuzzer")
    except ProfileError as refused:
        is_a_sentence(refused)
    else:
        in_bounds(profile)


lines = st.lists(
    st.sampled_from(
        [
            "[resources]", "[files]", "[[files.mounts]]", "[layers]", "[channels]", 'memory = "2 GiB"', "cpu = inf",
            "cpu = 1e999", "cpu = nan", "processes = 0x" + "f" * 4000, "processes = " + "9" * 5000, 'net = "off"',
            'tmp = "1 MiB"', "a = " + "[" * 2000, "a" + ".a" * 2000 + " = 1", 'source = "/a"', "x = 2020-13-40",
            "\0", "'''",
        ]
    )
    | st.text(max_size=30),
    max_size=8,
).map("\n".join)  # fmt: skip


@given(lines.map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
@example(b"a = " + b"[" * 100_000)
@example(b"[resources]\nprocesses = 0x" + b"f" * 9000)
@example(b"[resources]\nprocesses = " + b"9" * 9000)
@example(b"a = 1-" * 50_000)
def test_a_file_becomes_a_profile_or_a_sentence(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.toml"
        path.write_bytes(data)
        try:
            profile = sources.read(path)
        except ProfileError as refused:
            is_a_sentence(refused)
        else:
            in_bounds(profile)


@given(right, right)
@settings(max_examples=150, deadline=None)
def test_nothing_rises_above_a_ceiling(mine: dict[str, Any], above: dict[str, Any]) -> None:
    """Of every key that the ceiling names, the profile grants no more than the ceiling does."""
    profile, most = parse.change(Profile(), mine, "mine"), parse.change(Profile(), above, "above")
    try:
        lowered, _ = ceiling.apply(profile, most, {table: frozenset(keys) for table, keys in above.items()})
    except ProfileError:  # it grants none of the modules; where that is the rule, hypothesis complains
        assume(False)
    for table, keys in above.items():
        for key in keys:
            value, limit = getattr(getattr(lowered, table), key), getattr(getattr(most, table), key)
            assert below(key, value, limit), (table, key, value, limit)


def below(key: str, value: Any, limit: Any) -> bool:
    """Whether a value grants no more than the limit does."""
    match key:
        case "grant":
            return limit is None or (value is not None and all(modules.covered(one, limit) for one in value))
        case "display":
            return limit is None or (value is not None and all(one in limit or "image/*" in limit for one in value))
        case "hidden" | "guard":
            return bool(value) or not limit
        case _ if limit in ceiling.LAYER_ORDER:
            return ceiling.LAYER_ORDER.index(value) <= ceiling.LAYER_ORDER.index(limit)
        case _ if limit in ceiling.WORKSPACE_ORDER:
            return ceiling.WORKSPACE_ORDER.index(value) <= ceiling.WORKSPACE_ORDER.index(limit)
    return limit is None or (value is not None and value <= limit)

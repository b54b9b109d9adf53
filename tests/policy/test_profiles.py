"""Profiles: what a person writes becomes values, or one sentence that says what is wrong and what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from isolated_python.errors import ProfileError
from isolated_python.policy import sources
from isolated_python.policy.profile import GiB, MiB, Profile
from isolated_python.record import replace

SHIPPED = ("standard", "shared", "data-science", "classroom", "exam", "grading", "open")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_is_right_and_survives_the_wire(name: str) -> None:
    import json

    profile = sources.load(name, ceilings=[]).profile
    assert profile.description
    assert Profile.from_wire(json.loads(json.dumps(profile.to_wire()))) == profile


def test_the_shipped_default_says_what_the_code_says() -> None:
    """`standard` is commented out of the same values that a Profile without a file has."""
    shipped = sources.load("standard", ceilings=[]).profile
    assert replace(shipped, description="") == Profile()


def test_sizes_and_times_carry_units() -> None:
    changed = sources.load(
        "standard", [("test", {"resources": {"memory": "3 GiB", "cpu_time": "10 min"}})], ceilings=[]
    )
    assert changed.profile.resources.memory == 3 * GiB
    assert changed.profile.resources.cpu_time == 600
    unlimited = sources.load("standard", [("test", {"resources": {"memory": "unlimited"}})], ceilings=[])
    assert unlimited.profile.resources.memory is None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"resource": {}}, "did you mean resources"),
    ({"resources": {"memry": "2 GiB"}}, "did you mean memory"),
    ({"resources": {"memory": "2 G"}}, "unit"),
    ({"resources": {"memory": 2048}}, "unit"),
    ({"resources": {"memory": "0 GiB"}}, "leaves nothing"),
    ({"resources": {"memory": "100 MiB"}}, "more than half"),
    ({"resources": {"tmp": "unlimited"}}, "unit"),
    ({"resources": {"processes": 0}}, "whole number"),
    ({"resources": {"processes": True}}, "whole number"),
    ({"resources": []}, "not a table"),
    ({"network": {"reach": ["*.com"]}}, "too broad"),
    ({"network": {"reach": ["*"]}}, "too broad"),
    ({"network": {"reach": ["10.0.0.1"]}}, "an address"),
    ({"network": {"reach": ["example.edu"]}}, "cannot be granted yet"),
    ({"layers": {"user": "off"}}, "carries all others"),
    ({"layers": {"secomp": "require"}}, "did you mean seccomp"),
    ({"layers": {"seccomp": "maybe"}}, "one of require, prefer, off"),
    ({"files": {"workspace": "readonly"}}, "did you mean read-only"),
    ({"files": {"mounts": [{"source": "/data", "target": "/usr/data"}]}}, "the sandbox's own"),
    ({"files": {"mounts": [{"source": "/data", "target": "/"}]}}, "the sandbox's own"),
    ({"files": {"mounts": [{"source": "/data/../etc", "target": "/data"}]}}, "plain absolute path"),
    ({"files": {"mounts": [{"source": "data", "target": "/data"}]}}, "plain absolute path"),
    ({"files": {"mounts": [{"source": "/a", "target": "/d"}, {"source": "/b", "target": "/d"}]}}, "same target"),
    ({"modules": {"grant": ["@data-sience"]}}, "did you mean @data-science"),
    ({"modules": {"grant": "numpy"}}, "list of names"),
    ({"modules": {"grant": ["os; import x"]}}, "no name of a module"),
    ({"modules": {"grant": ["../numpy"]}}, "no name of a module"),
    ({"modules": {"hide": True}}, "did you mean hidden"),
    ({"capabilities": {"subproces": False}}, "did you mean subprocess"),
    ({"capabilities": {"sockets": "off"}}, "neither true nor false"),
    ({"capabilities": {"display": ["html"]}}, "list of mime types"),
    ({"capabilities": {"subprocess": False}, "layers": {"seccomp": "off"}}, "held by seccomp"),
    ({"cells": {"wall_clock": 10}}, "no unit"),
    ({"files": {"changes": "keep"}}, "means nothing"),
    ({"files": {"workspace": "copy-on-write", "changes": "keep"}, "layers": {"pid": "prefer"}}, "nobody may be alive"),
    ({"files": {"workspace": "read-only", "size": "1 GiB"}}, "files.size means nothing"),
    ({"files": {"workspace": "copy-on-write", "size": "2 MiB"}}, "at least 16 MiB"),
    ({"files": {"size": "9 TiB"}}, "more than Linux can give"),
    ({"files": {"image": "require"}}, "without a copy-on-write workspace"),
    ({"files": {"image": "disk"}}, "one of require, prefer, off"),
    ({"files": {"size": 5}}, "no unit"),
    ({"cells": {"wall_clock": "1 ms"}}, "less than any kernel needs"),
    ({"files": {"folder": "{home}"}}, "plain absolute path"),
    ({"files": {"folder": "/srv/{home}"}}, "all that can stand"),
    ({"files": {"links": False}, "layers": {"landlock": "off"}}, "held by Landlock"),
    ({"preload": ["os; import x"]}, "module names"),
]


@pytest.mark.parametrize(("tables", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_cannot_be_meant_is_one_sentence(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(ProfileError) as refused:
        sources.load("standard", [("the kernelspec", tables)], ceilings=[])
    sentence = str(refused.value)
    assert words in sentence
    assert sentence.startswith("the kernelspec: ")
    assert "\n" not in sentence
    assert refused.value.remedy


@pytest.mark.parametrize("name", ["standart", "../standard", "", "UPPER", "a" * 300, "x\n"])
def test_a_profile_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ProfileError):
        sources.load(name, ceilings=[])


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[resources\n")
    with pytest.raises(ProfileError, match="is not TOML"):
        sources.load("broken", folders=[tmp_path], ceilings=[])


def test_nothing_below_exceeds_the_ceiling(tmp_path: Path) -> None:
    """Numbers and modes come down to it, each with a sentence; what it does not speak of stays."""
    (tmp_path / "ceiling.toml").write_text(
        '[resources]\nmemory = "1 GiB"\ncpu = 1\n[layers]\nseccomp = "require"\n[files]\nworkspace = "read-only"\n'
        "links = false\n"
    )
    asked = {"resources": {"memory": "unlimited", "processes": 999}, "layers": {"seccomp": "off", "time": "off"}}
    found = sources.load("standard", [("the kernelspec", asked)], ceilings=[tmp_path])
    profile = found.profile
    assert (profile.resources.memory, profile.resources.cpu, profile.resources.processes) == (1 * GiB, 1.0, 999)
    assert (profile.layers.seccomp, profile.layers.time) == ("require", "off")
    assert (profile.files.workspace, profile.files.links) == ("read-only", False)
    assert len(found.notes) >= 5


@pytest.mark.parametrize(
    ("files", "becomes"),
    [
        ({}, ("read-write", 1 * GiB)),
        ({"workspace": "copy-on-write", "size": "4 GiB", "image": "require"}, ("copy-on-write", 1 * GiB)),
        ({"workspace": "copy-on-write", "size": "64 MiB"}, ("copy-on-write", 64 * MiB)),
        ({"workspace": "copy-on-write"}, ("copy-on-write", None)),  # held by resources.tmp
        ({"workspace": "read-only"}, ("read-only", None)),
    ],
)
def test_the_size_of_a_workspace_comes_down_to_the_ceiling(
    tmp_path: Path, files: dict[str, str], becomes: tuple[str, int | None]
) -> None:
    (tmp_path / "ceiling.toml").write_text('[files]\nsize = "1 GiB"\n')
    found = sources.load("standard", [("the kernelspec", {"files": files})], ceilings=[tmp_path])
    assert (found.profile.files.workspace, found.profile.files.size) == becomes
    (tmp_path / "ceiling.toml").write_text('[files]\nworkspace = "read-only"\n')
    found = sources.load("standard", [("the kernelspec", {"files": files})], ceilings=[tmp_path])
    assert (found.profile.files.workspace, found.profile.files.size) == ("read-only", None)


def test_what_is_below_the_ceiling_already_stays(tmp_path: Path) -> None:
    (tmp_path / "ceiling.toml").write_text('[resources]\nmemory = "8 GiB"\n')
    found = sources.load("standard", ceilings=[tmp_path])
    assert found.profile == sources.load("standard", ceilings=[]).profile
    assert not found.notes


def test_a_low_ceiling_shrinks_what_is_counted_as_memory(tmp_path: Path) -> None:
    (tmp_path / "ceiling.toml").write_text('[resources]\nmemory = "256 MiB"\n')
    granted = sources.load("standard", ceilings=[tmp_path]).profile.resources
    assert granted.memory == 256 * MiB
    assert 2 * (granted.tmp + granted.shm) <= granted.memory


def test_a_mount_that_the_ceiling_does_not_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ceiling.toml").write_text(
        '[[files.mounts]]\nsource = "/data"\ntarget = "/data"\n[resources]\nmemory = "4 GiB"\n'
    )

    def asked(source: str, writable: bool = False) -> None:
        mounts = {"files": {"mounts": [{"source": source, "target": "/data", "writable": writable}]}}
        sources.load("standard", [("the kernelspec", mounts)], ceilings=[tmp_path])

    asked("/data/course")
    for source, writable in (("/etc", False), ("/database", False), ("/data/course", True)):
        with pytest.raises(ProfileError, match="ceiling does not grant"):
            asked(source, writable)


def test_a_broken_ceiling_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "ceiling.toml").write_text('[resources]\nmemroy = "1 GiB"\n')
    with pytest.raises(ProfileError, match="did you mean memory"):
        sources.load("standard", ceilings=[tmp_path])


def test_a_profile_extends_another_by_one_level(tmp_path: Path) -> None:
    """What it says itself counts; what it does not say is as in the one below."""
    (tmp_path / "mine.toml").write_text('extends = "exam"\n[modules]\ngrant = ["math"]\n')
    found = sources.load("mine", folders=[tmp_path, sources.SHIPPED], ceilings=[])
    assert found.profile.name == "mine"
    assert found.profile.modules.grant == ("math",)
    assert not found.profile.capabilities.subprocess
    assert [Path(source).name for source in found.sources] == ["exam.toml", "mine.toml"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "a"}, "in a circle, a → a"),
        ({"a": "b", "b": "a"}, "in a circle, a → b → a"),
        ({"a": "b", "b": "exam"}, "one level is all there is"),
        ({"a": "exma"}, "did you mean exam"),
        ({"a": "../exam"}, "not the name of a profile"),
    ],
)
def test_what_cannot_be_extended_is_one_sentence(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, base in files.items():
        (tmp_path / f"{name}.toml").write_text(f'extends = "{base}"\n')
    with pytest.raises(ProfileError) as refused:
        sources.load("a", folders=[tmp_path, sources.SHIPPED], ceilings=[])
    assert words in str(refused.value)


CEILING = """
[modules]
grant = ["@stdlib-safe", "num*", "pandas"]
hidden = true
[capabilities]
subprocess = false
threads = 8
display = ["text/plain", "image/*"]
[cells]
wall_clock = "1 min"
"""


def test_grants_of_modules_and_capabilities_come_down_to_the_ceiling(tmp_path: Path) -> None:
    """Each with a sentence: nothing is weaker than the ceiling, and nothing is lowered silently."""
    (tmp_path / "ceiling.toml").write_text(CEILING)
    asked = {
        "modules": {"grant": ["numpy", "scipy", "@data-science", "math", "n*"], "hidden": False},
        "capabilities": {"display": ["text/html", "image/png"]},
        "cells": {"wall_clock": "1 h"},
    }
    found = sources.load("standard", [("the kernelspec", asked)], ceilings=[tmp_path])
    profile = found.profile
    assert profile.modules.grant == ("numpy", "math")
    assert profile.modules.hidden
    assert (profile.capabilities.subprocess, profile.capabilities.threads) == (False, 8)
    assert profile.capabilities.display == ("image/png",)
    assert profile.cells.wall_clock == 60
    assert len(found.notes) == 6, found.notes
    everything = sources.load("standard", ceilings=[tmp_path]).profile
    assert everything.modules.grant == ("@stdlib-safe", "num*", "pandas")
    assert everything.capabilities.display == ("text/plain", "image/*")
    with pytest.raises(ProfileError, match="grants none of the modules"):
        sources.load("standard", [("x", {"modules": {"grant": ["scipy"]}})], ceilings=[tmp_path])


def test_a_profile_that_a_ceiling_contradicts_is_refused(tmp_path: Path) -> None:
    """What the ceiling refuses is held by a layer that the profile has switched off."""
    (tmp_path / "ceiling.toml").write_text("[capabilities]\nsubprocess = false\n")
    with pytest.raises(ProfileError, match=r"^below the site's ceiling, capabilities.subprocess = false is held by"):
        sources.load("standard", [("x", {"layers": {"seccomp": "off"}})], ceilings=[tmp_path])


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_profile_is_weaker_than_a_ceiling(tmp_path: Path, name: str) -> None:
    """Under the strictest shipped profile as a ceiling, every other becomes at least as strict, or is refused."""
    (tmp_path / "ceiling.toml").write_text((sources.SHIPPED / "exam.toml").read_text())
    profile, exam = sources.load(name, ceilings=[tmp_path]).profile, sources.load("exam", ceilings=[]).profile
    assert profile.files.workspace == "read-only"
    assert profile.modules.grant is not None
    assert set(profile.modules.grant) <= set(exam.modules.grant or ())
    assert profile.capabilities == exam.capabilities
    assert (profile.resources.memory or 1 << 60) <= (exam.resources.memory or 0)

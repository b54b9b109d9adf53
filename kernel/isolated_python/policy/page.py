"""A profile as a page to read: its file as Markdown, comments included, with what it does not say filled in."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isolated_python.policy import sources
from isolated_python.policy.parse import TABLES, UNLIMITED
from isolated_python.policy.profile import Profile
from isolated_python.policy.sets import SETS

COMMENTED = re.compile(r"^(\w+)\s*=[^#]*#\s*(.+)$")
OPENS = re.compile(r"^\[+([\w.]+)\]+")


def page(name: str) -> str:
    """The page of a profile that can be named here. Raises ProfileError."""
    resolved = sources.load(name, ceilings=[])
    # From the least to the most particular: the default profile, what is extended, the profile itself.
    texts = [
        Path(one).read_text(encoding="utf-8") for one in (str(sources.SHIPPED / "standard.toml"), *resolved.sources)
    ]
    written: dict[tuple[str, str], object] = {}
    comments: dict[tuple[str, str], str] = {}
    for text in texts:
        written |= {(table, key): value for table, key, value in _values(text)}
        comments |= {(table, key): words for table, key, words in _comments(text)}
    head = " ".join(line[1:].strip() for line in _first_lines(texts[-1]))
    lines = [
        f"# The profile `{name}`", "", *([head, ""] if head else []), resolved.profile.description, "",
        "| key | granted | |", "|---|---|---|",
    ]  # fmt: skip
    for place in ((table, key) for table, (_, keys) in TABLES.items() for key in keys):
        value = written[place] if place in written else _default(resolved.profile, *place)
        if value is not None:
            lines.append(f"| `{'.'.join(place)}` | {_shown(value)} | {comments.get(place, '')} |")
    for one in resolved.profile.modules.grant or ():
        if one.startswith("@"):
            members = SETS[one]
            words = "every module of the standard library" if members is None else ", ".join(sorted(members))
            lines += ["", f"`{one}`: {words}."]
    lines += [
        "", f"`jupyter isolated profile show {name}` prints the file that this page is made of, and",
        f"`jupyter isolated explain --profile {name}` what it does on a machine, step by step.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _values(text: str) -> Iterator[tuple[str, str, object]]:
    for table, keys in tomllib.loads(text).items():
        if isinstance(keys, dict):
            yield from ((table, key, value) for key, value in keys.items())


def _comments(text: str) -> Iterator[tuple[str, str, str]]:
    table = ""
    for line in text.splitlines():
        opened, commented = OPENS.match(line), COMMENTED.match(line)
        if opened:
            table = opened[1]
        elif commented:
            yield table, commented[1], commented[2]


def _first_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line


def _default(profile: Profile, table: str, key: str) -> object:
    """What is said nowhere: only that there is no limit is worth a line."""
    part: Any = getattr(profile, table)
    absent = getattr(type(part), key, "") is None
    return UNLIMITED if absent else None


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(f"`{one}`" for one in value) or "nothing"
    return str(value)

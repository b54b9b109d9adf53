"""What the names in a profile's list of modules mean in an environment. Pure: names in, names out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from isolated_python.errors import ProfileError
from isolated_python.policy.sets import SETS
from isolated_python.record import Record

# What a cell may import whatever the profile says: the language itself, and what shows a result.
ALWAYS = frozenset({"__future__", "__main__", "builtins", "IPython"})


class Matched(Record):
    """What a list of grants names: distributions by their normal name, modules that belong to none, the stdlib's."""

    distributions: frozenset[str]
    modules: frozenset[str]  # every top-level name that a cell may import


def normal(name: str) -> str:
    """The name of a distribution as indexes compare it. PEP 503"""
    return re.sub(r"[-_.]+", "-", name).lower()


def match(
    grants: Iterable[str], installed: Mapping[str, Collection[str]], stdlib: Collection[str], orphans: Collection[str]
) -> Matched:
    """What `grants` mean where `installed` (distribution → its top-level modules) is.

    Raises ProfileError for a name that a person wrote and that is nothing here; of a set only what is installed counts.
    """
    of_module: dict[str, set[str]] = {}
    for name, modules in installed.items():
        for module in modules:
            of_module.setdefault(module, set()).add(name)
    distributions: set[str] = set()
    found = set(ALWAYS)
    for grant in grants:
        lenient = grant.startswith("@")
        if grant == "@stdlib":
            found |= set(stdlib)
            continue
        for name in (SETS[grant] or ()) if lenient else (grant,):
            mine = _named(name, installed) | {d for m in _named(name, of_module) for d in of_module[m]}
            plain = _named(name, stdlib) | _named(name, orphans)
            if not lenient and not mine and not plain:
                known = {*installed, *of_module, *stdlib, *orphans}
                near = difflib.get_close_matches(name, [*known], 3, 0.6)
                raise ProfileError(
                    f"modules.grant: nothing here is called {name!r}",
                    remedy=f"did you mean {' or '.join(near)}?" if near else "install it, or remove the name",
                )
            distributions |= mine
            found |= plain
    for name in distributions:
        found |= set(installed[name])
    return Matched(frozenset(distributions), frozenset(found))


def _named(pattern: str, names: Collection[str]) -> set[str]:
    if not set(pattern) & set("*?["):
        return {name for name in (pattern, normal(pattern)) if name in names}
    return {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, normal(pattern))}


def covered(grant: str, allowed: Collection[str]) -> bool:
    """Whether what `grant` names lies within `allowed`, as far as names alone can tell."""
    if grant in allowed:
        return True
    if grant.startswith("@"):
        members = SETS[grant]
        if members is None:
            return False
        return all(covered(member, allowed) for member in members)
    names = {member for one in allowed if one.startswith("@") for member in SETS[one] or ()}
    patterns = [one for one in allowed if not one.startswith("@")]
    if set(grant) & set("*?["):
        return False  # a glob lies within another only where they are the same
    return grant in names or normal(grant) in names or any(fnmatchcase(grant, pattern) for pattern in patterns)

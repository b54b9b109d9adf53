"""
What of an environment's packages stays in sight of a kernel, by its profile's list of grants.

The answer for one list is kept until the environment changes. It is a list of names, and a sandbox pays nothing for it.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from isolated_python.engine import ROOT
from isolated_python.engine.packages import (
    ELSEWHERE,
    Environment,
    Interpreter,
    Package,
    added_by,
    environment,
    files_of,
    listed,
    module_of,
    read,
    stamp_of,
)
from isolated_python.errors import LaunchError
from isolated_python.policy import modules, sets
from isolated_python.policy.modules import normal
from isolated_python.policy.profile import Profile
from isolated_python.record import Record

if TYPE_CHECKING:
    from isolated_python.layers.view import Hidden

KERNEL = "ipykernel"  # with all it needs; our own package needs nothing of an environment inside
OURS = "isolated-python"
REQUIRES = re.compile(rb"^Requires-Dist:[ \t]*(.+?)\r?$", re.MULTILINE)
CACHE = "__pycache__"
WHEELS = ("share/python-wheels", "lib/python3*/ensurepip/_bundled")  # packages in a form that can be imported, too


class View(Record):
    """What a list of grants means in an environment."""

    hidden: Hidden  # folder → names in it that are not there
    adds: tuple[str, ...]  # further folders that are shown
    granted: tuple[str, ...]  # modules that a cell may import
    refused: tuple[str, ...]  # modules that are known, and that a cell may not
    digest: str
    of: object  # which list in which environment, whatever state that is in

    def to_wire(self) -> dict[str, object]:
        return {"hidden": self.hidden, "granted": self.granted, "refused": self.refused}


def view(profile: Profile, interpreter: Interpreter, trees: tuple[str, ...]) -> View | None:
    """What `profile` grants of this interpreter's packages; None where it grants everything.

    `trees`: the host folders that the kernel sees. Raises ProfileError, LaunchError.
    """
    wanted = profile.modules
    if wanted.grant is None or not (wanted.hidden or wanted.guard):
        return None
    found = environment(interpreter)
    stamp = stamp_of(found.folders)
    return _view(wanted.grant, wanted.hidden, interpreter, trees, stamp)


@functools.lru_cache(maxsize=32)
def _view(grants: tuple[str, ...], hide: bool, interpreter: Interpreter, trees: tuple[str, ...], stamp: object) -> View:
    found = environment(interpreter)
    installed = {name: package.modules for name, package in found.packages.items()}
    orphans = frozenset[str]().union(*found.orphans.values())
    stdlib = frozenset(sys.stdlib_module_names)
    # No Python: none of its packages, and nothing that a name could mean.
    matched = modules.match(grants if interpreter.folders else (), installed, stdlib, orphans)
    visible = _closure(found, {*matched.distributions}) | _closure(found, {KERNEL})
    if KERNEL not in found.packages and interpreter.folders:
        raise LaunchError(
            "the environment of this kernelspec has no ipykernel, so nothing in it can be granted",
            remedy="install ipykernel there, or choose a profile without a list of modules",
        )
    visible |= {OURS} & found.packages.keys()
    seen = {found.packages[name] for name in visible}
    adds = [path for package in sorted(seen, key=lambda one: one.name) for path in package.adds]
    hidden: dict[str, set[str]] = {}
    if hide:
        for path in _hidden(found, seen, matched.modules, trees):
            hidden.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
        needed = {*found.folders, *adds, *trees, sys.prefix, sys.base_prefix, f"{ROOT}/isolated_python"}
        for folder, names in hidden.items():
            names -= {name for name in names if any((keep + "/").startswith(f"{folder}/{name}/") for keep in needed)}
    known = stdlib | orphans | frozenset[str]().union(*installed.values())
    granted = tuple(sorted(matched.modules))
    refused = tuple(sorted(name for name in known - matched.modules if not name.startswith("_")))
    made = tuple((folder, tuple(sorted(names))) for folder, names in sorted(hidden.items()) if names)
    shown = tuple(dict.fromkeys((*adds, *found.folders)))
    digest = hashlib.sha256(json.dumps([made, adds, granted, refused]).encode()).hexdigest()[:32]
    return View(made, shown, granted, refused, digest, (grants, hide, interpreter, trees))


def _hidden(found: Environment, seen: set[Package], granted: frozenset[str], trees: tuple[str, ...]) -> Iterator[str]:
    """Every path that is not to be there."""
    for folder in found.folders:
        yield from (f"{folder}/{name}" for name in _hidden_in(found, folder, seen, granted))
        yield from _shared(found, folder, seen)
    programs = {path for package in seen for path in package.programs}
    for package in (*found.packages.values(), *found.shadowed):
        if package not in seen:
            yield from (path for path in (*package.programs, *package.adds) if path not in programs)
    for path in _elsewhere(trees, found.folders, pip=any(package.name == "pip" for package in seen)):
        if path == os.path.realpath(ROOT):  # where the launcher lies, among packages that are not this kernel's
            yield from (f"{path}/{name}" for name in listed(path) if name != "isolated_python")
        else:
            yield path


def _closure(found: Environment, names: set[str]) -> set[str]:
    """The packages `names` and all that they require here: what is required and missing is missing outside, too."""
    from packaging.markers import default_environment
    from packaging.requirements import InvalidRequirement, Requirement

    major, minor = found.interpreter.version
    where: dict[str, str] = {**default_environment()}  # type: ignore[dict-item]
    if (major, minor) != sys.version_info[:2]:
        where |= {"python_version": f"{major}.{minor}", "python_full_version": f"{major}.{minor}.0"}
    waiting: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in sorted(names)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        package = found.packages.get(name)
        if package is None or (name, extras) in seen:
            continue
        seen.add((name, extras))
        _whole(found, package)
        for text in _requirements(package):
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                raise LaunchError(
                    f"the package {name} requires {text!r}, which means nothing", remedy=f"install {name} again"
                ) from None
            marker = requirement.marker
            if marker is None or any(marker.evaluate({**where, "extra": extra}) for extra in ("", *extras)):
                waiting.append((normal(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in seen}


def used_if_there(found: Environment, names: list[str]) -> dict[str, list[str]]:
    """What the code of packages imports somewhere inside, is here, and does not come with `names` anyway.

    Many import such a package only when it is needed, and few say so in their metadata: so no notebook tells that
    scikit-learn wants pandas, or networkx scipy. Of all that are here, those count that notebooks are made with.
    """
    come = _closure(found, {name for name in names if name in found.packages})
    known = {*sets.DATA_SCIENCE} & found.packages.keys() - come
    owners = {module.encode(): name for name in known for module in found.packages[name].modules}
    used = {}
    for name in names:
        package = found.packages.get(name)
        places = [os.path.join(package.folder, top) for top in package.tops] if package is not None else []
        asked = {owners[module] for place in places for module in _imported_inside(place) if module in owners}
        if asked:
            used[name] = sorted(asked)
    return used


INSIDE = re.compile(rb"^[ \t]+(?:import|from)[ \t]+(\w+)", re.MULTILINE)


def _imported_inside(place: str) -> set[bytes]:
    """The modules that the functions and branches in a package's code import; its own tests aside."""
    modules: set[bytes] = set()
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if name not in ("tests", "testing", "conftest", CACHE)]
        for name in files:
            if name.endswith(".py") and not name.startswith(("test_", "conftest")):
                modules.update(INSIDE.findall(read(os.path.join(folder, name)) or b""))
    return modules


def _whole(found: Environment, package: Package) -> None:
    if package.name in found.twice:
        raise LaunchError(
            f"{package.folder} holds two versions of {package.name}, and which files are whose is not known",
            remedy=f"remove both and install {package.name} again",
        )
    if package.fault:
        raise LaunchError(
            f"the package {package.name} cannot be granted: {package.fault}", remedy=f"install {package.name} again"
        )


def _requirements(package: Package) -> list[str]:
    place = os.path.join(package.folder, package.metadata)
    if package.metadata.endswith(".dist-info"):
        place += "/METADATA"
    elif os.path.isdir(place):
        place += "/PKG-INFO"
    about = (read(place) or b"").partition(b"\n\n")[0]
    found = [line.decode("utf-8", "replace") for line in REQUIRES.findall(about)]
    if not found and package.metadata.endswith(".egg-info"):
        text = (read(os.path.join(package.folder, package.metadata, "requires.txt")) or b"").decode("utf-8", "replace")
        found = [line.strip() for line in text.partition("\n[")[0].splitlines() if line.strip()[:1] not in ("", "[")]
    return found


def _owners(found: Environment, folder: str) -> dict[str, list[Package]]:
    owners: dict[str, list[Package]] = {}
    for package in (*found.packages.values(), *found.shadowed):
        if package.folder == folder:
            for top in package.tops:
                owners.setdefault(top, []).append(package)
    return owners


def _hidden_in(found: Environment, folder: str, visible: set[Package], granted: frozenset[str]) -> set[str]:
    """The names in a package folder that none of the visible packages owns."""
    owners, hidden = _owners(found, folder), set()
    for name in os.listdir(folder):
        if name == CACHE:
            continue
        if name in owners:
            seen = any(package in visible for package in owners[name])
        elif name.endswith(".pth"):
            seen = any(found.orphans.get(path, frozenset()) & granted for path in added_by(folder, name))
        else:
            seen = module_of(folder, name) in granted
        if not seen:
            hidden.add(name)
    return hidden


def _shared(found: Environment, folder: str, visible: set[Package]) -> Iterator[str]:
    """Below the names that visible packages share with others: namespace packages, and the caches of single modules."""
    owners = _owners(found, folder)
    mixed = {top for top, mine in owners.items() if len({package in visible for package in mine}) > 1}
    files: dict[str, bool] = {}
    for package in dict.fromkeys(one for top in mixed for one in owners[top]):
        for path in files_of(read(f"{folder}/{package.metadata}/RECORD") or b""):
            if path.partition("/")[0] in mixed:
                files[path] = files.get(path, False) or package in visible
    shown: dict[str, set[str]] = {}  # folder → what is to be seen in it, below those that are mixed
    part: set[str] = set()  # every folder above a file that is not to be seen
    for path, seen in files.items():
        while above := os.path.dirname(path):
            if seen:
                shown.setdefault(above, set()).add(os.path.basename(path))
            else:
                part.add(above)
            path = above
    for path in sorted(shown.keys() & part):
        yield from (
            f"{folder}/{path}/{name}" for name in listed(f"{folder}/{path}") if name not in {*shown[path], CACHE}
        )
        yield from _caches(f"{folder}/{path}", shown[path])
    yield from _caches(folder, {top for top, mine in owners.items() if any(package in visible for package in mine)})


def _caches(folder: str, sources: set[str]) -> Iterator[str]:
    """Compiled modules whose sources are hidden: a loader made by hand would take them, too."""
    for name in listed(f"{folder}/{CACHE}"):
        if name.partition(".")[0] + ".py" not in sources:
            yield f"{folder}/{CACHE}/{name}"


def _elsewhere(trees: tuple[str, ...], folders: tuple[str, ...], *, pip: bool) -> Iterator[str]:
    """Packages that lie in sight, but not where this interpreter looks: of other interpreters, in wheels, in stores."""
    for tree in dict.fromkeys((*trees, "/usr", "/usr/local")):
        for pattern in (*ELSEWHERE, *(() if pip else WHEELS)):
            for path in glob.glob(f"{glob.escape(tree)}/{pattern}"):
                if os.path.realpath(path) not in {os.path.realpath(folder) for folder in folders}:
                    yield os.path.realpath(path)
        if os.path.isdir(f"{tree}/conda-meta"):
            yield from (f"{tree}/{name}" for name in ("pkgs", "envs") if os.path.isdir(f"{tree}/{name}"))

"""
Which packages an interpreter has, whose files they are, and what of them stays in sight of a kernel.

Reads the environment's metadata, never its code. The answer for one list of grants is kept until the environment
changes; what is kept is a list of names, and a sandbox pays nothing for it.
"""

from __future__ import annotations

import csv
import functools
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from isolated_python.engine.zygotes import ROOT
from isolated_python.errors import LaunchError
from isolated_python.layers.view import Hidden
from isolated_python.policy import modules
from isolated_python.policy.modules import normal
from isolated_python.policy.profile import Profile

KERNEL = "ipykernel"  # with all it needs; our own package needs nothing of an environment inside
OURS = "isolated-python"
EXTENSION = re.compile(r"\.(py|pyc|so|pyd|abi3\.so|cpython-[\w-]+\.so)$")
REQUIRES = re.compile(rb"^Requires-Dist:[ \t]*(.+?)\r?$", re.MULTILINE)
NAME = re.compile(rb"^Name:[ \t]*(\S+)", re.MULTILINE)
ELSEWHERE = ("lib/python3*/site-packages", "lib64/python3*/site-packages", "lib/python3*/dist-packages")
WHEELS = ("share/python-wheels", "lib/python3*/ensurepip/_bundled")  # packages in a form that can be imported, too


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What decides which packages are found."""

    version: tuple[int, int]
    folders: tuple[str, ...]  # where it looks for packages, in order


@dataclass(frozen=True, slots=True)
class Package:
    """An installed distribution. `fault`: what is wrong with its metadata, empty where it is whole."""

    name: str
    folder: str
    metadata: str  # file or folder, in `folder`
    tops: frozenset[str]  # what it owns in `folder`: first parts of its files' paths
    programs: tuple[str, ...]  # what it has put into bin, absolute
    adds: tuple[str, ...]  # folders that its .pth files or its editable install put on the path
    modules: frozenset[str]  # top-level names that can be imported
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    interpreter: Interpreter
    packages: dict[str, Package]  # by normal name; of two, the one that is found first
    shadowed: tuple[Package, ...]  # the others
    folders: tuple[str, ...]  # those of the interpreter, and those that .pth files of nobody add
    orphans: dict[str, frozenset[str]]  # folder → top-level modules that no distribution owns
    twice: frozenset[str]  # names with two versions in one folder


@dataclass(frozen=True, slots=True)
class View:
    """What a list of grants means in an environment."""

    hidden: Hidden  # folder → names in it that are not there
    adds: tuple[str, ...]  # further folders that are shown
    granted: tuple[str, ...]  # modules that a cell may import
    refused: tuple[str, ...]  # modules that are known, and that a cell may not
    digest: str
    of: object  # which list in which environment, whatever state that is in

    def to_wire(self) -> dict[str, object]:
        return {"hidden": self.hidden, "granted": self.granted, "refused": self.refused}


# ---- reading -------------------------------------------------------------------------------------------------------


def environment(interpreter: Interpreter) -> Environment:
    """All packages of an interpreter, read again when one of its folders has changed. Raises LaunchError."""
    return _environment(interpreter, _stamp(interpreter.folders))


def _stamp(folders: Iterable[str]) -> tuple[tuple[str, int, int], ...]:
    """Changes with every package that comes, goes or is exchanged: each has metadata of its own in the folder."""
    return tuple((folder, *_when(folder)) for folder in folders)


def _when(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_ino


@functools.lru_cache(maxsize=8)
def _environment(interpreter: Interpreter, stamp: object) -> Environment:
    folders = [folder for folder in interpreter.folders if os.path.isdir(folder)]
    packages: dict[str, Package] = {}
    orphans: dict[str, frozenset[str]] = {}
    twice: set[str] = set()
    shadowed: list[Package] = []
    for folder in folders:  # grows while we look
        names = sorted(os.listdir(folder))
        paths = {name: _added(folder, name) for name in names if name.endswith(".pth")}
        here: dict[str, Package] = {}
        for name in names:
            package = _package(folder, name, paths)
            if package is None:
                continue
            if package.name in here:
                twice.add(package.name)
            here[package.name] = package
        owned = {top for package in here.values() for top in package.tops}
        orphans[folder] = frozenset(filter(None, (_module(folder, name) for name in names if name not in owned)))
        for name, package in here.items():
            if packages.setdefault(name, package) is not package:
                shadowed.append(package)
        for name, added in paths.items():
            if name not in owned:
                folders += [one for one in added if one not in folders]
    return Environment(interpreter, packages, tuple(shadowed), tuple(folders), orphans, frozenset(twice))


def _added(folder: str, pth: str) -> tuple[str, ...]:
    try:
        with open(os.path.join(folder, pth), encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise LaunchError(
            f"{folder}/{pth} cannot be read ({error.strerror}), so nobody knows which packages it adds",
            remedy="mend its permissions, remove it, or write modules.hidden = false and guard = false in the profile",
        ) from None
    paths = [os.path.normpath(os.path.join(folder, line)) for line in lines if line and not line.startswith("#")]
    return tuple(path for path in paths if "\0" not in path and os.path.isdir(path))


def _package(folder: str, name: str, paths: dict[str, tuple[str, ...]]) -> Package | None:
    stem, kind = os.path.splitext(name)
    place = os.path.join(folder, name)
    if kind == ".dist-info":
        record, about = _read(f"{place}/RECORD"), _read(f"{place}/METADATA")
    elif kind == ".egg-info":
        record, about = None, _read(f"{place}/PKG-INFO" if os.path.isdir(place) else place)
    else:
        return None
    said = NAME.search(about or b"")
    own = normal(said[1].decode("utf-8", "replace") if said else stem.split("-")[0])
    fault = "" if said else f"{place} says nothing about its package"
    tops, programs = {name}, []
    if record is not None:
        for path in _files(record):
            if path.startswith(("../", "/")):
                outside = os.path.normpath(os.path.join(folder, path))
                if os.path.basename(os.path.dirname(outside)) == "bin":
                    programs.append(outside)
            else:
                tops.add(path.partition("/")[0])
        tops.discard("__pycache__")
    else:
        # What a distribution's own packages are like: no list of files, at best one of modules.
        words = (_read(f"{place}/top_level.txt") or b"").decode("utf-8", "replace").split()
        wanted = {*words} or {own.replace("-", "_"), own}
        tops |= {entry for entry in os.listdir(folder) if _module(folder, entry) in wanted}
        if len(tops) == 1 and not fault:
            fault = f"{place} has no list of its files"
    adds = [path for top in tops if top.endswith(".pth") for path in paths.get(top, ())]
    direct = _json(f"{place}/direct_url.json") if kind == ".dist-info" else {}
    if direct.get("dir_info", {}).get("editable") and not adds:
        source = unquote(urlsplit(str(direct.get("url"))).path)
        adds += [path for path in (f"{source}/src", source) if os.path.isdir(path)][:1]
    found = {_module(folder, top) for top in tops}
    found |= {_module(path, entry) for path in adds for entry in _listed(path)}
    return Package(
        own, folder, name, frozenset(tops), tuple(programs), tuple(adds), frozenset(filter(None, found)), fault
    )


def _module(folder: str, name: str) -> str:
    """The module that an entry of a folder is, empty where it is none."""
    if "." not in name:
        is_folder = name.isidentifier() and name != "__pycache__" and os.path.isdir(f"{folder}/{name}")
        return name if is_folder else ""
    found = EXTENSION.search(name)
    stem = name[: found.start()].partition(".")[0] if found else ""
    return stem if stem.isidentifier() else ""


def _files(record: bytes) -> Iterator[str]:
    """The paths in a RECORD; most need no CSV reader, which is slow."""
    for line in record.decode("utf-8", "surrogateescape").splitlines():
        yield next(csv.reader([line]))[0] if line.startswith('"') else line.partition(",")[0]


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _json(path: str) -> dict[str, dict[str, object]]:
    try:
        found = json.loads(_read(path) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# ---- deciding ------------------------------------------------------------------------------------------------------


def view(profile: Profile, interpreter: Interpreter, trees: tuple[str, ...]) -> View | None:
    """What `profile` grants of this interpreter's packages; None where it grants everything.

    `trees`: the host folders that the kernel sees. Raises ProfileError, LaunchError.
    """
    wanted = profile.modules
    if wanted.grant is None or not (wanted.hidden or wanted.guard):
        return None
    found = environment(interpreter)
    stamp = _stamp(found.folders)
    return _view(wanted.grant, wanted.hidden, interpreter, trees, stamp)


@functools.lru_cache(maxsize=32)
def _view(grants: tuple[str, ...], hide: bool, interpreter: Interpreter, trees: tuple[str, ...], stamp: object) -> View:
    found = environment(interpreter)
    installed = {name: package.modules for name, package in found.packages.items()}
    orphans = frozenset[str]().union(*found.orphans.values())
    stdlib = frozenset(sys.stdlib_module_names)
    grants_here = grants
    if not interpreter.folders:  # no Python: none of its packages, and nothing that a name could mean
        grants_here = ()
    matched = modules.match(grants_here, installed, stdlib, orphans)
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
        for folder in found.folders:
            hidden[folder] = _hidden_in(found, folder, seen, matched.modules)
            for path, names in _shared(found, folder, seen).items():
                hidden.setdefault(path, set()).update(names)
        for package in (*found.packages.values(), *found.shadowed):
            if package not in seen:
                for path in (*package.programs, *package.adds):
                    hidden.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
        for path in _elsewhere(trees, found.folders, pip="pip" in visible):
            if path == os.path.realpath(ROOT):  # where the launcher lies, among packages that are not this kernel's
                hidden[path] = {*os.listdir(path)} - {"isolated_python"}
            else:
                hidden.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
        needed = {*found.folders, *adds, *trees, sys.prefix, sys.base_prefix, f"{ROOT}/isolated_python"}
        for folder, names in hidden.items():
            names -= {name for name in names if any((keep + "/").startswith(f"{folder}/{name}/") for keep in needed)}
    known = stdlib | orphans | frozenset[str]().union(*installed.values())
    known = frozenset(name for name in known if not name.startswith("_"))
    granted = tuple(sorted(matched.modules))
    refused = tuple(sorted(known - matched.modules))
    made = tuple((folder, tuple(sorted(names))) for folder, names in sorted(hidden.items()) if names)
    wire = json.dumps([made, adds, granted, refused])
    shown = tuple(dict.fromkeys((*adds, *found.folders)))
    digest = hashlib.sha256(wire.encode()).hexdigest()[:32]
    return View(made, shown, granted, refused, digest, (grants, hide, interpreter, trees))


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
    about = (_read(place) or b"").partition(b"\n\n")[0]
    found = [line.decode("utf-8", "replace") for line in REQUIRES.findall(about)]
    if not found and package.metadata.endswith(".egg-info"):
        text = (_read(os.path.join(package.folder, package.metadata, "requires.txt")) or b"").decode("utf-8", "replace")
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
        if name == "__pycache__":
            continue
        if name in owners:
            seen = any(package in visible for package in owners[name])
        elif name.endswith(".pth"):
            seen = any(found.orphans.get(path, frozenset()) & granted for path in _added(folder, name))
        else:
            seen = _module(folder, name) in granted
        if not seen:
            hidden.add(name)
    return hidden


def _shared(found: Environment, folder: str, visible: set[Package]) -> dict[str, set[str]]:
    """Below the names that visible packages share with others: namespace packages, and the caches of single modules."""
    hidden: dict[str, set[str]] = {}
    owners = _owners(found, folder)
    mixed = {top for top, mine in owners.items() if len({package in visible for package in mine}) > 1}
    files: dict[str, bool] = {}
    for package in dict.fromkeys(one for top in mixed for one in owners[top]):
        for path in _files(_read(f"{folder}/{package.metadata}/RECORD") or b""):
            if path.partition("/")[0] in mixed:
                files[path] = files.get(path, False) or package in visible
    shown: set[str] = set()  # every file to be seen, and every folder above one
    part: set[str] = set()  # every folder above one that is not to be seen
    for path, seen in files.items():
        above = path
        while above := os.path.dirname(above):
            (shown if seen else part).add(above)
        if seen:
            shown.add(path)
    for path in sorted(shown & part):
        for name in _listed(f"{folder}/{path}"):
            below = f"{path}/{name}"
            if name == "__pycache__":
                names = _caches(f"{folder}/{below}", lambda stem, path=path: f"{path}/{stem}.py" in shown)
                hidden.setdefault(f"{folder}/{below}", set()).update(names)
            elif below not in shown:
                hidden.setdefault(f"{folder}/{path}", set()).add(name)
    seen_tops = {top for top, mine in owners.items() if any(package in visible for package in mine)}
    hidden[f"{folder}/__pycache__"] = _caches(f"{folder}/__pycache__", lambda stem: f"{stem}.py" in seen_tops)
    return hidden


def _caches(folder: str, seen: object) -> set[str]:
    """Compiled modules whose sources are hidden: a loader made by hand would take them, too."""
    assert callable(seen)
    return {name for name in _listed(folder) if not seen(name.partition(".")[0])}


def _elsewhere(trees: tuple[str, ...], folders: tuple[str, ...], *, pip: bool) -> Iterator[str]:
    """Packages that lie in sight, but not where this interpreter looks: of other interpreters, in wheels, in stores."""
    for tree in dict.fromkeys((*trees, "/usr", "/usr/local")):
        for pattern in (*ELSEWHERE, *(() if pip else WHEELS)):
            for path in glob.glob(f"{glob.escape(tree)}/{pattern}"):
                if os.path.realpath(path) not in {os.path.realpath(folder) for folder in folders}:
                    yield os.path.realpath(path)
        if os.path.isdir(f"{tree}/conda-meta"):
            yield from (f"{tree}/{name}" for name in ("pkgs", "envs") if os.path.isdir(f"{tree}/{name}"))

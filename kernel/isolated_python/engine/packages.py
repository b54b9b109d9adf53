"""Which packages an interpreter has, and whose files they are: read from metadata, never from their code."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote, urlsplit

from isolated_python.errors import LaunchError
from isolated_python.policy.modules import normal
from isolated_python.record import Record

EXTENSION = re.compile(r"\.(py|pyc|so|pyd|abi3\.so|cpython-[\w-]+\.so)$")
NAME = re.compile(rb"^Name:[ \t]*(\S+)", re.MULTILINE)
OTHERWISE = "or write modules.hidden = false and guard = false in the profile"
ELSEWHERE = ("lib/python3*/site-packages", "lib64/python3*/site-packages", "lib/python3*/dist-packages")


class Interpreter(Record):
    """What decides which packages are found."""

    version: tuple[int, int]
    folders: tuple[str, ...]  # where it looks for packages, in order


class Package(Record):
    """An installed distribution. `fault`: what is wrong with its metadata, empty where it is whole."""

    name: str
    folder: str
    metadata: str  # file or folder, in `folder`
    tops: frozenset[str]  # what it owns in `folder`: first parts of its files' paths
    programs: tuple[str, ...]  # what it has put into bin, absolute
    adds: tuple[str, ...]  # folders that its .pth files or its editable install put on the path
    modules: frozenset[str]  # top-level names that can be imported
    fault: str = ""


class Environment(Record):
    interpreter: Interpreter
    packages: dict[str, Package]  # by normal name; of two, the one that is found first
    shadowed: tuple[Package, ...]  # the others
    folders: tuple[str, ...]  # those of the interpreter, and those that .pth files of nobody add
    orphans: dict[str, frozenset[str]]  # folder → top-level modules that no distribution owns
    twice: frozenset[str]  # names with two versions in one folder


def environment(interpreter: Interpreter) -> Environment:
    """All packages of an interpreter, read again when one of its folders has changed. Raises LaunchError."""
    return _environment(interpreter, stamp_of(interpreter.folders))


def stamp_of(folders: Iterable[str]) -> tuple[tuple[str, int, int], ...]:
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
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise LaunchError(
                f"{folder} cannot be read ({error.strerror}), so nobody knows which packages it holds",
                remedy=f"mend its permissions, {OTHERWISE}",
            ) from None
        paths = {name: added_by(folder, name) for name in names if name.endswith(".pth")}
        here: dict[str, Package] = {}
        for name in names:
            package = _package(folder, name, paths)
            if package is None:
                continue
            if package.name in here:
                twice.add(package.name)
            here[package.name] = package
        owned = {top for package in here.values() for top in package.tops}
        orphans[folder] = frozenset(filter(None, (module_of(folder, name) for name in names if name not in owned)))
        for name, package in here.items():
            if packages.setdefault(name, package) is not package:
                shadowed.append(package)
        for name, added in paths.items():
            if name not in owned:
                folders += [one for one in added if one not in folders]
    return Environment(interpreter, packages, tuple(shadowed), tuple(folders), orphans, frozenset(twice))


def added_by(folder: str, pth: str) -> tuple[str, ...]:
    try:
        with open(os.path.join(folder, pth), encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise LaunchError(
            f"{folder}/{pth} cannot be read ({error.strerror}), so nobody knows which packages it adds",
            remedy=f"mend its permissions, remove it, {OTHERWISE}",
        ) from None
    paths = [os.path.normpath(os.path.join(folder, line)) for line in lines if line and not line.startswith("#")]
    return tuple(path for path in paths if "\0" not in path and os.path.isdir(path))


def _package(folder: str, name: str, paths: dict[str, tuple[str, ...]]) -> Package | None:
    stem, kind = os.path.splitext(name)
    place = os.path.join(folder, name)
    if kind == ".dist-info":
        record, about = read(f"{place}/RECORD"), read(f"{place}/METADATA")
    elif kind == ".egg-info":
        record, about = None, read(f"{place}/PKG-INFO" if os.path.isdir(place) else place)
    else:
        return None
    said = NAME.search(about or b"")
    own = normal(said[1].decode("utf-8", "replace") if said else stem.split("-")[0])
    fault = "" if said else f"{place} says nothing about its package"
    tops, programs = {name}, []
    if record:
        for path in files_of(record):
            if path.startswith(("../", "/")):
                outside = os.path.normpath(os.path.join(folder, path))
                if os.path.basename(os.path.dirname(outside)) == "bin":
                    programs.append(outside)
            else:
                tops.add(path.partition("/")[0])
        tops.discard("__pycache__")
    else:
        # What a distribution's own packages are like: no list of files, at best one of modules.
        words = (read(f"{place}/top_level.txt") or b"").decode("utf-8", "replace").split()
        wanted = {*words} or {own.replace("-", "_"), own}
        tops |= {entry for entry in os.listdir(folder) if module_of(folder, entry) in wanted}
        if len(tops) == 1 and not fault:
            fault = f"{place} has no list of its files"
    adds = [path for top in tops if top.endswith(".pth") for path in paths.get(top, ())]
    direct = _json(f"{place}/direct_url.json") if kind == ".dist-info" else {}
    if direct.get("dir_info", {}).get("editable") and not adds:
        source = unquote(urlsplit(str(direct.get("url"))).path)
        adds += [path for path in (f"{source}/src", source) if os.path.isdir(path)][:1]
    found = {module_of(folder, top) for top in tops}
    found |= {module_of(path, entry) for path in adds for entry in listed(path)}
    return Package(
        own, folder, name, frozenset(tops), tuple(programs), tuple(adds), frozenset(filter(None, found)), fault
    )


def module_of(folder: str, name: str) -> str:
    """The module that an entry of a folder is, empty where it is none."""
    if "." not in name:
        is_folder = name.isidentifier() and name != "__pycache__" and os.path.isdir(f"{folder}/{name}")
        return name if is_folder else ""
    found = EXTENSION.search(name)
    stem = name[: found.start()].partition(".")[0] if found else ""
    return stem if stem.isidentifier() else ""


def files_of(record: bytes) -> Iterator[str]:
    """The paths in a RECORD; most need no CSV reader, which is slow."""
    for line in record.decode("utf-8", "surrogateescape").splitlines():
        yield next(csv.reader([line]))[0] if line.startswith('"') else line.partition(",")[0]


def listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _json(path: str) -> dict[str, dict[str, object]]:
    try:
        found = json.loads(read(path) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

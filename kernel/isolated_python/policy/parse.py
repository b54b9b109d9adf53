"""From the tables of a TOML file to a profile: every key known, every value meant, every contradiction named."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, get_args

from isolated_python.errors import ProfileError
from isolated_python.policy import sets, units
from isolated_python.policy.profile import (
    Capabilities,
    Cells,
    Changes,
    Channels,
    Files,
    Layers,
    Modules,
    Mount,
    Network,
    Profile,
    Resources,
    Strictness,
    Workspace,
)
from isolated_python.policy.units import shown
from isolated_python.record import fields, replace

UNLIMITED = "unlimited"
CARRIERS = ("user", "mount")  # layers that all others stand on
TAKEN = (
    "/proc",
    "/dev",
    "/sys",
    "/tmp",
    "/usr",
    "/etc",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/run",
    "/home/user",
    "/mnt/workspace",
    "/workspace",
)
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
GRANT = re.compile(r"[A-Za-z0-9_*?\[\]!][A-Za-z0-9_.*?\[\]!-]*")
MIME = re.compile(r"[a-z]+/[a-z0-9.+*-]+")
EVERYTHING = "everything"
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


LEAST_IMAGE = 16 << 20  # bytes: a file system has some for itself
MOST = 1 << 31  # what Linux counts processes, descriptors and frames with


def whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MOST:
        raise ProfileError(
            f"{key} = {shown(value)} is not a whole number from 1 to {MOST - 1}", remedy="write one, such as 256"
        )
    return value


def number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST:  # no nan, no inf
        raise ProfileError(f"{key} = {shown(value)} is not a number above 0", remedy="write one, such as 1.5")
    return float(value)


def bounded(read: Callable[[str, object], Any], least: object, most: object = None) -> Callable[[str, object], Any]:
    """What `read` reads, between two values that are written as people write them."""

    def within(key: str, value: object) -> Any:
        found = read(key, value)
        if found < read(key, least):
            raise ProfileError(
                f"{key} = {shown(value)} is less than any kernel needs", remedy=f"write at least {least}"
            )
        if most is not None and found > read(key, most):
            raise ProfileError(f"{key} = {shown(value)} is more than Linux can give", remedy=f"write at most {most}")
        return found

    return within


def optional(read: Callable[[str, object], Any]) -> Callable[[str, object], Any]:
    return lambda key, value: None if value == UNLIMITED else read(key, value)


def one_of(*known: str) -> Callable[[str, object], str]:
    def read(key: str, value: object) -> str:
        if value not in known:
            raise ProfileError(
                f"{key} = {shown(value)} is not known", remedy=f"write one of {', '.join(known)}{nearest(value, known)}"
            )
        return str(value)

    return read


def mounts(key: str, value: object) -> tuple[Mount, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ProfileError(f"{key} is not a list of tables", remedy="write each under [[files.mounts]]")
    return tuple(_mount(f"{key}[{place}]", item) for place, item in enumerate(value))


def _mount(key: str, item: Mapping[str, Any]) -> Mount:
    known(key, item, ("source", "target", "writable"))
    for name in ("source", "target"):
        _plain(f"{key}.{name}", item.get(name))
    target = item["target"]
    if target == "/" or any(
        target == place or target.startswith(place + "/") or place.startswith(target + "/") for place in TAKEN
    ):
        raise ProfileError(
            f"{key}.target = {shown(target)} is a place of the sandbox's own",
            remedy="choose another, such as /data/course",
        )
    if not isinstance(item.get("writable", False), bool):
        raise ProfileError(
            f"{key}.writable = {shown(item['writable'])} is neither true nor false", remedy="write writable = true"
        )
    return Mount(item["source"], target, item.get("writable", False))


def _plain(key: str, path: object) -> None:
    if not is_text(path) or not path.startswith("/") or os.path.normpath(path) != path or "\0" in path:
        raise ProfileError(
            f"{key} = {shown(path)} is not a plain absolute path",
            remedy="write it without .. and without a slash at its end",
        )


def reach(key: str, value: object) -> tuple[str, ...]:
    """Granting hosts needs the egress process, which is not built yet: whoever asks is told so, and nothing starts."""
    if not isinstance(value, list) or not all(isinstance(host, str) for host in value):
        raise ProfileError(f"{key} is not a list of host names", remedy="write reach = []")
    for host in value:
        bare = host.removeprefix("*.")
        if "*" in bare or "." not in bare or not bare:
            raise ProfileError(
                f"{key}: {shown(host)} is too broad", remedy="name hosts, or *.example.edu for those of one domain"
            )
        try:
            ipaddress.ip_address(bare)
        except ValueError:
            continue
        raise ProfileError(f"{key}: {shown(host)} is an address and not a name", remedy="name the host")
    if value:
        raise ProfileError(f"{key}: hosts cannot be granted yet", remedy="remove the key; the kernel has no network")
    return ()


def modules(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and MODULE.fullmatch(name) for name in value):
        raise ProfileError(f"{key} is not a list of module names", remedy='write preload = ["numpy", "pandas"]')
    return tuple(value)


def is_text(value: object) -> TypeGuard[str]:
    """JSON can carry halves of letters, which no file name and no terminal can."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def grants(key: str, value: object) -> tuple[str, ...] | None:
    """Distributions, modules, globs and @sets. Whether they are installed is another question: see policy.modules."""
    if value == EVERYTHING:
        return None
    if not isinstance(value, list) or not all(map(is_text, value)):
        raise ProfileError(f"{key} is not a list of names", remedy='write grant = ["numpy"] or grant = "everything"')
    for name in value:
        if name.startswith("@"):
            if name not in sets.SETS:
                known = ", ".join(sets.SETS)
                raise ProfileError(
                    f"{key}: there is no set {name!r}", remedy=f"the sets are {known}{nearest(name, sets.SETS)}"
                )
        elif not GRANT.fullmatch(name):
            raise ProfileError(
                f"{key}: {name!r} is no name of a module or distribution", remedy='write one, such as "scikit-learn"'
            )
    return tuple(dict.fromkeys(value))


def yes_or_no(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ProfileError(f"{key} = {shown(value)} is neither true nor false", remedy="write true or false")
    return value


def mime_types(key: str, value: object) -> tuple[str, ...] | None:
    if value == EVERYTHING:
        return None
    if not isinstance(value, list) or not all(isinstance(kind, str) and MIME.fullmatch(kind) for kind in value):
        raise ProfileError(
            f"{key} is not a list of mime types", remedy='write ["text/plain", "image/png"] or "everything"'
        )
    return tuple(value)


def folder(key: str, value: object) -> str:
    """A place of the host, with {user} in it at most."""
    path = text(key, value)
    if path:
        _plain(key, path)
    for name in PLACEHOLDER.findall(path):
        if name != "user":
            raise ProfileError(f"{key}: {{{name}}} is not known", remedy="{user} is all that can stand in it")
    return path


def text(key: str, value: object) -> str:
    if not is_text(value):
        raise ProfileError(f"{key} = {shown(value)} is not a text", remedy="write it in quotes")
    return value


# Every key of a profile, and how it is read.
TABLES: dict[str, tuple[type, dict[str, Callable[[str, object], Any]]]] = {
    "files": (
        Files,
        {
            "workspace": one_of(*get_args(Workspace)),
            "changes": one_of(*get_args(Changes)),
            "folder": folder,
            "links": yes_or_no,
            "mounts": mounts,
            "size": optional(bounded(units.size, "1 MiB", "8 TiB")),
            "image": one_of(*get_args(Strictness)),
        },
    ),
    "modules": (Modules, {"grant": grants, "hidden": yes_or_no, "guard": yes_or_no}),
    "capabilities": (
        Capabilities,
        {
            "subprocess": yes_or_no,
            "sockets": yes_or_no,
            "native_code": yes_or_no,
            "threads": optional(whole),
            "display": mime_types,
        },
    ),
    "cells": (
        Cells,
        {
            "wall_clock": optional(bounded(units.duration, "1 s")),
            "output": optional(bounded(units.size, "1 KiB")),
            "messages": optional(whole),
        },
    ),
    "resources": (
        Resources,
        {
            # The least of each that a kernel was seen to start with; 2^22 is linux' PID_MAX_LIMIT.
            "memory": optional(bounded(units.size, "32 MiB", "4096 TiB")),
            "processes": optional(bounded(whole, 16, 4_194_304)),
            "cpu": optional(bounded(number, 0.01, 4096)),
            "cpu_time": optional(bounded(units.duration, "1 s")),
            "wall_clock": optional(bounded(units.duration, "1 s")),
            "idle": optional(bounded(units.duration, "1 s")),
            "file_size": optional(bounded(units.size, "64 KiB")),
            "open_files": bounded(whole, 64),
            "tmp": bounded(units.size, "1 MiB"),
            "shm": units.size,
        },
    ),
    "network": (Network, {"reach": reach}),
    "channels": (
        Channels,
        {
            "message": units.size,
            "frames": whole,
            "connections": whole,
            "handshake": units.duration,
            "output_rate": units.size,
            "output_messages": whole,
        },
    ),
    "layers": (Layers, dict.fromkeys(fields(Layers), one_of(*get_args(Strictness)))),
}
PLAIN: dict[str, Callable[[str, object], Any]] = {"description": text, "preload": modules}


def change(profile: Profile, tables: Mapping[str, Any], source: str) -> Profile:
    """The profile with the keys of `tables` in place of its own. Raises ProfileError, with `source` in it."""
    try:
        known("", tables, (*PLAIN, *TABLES))
        for name, read in PLAIN.items():
            if name in tables:
                profile = replace(profile, **{name: read(name, tables[name])})
        for name, (_, keys) in TABLES.items():
            table = tables.get(name, {})
            if not isinstance(table, Mapping):
                raise ProfileError(f"{name} is not a table", remedy=f"write its keys under [{name}]")
            known(name, table, keys)
            changed = {key: keys[key](f"{name}.{key}", value) for key, value in table.items()}
            profile = replace(profile, **{name: replace(getattr(profile, name), **changed)})
        check(profile)
    except ProfileError as error:
        raise ProfileError(f"{source}: {error.message}", remedy=error.remedy) from None
    return profile


def check(profile: Profile) -> None:
    """What each key alone cannot tell. Raises ProfileError."""
    for layer in CARRIERS:
        if getattr(profile.layers, layer) != "require":
            raise ProfileError(
                f"layers.{layer} carries all others and cannot be {getattr(profile.layers, layer)}",
                remedy="remove the key",
            )
    granted = profile.resources
    if granted.memory is not None and 2 * (granted.tmp + granted.shm) > granted.memory:
        raise ProfileError(
            f"resources.tmp and shm together, {granted.tmp + granted.shm >> 20} MiB, are more than half of "
            f"resources.memory, {granted.memory >> 20} MiB",
            remedy="they are counted as memory: make them smaller or the memory larger",
        )
    if profile.files.changes == "keep" and profile.files.workspace != "copy-on-write":
        raise ProfileError(
            f'files.changes = "keep" means nothing where files.workspace is {profile.files.workspace}',
            remedy='write workspace = "copy-on-write", or remove the key',
        )
    if not profile.files.links and profile.layers.landlock == "off":
        raise ProfileError(
            "files.links = false is held by Landlock, and layers.landlock is off", remedy="remove one of them"
        )
    if profile.files.kept and profile.layers.pid != "require":
        raise ProfileError(
            'files.changes = "keep" needs layers.pid = "require": nobody may be alive where changes are read',
            remedy="remove one of them",
        )
    _check_size(profile.files)
    asked = profile.capabilities
    for key in ("subprocess", "sockets", "native_code"):
        if not getattr(asked, key) and profile.layers.seccomp == "off":
            raise ProfileError(
                f"capabilities.{key} = false is held by seccomp, and layers.seccomp is off", remedy="remove one of them"
            )
    targets = [mount.target for mount in profile.files.mounts]
    if len({*targets}) < len(targets):
        raise ProfileError("two of files.mounts have the same target", remedy="give each its own")


def _check_size(files: Files) -> None:
    if files.size is not None and files.workspace in ("read-only", "none"):
        raise ProfileError(
            f"files.size means nothing where files.workspace is {files.workspace}", remedy="remove the key"
        )
    if files.bound is not None and files.bound < LEAST_IMAGE:
        raise ProfileError(
            f"files.size, {files.bound >> 20} MiB, is less than what can change in a copy-on-write workspace",
            remedy=f"write at least {LEAST_IMAGE >> 20} MiB",
        )
    if files.image == "require" and files.bound is None:
        raise ProfileError(
            'files.image = "require" means nothing without a copy-on-write workspace and its files.size',
            remedy='write workspace = "copy-on-write" and a size, such as "1 GiB"',
        )


def known(table: str, given: Mapping[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            where = f"{table}.{key}" if table else str(key)
            where = where if where.isascii() and len(where) < 80 else shown(where)
            raise ProfileError(
                f"the key {where} is not known",
                remedy=f"the keys here are {', '.join(known)}{nearest(key, known)}",
            )


def nearest(word: object, known: Any) -> str:
    near = difflib.get_close_matches(word[:80], [*known], 1) if isinstance(word, str) else []
    return f"; did you mean {near[0]}?" if near else ""

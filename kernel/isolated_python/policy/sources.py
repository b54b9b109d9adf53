"""Where profiles come from, in order: shipped, site, kernelspec, server settings; and the site's ceiling over all."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isolated_python.errors import ProfileError
from isolated_python.policy import ceiling, parse
from isolated_python.policy.profile import Profile
from isolated_python.record import Record, replace

SHIPPED = Path(__file__).with_name("profiles")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FOLDER = "isolated-python"


class Resolved(Record):
    profile: Profile
    notes: tuple[str, ...] = ()  # what a ceiling lowered, a sentence each
    sources: tuple[str, ...] = ()  # what said something, in order


def site_folders() -> list[Path]:
    """The configuration folders that only an administrator writes: the machine's first, then the environment's."""
    from jupyter_core.paths import ENV_CONFIG_PATH, SYSTEM_CONFIG_PATH

    return [Path(path) / FOLDER for path in dict.fromkeys((*SYSTEM_CONFIG_PATH, *ENV_CONFIG_PATH))]


def profile_folders() -> list[Path]:
    """Where a profile of a name is looked for, first hit wins: what an administrator wrote cannot be shadowed."""
    from jupyter_core.paths import jupyter_config_path

    own = [Path(path) / FOLDER for path in jupyter_config_path()]
    return [*(folder / "profiles" for folder in dict.fromkeys((*site_folders(), *own))), SHIPPED]


def load(
    name: str,
    overrides: Sequence[tuple[str, Mapping[str, Any]]] = (),
    *,
    folders: Sequence[Path] | None = None,
    ceilings: Sequence[Path] | None = None,
    otherwise: Path | None = None,
) -> Resolved:
    """The profile `name`, changed by each of `overrides` (source, tables) in turn, below the site's ceiling.

    `otherwise`: the folder of a ceiling for the keys that the site's do not name.
    Raises ProfileError, with one sentence, where anything of it is not as it must be: then nothing starts.
    """
    path = find(name, folders)
    profile, sources = _read(path, folders)
    for source, changes in overrides:
        profile = parse.change(profile, changes, source)
        sources.append(source)
    notes: list[str] = []
    spoken: dict[str, frozenset[str]] = {}
    for folder in (*(ceilings if ceilings is not None else site_folders()), *([otherwise] if otherwise else [])):
        above = folder / "ceiling.toml"
        tables = _toml(above) if above.exists() else None
        if tables is not None:
            named = {key: frozenset(table) for key, table in tables.items() if isinstance(table, Mapping)}
            if folder is otherwise:
                named = {key: keys - spoken.get(key, frozenset()) for key, keys in named.items()}
            spoken |= {key: keys | spoken.get(key, frozenset()) for key, keys in named.items()}
            # Of what the ceiling does not name it must not seem to contradict anything either.
            loose = replace(Profile(), resources=replace(Profile().resources, memory=None, tmp=1, shm=1))
            profile, lowered = ceiling.apply(profile, parse.change(loose, tables, str(above)), named)
            notes += lowered
            sources.append(str(above))
    if notes:
        profile = _fitting(profile, notes)
    return Resolved(profile, tuple(notes), tuple(sources))


def _fitting(profile: Profile, notes: list[str]) -> Profile:
    """A lower memory may contradict what was granted of it to tmp and shm: those shrink with it, and that is told."""
    granted = profile.resources
    if granted.memory is not None and 2 * (granted.tmp + granted.shm) > granted.memory:
        granted = replace(granted, tmp=granted.memory // 4, shm=granted.memory // 8)
        notes.append(
            f"resources.tmp is {granted.tmp >> 20} MiB and shm {granted.shm >> 20} MiB, to fit the ceiling's memory"
        )
    profile = replace(profile, resources=granted)
    try:
        parse.check(profile)
    except ProfileError as error:
        raise ProfileError(f"below the site's ceiling, {error.message}", remedy=error.remedy) from None
    return profile


def find(name: str, folders: Sequence[Path] | None = None) -> Path:
    if not NAME.fullmatch(name):
        raise ProfileError(
            f"{name[:80]!r} is not the name of a profile", remedy="names are small letters, digits, - and _"
        )
    for folder in folders if folders is not None else profile_folders():
        path = folder / f"{name}.toml"
        if path.is_file():
            return path
    known = sorted(names(folders))
    raise ProfileError(
        f"there is no profile {name!r}", remedy=f"the profiles here are {', '.join(known)}{parse.nearest(name, known)}"
    )


def names(folders: Sequence[Path] | None = None) -> dict[str, Path]:
    """Every profile that can be named here, and its file."""
    found: dict[str, Path] = {}
    for folder in folders if folders is not None else profile_folders():
        if folder.is_dir():
            for path in sorted(folder.glob("*.toml")):
                if NAME.fullmatch(path.stem):
                    found.setdefault(path.stem, path)
    return found


def read(path: Path, folders: Sequence[Path] | None = None) -> Profile:
    """The profile in a file, named as the file is. Raises ProfileError."""
    return _read(path, folders)[0]


def _read(path: Path, folders: Sequence[Path] | None) -> tuple[Profile, list[str]]:
    """The profile, and the files that it is made of. What it extends is read first, and extends nothing itself."""
    tables, profile, files = _toml(path), Profile(name=path.stem), []
    base = tables.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise ProfileError(f"{path}: extends = {base!r} is not the name of a profile", remedy="write it in quotes")
        below = find(base, folders)
        inherited = _toml(below)
        further = inherited.pop("extends", None)
        if path.stem in (base, further):
            circle = " → ".join([path.stem, base, *([path.stem] if base != path.stem else [])])
            raise ProfileError(f"{path}: profiles extend each other in a circle, {circle}", remedy="end it at one")
        if further is not None:
            raise ProfileError(
                f"{path}: it extends {base}, which extends {further} itself, and one level is all there is",
                remedy=f'write extends = "{further}", and the keys of both',
            )
        profile = parse.change(profile, inherited, str(below))
        files.append(str(below))
    return parse.change(profile, tables, str(path)), [*files, str(path)]


@functools.lru_cache(64)
def _tables(text: str) -> Mapping[str, Any]:
    """Of a profile; most starts read the same as the one before."""
    return tomllib.loads(text)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return {**_tables(path.read_text(encoding="utf-8"))}
    except (ValueError, RecursionError) as error:  # also what tomllib lets pass: numbers and lists without end
        raise ProfileError(f"{path} is not TOML: {str(error)[:200]}", remedy="mend that line") from None
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}", remedy="check the path") from None

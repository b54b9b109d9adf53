"""The ceiling of a site: what no profile, kernelspec or server setting can exceed."""

from __future__ import annotations

from fnmatch import fnmatchcase

from isolated_python.errors import ProfileError
from isolated_python.policy import modules
from isolated_python.policy.profile import Profile
from isolated_python.record import fields, replace

# From the strictest to the most permissive.
LAYER_ORDER = ("require", "prefer", "off")
WORKSPACE_ORDER = ("none", "read-only", "copy-on-write", "read-write")


def apply(profile: Profile, ceiling: Profile, named: dict[str, frozenset[str]]) -> tuple[Profile, list[str]]:
    """The profile below the ceiling, and a sentence for each value that was lowered.

    `named`: which keys of which tables the ceiling's file speaks of; of the others it says nothing.
    Raises ProfileError where a grant cannot be lowered, only refused: a mount that the ceiling does not list.
    """
    notes: list[str] = []
    for table in ("resources", "channels", "cells"):
        mine, most = getattr(profile, table), getattr(ceiling, table)
        for key in fields(mine):
            value, limit = getattr(mine, key), getattr(most, key)
            if key in named.get(table, ()) and limit is not None and (value is None or value > limit):
                notes.append(f"{table}.{key} is {limit:g} instead of {value or 'unlimited'}: the site's ceiling")
                mine = replace(mine, **{key: limit})
        profile = replace(profile, **{table: mine})
    layers = profile.layers
    for key in fields(layers):
        value, limit = getattr(layers, key), getattr(ceiling.layers, key)
        if key in named.get("layers", ()) and LAYER_ORDER.index(value) > LAYER_ORDER.index(limit):
            notes.append(f"layers.{key} is {limit} instead of {value}: the site's ceiling")
            layers = replace(layers, **{key: limit})
    files = profile.files
    limit = ceiling.files.workspace
    if "workspace" in named.get("files", ()) and WORKSPACE_ORDER.index(files.workspace) > WORKSPACE_ORDER.index(limit):
        notes.append(f"files.workspace is {limit} instead of {files.workspace}: the site's ceiling")
        changes = files.changes if limit == "copy-on-write" else "discard"
        files = replace(files, workspace=limit, changes=changes, size=None, image="prefer")
    size = ceiling.files.size
    if "size" in named.get("files", ()) and size is not None:
        # Without a size of its own, what changes in a copy-on-write workspace is held by resources.tmp.
        if files.size > size if files.size is not None else files.workspace == "read-write":
            notes.append(f"files.size is {size} instead of {files.size or 'unlimited'}: the site's ceiling")
            files = replace(files, size=size)
    if "links" in named.get("files", ()) and files.links and not ceiling.files.links:
        notes.append("files.links is false: the site's ceiling")
        files = replace(files, links=False)
    if "mounts" in named.get("files", ()):
        for mount in files.mounts:
            allowed = [
                grant for grant in ceiling.files.mounts
                if (mount.source + "/").startswith(grant.source.rstrip("/") + "/")
                and (grant.writable or not mount.writable)
            ]  # fmt: skip
            if not allowed:
                raise ProfileError(
                    f"the site's ceiling does not grant the mount of {mount.source!r}",
                    remedy="ask the administrator of this server",
                )
    profile = replace(profile, layers=layers, files=files)
    profile = _modules(profile, ceiling, named.get("modules", frozenset()), notes)
    return _capabilities(profile, ceiling, named.get("capabilities", frozenset()), notes), notes


def _modules(profile: Profile, ceiling: Profile, named: frozenset[str], notes: list[str]) -> Profile:
    mine, most = profile.modules, ceiling.modules
    for key in ("hidden", "guard"):
        if key in named and getattr(most, key) and not getattr(mine, key):
            notes.append(f"modules.{key} is true instead of false: the site's ceiling")
            mine = replace(mine, **{key: True})
    if "grant" in named and most.grant is not None:
        if mine.grant is None:
            notes.append("modules.grant is the list of the site's ceiling instead of everything")
            mine = replace(mine, grant=most.grant)
        beyond = [grant for grant in mine.grant or () if not modules.covered(grant, most.grant)]
        if beyond:
            kept = tuple(grant for grant in mine.grant or () if grant not in beyond)
            if not kept:
                raise ProfileError(
                    f"the site's ceiling grants none of the modules that the profile names: {', '.join(beyond)}",
                    remedy=f"name some of {', '.join(most.grant)}",
                )
            notes.append(f"modules.grant is without {', '.join(beyond)}: the site's ceiling")
            mine = replace(mine, grant=kept)
    return replace(profile, modules=mine)


def _capabilities(profile: Profile, ceiling: Profile, named: frozenset[str], notes: list[str]) -> Profile:
    mine, most = profile.capabilities, ceiling.capabilities
    for key in ("subprocess", "sockets", "native_code"):
        if key in named and getattr(mine, key) and not getattr(most, key):
            notes.append(f"capabilities.{key} is false instead of true: the site's ceiling")
            mine = replace(mine, **{key: False})
    if "threads" in named and most.threads is not None and (mine.threads is None or mine.threads > most.threads):
        notes.append(f"capabilities.threads is {most.threads} instead of {mine.threads or 'unlimited'}: the ceiling")
        mine = replace(mine, threads=most.threads)
    if "display" in named and most.display is not None:
        kept = most.display if mine.display is None else tuple(k for k in mine.display if _shown(k, most.display))
        if kept != mine.display:
            notes.append(f"capabilities.display is {', '.join(kept) or 'nothing'}: the site's ceiling")
            mine = replace(mine, display=kept)
    return replace(profile, capabilities=mine)


def _shown(kind: str, allowed: tuple[str, ...]) -> bool:
    return kind in allowed or ("*" not in kind and any(fnmatchcase(kind, pattern) for pattern in allowed))

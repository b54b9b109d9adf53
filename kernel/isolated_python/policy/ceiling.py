"""The ceiling of a site: what no profile, kernelspec or server setting can exceed."""

from __future__ import annotations

from dataclasses import fields, replace

from isolated_python.errors import ProfileError
from isolated_python.policy.profile import Profile

# From the strictest to the most permissive.
LAYER_ORDER = ("require", "prefer", "off")
WORKSPACE_ORDER = ("none", "read-only", "copy-on-write", "read-write")


def apply(profile: Profile, ceiling: Profile, named: dict[str, frozenset[str]]) -> tuple[Profile, list[str]]:
    """The profile below the ceiling, and a sentence for each value that was lowered.

    `named`: which keys of which tables the ceiling's file speaks of; of the others it says nothing.
    Raises ProfileError where a grant cannot be lowered, only refused: a mount that the ceiling does not list.
    """
    notes: list[str] = []
    for table in ("resources", "channels"):
        mine, most = getattr(profile, table), getattr(ceiling, table)
        for item in fields(mine):
            value, limit = getattr(mine, item.name), getattr(most, item.name)
            if item.name in named.get(table, ()) and limit is not None and (value is None or value > limit):
                notes.append(f"{table}.{item.name} is {limit:g} instead of {value or 'unlimited'}: the site's ceiling")
                mine = replace(mine, **{item.name: limit})
        profile = replace(profile, **{table: mine})
    layers = profile.layers
    for item in fields(layers):
        value, limit = getattr(layers, item.name), getattr(ceiling.layers, item.name)
        if item.name in named.get("layers", ()) and LAYER_ORDER.index(value) > LAYER_ORDER.index(limit):
            notes.append(f"layers.{item.name} is {limit} instead of {value}: the site's ceiling")
            layers = replace(layers, **{item.name: limit})
    files = profile.files
    limit = ceiling.files.workspace
    if "workspace" in named.get("files", ()) and WORKSPACE_ORDER.index(files.workspace) > WORKSPACE_ORDER.index(limit):
        notes.append(f"files.workspace is {limit} instead of {files.workspace}: the site's ceiling")
        files = replace(files, workspace=limit)
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
    return replace(profile, layers=layers, files=files), notes

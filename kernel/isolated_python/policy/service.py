"""What the privileged service gives each user of a machine, and where it finds its policy."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isolated_python.errors import ProfileError
from isolated_python.policy import SOCKET, parse, units
from isolated_python.policy.profile import GiB, Resources
from isolated_python.record import Record, asdict, replace

CONFIG = "/etc/isolated-python/service.toml"
CEILING = Path(__file__).with_name("ceiling_of_service")  # its folder: for the keys that the site's do not name


class EachUser(Record):
    """The quota of one uid, whatever number of servers it runs."""

    kernels: int = 16
    starts: int = 60  # of kernels, and again of connections, a minute
    servers: int = 8  # connections at a time
    memory: int | None = 8 * GiB  # bytes: kernels, and the processes that serve them
    processes: int | None = 2048  # tasks, of the same
    disk: int | None = 8 * GiB  # bytes: images for what changes in copy-on-write workspaces
    ahead: int = 0  # kernels that may stand ready before they are asked for, where a server wants some
    cpu: float | None = None  # cores; without, users that want more than there is get equal shares

    @property
    def together(self) -> Resources:
        return replace(Resources(), memory=self.memory, processes=self.processes, cpu=self.cpu)


class Settings(Record):
    socket: str = SOCKET
    policy: tuple[str, ...] = (
        "/etc/jupyter/isolated-python",
    )  # folders with profiles/ and ceiling.toml, first hit wins
    audit: str = "/var/log/isolated-python/audit.jsonl"
    each_user: EachUser = EachUser()

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> Settings:
        each_user = EachUser(**wire["each_user"])
        return Settings(**{**wire, "policy": tuple(wire["policy"]), "each_user": each_user})


def _path(key: str, value: object) -> str:
    if not parse.is_text(value) or not value.startswith("/") or "\0" in value:
        raise ProfileError(f"{key} = {units.shown(value)} is not an absolute path", remedy=f'write {key} = "/…"')
    return value


def _paths(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ProfileError(f"{key} is not a list of folders", remedy=f'write {key} = ["/etc/jupyter/isolated-python"]')
    return tuple(_path(key, one) for one in value)


def _none_or_more(key: str, value: object) -> int:
    return 0 if value == 0 and type(value) is int else parse.whole(key, value)


PLAIN: dict[str, Callable[[str, object], Any]] = {"socket": _path, "policy": _paths, "audit": _path}
EACH_USER: dict[str, Callable[[str, object], Any]] = {
    "kernels": parse.whole,
    "starts": parse.whole,
    "servers": parse.whole,
    "ahead": _none_or_more,
    "memory": parse.optional(parse.bounded(units.size, "256 MiB")),
    "processes": parse.optional(parse.bounded(parse.whole, 64)),
    "disk": parse.optional(units.size),
    "cpu": parse.optional(parse.number),
}


def read(text: str, source: str) -> Settings:
    """The settings that a TOML file says. Raises ProfileError, with `source` in it."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{source} is not TOML: {str(error)[:200]}", remedy="mend that line") from None
    try:
        parse.known("", tables, (*PLAIN, "each_user"))
        quota = tables.get("each_user", {})
        if not isinstance(quota, Mapping):
            raise ProfileError("each_user is not a table", remedy="write its keys under [each_user]")
        parse.known("each_user", quota, EACH_USER)
        changed = {key: EACH_USER[key](f"each_user.{key}", value) for key, value in quota.items()}
        plain = {key: PLAIN[key](key, value) for key, value in tables.items() if key in PLAIN}
    except ProfileError as error:
        raise ProfileError(f"{source}: {error.message}", remedy=error.remedy) from None
    return Settings(**plain, each_user=EachUser(**changed))

"""
A delegated group for an ordinary user, asked of systemd's user manager over D-Bus.

Runs in the Jupyter server's process, for the supervisor that it has just started: jeepney is not for the supervisor.
Source: org.freedesktop.systemd1(5), systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from isolated_python.errors import HostError
from isolated_python.linux import cgroups

if TYPE_CHECKING:
    from jeepney import Message

PATIENCE = 30.0  # seconds; after ten, a busy machine had not answered
REMEDY = f"start the server with systemd-run --user --scope -p Delegate=yes, or {cgroups.OPT_OUT}"


def bus(uid: int) -> str:
    """The socket of a user's own bus; there is one where the user has a user manager. pam_systemd(8)"""
    return f"/run/user/{uid}/bus"


def wanted() -> bool:
    """Whether asking makes sense: an ordinary user with a user manager, on v2, and nothing delegated to us yet."""
    uid = os.geteuid()
    if uid == 0 or not os.path.exists(bus(uid)):
        return False
    own = cgroups.own()
    return bool(own.v2) and cgroups.find(own, root=False).version == "none"


def request(pid: int) -> Message:
    """StartTransientUnit: a scope that holds `pid`, delegated to its owner; it goes when its last process goes."""
    from jeepney import DBusAddress, new_method_call

    manager = DBusAddress(
        "/org/freedesktop/systemd1", bus_name="org.freedesktop.systemd1", interface="org.freedesktop.systemd1.Manager"
    )
    properties: list[tuple[str, tuple[str, Any]]] = [
        ("Description", ("s", "Isolated Python's supervisor and its kernels")),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    arguments: tuple[Any, ...] = (f"isolated-python-{pid}.scope", "fail", properties, [])
    return new_method_call(manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)


def delegate(pid: int) -> None:
    """Move `pid` into a delegated scope of its own. Blocks until systemd has done it. Raises HostError."""
    from jeepney import DBusErrorResponse, MatchRule, message_bus
    from jeepney.io.blocking import open_dbus_connection
    from jeepney.wrappers import unwrap_msg

    finished = MatchRule(type="signal", interface="org.freedesktop.systemd1.Manager", member="JobRemoved")
    ended: deque[Message] = deque()
    end = time.monotonic() + PATIENCE
    try:
        with (
            open_dbus_connection(f"unix:path={bus(os.geteuid())}") as connection,
            connection.filter(finished, queue=ended),
        ):
            # Listen before asking, or the answer may have come and gone.
            unwrap_msg(connection.send_and_get_reply(message_bus.AddMatch(finished), timeout=PATIENCE))
            (job,) = unwrap_msg(connection.send_and_get_reply(request(pid), timeout=PATIENCE))
            path = None
            while path != job:
                signal = connection.recv_until_filtered(ended, timeout=end - time.monotonic())
                _number, path, unit, result = signal.body
    except (OSError, DBusErrorResponse) as error:  # a TimeoutError is an OSError
        raise HostError(f"systemd's user manager gave no cgroup ({error or 'no answer'})", remedy=REMEDY) from error
    if result != "done":
        raise HostError(f"systemd's user manager gave no cgroup ({unit}: {result})", remedy=REMEDY)

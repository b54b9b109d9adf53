"""
Whose kernel it is, on a server that many people share: theirs who started it, from its first start to its end.

Runs:     in the Jupyter server
Trusts:   the server's identity provider
Imports:  errors
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from isolated_python.errors import LaunchError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}")  # what can be the name of a folder, and of one folder only


def asking(environment: Mapping[str, str]) -> str:
    """Who asks: whose request the server is answering, else for whom a hub started the server, else nobody."""
    try:
        from jupyter_server.base.call_context import CallContext

        user = CallContext.get(CallContext.JUPYTER_HANDLER).current_user
        name = getattr(user, "username", "")
    except (ImportError, AttributeError, LookupError):  # no server, or no request of anybody's
        name = ""
    return str(name or environment.get("JUPYTERHUB_USER", ""))


def folder_of(pattern: str, owner: str) -> str:
    """A folder of the profile's, with its owner's name in the place of {user}. Raises LaunchError."""
    if "{user}" in pattern and not NAME.fullmatch(owner):
        who = f"{owner[:80]!r} is not a name that a folder can have" if owner else "nobody is known to have asked"
        raise LaunchError(
            f"the profile gives everybody a workspace of their own, and {who}",
            remedy="start it on a server where people log in, or write files.folder without {user}",
        )
    return pattern.replace("{user}", owner)


def owner_of(kernel: Any) -> str:
    """Of a kernel manager of the server's: who started its kernel; nobody where it is none of ours."""
    return getattr(getattr(kernel, "provisioner", None), "owner", None) or ""

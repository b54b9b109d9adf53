"""
What people who share a server may do to each other's kernels: nothing.

Runs:     in the Jupyter server
Trusts:   the server's identity provider
Imports:  owners
"""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.authorizer import Authorizer
from tornado.web import HTTPError

from isolated_python.owners import owner_of


class OwnersAuthorizer(Authorizer):
    """Lets a request through if every kernel that it means is of whoever asks.

    Files, and the lists of what runs, stay common: of those Jupyter Server does not know whose they are.
    """

    async def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        running = handler.kernel_manager
        meant = [kernel for kernel in await _meant(handler, resource) if kernel in running]
        return all(owner_of(running.get_kernel(kernel)) == user.username for kernel in meant)


async def _meant(handler: Any, resource: str) -> list[str]:
    """The kernels that a request names: by its path, by a session, or in what it wants of a session."""
    named = [handler.path_kwargs.get("kernel_id", "")]
    if resource == "sessions":
        session = handler.path_kwargs.get("session_id")
        if session:
            try:
                named.append((await handler.session_manager.get_session(session_id=session))["kernel"]["id"])
            except (HTTPError, KeyError, TypeError):  # there is none, or its kernel has ended
                pass
        if handler.request.body:
            wanted = (handler.get_json_body() or {}).get("kernel") or {}
            named.append(wanted.get("id") or "")
    return [kernel for kernel in named if isinstance(kernel, str)]

"""An identity provider of the tests' own: a token is its owner's name, as a proxy that logs people in would tell it."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.identity import IdentityProvider, User

PEOPLE = ("ada", "bob")


class People(IdentityProvider):
    """Whoever bears a token is whose name it is; the tests' own token is the administrator's."""

    async def get_user(self, handler: Any) -> User | None:
        token = self.get_token(handler) or ""
        handler._token_authenticated = True
        name = token if token in PEOPLE else "admin" if token == self.token else ""
        return User(username=name) if name else None

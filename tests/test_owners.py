"""A name becomes a folder only if it can be nothing else."""

from __future__ import annotations

from contextvars import copy_context
from types import SimpleNamespace

import pytest
from isolated_python.errors import LaunchError
from isolated_python.owners import asking, folder_of
from jupyter_server.auth.identity import User
from jupyter_server.base.call_context import CallContext


@pytest.mark.parametrize("name", ["ada", "ada.lovelace@example.edu", "4ef0c1"])
def test_a_name_takes_the_place_of_user(name: str) -> None:
    assert folder_of("/srv/{user}/work", name) == f"/srv/{name}/work"


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "../bob", "a\0", "a\n", " ", "-rf", "a" * 200])
def test_what_could_lead_elsewhere_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(LaunchError) as refused:
        folder_of("/srv/{user}", name)
    assert "\n" not in str(refused.value)


def test_who_has_logged_in_is_asked_for_before_the_hub() -> None:
    """On a server of one person's that others may use: the workspace is of whoever asks."""

    def answering() -> str:
        CallContext.set(CallContext.JUPYTER_HANDLER, SimpleNamespace(current_user=User("bob")))
        return asking({"JUPYTERHUB_USER": "ada"})

    assert copy_context().run(answering) == "bob"


def test_without_a_request_a_hub_says_whose_server_it_is() -> None:
    assert asking({"JUPYTERHUB_USER": "ada"}) == "ada"
    assert asking({}) == ""

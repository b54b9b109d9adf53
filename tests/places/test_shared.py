"""A server that people share: a kernel is whose it was first, in a folder of their own, and nobody else gets at it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from tests.places.conftest import SMALL, environment
from tests.places.kernel import text
from tests.places.server import Server

ROOT = Path(__file__).parent.parent.parent
ISOLATED = {
    "argv": ["python", "-m", "isolated_python.launcher.argv", "-f", "{connection_file}"],
    "display_name": "Own folder",
    "language": "python",
}


def furnished(start: Callable[..., Server], home: Path, **settings: str) -> Server:
    """A server where people log in, each with a folder of their own that the kernelspec `own` gives them."""
    for name in ("ada", "bob"):
        (home / "people" / name).mkdir(parents=True)
    own = {"files": {"folder": f"{home}/people/{{user}}"}}
    stanza = {"provisioner_name": "isolated-python", "config": {"profile": "standard", "overrides": SMALL | own}}
    spec = home / ".local/share/jupyter/kernels/own"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps(ISOLATED | {"metadata": {"kernel_provisioner": stanza}}))
    config = {"ServerApp": {"identity_provider_class": "tests.places.people.People", **settings}}
    return start(config, home=home, env=environment(home, PYTHONPATH=str(ROOT)))


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], homes: Callable[[], Path]) -> Server:
    return furnished(start, homes(), authorizer_class="isolated_python.authorizer.OwnersAuthorizer")


@pytest.fixture
def adas(server: Server) -> Iterator[dict[str, Any]]:
    """A session of hers."""
    about = {"path": f"{uuid.uuid4()}.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "own"}}
    status, session = server.ask("POST", "api/sessions", about, token="ada")
    assert status == 201, session
    yield session
    server.ask("DELETE", f"api/sessions/{session['id']}", token="ada")


def test_everybody_has_a_workspace_of_their_own(server: Server, adas: dict[str, Any]) -> None:
    status, bobs = server.ask("POST", "api/kernels", {"name": "own"}, token="bob")
    assert status == 201, bobs
    text(server, adas["kernel"]["id"], "open('diary', 'w').write('hers')", token="ada")
    assert text(server, bobs["id"], "import os; print('diary' in os.listdir())", token="bob") == "False"
    assert (server.home / "people/ada/diary").read_text() == "hers"
    assert server.ask("DELETE", f"api/kernels/{bobs['id']}", token="bob")[0] == 204


def test_on_disk_what_a_kernel_makes_belongs_to_whose_folder_it_is(server: Server, adas: dict[str, Any]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(server.home / "people" / "bob", 12345, 12345)
    status, bobs = server.ask("POST", "api/kernels", {"name": "own"}, token="bob")
    assert status == 201, bobs
    text(server, bobs["id"], "open('made', 'w').close()", token="bob")
    assert (server.home / "people/bob/made").stat().st_uid == 12345
    assert server.ask("DELETE", f"api/kernels/{bobs['id']}", token="bob")[0] == 204


def test_a_kernel_stays_with_whom_it_was_first(server: Server, adas: dict[str, Any]) -> None:
    """Also over a restart, and in the eyes of an administrator."""
    kernel = adas["kernel"]["id"]
    text(server, kernel, "open('before', 'w').close()", token="ada")
    assert server.ask("POST", f"api/kernels/{kernel}/restart", {})[0] == 403
    assert server.ask("POST", f"api/kernels/{kernel}/restart", {}, token="ada")[0] == 200
    assert "before" in text(server, kernel, "import os; print(os.listdir())", token="ada")


@pytest.mark.thorough
def test_whoever_restarts_a_kernel_does_not_get_it(start: Callable[..., Server], homes: Callable[[], Path]) -> None:
    """On a server whose people may restart each other's kernels."""
    server = furnished(start, homes())
    kernel = server.ask("POST", "api/kernels", {"name": "own"}, token="ada")[1]["id"]
    assert server.ask("POST", f"api/kernels/{kernel}/restart", {}, token="bob")[0] == 200
    text(server, kernel, "open('after', 'w').close()", token="bob")
    assert (server.home / "people/ada/after").exists()
    assert not (server.home / "people/bob/after").exists()


def test_nobody_else_reads_signals_or_ends_it(server: Server, adas: dict[str, Any]) -> None:
    kernel, session = adas["kernel"]["id"], adas["id"]
    about = {"path": "b.ipynb", "type": "notebook", "name": "b", "kernel": {"id": kernel}}
    attempts: list[tuple[str, str, Any]] = [
        ("GET", f"api/kernels/{kernel}", None),
        ("DELETE", f"api/kernels/{kernel}", None),
        ("POST", f"api/kernels/{kernel}/interrupt", {}),
        ("POST", f"api/kernels/{kernel}/restart", {}),
        ("GET", f"api/sessions/{session}", None),
        ("DELETE", f"api/sessions/{session}", None),
        ("PATCH", f"api/sessions/{session}", {"path": "stolen.ipynb"}),
        ("POST", "api/sessions", about),
    ]
    assert [server.ask(*attempt, token="bob")[0] for attempt in attempts] == [403] * len(attempts)
    with pytest.raises(HTTPClientError, match="403"):
        text(server, kernel, "print(1)", token="bob")
    assert text(server, kernel, "print('well')", token="ada") == "well"


def test_a_session_of_ones_own_cannot_be_moved_to_it(server: Server, adas: dict[str, Any]) -> None:
    about = {"path": "c.ipynb", "type": "notebook", "name": "c", "kernel": {"name": "own"}}
    mine = server.ask("POST", "api/sessions", about, token="bob")[1]
    moved = {"kernel": {"id": adas["kernel"]["id"]}}
    assert server.ask("PATCH", f"api/sessions/{mine['id']}", moved, token="bob")[0] == 403
    assert server.ask("DELETE", f"api/sessions/{mine['id']}", token="bob")[0] == 204


def test_whoever_has_no_folder_gets_a_sentence(server: Server) -> None:
    """The administrator has no folder, and none is made."""
    status, _ = server.ask("POST", "api/kernels", {"name": "own"})
    assert status == 500
    assert server.logs("people/admin' cannot be opened")


def test_requests_without_a_name_are_refused(server: Server) -> None:
    assert server.ask("GET", "api/kernels", token="mallory")[0] in (401, 403)

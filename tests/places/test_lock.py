"""A locked server: by no door that it has does anything start on the host outside a sandbox."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from isolated_python.launcher import argv

from tests.conftest import Ordinary
from tests.places.conftest import environment, locked
from tests.places.kernel import text
from tests.places.server import Server

# What a cell sees of the host from within a plain kernel, and not from within a sandbox.
LOOK = "import os; print('host' if os.path.exists('/etc/shadow') else 'sandbox')"
PLAIN = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
LOCAL = {"kernel_provisioner": {"provisioner_name": "local-provisioner", "config": {}}}
OPEN = {"kernel_provisioner": {"provisioner_name": "isolated-python", "config": {"profile": "mine"}}}

# Names of a person's own kernelspecs, and what each tries. The first two shadow what an administrator installed.
OWN = {
    "isolated-python": {"display_name": "Shadow", "metadata": LOCAL},
    "python3": {"display_name": "Shadow", "metadata": LOCAL},
    "mine": {"display_name": "Mine"},
    "mine-local": {"display_name": "Mine", "metadata": LOCAL},
    "mine-open": {"display_name": "Mine", "metadata": OPEN},
}
PROFILE = '[layers]\nlandlock = "off"\n[resources]\nmemory = "unlimited"\n'  # a person's own, by a name of the site's


def furnish(home: Path) -> None:
    """Kernelspecs and profiles, where a person would have put them before the server was locked."""
    for folder in (home / ".local/share/jupyter/kernels", home / ".ipython/kernels"):
        for name, about in OWN.items():
            (folder / name).mkdir(parents=True)
            (folder / name / "kernel.json").write_text(json.dumps(PLAIN | about))
    profiles = home / ".jupyter/isolated-python/profiles"
    profiles.mkdir(parents=True)
    for name in ("shared", "standard", "mine"):
        (profiles / f"{name}.toml").write_text(PROFILE)


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], homes: Callable[[], Path], etc: Path) -> Server:
    home = homes()
    furnish(home)
    file = etc / "jupyter_server_config.py"
    return start({}, home=home, cwd=home / "notebooks", env=locked(home, etc), configuration=file)


@pytest.fixture(scope="module")
def unlocked(start: Callable[..., Server], homes: Callable[[], Path]) -> Server:
    home = homes()
    furnish(home)
    return start({}, home=home, cwd=home / "notebooks")


@pytest.fixture(autouse=True)
def _end_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"server", "unlocked"} & {*request.fixturenames}:
        one: Server = request.getfixturevalue(name)
        for kernel in one.ask("GET", "api/kernels")[1]:
            one.ask("DELETE", f"api/kernels/{kernel['id']}")


def begin(server: Server, name: str, **more: Any) -> str:
    status, kernel = server.ask("POST", "api/kernels", {"name": name, **more})
    assert status == 201, kernel
    return str(kernel["id"])


@pytest.mark.parametrize("name", ["python3", "isolated-python"])
def test_a_name_of_the_administrators_starts_a_sandbox_whatever_shadows_it(server: Server, name: str) -> None:
    assert text(server, begin(server, name), LOOK) == "sandbox"


def test_a_restart_begins_in_a_sandbox_again(server: Server) -> None:
    kernel = begin(server, "python3", path="x.ipynb")
    assert server.ask("POST", f"api/kernels/{kernel}/restart", {})[0] == 200
    assert text(server, kernel, LOOK) == "sandbox"


@pytest.mark.thorough
def test_the_lock_holds_for_a_server_of_an_ordinary_user(
    start: Callable[..., Server], ordinary: Ordinary, etc: Path
) -> None:
    """Such as a hub starts; where the machine has no cgroup for such a user, without one."""
    if os.geteuid() != 0:
        pytest.skip("the other tests of this file are that already")
    furnish(ordinary.home)
    (ordinary.home / "notebooks").mkdir()
    for folder, _, _ in os.walk(ordinary.home):
        os.chown(folder, ordinary.uid, ordinary.gid)
    mine = ordinary.home.parent / f"{ordinary.home.name}-etc"
    shutil.copytree(etc, mine)
    mine.chmod(0o755)
    try:
        with (mine / "jupyter_server_config.py").open("a") as file:
            file.write('c.IsolatedProvisioner.overrides = {"layers": {"cgroup": "prefer"}}\n')
        who = {"user": ordinary.uid, "group": ordinary.gid, "extra_groups": []}
        file_name = mine / "jupyter_server_config.py"
        one = start({}, home=ordinary.home, env=locked(ordinary.home, mine), configuration=file_name, **who)
        for name in ("python3", "isolated-python"):
            assert text(one, begin(one, name, path="x.ipynb"), LOOK) == "sandbox"
        assert one.ask("POST", "api/kernels", {"name": "mine-local"})[0] >= 400
        one.close()
    finally:
        shutil.rmtree(mine)


def test_the_same_names_start_plain_kernels_on_a_server_that_is_not_locked(unlocked: Server) -> None:
    """The control: what is refused above works here."""
    assert {text(unlocked, begin(unlocked, name), LOOK) for name in ("python3", "mine-local")} == {"host"}


def test_kernels_of_a_person_are_not_known(server: Server) -> None:
    for name in ("mine", "mine-local", "mine-open", "../python3", "MINE"):
        status, answer = server.ask("POST", "api/kernels", {"name": name})
        assert status >= 400, answer
    known = server.ask("GET", "api/kernelspecs")[1]["kernelspecs"]
    assert {*known} >= {"python3", "isolated-python"}
    assert not {"mine", "mine-local", "mine-open"} & {*known}
    stanzas = [one["spec"]["metadata"]["kernel_provisioner"]["provisioner_name"] for one in known.values()]
    assert {*stanzas} == {"isolated-python"}


def test_a_session_that_is_begun_or_changed_is_in_a_sandbox(server: Server) -> None:
    """Also where the request says what it would like of the kernel."""
    wanted = {"name": "python3", "metadata": LOCAL, "kernel_provisioner": LOCAL, "env": {"X": "1"}}
    about = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": wanted}
    status, session = server.ask("POST", "api/sessions", about)
    assert status == 201, session
    assert text(server, session["kernel"]["id"], LOOK) == "sandbox"
    status, changed = server.ask("PATCH", f"api/sessions/{session['id']}", {"kernel": {"name": "isolated-python"}})
    assert status == 200, changed
    assert text(server, changed["kernel"]["id"], LOOK) == "sandbox"
    assert server.ask("PATCH", f"api/sessions/{session['id']}", {"kernel": {"name": "mine-local"}})[0] >= 400


def test_a_profile_of_a_persons_own_is_not_read(server: Server) -> None:
    """The site's `standard` has a memory limit, the person's of that name none, and Landlock off."""
    kernel = begin(server, "isolated-python")
    assert text(server, kernel, "%sandbox").count("standard")
    # Without Landlock this would succeed: the view is mounted read-only, but for the kernel's own places.
    assert "PermissionError" in text(server, kernel, "import os; os.symlink('/etc', 'another')")


@pytest.mark.parametrize("path", ["../..", "../../../../../../../etc", ".ssh/x.ipynb", "link/x.ipynb", "link"])
def test_no_path_leads_a_workspace_out_of_the_notebooks(server: Server, path: str) -> None:
    """By dots, to a hidden folder, by a link."""
    (server.notebooks / ".ssh").mkdir(exist_ok=True)
    link = server.notebooks / "link"
    if not link.is_symlink():
        link.symlink_to("/etc")
    about = {"path": path, "type": "notebook", "name": "x", "kernel": {"name": "python3"}}
    status, answer = server.ask("POST", "api/sessions", about)
    assert status in (404, 500)
    message = answer["message"]
    assert any(words in message for words in ("is locked", "whole home folder", "outside root", "behind the link")), (
        message
    )
    assert server.ask("POST", "api/kernels", {"name": "python3", "path": path})[0] == 500
    assert server.ask("GET", "api/kernels")[1] == []


def test_a_workspace_among_the_notebooks_is_given(server: Server) -> None:
    (server.notebooks / "course").mkdir(exist_ok=True)
    kernel = begin(server, "python3", path="course/x.ipynb")
    text(server, kernel, "open('made', 'w').write('x')")
    assert (server.notebooks / "course" / "made").read_text() == "x"


def test_a_kernel_leaves_no_link_for_the_file_browser_to_follow(server: Server, unlocked: Server) -> None:
    (server.notebooks / "trap").mkdir()
    (unlocked.notebooks / "trap").mkdir()
    trap = "import os; os.symlink('/etc/passwd', 'passwd'); print('made')"
    assert "PermissionError" in text(server, begin(server, "python3", path="trap/x.ipynb"), trap)
    assert server.ask("GET", "api/contents/trap/passwd")[0] == 404
    assert text(unlocked, begin(unlocked, "isolated-python", path="trap/x.ipynb"), trap) == "made"
    assert unlocked.ask("GET", "api/contents/trap/passwd")[0] == 200  # the control


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "api/terminals"),
        ("GET", "api/terminals"),
        ("GET", "lsp/status"),
        ("POST", "lab/api/extensions"),
        ("GET", "nbconvert/pdf/n.ipynb"),
        ("GET", "nbconvert/webpdf/n.ipynb"),
        ("PUT", "api/contents/.profile"),
        ("GET", "api/contents/.ssh"),
    ],
)
def test_the_doors_beside_the_kernels_are_shut(server: Server, unlocked: Server, method: str, path: str) -> None:
    """Those that are shut on other servers of this machine, too, for want of a program, say that it is by a setting."""
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (server.notebooks / "n.ipynb").write_text(json.dumps(notebook))
    (server.notebooks / ".ssh").mkdir(exist_ok=True)
    asked = {"type": "file", "format": "text", "content": "x", "cmd": "install", "extension_name": "nothing"}
    content = asked if method != "GET" else None
    status, answer = server.ask(method, path, content)
    assert status >= 400, answer
    if path.startswith("nbconvert"):
        assert server.logs(f'Exporter "{path.split("/")[1]}" disabled in configuration')
    elif path in ("api/terminals", "lsp/status"):
        assert unlocked.ask(method, path, content)[0] < 400  # the control
    assert not (server.notebooks / ".profile").exists()


def test_the_server_imports_nothing_that_lies_among_the_notebooks(tmp_path: Path) -> None:
    """`python -m jupyterlab` looks for modules in the current folder first."""
    (tmp_path / "trojan.py").write_text("print('sprung')\n")
    lock = "from isolated_python.kernelspecs import LockedKernelSpecManager; LockedKernelSpecManager()\n"
    for first, said in (("", "sprung"), (lock, "")):
        done = subprocess.run(
            [sys.executable, "-c", first + "import trojan"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == said
        assert ("No module named 'trojan'" in done.stderr) == (not said)


def test_a_download_runs_nothing(server: Server) -> None:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None}
    cell["source"] = "print(6 * 7)"
    kernelspec = {"name": "mine-local", "display_name": "Mine", "language": "python"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5}
    (server.notebooks / "run.ipynb").write_text(json.dumps(notebook))
    status, page = server.ask("GET", "nbconvert/html/run.ipynb")
    assert status == 200
    assert "42" not in page.partition("<body")[2]


NBCLIENT = """
import os, sys
from jupyter_server.serverapp import ServerApp
app = ServerApp()
app.initialize([], new_httpserver=False)
import nbformat
from nbclient import NotebookClient
cell = nbformat.v4.new_code_cell({look!r})
notebook = nbformat.v4.new_notebook(cells=[cell])
client = NotebookClient(notebook, kernel_name={name!r}, timeout=60)
client.execute(cwd=os.getcwd())
print(notebook.cells[0].outputs[0].text.strip())
"""


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["python3", "mine", "mine-local"])
def test_code_of_the_server_that_starts_kernels_by_itself_gets_sandboxes(
    homes: Callable[[], Path], etc: Path, name: str
) -> None:
    """As nbgrader's validation does: it asks jupyter_client, which finds kernelspecs of a person's own."""
    home = homes()
    furnish(home)
    work = home / "work"
    work.mkdir()
    code = NBCLIENT.format(look=LOOK, name=name)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=work, env=locked(home, etc), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "sandbox", done.stderr


def test_a_server_that_reads_a_persons_configuration_does_not_start(homes: Callable[[], Path], etc: Path) -> None:
    home = homes()
    command = [sys.executable, "-P", "-m", "jupyter_server", f"--config={etc}/jupyter_server_config.py", "--allow-root"]
    done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert f"start it with JUPYTER_CONFIG_DIR={etc} PYTHONNOUSERSITE=1" in done.stderr


def enabled(*names: str) -> dict[str, dict[str, bool]]:
    return {"jpserver_extensions": dict.fromkeys(names, True)}


def extensions(home: Path, *names: str) -> dict[str, str]:
    """Server extensions that do nothing, where Python finds them."""
    for name in names:
        (home / "packages").mkdir(exist_ok=True)
        points = f"def _jupyter_server_extension_points():\n    return [{{'module': {name!r}}}]\n\n\n"
        (home / "packages" / f"{name}.py").write_text(points + "def _load_jupyter_server_extension(app):\n    pass\n")
    return {"PYTHONPATH": str(home / "packages")}


def doctor(ordinary: Ordinary, env: dict[str, str]) -> dict[str, dict[str, str]]:
    command = [
        sys.executable,
        "-P",
        "-c",
        "from isolated_python.cli import main; main()",
        "doctor",
        "--server",
        "--json",
    ]
    process = ordinary.start(command, env=env)
    said, complained = process.communicate(timeout=60)
    assert said, complained
    found = {one["layer"]: one for one in json.loads(said)["server"]}
    assert process.returncode == 1 or not any(one["verdict"] == "FAIL" for one in found.values())
    return found


def test_the_doctor_names_every_door_that_stands_open(ordinary: Ordinary) -> None:
    """Each with the setting that shuts it; the terminals' is the one that the next test's server has."""
    opened = ordinary.home / ".jupyter" / "jupyter_server_config.json"
    opened.parent.mkdir()
    settings: dict[str, Any] = {"ExecutePreprocessor": {"enabled": True}, "ContentsManager": {"allow_hidden": True}}
    settings["ServerApp"] = {"allow_external_kernels": True, **enabled("jupyter_server_proxy", "somebodys")}
    opened.write_text(json.dumps(settings))
    found = doctor(ordinary, ordinary.environment | extensions(ordinary.home, "jupyter_server_proxy", "somebodys"))
    shut = [name for name, one in found.items() if one["verdict"] != "FAIL"]
    assert shut == []
    assert {*found} >= {"kernels", "terminals", "nbconvert runs", "extension manager", "user configuration"}
    assert found["terminals"]["remedy"] == "c.ServerApp.terminals_enabled = False"
    assert (
        found["jupyter_server_proxy"]["remedy"] == 'c.ServerApp.jpserver_extensions = {"jupyter_server_proxy": False}'
    )
    assert "not known here" in found["somebodys"]["cause"]
    assert all("c." in one["remedy"] or "JUPYTER_CONFIG_DIR" in one["remedy"] for one in found.values())


def test_the_doctor_finds_no_door_open_on_a_locked_server(ordinary: Ordinary, etc: Path) -> None:
    """Also where a package switches itself on, as jupyter-server-proxy does when it is installed."""
    found = doctor(ordinary, locked(ordinary.home, etc) | extensions(ordinary.home, "jupyter_server_proxy"))
    assert {name: one["cause"] for name, one in found.items() if one["verdict"] != "PASS"} == {}


def test_a_front_end_that_runs_the_command_by_itself_gets_a_sentence_and_no_kernel(tmp_path: Path) -> None:
    spec = json.loads((Path(sys.prefix) / "share/jupyter/kernels/isolated-python/kernel.json").read_text())
    connection = tmp_path / "connection.json"
    command = [word.replace("{connection_file}", str(connection)) for word in spec["argv"]]
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (78, "", argv.SENTENCE + "\n")
    assert not os.path.lexists(connection)

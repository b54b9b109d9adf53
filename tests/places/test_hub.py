"""A real JupyterHub: two users of the machine, a server each under their own uid, kernels from the service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from isolated_python.engine.identities import COUNT, FIRST

from tests.conftest import BIN, Ordinary
from tests.kernel.conftest import outlive, watched
from tests.machine import USERS, Service, service, user

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy" / "jupyterhub"
HUB = "isolated-hub"  # the user that a hub without rights runs as
PROXY = ROOT / ".cache" / "proxy" / "node_modules" / ".bin" / "configurable-http-proxy"
QUOTA = '[each_user]\nkernels = 2\nmemory = "1 GiB"\nstarts = 1000\n'
CONFIG = """
c = get_config()
load_subconfig({deployed!r})
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_port = {hub_port}
c.JupyterHub.db_url = "sqlite:///:memory:"
c.JupyterHub.cleanup_servers = True
c.ConfigurableHTTPProxy.command = [{proxy!r}]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "localprocess"
{more}
c.Authenticator.allowed_users = {users!r}
c.JupyterHub.services = [{{"name": "test", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [
    {{"name": "test", "services": ["test"], "scopes": ["admin:users", "admin:servers", "access:servers", "list:users"]}}
]
c.Spawner.environment.update({environment!r})
c.Spawner.start_timeout = c.Spawner.http_timeout = {seconds}
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a hub with users of the machine is root's"),
    pytest.mark.timeout(240),
]


class Hub:
    """A hub, and a service of it that may do everything a user may at their server."""

    slowness = 1  # by how much everything takes longer than elsewhere

    def __init__(self, folder: Path, service: str, *, before: Sequence[str] = (), more: str = "") -> None:
        """`service`: its socket. `before`: a command that the hub is started by. `more`: a configuration of its own."""
        self.port, self.hub_port, self.api_port = free_ports(3)
        self.url, self.token = f"http://127.0.0.1:{self.port}", secrets.token_hex(16)
        folder.chmod(0o755)
        (folder / "jupyter").mkdir()
        shutil.copy(DEPLOY.parent / "jupyter_server_config.py", folder / "jupyter")
        with (folder / "jupyter" / "jupyter_server_config.py").open("a") as file:
            file.write('c.ServerApp.jpserver_extensions["isolated_python.ahead"] = True\n')
        (folder / "jupyter" / "migrated").touch()  # see docs/how-to/jupyterhub.md
        config = folder / "jupyterhub_config.py"
        config.write_text(
            CONFIG.format(
                deployed=str(DEPLOY / "jupyterhub_config.py"), port=self.port, hub_port=self.hub_port,
                api_port=self.api_port, proxy=str(PROXY), users=set(USERS), token=self.token, more=more,
                seconds=100 * self.slowness,
                environment={
                    "ISOLATED_PYTHON_SERVICE": service, "JUPYTERHUB_SINGLEUSER_APP": "jupyter-server",
                    "JUPYTER_CONFIG_DIR": str(folder / "jupyter"), "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
                },
            )
        )  # fmt: skip
        environment = {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
        environment["CONFIGPROXY_AUTH_TOKEN"] = self.token
        with (folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*before, f"{BIN}/jupyterhub", "-f", str(config)], cwd=folder, env=environment, stdout=log, stderr=log
            )
        self.log = folder / "log"

    def ask(self, method: str, path: str, body: Any = None, *, seconds: float = 60) -> tuple[int, Any]:
        """A request with the token of the service; status and what came back."""
        data = json.dumps(body).encode() if body is not None else None
        asked = urllib.request.Request(self.url + path, data, method=method)
        asked.add_header("Authorization", f"token {self.token}")
        try:
            with urllib.request.urlopen(asked, timeout=seconds * self.slowness) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read()
        try:
            return status, json.loads(text) if text else None
        except ValueError:
            return status, text.decode()

    def ready(self) -> None:
        """Its log says when; where it ends instead, the log says why."""
        with subprocess.Popen(
            ["tail", "-n", "+1", f"--pid={self.process.pid}", "-F", self.log], stdout=subprocess.PIPE, text=True
        ) as tail:
            assert tail.stdout is not None
            lines = []
            for line in tail.stdout:
                lines.append(line)
                if "JupyterHub is now running" in line:
                    tail.terminate()
                    return
        raise AssertionError("the hub does not run:\n" + "".join(lines[-30:]))

    def server(self, name: str) -> None:
        """Start a user's server, and follow it until it stands."""
        self.ask("POST", f"/hub/api/users/{name}")
        status, answer = self.ask("POST", f"/hub/api/users/{name}/server", seconds=120)
        assert status in (201, 202), (answer, self.log.read_text()[-3000:])
        asked = urllib.request.Request(f"{self.url}/hub/api/users/{name}/server/progress")
        asked.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(asked, timeout=120 * self.slowness) as events:
            for line in events:
                if line.startswith(b"data:") and (event := json.loads(line[5:])).get("ready"):
                    return
                assert not (line.startswith(b"data:") and event.get("failed")), (event, self.log.read_text()[-3000:])
        raise AssertionError("the server does not stand:\n" + self.log.read_text()[-3000:])

    def start(self, name: str, kernel: str = "python3") -> str:
        status, answer = self.asked(name, kernel)
        assert status == 201, f"{answer}\n{self.log.read_text()[-3000:]}"  # a string is told in full
        return str(answer["id"])

    def asked(self, name: str, kernel: str = "python3") -> tuple[int, Any]:
        """For the kernel of a notebook, as a browser asks."""
        return self.ask("POST", f"/user/{name}/api/kernels", {"name": kernel, "path": "notebook.ipynb"})

    def run(self, name: str, kernel: str, code: str) -> str:
        """What a cell prints; of an error, its last line."""
        return asyncio.run(asyncio.wait_for(self._run(name, kernel, code), 60 * self.slowness))

    async def _run(self, name: str, kernel: str, code: str) -> str:
        from tornado.httpclient import HTTPRequest
        from tornado.websocket import websocket_connect

        url = f"{self.url.replace('http', 'ws')}/user/{name}/api/kernels/{kernel}/channels"
        connection = await websocket_connect(HTTPRequest(url, headers={"Authorization": f"token {self.token}"}))
        header = {"msg_id": secrets.token_hex(8), "msg_type": "execute_request", "session": "s", "username": ""}
        header |= {"version": "5.3", "date": "2026-01-01T00:00:00Z"}
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False, "user_expressions": {}}
        asked = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        await connection.write_message(json.dumps({**asked, "buffers": []}))
        text: list[str] = []
        try:
            while (line := await connection.read_message()) is not None:
                message = json.loads(line)
                if message["parent_header"].get("msg_id") != header["msg_id"]:
                    continue
                match message["msg_type"]:
                    case "stream":
                        text.append(message["content"]["text"])
                    case "error":
                        text.append(f"{message['content']['ename']}: {message['content']['evalue']}")
                    case "status" if message["content"]["execution_state"] == "idle":
                        break
        finally:
            connection.close()
            while await connection.read_message() is not None:  # the other side hangs up, too
                pass
        return "".join(text).strip()

    def processes(self, name: str) -> list[psutil.Process]:
        """Of a user's server: those with the user's uid, below the hub."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in below if one.username() == name]

    def close(self) -> None:
        below = watched(psutil.Process(self.process.pid).children(recursive=True))
        self.process.terminate()
        try:
            self.process.wait(60 * self.slowness)
        finally:
            self.process.kill()
        left = outlive(below, 20)
        assert not left, f"left behind: {left}"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def users() -> Iterator[dict[str, Ordinary]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(user(name)) for name in USERS}


@pytest.fixture
def shared() -> Iterator[Service]:
    with service(QUOTA) as one:
        yield one


@pytest.fixture
def hub(shared: Service, users: dict[str, Ordinary]) -> Iterator[Hub]:
    folder = Path(tempfile.mkdtemp(prefix="isolated-hub-"))
    try:
        one = Hub(folder, shared.path)
        try:
            one.ready()
            yield one
        finally:
            one.close()
    finally:
        shutil.rmtree(folder)


# What a kernel looks for. Each line of the answer is what it found of one of them.
LOOK = """
import json, os, socket
def seen(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__
print(json.dumps({
    "theirs": seen(lambda: os.listdir(%r)),
    "homes": seen(lambda: os.listdir("/home")),
    "shadow": seen(lambda: open("/etc/shadow").read()),
    "service": seen(lambda: os.listdir("/run/isolated-python")),
    "hub": seen(lambda: socket.create_connection(("127.0.0.1", %d), 5) and "connected"),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "tokens": [name for name in os.environ if "TOKEN" in name or "JUPYTERHUB" in name],
    "uid": os.getuid(),
}))
"""


def apart(hub: Hub, users: dict[str, Ordinary], kernels: dict[str, str]) -> None:
    """Neither user's kernel finds the other, the host, the hub or the service; files stay their owners'."""
    for name, other in zip(USERS, reversed(USERS), strict=True):
        found = json.loads(hub.run(name, kernels[name], LOOK % (str(users[other].home), hub.hub_port)))
        assert found.pop("processes") < 8
        assert found == {
            "theirs": "FileNotFoundError", "homes": ["user"], "shadow": "FileNotFoundError",
            "service": "FileNotFoundError", "hub": "ConnectionRefusedError", "tokens": [], "uid": 1000,
        }  # fmt: skip
        hub.run(name, kernels[name], f"open('mine.txt', 'w').write({name!r})")
        mine = Path(f"/home/{name}/notebooks/mine.txt")
        assert (mine.read_text(), mine.owner()) == (name, name)
        mine.unlink()


def test_two_users_of_a_locked_hub_have_kernels_that_know_neither_each_other_nor_the_host(
    hub: Hub, shared: Service, users: dict[str, Ordinary]
) -> None:
    """Servers as their users, kernels by the service: apart, limited per user, and gone with their server.

    All of it, the lock too, by files that were copied from deploy/.
    """
    alice, bob = USERS
    hers = Path(f"/home/{alice}/.local/share/jupyter/kernels/mine")
    hers.mkdir(parents=True)
    plain = {"argv": [f"{BIN}/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Mine"}
    (hers / "kernel.json").write_text(json.dumps(plain | {"language": "python"}))
    for path in (hers, *hers.parents[:4]):
        os.chown(path, users[alice].uid, users[alice].gid)
    hub.server(alice)
    assert hub.asked(alice, "mine")[0] >= 400
    assert hub.ask("POST", f"/user/{alice}/api/terminals")[0] >= 400
    assert "mine" not in hub.ask("GET", f"/user/{alice}/api/kernelspecs")[1]["kernelspecs"]
    hub.server(bob)
    kernels = {name: hub.start(name) for name in USERS}
    apart(hub, users, kernels)
    supervisors = {name: shared.supervisor(users[name]) for name in USERS}
    identities = {name: {*below(supervisors[name]).values()} for name in USERS}
    assert identities[alice].isdisjoint(identities[bob])
    assert all(FIRST <= uid < FIRST + COUNT for name in USERS for uid in identities[name])

    # The quota is a user's own: alice has used hers up, bob has not.
    hub.start(alice)
    assert hub.asked(alice)[0] == 500
    assert "gives each user no more than 2" in hub.log.read_text()
    hub.start(bob)

    assert "nothing could be made ready" not in hub.log.read_text()

    # A stopped server leaves nothing, and the other goes on.
    gone = watched([supervisors[alice], *below(supervisors[alice])])
    status, _ = hub.ask("DELETE", f"/hub/api/users/{alice}/server")
    assert status in (202, 204)
    assert outlive(gone, 30) == []
    assert hub.run(bob, kernels[bob], "print(6 * 7)") == "42"
    hub.ask("DELETE", f"/hub/api/users/{bob}/server")
    shared.clear()


def below(supervisor: psutil.Process) -> dict[psutil.Process, int]:
    """The kernels, relay and zygotes of a user, and the uid of each: none of them is root's."""
    found = {}
    for one in supervisor.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ends meanwhile
            found[one] = one.uids().real
    return {one: uid for one, uid in found.items() if uid != 0}


# A hub of SudoSpawner's, in a world of its own: the rule for sudo and the group of people are there as an administrator
# would have written them, and nowhere else. From there the hub goes on as a user without any right.
SUDO = """
set -e
mount --make-rprivate /
mount --bind sudoers.d /etc/sudoers.d
mount --bind group /etc/group
exec setpriv --reuid={hub} --regid={hub} --init-groups "$@"
"""


@pytest.fixture
def sudo(shared: Service, users: dict[str, Ordinary]) -> Iterator[Hub]:
    """A hub that is not root, with the files of deploy/jupyterhub at places of the test's."""
    with tempfile.TemporaryDirectory(prefix="isolated-hub-") as name, user(HUB) as who:
        folder, bin = Path(name), Path(name) / "bin"
        bin.mkdir()
        for program in ("sudospawner", "jupyterhub-singleuser"):
            (bin / program).symlink_to(f"{BIN}/{program}")
        shutil.copy(DEPLOY / "sudospawner-singleuser", bin)
        (folder / "sudoers.d").mkdir()
        rule = (DEPLOY / "sudoers").read_text()
        rule = rule.replace("jupyterhub ALL=", f"{HUB} ALL=").replace("/opt/jupyterhub/bin", str(bin))
        (folder / "sudoers.d" / "jupyterhub").write_text(rule)
        (folder / "sudoers.d" / "jupyterhub").chmod(0o440)
        (folder / "group").write_text(Path("/etc/group").read_text() + f"notebooks:x:59999:{','.join(USERS)}\n")
        (folder / "group").chmod(0o644)
        more = f"load_subconfig({str(DEPLOY / 'sudospawner_config.py')!r})\n"
        more += f'c.SudoSpawner.sudospawner_path = "{bin}/sudospawner"\n'
        more += f'c.JupyterHub.cookie_secret_file = "{who.home}/secret"\n'
        more += f'c.ConfigurableHTTPProxy.pid_file = "{who.home}/proxy.pid"\n'
        before = ["unshare", "--mount", "sh", "-c", SUDO.format(hub=HUB), "sh"]
        one = Hub(folder, shared.path, before=before, more=more)
        try:
            one.ready()
            yield one
        finally:
            one.close()


@pytest.mark.thorough
def test_a_hub_without_rights_starts_servers_by_sudo_and_their_kernels_come_from_the_service(
    sudo: Hub, shared: Service, users: dict[str, Ordinary]
) -> None:
    """SudoSpawner, with the rule and the script of deploy/: one program, for one group, and nothing else."""
    alice, bob = USERS
    assert psutil.Process(sudo.process.pid).username() == HUB
    for name in USERS:
        sudo.server(name)
        kernel = sudo.start(name)
        found = json.loads(sudo.run(name, kernel, LOOK % (str(users[name].home), sudo.hub_port)))
        assert (found["theirs"], found["shadow"], found["uid"]) == ("FileNotFoundError", "FileNotFoundError", 1000)
        sudo.run(name, kernel, "open('mine.txt', 'w').close()")
        mine = Path(f"/home/{name}/notebooks/mine.txt")
        assert mine.owner() == name
    supervisors = {name: shared.supervisor(users[name]) for name in USERS}
    for name in USERS:
        assert {*below(supervisors[name]).values()} <= {*range(FIRST, FIRST + COUNT)}
    # In the hub's own place, as the hub: no other program, and nobody who is not of the group.
    inside = ["nsenter", f"--target={sudo.process.pid}", "--mount", "setpriv", f"--reuid={HUB}", f"--regid={HUB}"]
    inside += ["--init-groups", "sudo", "-n", "-u"]
    program = Path(sudo.log.parent) / "bin" / "sudospawner"
    for command in ([alice, "id"], ["root", program], [HUB, program], [alice, f"{BIN}/jupyterhub-singleuser"]):
        done = subprocess.run([*inside, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, ""), command
        assert "password is required" in done.stderr or "not allowed" in done.stderr
    gone = watched([supervisors[alice], *below(supervisors[alice])])
    assert sudo.ask("DELETE", f"/hub/api/users/{alice}/server")[0] in (202, 204)
    assert outlive(gone, 30) == []
    sudo.ask("DELETE", f"/hub/api/users/{bob}/server")
    shared.clear()


@pytest.mark.thorough
def test_a_server_without_the_service_gets_no_kernel(hub: Hub, shared: Service) -> None:
    """Not one without limits, either; and when the service is back, so are kernels, without a restart of the server."""
    alice = USERS[0]
    hub.server(alice)
    first = hub.start(alice)
    assert hub.run(alice, first, "print(1)") == "1"
    shared.process.kill()
    shared.process.communicate()
    os.unlink(shared.path)
    assert hub.asked(alice)[0] == 500
    assert "does not answer" in hub.log.read_text()
    shared.process = Service(shared.folder, QUOTA).process
    assert hub.run(alice, hub.start(alice), "print(2)") == "2"


@pytest.mark.thorough
def test_a_hub_that_is_killed_leaves_its_servers_and_they_their_kernels(hub: Hub, shared: Service) -> None:
    """As a hub does it: its servers go on without it. Their end is the end of their kernels, however it comes."""
    alice = USERS[0]
    hub.server(alice)
    hub.start(alice)
    servers = hub.processes(alice)
    proxies = [one for one in psutil.Process(hub.process.pid).children() if one not in servers]
    hub.process.kill()
    hub.process.wait()
    assert shared.below() != []
    for one in (*servers, *proxies):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    shared.clear()
    hub.process = subprocess.Popen(["true"])


@pytest.mark.thorough
@pytest.mark.parametrize("harm", ["memory", "processes", "disk"])
def test_what_one_user_wrecks_is_theirs(hub: Hub, shared: Service, harm: str) -> None:
    alice, bob = USERS
    hub.server(alice)
    hub.server(bob)
    his, hers = hub.start(bob), hub.start(alice)
    codes: dict[str, str] = {
        "memory": "blocks = []\nfor _ in range(5000): blocks.append(bytearray(1 << 20))",
        "processes": "import os\nfor _ in range(5000):\n  if os.fork() == 0: os.read(os.pipe()[0], 1)",
        "disk": "import os\nwith open('/tmp/x', 'wb') as file:\n  for _ in range(5000): file.write(bytes(1 << 20))",
    }
    end: Callable[[str], bool] = lambda text: any(word in text for word in ("Error", "KernelDied"))  # noqa: E731
    assert end(hub.run(alice, hers, codes[harm]))
    assert hub.run(bob, his, "print(sum(bytearray(50 << 20)))") == "0"

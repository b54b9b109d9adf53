"""A JupyterHub whose servers are units of systemd's, from the files of deploy/: with the service, and without."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from isolated_python.engine.identities import COUNT, FIRST
from isolated_python.linux import cgroups
from isolated_python.policy.service import SOCKET

from tests.conftest import Ordinary
from tests.kernel.conftest import outlive, watched
from tests.machine import USERS
from tests.places.test_hub import DEPLOY, Hub, apart, below
from tests.vm.inside.conftest import GROUP, SECONDS, SETTINGS, Unit, processes_below, run

PROXY = "/opt/proxy/node_modules/.bin/configurable-http-proxy"
UNITS = f"load_subconfig({str(DEPLOY / 'systemdspawner_config.py')!r})\n"

# More memory than is granted, in the cell of a kernel that was asked for as every other.
TOO_MUCH = "blocks = []\nfor _ in range(5000): blocks.append(bytearray(1 << 20))"

pytestmark = pytest.mark.timeout(1800)


class SlowHub(Hub):
    """Beside a proxy of ours: a hub waits no longer than ten seconds for the one that it starts itself."""

    slowness = 8

    def __init__(self, folder: Path, service: str, more: str) -> None:
        super().__init__(folder, service, more=more + "c.ConfigurableHTTPProxy.should_start = False\n")
        ports = (f"--port={self.port}", f"--api-port={self.api_port}")
        command = [PROXY, "--ip=127.0.0.1", "--api-ip=127.0.0.1", *ports, "--log-level=warn"]
        environment = {"PATH": "/usr/bin:/bin", "CONFIGPROXY_AUTH_TOKEN": self.token}
        self.proxy = subprocess.Popen(command, env=environment)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.proxy.terminate()
            self.proxy.wait()


@contextmanager
def a_hub(service: str, more: str = "") -> Iterator[SlowHub]:
    """Its folder is not in /tmp: a server has one of its own."""
    folder = Path(tempfile.mkdtemp(prefix="isolated-hub-", dir="/srv"))
    try:
        one = SlowHub(folder, service, UNITS + more)
        try:
            one.ready()
            yield one
        finally:
            one.close()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def users(alice: Ordinary, bob: Ordinary) -> dict[str, Ordinary]:
    return dict(zip(USERS, (alice, bob), strict=True))


def group_of(name: str) -> Path:
    """Of a user's server: systemdspawner's name for its unit."""
    return Path(f"/sys/fs/cgroup/system.slice/jupyter-{name}-singleuser.service")


def test_servers_are_units_and_their_kernels_are_the_services(unit: Unit, users: dict[str, Ordinary]) -> None:
    """Apart, limited per user, and gone with their server."""
    SETTINGS.parent.mkdir(exist_ok=True)
    SETTINGS.write_text('[each_user]\nkernels = 1\nmemory = "400 MiB"\n')
    alice, bob = USERS
    with a_hub(SOCKET) as hub:
        for name in USERS:
            hub.server(name)
        kernels = {name: hub.start(name) for name in USERS}
        apart(hub, users, kernels)
        supervisors = {name: unit.supervisor(users[name]) for name in USERS}
        identities = {name: {*below(supervisors[name]).values()} for name in USERS}
        assert identities[alice].isdisjoint(identities[bob])
        assert all(FIRST <= uid < FIRST + COUNT for name in USERS for uid in identities[name])
        assert all(GROUP in Path(cgroups.own(one.pid).v2).parents for one in supervisors.values())
        for name in USERS:
            assert all(one.username() == name for one in processes_below(group_of(name)))

        # What she has used up is hers.
        assert hub.asked(alice)[0] == 500
        assert "gives each user no more than 1" in run("journalctl", "-q", "-u", group_of(alice).name)
        assert "KernelDied" in hub.run(alice, kernels[alice], TOO_MUCH)
        assert hub.run(bob, kernels[bob], "print(sum(bytearray(50 << 20)))") == "0"

        # A stopped server leaves nothing, and the other goes on.
        gone = watched([supervisors[alice], *below(supervisors[alice]), *processes_below(group_of(alice))])
        assert hub.ask("DELETE", f"/hub/api/users/{alice}/server")[0] in (202, 204)
        assert outlive(gone, SECONDS) == []
        assert not group_of(alice).exists()
        assert hub.run(bob, kernels[bob], "print(6 * 7)") == "42"
        hub.ask("DELETE", f"/hub/api/users/{bob}/server")


def test_servers_without_the_service_divide_the_groups_of_their_units(users: dict[str, Ordinary]) -> None:
    """Each has a supervisor of its own; a kernel's limits are in a group below its server's."""
    alice, bob = USERS
    with a_hub("off", 'c.SystemdSpawner.mem_limit = "4G"\n') as hub:
        for name in USERS:
            hub.server(name)
        kernels = {name: hub.start(name) for name in USERS}
        apart(hub, users, kernels)
        for name in USERS:
            groups = group_of(name).glob("isolated-python-*/kernel-*")  # one of them waits for the next kernel
            assert {(group / "memory.max").read_text().strip() for group in groups} - {"max"}
            assert all(one.username() == name for one in processes_below(group_of(name)))
        gone = watched(processes_below(group_of(alice)))
        assert len(gone) > 3
        assert hub.ask("DELETE", f"/hub/api/users/{alice}/server")[0] in (202, 204)
        assert outlive(gone, SECONDS) == []
        assert run("systemctl", "show", group_of(alice).name, "-P", "Result") == "success"
        assert not group_of(alice).exists()
        assert hub.run(bob, kernels[bob], "print(6 * 7)") == "42"
        hub.ask("DELETE", f"/hub/api/users/{bob}/server")

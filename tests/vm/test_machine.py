"""The machine is what the tests inside take it for."""

from __future__ import annotations

from tests.vm import image
from tests.vm.machine import Machine
from tests.vm.product import PYTHON

# A kernel of root's, its limits as Linux's files say them before and after.
RELOAD = """
import subprocess, tempfile
from isolated_python.linux import cgroups
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="isolated-python", startup_timeout=120, cwd=tempfile.mkdtemp())
group = cgroups.own(manager.provisioner.pid).v2
limits = lambda: [open(f"{group}/{name}").read().strip() for name in ("memory.max", "pids.max", "cpu.max")]
before = limits()
subprocess.run(["systemctl", "daemon-reload"], check=True)
print(before == limits(), *before)
client.stop_channels()
manager.shutdown_kernel(now=True)
"""


def test_it_has_cgroup_v2_alone_and_a_user_manager(machine: Machine) -> None:
    """The unified hierarchy, systemd as process 1, and a bus for who logs in."""
    assert machine.run("root", "stat", "-fc", "%T", "/sys/fs/cgroup").strip() == "cgroup2fs"
    assert machine.run("root", "cat", "/proc/1/comm").strip() == "systemd"
    assert machine.run(image.PERSON, "systemctl", "--user", "is-active", "dbus.socket").strip() == "active"


def test_it_reaches_nothing_outside(machine: Machine) -> None:
    """Its card forwards one port to it and nothing from it: not even the gateway answers."""
    ask = "import socket\ntry: socket.create_connection(('10.0.2.2', 22), 5)\nexcept OSError as error: print('refused')"
    assert machine.run("root", "/usr/bin/python3", "-c", ask).strip() == "refused"


def test_limits_of_roots_kernels_outlive_a_reload_of_systemd(machine: Machine) -> None:
    """Root's groups lie where nothing is delegated: systemd, which reads its files again, takes no controllers away."""
    same, memory, *_ = machine.run("root", PYTHON, "-c", RELOAD).split()
    assert same == "True"
    assert memory.isdigit()

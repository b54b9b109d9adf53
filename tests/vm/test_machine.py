"""The machine is what the tests inside take it for."""

from __future__ import annotations

from tests.vm import image
from tests.vm.machine import Machine


def test_it_has_cgroup_v2_alone_and_a_user_manager(machine: Machine) -> None:
    """The unified hierarchy, systemd as process 1, and a bus for who logs in."""
    assert machine.run("root", "stat", "-fc", "%T", "/sys/fs/cgroup").strip() == "cgroup2fs"
    assert machine.run("root", "cat", "/proc/1/comm").strip() == "systemd"
    assert machine.run(image.PERSON, "systemctl", "--user", "is-active", "dbus.socket").strip() == "active"


def test_it_reaches_nothing_outside(machine: Machine) -> None:
    """Its card forwards one port to it and nothing from it: not even the gateway answers."""
    ask = "import socket\ntry: socket.create_connection(('10.0.2.2', 22), 5)\nexcept OSError as error: print('refused')"
    assert machine.run("root", "/usr/bin/python3", "-c", ask).strip() == "refused"

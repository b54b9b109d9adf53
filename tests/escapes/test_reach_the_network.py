"""What the attacker wants: to talk to anybody outside of its sandbox."""

from __future__ import annotations

import socket
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.targets import AbstractService, DatagramService, PathService, Service, Service6
from tests.escapes.tools import first


def test_reach_the_network(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


@attack(Service, stopped_by="net")
def the_hosts_loopback(target: Any) -> str:
    """Connect to a service that listens on the host's loopback."""
    with socket.create_connection((target.host, target.port), 5) as peer:
        return peer.recv(100).decode()


@attack(Service, stopped_by="net")
def the_hosts_loopback_by_its_other_names(target: Any) -> str:
    """Reach the host's loopback by every other spelling of it."""
    names = ("localhost", "127.1", "127.0.0.2", "0.0.0.0", "::ffff:127.0.0.1", "0x7f000001")

    def tried(name: str) -> str:
        with socket.create_connection((name, target.port), 5) as peer:
            return peer.recv(100).decode()

    return first(lambda name=name: tried(name) for name in names)


@attack(Service6, stopped_by="net")
def the_hosts_loopback_of_version_six(target: Any) -> str:
    """Connect to a service that listens on ::1 of the host."""
    with socket.create_connection((target.host, target.port), 5) as peer:
        return peer.recv(100).decode()


@attack(DatagramService, stopped_by="net")
def a_datagram_to_the_hosts_loopback(target: Any) -> str:
    """Ask a datagram service on the host's loopback, as one asks a name server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(2)
        asker.connect((target.host, target.port))
        asker.send(b"?")
        return asker.recv(100).decode()


@attack(AbstractService, stopped_by="net")
def an_abstract_socket(target: Any) -> str:
    """Connect to an abstract socket of the host, which has no file that could be hidden."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect("\0" + target.name)
        return peer.recv(100).decode()


@attack(PathService, stopped_by="mount")
def a_socket_by_its_path(target: Any) -> str:
    """Connect to a socket in the file system, as Docker, the desktop and ssh-agent have one."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(target.path)
        return peer.recv(100).decode()

"""What the attacker wants: to talk to anybody outside of its sandbox."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from typing import Any

from tests.escapes.attack import ROOT, Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.shares import Caller, Listed
from tests.escapes.targets import AbstractService, DatagramService, Loot, PathService, Service, Service6
from tests.escapes.tools import first, must, read


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


@attack(Service, stopped_by="net")
def by_sending_with_the_first_packet(target: Any) -> str:
    """Send data with the very packet that asks for a connection: TCP fast open."""
    with socket.socket() as peer:
        peer.settimeout(5)
        peer.sendto(b"?", 0x20000000, (target.host, target.port))  # MSG_FASTOPEN
        return peer.recv(100).decode()


@attack(DatagramService, stopped_by="net")
def a_datagram_without_a_connection(target: Any) -> str:
    """Send datagrams without connecting first, which some filters only look at connect for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(2)
        asker.sendto(b"?", (target.host, target.port))
        return asker.recv(100).decode()


@attack(DatagramService, stopped_by="net")
def a_datagram_by_sendmsg(target: Any) -> str:
    """The same by sendmsg, which carries the address in a structure."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(2)
        asker.sendmsg([b"?"], (), 0, (target.host, target.port))
        return asker.recv(100).decode()


def a_way_to(*addresses: str) -> str:
    """Which of them Linux has a route to: a datagram socket that is connected sends nothing."""

    def tried(address: str) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            one.connect((address, 53))
            return f"{address} by {one.getsockname()[0]}"

    return str(first(lambda address=address: tried(address) for address in addresses))


@attack(Loot, stopped_by="net")
def the_metadata_of_the_cloud(target: Any) -> str:
    """Reach the addresses where virtual machines are told their credentials."""
    return a_way_to("169.254.169.254", "169.254.170.2", "100.100.100.200")


@attack(Loot, stopped_by="net")
def a_name_server_of_the_internet(target: Any) -> str:
    """Reach a public name server, through whose questions data can be carried out."""
    return a_way_to("8.8.8.8", "1.1.1.1", "9.9.9.9")


@attack(Loot, stopped_by="net")
def the_private_networks_around(target: Any) -> str:
    """Reach the machines beside this one."""
    return a_way_to("10.0.0.1", "172.16.0.1", "192.168.0.1")


@attack(Loot, stopped_by="net")
def everybody_at_once(target: Any) -> str:
    """Reach all neighbours by broadcast and multicast."""
    return a_way_to("255.255.255.255", "224.0.0.251", "239.255.255.250")


@attack(Loot, stopped_by="mount")
def the_name_server_of_the_machine(target: Any) -> list[str]:
    """Learn which name server the machine asks."""
    return re.findall(r"^nameserver\s+(\S+)", read("/etc/resolv.conf"), re.MULTILINE)


@attack(Loot, stopped_by="net")
def the_cards_of_the_machine(target: Any) -> list[str]:
    """List the machine's network cards."""
    return [name for _, name in socket.if_nameindex() if name != "lo"] + [
        line.split(":")[0].strip() for line in read("/proc/net/dev").splitlines()[2:] if "lo:" not in line
    ]


@attack(Loot, stopped_by="net")
def the_cards_by_a_request(target: Any) -> str:
    """The same by SIOCGIFNAME, the request that every Linux knows."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for number in range(2, 12):
            request = bytearray(struct.pack("16si20x", b"", number))
            try:
                fcntl.ioctl(one, 0x8910, request)
            except OSError:
                continue
            return request[:16].rstrip(b"\0").decode()
    return ""


@attack(Loot, stopped_by="net")
def the_routes_of_the_machine(target: Any) -> list[str]:
    """Learn where the machine sends what."""
    return read("/proc/net/route").splitlines()[1:]


@attack(Listed, stopped_by="net")
def the_ports_of_the_machine(target: Any) -> list[str]:
    """See who listens on the machine and who is connected."""
    return [line.split()[1] for line in read("/proc/net/tcp").splitlines()[1:]]


def asked_of_netlink(protocol: int, kind: int, body: bytes) -> bytes:
    """What Linux answers to one question. netlink(7)"""
    with socket.socket(16, 3, protocol) as one:
        one.settimeout(2)
        one.sendto(struct.pack("IHHII", 16 + len(body), kind, 0x301, 1, 0) + body, (0, 0))
        return one.recv(65536)


@attack(Loot, stopped_by="seccomp")
def the_cards_by_netlink(target: Any) -> str:
    """Ask Linux for all interfaces, with their addresses."""
    return f"{len(asked_of_netlink(0, 18, struct.pack('BxHiII', 0, 0, 0, 0, 0)))} bytes"  # RTM_GETLINK


@attack(Loot, stopped_by="seccomp")
def the_sockets_by_netlink(target: Any) -> str:
    """Ask Linux for every socket there is: sock_diag(7)."""
    body = struct.pack("BBBxI", 1, 0, 0, 0xFFFFFFFF) + bytes(36)
    return f"{len(asked_of_netlink(4, 20, body))} bytes"


@attack(Loot, stopped_by="seccomp")
def the_devices_by_netlink(target: Any) -> str:
    """Hear of every device that is plugged in."""
    with socket.socket(16, 2, 15) as one:  # NETLINK_KOBJECT_UEVENT
        one.bind((0, 1))
        return "listening"


@attack(Loot, stopped_by="seccomp")
def netlink_of_every_kind(target: Any) -> list[int]:
    """Open the doors to the firewall, to IPsec, to the audit system and to whatever else speaks netlink."""
    found = []
    for protocol in range(23):
        try:
            socket.socket(16, 3, protocol).close()
        except OSError:
            continue
        found.append(protocol)
    return found


@attack(Loot, stopped_by="seccomp", control=ROOT)
def everything_on_the_wire(target: Any) -> str:
    """Read every packet that passes the machine."""
    with socket.socket(17, 3, 0x0300) as one:  # AF_PACKET, SOCK_RAW, ETH_P_ALL
        return f"descriptor {one.fileno() > 0}"


@attack(Loot, stopped_by="seccomp", control=ROOT)
def everything_that_is_routed(target: Any) -> str:
    """Read and write packets below TCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 255) as one:
        return f"descriptor {one.fileno() > 0}"


@attack(Loot, stopped_by="seccomp", control=ROOT)
def the_machine_around_the_machine(target: Any) -> str:
    """Speak to the hypervisor, past every network: vsock(7)."""
    with socket.socket(40, 1) as one:
        return f"descriptor {one.fileno() > 0}"


@attack(Caller, stopped_by="net")
def be_called_from_the_host(target: Any) -> str:
    """Listen where the host's programs expect a service of theirs, and take what they send."""
    with socket.create_server(("0.0.0.0", target.port)) as listener:
        listener.settimeout(1)
        with listener.accept()[0] as peer:
            return peer.recv(100).decode()


@attack(Caller, stopped_by="net")
def be_called_by_an_abstract_name(target: Any) -> str:
    """The same by a name without a file."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + target.name)
        listener.listen()
        listener.settimeout(1)
        with listener.accept()[0] as peer:
            return peer.recv(100).decode()


@attack(Loot, stopped_by="net", control=ROOT)
def a_setting_of_the_network(target: Any) -> str:
    """Change how the machine routes."""
    value = read("/proc/sys/net/ipv4/ip_forward")
    must(2, b"/proc/sys/net/ipv4/ip_forward", os.O_WRONLY)
    return f"writable, was {value}"

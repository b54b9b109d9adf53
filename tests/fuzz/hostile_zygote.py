"""A zygote as an attacker would have it: put into its environment, it says to the supervisor what a plan tells it to.

For each order it reads the plan that lies under the kernel's name in the folder of this file:
{"fork": whether a child in namespaces of its own is to act, "acts": [[bytes in hex, [kinds of descriptors]], …],
 "by": "zygote", of whom that child is born; "mother", who first has a sibling; or "sibling", of which it is born}
The fifo NAME.played gets a byte before the first act, and is closed after the last.
"""

import json
import os
import signal
import socket
import sys
from typing import Any

sys.path.insert(0, "@ROOT@")

from isolated_python.linux import packets, process

FOLDER = os.path.dirname(os.path.abspath(__file__))


def descriptor(kind: str) -> int:
    match kind:
        case "pipe":
            read, write = os.pipe()
            os.write(write, b"x")
            return read
        case "unix":
            return socket.socketpair()[0].detach()
        case "tcp":
            return socket.socket().detach()
        case "null":
            return os.open("/dev/null", os.O_RDONLY)
        case _:
            return os.open(__file__, os.O_RDONLY)


def play(channel: socket.socket, name: str, acts: list[tuple[str, list[str]]]) -> None:
    played = os.open(os.path.join(FOLDER, f"{name}.played"), os.O_RDWR)  # waits for nobody
    os.write(played, b"x")
    for data, kinds in acts:
        given = [descriptor(kind) for kind in kinds]
        try:
            socket.send_fds(channel, [bytes.fromhex(data)], given, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            break
        for one in given:
            os.close(one)
    os.close(played)


def serve(order: dict[str, Any], channel: socket.socket) -> None:
    with open(os.path.join(FOLDER, order["kernel"])) as file:
        plan = json.load(file)
    if not plan["fork"]:
        play(channel, order["kernel"], plan["acts"])
    elif process.fork(order["namespaces"] | process.CLONE_PARENT) == 0:
        try:
            play(channel, order["kernel"], plan["acts"])
            while True:  # until we are ended
                signal.pause()
        finally:
            os._exit(0)


def obey(control: socket.socket) -> bool:
    """One order. False: there is none any more."""
    order, descriptors = packets.receive(control)
    if order is None:
        return False
    with socket.socket(fileno=descriptors[0]) as channel:
        serve(order, channel)
    return True


def sibling(received: list[int]) -> socket.socket:
    """A child of the supervisor's that stays in the group where we are now, and obeys as we do."""
    ours, theirs = packets.pair()
    if process.fork(process.CLONE_PARENT) == 0:
        for one in (3, ours.detach(), *received):
            os.close(one)
        while obey(theirs):
            pass
        os._exit(0)
    return ours


def main() -> None:
    control = socket.socket(fileno=3)
    packets.send(control, {"event": "ready"})
    other = None
    while (received := packets.receive(control))[0] is not None:
        order, descriptors = received
        with open(os.path.join(FOLDER, order["kernel"])) as file:
            by = json.load(file)["by"]
        if by == "mother":
            other = sibling(descriptors)
        if by == "sibling" and other is not None:
            packets.send(other, order, descriptors)
            os.close(descriptors[0])
        else:
            with socket.socket(fileno=descriptors[0]) as channel:
                serve(order, channel)
        packets.send(control, {"event": "forked", "kernel": order["kernel"]})


main()

"""A zygote as an attacker would have it: put into its environment, it says to the supervisor what a plan tells it to.

For each order it reads the plan that lies under the kernel's name in the folder of this file:
{"fork": whether a child in namespaces of its own is to act, "acts": [[bytes in hex, [kinds of descriptors]], …]}
"""

import json
import os
import socket
import sys

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


def play(channel: socket.socket, acts: list[tuple[str, list[str]]]) -> None:
    for data, kinds in acts:
        given = [descriptor(kind) for kind in kinds]
        try:
            socket.send_fds(channel, [bytes.fromhex(data)], given, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            return
        for one in given:
            os.close(one)


def main() -> None:
    control = socket.socket(fileno=3)
    while (received := packets.receive(control))[0] is not None:
        order, descriptors = received
        with open(os.path.join(FOLDER, order["kernel"])) as file:
            plan = json.load(file)
        with socket.socket(fileno=descriptors[0]) as channel:
            if not plan["fork"]:
                play(channel, plan["acts"])
            elif process.fork(order["namespaces"] | process.CLONE_PARENT) == 0:
                try:
                    play(channel, plan["acts"])
                    while channel.recv(1 << 18):  # until we are ended
                        pass
                finally:
                    os._exit(0)


main()

"""
The floor of any relay in Python: a loop that carries what it does not look at, from each door to whom it leads.

    python bare.py '[["where/to/listen", "whom/to/reach"], …]'

Prints a line when it listens, and ends with its standard input.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections.abc import Callable

CHUNK = 1 << 16  # bytes of one read, as in the relay


def main() -> None:
    poll = select.epoll()
    poll.register(sys.stdin.fileno(), select.EPOLLIN)
    doors: dict[int, tuple[socket.socket, str]] = {}
    ways: dict[int, tuple[Callable[[int], bytes], Callable[[bytes], None]]] = {}
    open_ends: dict[int, tuple[socket.socket, socket.socket]] = {}
    for path, target in json.loads(sys.argv[1]):
        door = socket.socket(socket.AF_UNIX)
        door.bind(path)
        door.listen()
        doors[door.fileno()] = door, target
        poll.register(door.fileno(), select.EPOLLIN)
    print("it listens", flush=True)
    while True:
        for number, _ in poll.poll():
            if number in ways:
                receive, send = ways[number]
                data = receive(CHUNK)
                if data:
                    send(data)
                    continue
                for one in open_ends[number]:
                    poll.unregister(one.fileno())
                    del ways[one.fileno()]
                    one.close()
            elif number in doors:
                client, _ = doors[number][0].accept()
                inside = socket.socket(socket.AF_UNIX)
                inside.connect(doors[number][1])
                for one, other in ((client, inside), (inside, client)):
                    ways[one.fileno()] = one.recv, other.sendall
                    open_ends[one.fileno()] = one, other
                    poll.register(one.fileno(), select.EPOLLIN)
            else:
                return


main()

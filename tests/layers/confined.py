"""Put this process under a filter, pass its listener out, and become another program: SOCKET|-1 FILTER ARGV…"""

from __future__ import annotations

import base64
import os
import socket
import sys

from isolated_python.linux import prctl, seccomp


def main(channel: int, program: str, argv: list[str]) -> None:
    prctl.set_no_new_privs()
    listener = seccomp.load(base64.b64decode(program), notify=channel >= 0)
    if listener is not None:
        with socket.socket(fileno=channel) as out:
            socket.send_fds(out, [b"x"], [listener])
        os.close(listener)
    os.execv(argv[0], argv)


main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])

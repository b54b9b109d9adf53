"""Every refusal that a cell can meet has its sentence: the table of reasons, each provoked in a real kernel."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from isolated_python.guard.explain import REASONS, kind, told
from isolated_python.policy import parse, sources

from tests.kernel.conftest import Server

TIGHT: dict[str, Any] = {
    "files": {"workspace": "none"},
    "modules": {"grant": ["@stdlib"]},
    "resources": {
        "memory": "256 MiB", "tmp": "16 MiB", "shm": "4 MiB", "file_size": "8 MiB", "open_files": 200, "processes": 60,
    },
}  # fmt: skip
BARE: dict[str, Any] = {
    "files": {"workspace": "read-only"},
    "capabilities": {"subprocess": False, "sockets": False, "native_code": False, "threads": 8},
}

COPY: dict[str, Any] = {"files": {"workspace": "copy-on-write", "size": "16 MiB", "links": False}}
IN_MEMORY: dict[str, Any] = {
    "files": {"workspace": "copy-on-write"},
    "resources": {"memory": "256 MiB", "tmp": "16 MiB", "shm": "4 MiB"},
}
FILL = "with open('large', 'wb', 0) as file:\n    for _ in range(40): file.write(bytes(1 << 20))"

LIBRARY = "next(line.split()[-1] for line in open('/proc/self/maps') if 'libm.so' in line or 'libz' in line)"
FOREIGN_CALL = (  # of 32 bits: mov eax, 20 (getpid); int 0x80; ret
    "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('b814000000cd80c3'));"
    " ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
)
THREADS = (
    "import threading\ngo = threading.Event()\n"
    "try:\n    for _ in range(200): threading.Thread(target=go.wait).start()\nfinally: go.set()"
)

WATCHES = (
    "import ctypes, os\nlibc, held = ctypes.CDLL(None, use_errno=True), []\ntry:\n    while True:\n"
    "        one = libc.inotify_init()\n"
    "        if one < 0: raise OSError(ctypes.get_errno(), 'inotify_init: too many open files')\n"
    "        held.append(one)\nfinally:\n    for one in held: os.close(one)"
)
TERMINALS = (
    "import os\nheld = []\ntry:\n    while True: held += os.openpty()\nfinally:\n    for one in held: os.close(one)"
)

# Reason → cells that meet it, by the profile that they meet it in.
PROVOKE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "module": (TIGHT, ["import iniconfig", "from iniconfig.exceptions import ParseError"]),
    "hidden": (
        TIGHT,
        [
            "from IPython.utils.importstring import import_item; import_item('iniconfig')",
            "import importlib.metadata; importlib.metadata.version('iniconfig')",
            "import importlib as i\ntry: i.import_module('iniconfig')\nexcept ImportError as e: raise KeyError from e",
        ],
    ),
    "SIGSYS": (
        TIGHT,
        [f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FOREIGN_CALL!r}], check=True)"],
    ),
    "SIGKILL": (
        TIGHT,
        ["import subprocess, sys; subprocess.run([sys.executable, '-c', 'bytearray(400 << 20)'], check=True)"],
    ),
    "SIGXFSZ": (TIGHT, ["import subprocess; subprocess.run(['truncate', '-s', '9M', '/tmp/x'], check=True)"]),
    "EAGAIN": (
        TIGHT,
        [
            THREADS,
            (
                "import os, signal\npids = []\ntry:\n    while True:\n        pids.append(os.fork())\n"
                "        if not pids[-1]: signal.pause()\n"
                "finally:\n    for pid in pids: os.kill(pid, 9); os.waitpid(pid, 0)"
            ),
        ],
    ),
    "ENOMEM": (TIGHT, ["bytearray(1 << 60)", "import mmap; mmap.mmap(-1, 1 << 50)"]),
    "EMFILE": (
        TIGHT,
        [
            (
                "files = []\ntry:\n    while True: files.append(open('/dev/null'))\n"
                "finally:\n    for file in files: file.close()"
            )
        ],
    ),
    "EFBIG": (TIGHT, ["with open('/tmp/x', 'wb') as file: file.truncate(9 << 20)"]),
    "ENOSPC": (TIGHT, ["with open('/dev/shm/x', 'wb') as file: file.write(bytes(5 << 20))"]),
    "ENETUNREACH": (
        TIGHT,
        [
            "import socket; socket.create_connection(('192.0.2.1', 80), 5)",
            "import socket; socket.getaddrinfo('example.org', 80)",
            "import urllib.request; urllib.request.urlopen('https://example.org', timeout=5)",
        ],
    ),
    "ECONNREFUSED": (TIGHT, ["import socket; socket.create_connection(('localhost', 9), 5)"]),
    "family": (
        TIGHT,
        [
            f"import socket; socket.socket({kind})"
            for kind in ("socket.AF_VSOCK", "socket.AF_INET, socket.SOCK_SEQPACKET", "socket.AF_NETLINK")
        ],
    ),
    "outside": (TIGHT, ["open('/root/notes')", "open('/home/somebody/data.csv')", "import os; os.listdir('../data')"]),
    "EROFS": (TIGHT, ["open('/usr/x', 'w')", "import os; os.unlink('/etc/passwd')"]),
    "EACCES": (TIGHT, ["import os; os.setpriority(os.PRIO_PROCESS, 0, -5)"]),
    "EPERM": (TIGHT, ["import os; os.setuid(0)", "import os; os.chown('/tmp', 12345, 12345)"]),
    "ENOSYS": (TIGHT, ["import os; a, b = os.pipe(); os.splice(a, b, 1)"]),
    "workspace": (BARE, ["open('mine', 'w')", "import os; os.mkdir('/workspace/mine')"]),
    "subprocess": (
        BARE,
        ["import os; os.fork()", "import subprocess; subprocess.run(['ls'])", "import pty; pty.fork()", "!ls"],
    ),
    "sockets": (
        BARE,
        [
            "import socket; socket.socket()",
            "import urllib.request; urllib.request.urlopen('http://192.0.2.1', timeout=5)",
            "import socket; socket.getaddrinfo('example.org', 80)",
        ],
    ),
    "native_code": (
        BARE,
        [
            f"import shutil, ctypes; shutil.copy({LIBRARY}, '/tmp/x.so'); ctypes.CDLL('/tmp/x.so')",
            "import mmap; mmap.mmap(-1, 4096, prot=7)",
            "import os; os.memfd_create('x')",
        ],
    ),
    "threads": (BARE, [THREADS]),
    "links": (COPY, ["import os; os.symlink('/etc', 'link')", "import pathlib; pathlib.Path('l').symlink_to('x')"]),
    "watches": (COPY, [WATCHES]),
    "terminals": (COPY, [TERMINALS]),
    "changes": (COPY, [FILL, "open('/workspace/more', 'wb').write(bytes(20 << 20))"]),
    "memory": (IN_MEMORY, [FILL]),
}  # fmt: skip


def provoke(server: Server, name: str, profile: dict[str, Any]) -> None:
    """Every cell that meets a refusal of this profile: the cell is told why, and %sandbox why tells it again."""
    granted = sources.load("standard", [("the test", profile)], ceilings=[]).profile.to_wire()
    for reason, (where, cells) in PROVOKE.items():
        if where is not profile or (reason == "SIGKILL" and not server.cgroup):
            continue
        sentence = told(reason, granted) if reason != "module" else "does not grant the module"
        for cell in cells:
            answer = server.run(cell, name)
            assert answer["status"] == "error", (cell, answer)
            assert sentence in answer["text"], (cell, answer["text"])
            why = server.text("%sandbox why", name)
            assert f"The layer {REASONS[reason].layer}: " in why, (cell, why)
            assert sentence in why
    overview = server.text("%sandbox", name)
    assert f"{REASONS['sockets' if profile is BARE else 'EROFS'].layer} " in overview


def test_every_reason_has_a_cell_that_meets_it() -> None:
    assert PROVOKE.keys() == REASONS.keys()


@pytest.mark.parametrize(
    "profile",
    [TIGHT, BARE, COPY, pytest.param(IN_MEMORY, marks=pytest.mark.thorough)],
    ids=["tight", "bare", "copy", "memory"],
)
def test_every_refusal_has_its_sentence(server: Server, profile: dict[str, Any]) -> None:
    server.start(overrides=profile)
    provoke(server, "kernel", profile)


# What is told by whoever ends, drops or interrupts, and not by an error; and what refuses nothing.
ELSEWHERE = {"engine", "relay", "guard", "provisioner.py"}
SLOWS = {"resources.cpu", "channels.output_rate", "channels.output_messages", "channels.handshake"}
GRANTS = {"files.folder", "files.changes", "files.image", "modules.guard"}  # where, and how it is told
HIDES = {"channels.frames", "channels.connections"}  # of clients' and of what is no kernel of Jupyter's


def test_every_key_that_refuses_something_is_named_in_a_sentence() -> None:
    """Of all keys that a profile can have: by the guard's table, or by who ends, drops or interrupts."""
    keys = {f"{table}.{key}" for table, (_, keys) in parse.TABLES.items() if table != "layers" for key in keys}
    told_here = {key for reason in REASONS.values() for key in reason.keys}
    package = Path(parse.__file__).parents[1]
    texts = [path.read_text() for part in sorted(ELSEWHERE) for path in (package / part).rglob("*.py")]
    told_there = {key for key in keys if any(f"({key})" in text or f'"{key}"' in text for text in texts)}
    assert keys - told_here - told_there - SLOWS - GRANTS - HIDES == set()


def test_a_layer_that_is_off_is_behind_nothing() -> None:
    refused, nothing = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), {"granted": [], "refused": []}
    for strictness, found in (("require", "ECONNREFUSED"), ("off", "")):
        layers = {"layers": {"net": strictness}}
        granted = sources.load("standard", [("the test", layers)], ceilings=[]).profile.to_wire()
        assert kind(refused, granted, nothing) == found


ORDINARY = [
    "1 / 0",
    "open('missing')",
    "import missing",
    "{}['missing']",
    "import os; os.close(999)",
    "import subprocess; subprocess.run(['no-such-program'])",
    "import subprocess; subprocess.run(['false'], check=True)",
    "open('closed', 'w').close(); import os; os.chmod('closed', 0); open('closed')",
    "try: open('/usr/x', 'w')\nexcept OSError: 1 / 0",
    "import urllib.request; urllib.request.urlopen('file:///mnt/workspace/missing')",
]


def test_what_the_sandbox_is_not_behind_it_does_not_claim(server: Server) -> None:
    server.start()
    for cell in ORDINARY:
        answer = server.run(cell)
        assert answer["status"] == "error", (cell, answer)
        assert "Isolated Python:" not in answer["text"], (cell, answer["text"])
        assert "not behind it" in server.text("%sandbox why"), cell

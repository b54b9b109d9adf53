"""What a profile does not grant beyond computing: Linux refuses it, whatever a cell imports or calls."""

from __future__ import annotations

import os

import pytest

from tests.kernel.conftest import Server

NOT = {name: {"capabilities": {name: False}} for name in ("subprocess", "sockets", "native_code")}

WORKS = """
import threading, asyncio, sqlite3, os
done = []
thread = threading.Thread(target=done.append, args=(1,)); thread.start(); thread.join()
import numpy; done.append(int(numpy.linalg.inv(numpy.eye(200)).sum()))
await asyncio.sleep(0); done.append(sqlite3.connect(':memory:').execute('select 3').fetchone()[0])
print(done)
"""

TRY = """
def tried(act):
    try: return act()
    except BaseException as error: return type(error).__name__
"""


@pytest.mark.parametrize("name", NOT)
def test_what_remains_works(server: Server, name: str) -> None:
    """Threads, event loops, linear algebra, sqlite, figures; and an interrupt, a restart."""
    server.start(overrides=NOT[name])
    assert server.text(WORKS) == "[1, 200, 3]"
    assert server.text("import matplotlib.pyplot as p; p.plot([1]); p.show()").startswith("<Figure")
    server.ask("restart", name="kernel")
    assert server.text(WORKS) == "[1, 200, 3]"


def test_no_subprocess_is_no_program_and_no_fork(server: Server) -> None:
    acts = {
        "fork": "os.fork()",
        "exec": "os.execv('/bin/true', ['true'])",
        "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
        "run": "subprocess.run(['true'])",
        "vfork": "ctypes.CDLL(None, use_errno=True).syscall(58)",
        "process": "multiprocessing.get_context('fork').Process(target=print).start()",
        "system": "os.system('true')",
    }
    code = TRY + "import os, subprocess, multiprocessing, ctypes\n"
    code += (
        "print({" + ", ".join(f"{name!r}: tried(lambda: {act})" for name, act in acts.items() if name != "exec") + "})"
    )
    server.start()
    control = server.text(code.replace("os.fork()", "os.fork() or os._exit(0)").replace("syscall(58)", "getpid() * 0"))
    assert "PermissionError" not in control
    server.start("none", overrides=NOT["subprocess"])
    found = eval(server.text(code, "none"))
    assert found.pop("vfork") == -1
    assert found.pop("system") not in (0, "PermissionError")
    assert {*found.values()} == {"PermissionError"}
    assert server.text(TRY + f"import os; print(tried(lambda: {acts['exec']}))", "none") == "PermissionError"
    assert "capabilities.subprocess" in server.run("!ls", "none")["text"]
    assert "capabilities.subprocess" in server.run("import os; os.fork()", "none")["text"]


def test_no_sockets_is_no_family_at_all(server: Server) -> None:
    code = (
        TRY + "import socket\nprint([tried(lambda: socket.socket(f, t).family.name)"
        " for f, t in ((1, 1), (2, 1), (2, 2), (10, 1))])"
    )
    server.start()
    assert server.text(code) == "['AF_UNIX', 'AF_INET', 'AF_INET', 'AF_INET6']"
    server.start("none", overrides=NOT["sockets"])
    assert server.text(code, "none") == str(["PermissionError"] * 4)
    assert server.text("import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))", "none") == "b'x'"
    assert (
        "capabilities.sockets"
        in server.run("import socket; socket.create_connection(('127.0.0.1', 9))", "none")["text"]
    )


def test_no_native_code_runs_nothing_that_the_kernel_wrote(server: Server) -> None:
    """A program, a library, a page: in every place that can be written, and in memory."""
    code = (
        TRY + "import os, shutil, ctypes, mmap, subprocess\n"
        "library = next(l.split()[-1] for l in open('/proc/self/maps') if 'libz' in l or 'libm.so' in l)\n"
        "def program(place): shutil.copy('/bin/true', place + '/x'); return subprocess.run([place + '/x']).returncode\n"
        "def load(place): shutil.copy(library, place + '/x.so'); return bool(ctypes.CDLL(place + '/x.so'))\n"
        "def remap():\n"
        "    page = mmap.mmap(-1, 4096, prot=3); libc = ctypes.CDLL(None, use_errno=True)\n"
        "    at = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
        "    return libc.mprotect(ctypes.c_void_p(at), 4096, 5)\n"
        "places = ('/tmp', '/home/user', '/dev/shm', '/workspace')\n"
        "print([tried(lambda: program(p)) for p in places], [tried(lambda: load(p)) for p in places],"
        " tried(lambda: bool(mmap.mmap(-1, 4096, prot=7))), tried(remap), tried(lambda: os.memfd_create('x') > 0))"
    )
    server.start()
    assert server.text(code) == f"{[0] * 4} {[True] * 4} True 0 True"
    server.start("none", overrides=NOT["native_code"])
    assert (
        server.text(code, "none") == f"{['PermissionError'] * 4} {['OSError'] * 4} PermissionError -1 PermissionError"
    )
    said = server.run("import ctypes; ctypes.CDLL('/tmp/x.so')", "none")["text"]
    assert "capabilities.native_code" in said
    server.start("copied", overrides={**NOT["native_code"], "files": {"workspace": "copy-on-write"}})
    assert server.text(code, "copied").startswith(str(["PermissionError"] * 4))


def test_threads_have_a_bound(server: Server) -> None:
    server.start(overrides={"capabilities": {"threads": 8}})
    code = (
        "import threading, os\ngo = threading.Event(); started = []\n"
        "try:\n    for _ in range(200):\n        t = threading.Thread(target=go.wait); t.start(); started.append(t)\n"
        "except RuntimeError: pass\n"
        "print(len(started)); go.set()"
    )
    assert 4 <= int(server.text(code)) <= 24
    assert server.text("import os; print(os.environ['OMP_NUM_THREADS'])") == "8"


def test_another_program_cannot_start_without_what_it_needs(server: Server) -> None:
    """It is started by execve and listens on sockets of its own: refused in one sentence, and nothing starts."""
    argv = ["/usr/bin/python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    for name in ("subprocess", "sockets"):
        said = server.refused(overrides=NOT[name], spec={"argv": argv})["error"]
        assert f"grants no {name}" in said
        assert "\n" not in said


def test_options_of_a_socket_that_no_library_needs_every_day_are_unknown_here(server: Server) -> None:
    """Also with rubbish in the half of the argument that Linux does not read. What libraries set works as ever."""
    server.start()
    refused = {"program": (1, 26), "zerocopy": (1, 60), "tls": (6, 31), "netfilter": (0, 64), "sources": (0, 39)}
    refused |= {"headers": (41, 54), "other level": (282, 1)}
    code = (
        "import ctypes, errno, socket\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "one = socket.socket(); value = ctypes.byref(ctypes.c_int(1))\n"
        "def ask(level, name):\n"
        "    libc.syscall(54, one.fileno(), ctypes.c_long(level), ctypes.c_long(name), value, 4)\n"
        "    return errno.errorcode[ctypes.get_errno()]\n"
        "one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        "socket.socket(socket.AF_INET6).setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)\n"
        f"asked = {[*refused.values()]!r}\n"
        "asked += [(level, name | 1 << 32) for level, name in asked]\n"
        "print({ask(*one) for one in asked})"
    )
    if os.uname().machine == "x86_64":
        assert server.text(code) == "{'ENOPROTOOPT'}"

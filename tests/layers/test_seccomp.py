"""The system calls left to a kernel and to the relay: the tables, what libseccomp makes of them, Linux's own word."""

from __future__ import annotations

import base64
import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyseccomp
import pytest
from isolated_python.errors import HostError
from isolated_python.layers import seccomp as layer
from isolated_python.layers.filters import (
    ALLOW,
    KILL,
    NOTIFY,
    WITHHELD,
    Match,
    Table,
    compiler,
    kept,
    refuse,
    variant,
)
from isolated_python.layers.filters.kernel import WITHOUT
from isolated_python.layers.step import Step
from isolated_python.linux import libc, seccomp
from isolated_python.policy.profile import Layers, Profile
from isolated_python.record import replace

X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
HALF = (1 << 32) - 1
# As text: another user may be unable to enter the folder that this checkout lies in.
CONFINED = Path(__file__).with_name("confined.py").read_text()
NOBODY = 65534
USERS = [pytest.param(0, marks=pytest.mark.root), pytest.param(NOBODY, marks=pytest.mark.root)]
if os.geteuid():
    USERS = [pytest.param(os.geteuid())]

# Calls newer than the oldest libseccomp that is supported: the table names them for the day it learns them.
NEWER = {"fchmodat2", "statmount", "listmount", "set_mempolicy_home_node", "quotactl_fd", "epoll_pwait2", "futex_waitv"}
# Gone from every architecture of ours, or never on them.
ELSEWHERE = {"umount"}


def verdict(program: bytes, arch: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What Linux would answer: classic BPF over struct seccomp_data, the few instructions that libseccomp writes."""
    words = (*arguments, *[0] * 6)[:6]
    data = struct.pack("=iIQ6Q", number - (1 << 32) if number >> 31 else number, arch, 0, *words)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        match operation:
            case 0x20:  # ld [k]
                accumulator = struct.unpack_from("=I", data, k)[0]
            case 0x54:  # and #k
                accumulator &= k
            case 0x05:  # ja
                at += k
            case 0x15:
                at += yes if accumulator == k else no
            case 0x25:
                at += yes if accumulator > k else no
            case 0x35:
                at += yes if accumulator >= k else no
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"instruction {operation:#x}")


def meant(table: Table, call: str, arguments: tuple[int, ...]) -> int:
    """What the table says, read by a person: exact rules, then `otherwise`, then the default."""
    for group in table.groups:
        if call in group.calls:
            return group.verdict
    rules = [
        rule for rule in table.rules if rule.call == call and all(match.holds(arguments) for match in rule.matches)
    ]
    exact = [rule for rule in rules if not any(match.at_least for match in rule.matches)]
    chosen = exact or rules
    assert len({rule.verdict for rule in exact}) <= 1, f"two rules for {call}{arguments}"
    # The deeper `otherwise` speaks for a family that is granted; the shallower for all others.
    return max(chosen, key=lambda rule: len(rule.matches)).verdict if chosen else table.default


def probes(table: Table, call: str) -> list[tuple[int, ...]]:
    """Words that lie on, beside, and in the upper half above, every value that a rule of the call compares with."""
    words: dict[int, set[int]] = {}
    for rule in table.rules:
        if rule.call == call:
            for match in rule.matches:
                near = words.setdefault(match.argument, {0, HALF, HALF + 1, (1 << 64) - 1})
                near |= {match.value, match.value ^ 1, match.value | 1 << 32, match.value + 1, match.value | 0o644}
                near |= {match.value | 1 << 31, match.value | 0o2000000 | 0o4000}
    found: list[tuple[int, ...]] = [()]
    for argument in range(6):
        found = [(*head, word) for head in found for word in sorted(words.get(argument, {7}))]
    return found


def every_call(table: Table) -> set[str]:
    return {call for group in table.groups for call in group.calls} | {rule.call for rule in table.rules}


def names(machine: str) -> dict[str, int]:
    arch = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[machine]
    return {
        call: pyseccomp.resolve_syscall(arch, call) for table in compiler.TABLES.values() for call in every_call(table)
    }


@pytest.fixture(scope="module")
def kernel() -> layer.Filter:
    return compiler.compile("kernel")


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", X86_64), ("aarch64", AARCH64)])
@pytest.mark.parametrize("name", list(compiler.TABLES))
def test_the_compiled_filter_says_what_its_table_says(name: str, machine: str, arch: int) -> None:
    """libseccomp is not taken at its word: every call, and every value that matters, is looked up in the BPF itself."""
    table, filter = compiler.TABLES[name], compiler.compile(name, machine)
    for call, number in names(machine).items():
        if number < 0:
            continue
        for arguments in probes(table, call):
            assert verdict(filter.program, arch, number, arguments) == meant(table, call, arguments), (call, arguments)
    listed = {number for call, number in names(machine).items() if call in every_call(table)}
    for number in set(range(1024)) - listed:
        assert verdict(filter.program, arch, number) == table.default, number


@pytest.mark.parametrize("name", list(compiler.TABLES))
def test_another_architecture_ends_the_process(name: str) -> None:
    filter = compiler.compile(name, "x86_64")
    for arch in (I386, AARCH64, 0x4000003E):
        assert verdict(filter.program, arch, 1) == KILL
    # x32 has the architecture of x86-64 and a bit of its own in the number.
    assert {verdict(filter.program, X86_64, 0x40000000 | number) for number in range(600)} == {KILL}


@pytest.mark.parametrize("name", list(compiler.TABLES))
def test_every_call_has_one_place_and_every_name_exists(name: str) -> None:
    """A name with a typing error would quietly refuse what it was meant to grant."""
    table = compiler.TABLES[name]
    grouped = [call for group in table.groups for call in group.calls]
    assert len(grouped) == len(set(grouped))
    assert not set(grouped) & {rule.call for rule in table.rules}
    here, there = names("x86_64"), names("aarch64")
    assert {call for call in every_call(table) if here[call] < 0 and there[call] < 0} <= NEWER | ELSEWHERE


@pytest.mark.parametrize("machine", list(libc.NUMBERS))
def test_the_numbers_of_our_own_calls_are_those_that_libseccomp_knows(machine: str) -> None:
    """Of both machines; what libseccomp is too old to know has a number that is the same on all."""
    arch = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[machine]
    known = {call: pyseccomp.resolve_syscall(arch, call) for call in libc.NUMBERS[machine]}
    wrong = {call: number for call, number in known.items() if number >= 0 and number != libc.NUMBERS[machine][call]}
    assert wrong == {}
    assert {call for call, number in known.items() if number < 0} <= {*libc._COMMON}


def test_nothing_that_grants_looks_away_from_the_upper_half() -> None:
    """Linux truncates a domain, a request or a name with garbage above bit 31: it must not slip by an exact rule."""
    table = compiler.TABLES["kernel"]
    for call, allowed in (("ioctl", (0, 0x5401)), ("prctl", (15,)), ("socket", (1, 1, 0)), ("arch_prctl", (0x1002,))):
        words = (*allowed, *[0] * 6)[:6]
        assert meant(table, call, words) == ALLOW
        place = 1 if call == "ioctl" else 0
        above = tuple(word | (1 << 40 if at == place else 0) for at, word in enumerate(words))
        assert meant(table, call, above) != ALLOW


# What Linux itself says, in real processes.

# Each attempt in a child of its own, so that none prepares the ground for the next.
TRY = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
answers = []
for number, arguments in json.loads(sys.argv[1]):
    words = [ctypes.c_char_p(a.encode()) if isinstance(a, str) else ctypes.c_ulong(a) for a in arguments]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), *words)
        os.write(writer, bytes([ctypes.get_errno() if result == -1 else 0]))
        os._exit(0)
    os.close(writer)
    answers.append(os.read(reader, 1)[0])
    os.close(reader)
    os.waitpid(child, 0)
print(json.dumps(answers))
"""


def confined(
    argv: list[str], filter: layer.Filter | None, user: int, *, cwd: str = "/", timeout: float = 100
) -> tuple[subprocess.CompletedProcess[str], list[seccomp.Notification]]:
    """Run a program under the filter as a user, refuse what is asked of us, and tell what that was."""
    identity = {"user": user, "group": user, "extra_groups": []} if user != os.geteuid() else {}
    env = {"PATH": "/usr/bin:/bin", "HOME": cwd, "TMPDIR": cwd, "MPLCONFIGDIR": cwd, "LC_ALL": "C.UTF-8"}
    if filter is None:
        done = subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=env, timeout=timeout, **identity)
        return done, []
    ours, theirs = socket.socketpair()
    told: list[seccomp.Notification] = []
    program = base64.b64encode(filter.program).decode()
    with ours, theirs:
        command = [sys.executable, "-c", CONFINED, str(theirs.fileno()), program, *argv]
        process = subprocess.Popen(
            command, stdout=-1, stderr=-1, text=True, pass_fds=[theirs.fileno()], cwd=cwd, env=env, **identity
        )
        theirs.close()
        _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
        supervisor = threading.Thread(target=refuse_all, args=(listeners[0], told))
        supervisor.start()
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
            process.wait()
            supervisor.join()
            os.close(listeners[0])
    return subprocess.CompletedProcess(argv, process.returncode, out, err), told


def refuse_all(listener: int, told: list[seccomp.Notification]) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        poll.poll()
        try:
            notification = seccomp.receive(listener)
            told.append(notification)
            assert seccomp.still_valid(listener, notification.id)
            seccomp.respond(listener, notification.id, errno.EPERM)
        except FileNotFoundError:
            continue  # the caller was killed while it waited
        except BrokenPipeError:
            return  # nobody is left under the filter


def attempt(
    calls: list[tuple[str, list[int | str]]], filter: layer.Filter | None, user: int
) -> tuple[list[int], list[str]]:
    numbers = [(pyseccomp.resolve_syscall(pyseccomp.system_arch(), call), words) for call, words in calls]
    done, told = confined([sys.executable, "-c", TRY, json.dumps(numbers)], filter, user)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [filter.names[item.number] for item in told] if filter else []


# Each with the answer under the filter, and whether the supervisor hears of it. Without the filter the same call by
# the same user must give another answer, or the attack proves nothing.
ATTACKS: list[tuple[str, list[int | str], int, bool]] = [
    ("unshare", [0x10000000], errno.EPERM, True),
    ("clone", [0x10000000 | 17, 0, 0, 0, 0], errno.EPERM, True),
    ("clone3", [0, 0], errno.ENOSYS, False),
    ("setns", [HALF, 0], errno.EPERM, True),
    ("mount", ["x", "/nowhere", "tmpfs", 0, 0], errno.EPERM, True),
    ("bpf", [0, 0, 0], errno.EPERM, True),
    ("ptrace", [16, 0], errno.EPERM, True),
    ("process_vm_readv", [0, 0, 0, 0, 0, 1], errno.EPERM, True),
    ("pidfd_getfd", [HALF, 0, 0], errno.EPERM, True),
    ("kcmp", [0, 0, 0, 0, 0], errno.EPERM, True),
    ("keyctl", [0, 0xFFFFFFFD, 0], errno.EPERM, True),
    ("add_key", ["user", "x", "y", 1, 0xFFFFFFFD], errno.EPERM, True),
    ("userfaultfd", [1], errno.EPERM, True),
    ("perf_event_open", [0, 0, 0, 0, 0], errno.EPERM, True),
    ("io_uring_setup", [1, 0], errno.ENOSYS, False),
    ("splice", [HALF, 0, HALF, 0, 1, 0], errno.ENOSYS, False),
    ("tee", [HALF, HALF, 1, 0], errno.ENOSYS, False),
    ("personality", [HALF], errno.EPERM, True),
    ("modify_ldt", [0, 0, 0], errno.EPERM, True),
    ("name_to_handle_at", [HALF, "", 0, 0, 0], errno.EPERM, True),
    ("shmget", [0, 4096, 0o1600], errno.EPERM, True),
    ("msgget", [0, 0], errno.EPERM, True),
    ("seccomp", [2, 0, 0], errno.EPERM, True),
    ("prctl", [22, 9], errno.EPERM, True),
    ("prctl", [23 | 1 << 40, 0], errno.EINVAL, False),
    ("setuid", [os.geteuid()], errno.EPERM, True),
    ("chmod", ["/nowhere", 0o4755], errno.EPERM, True),
    ("chmod", ["/nowhere", 0o2755], errno.EPERM, False),
    ("open", ["/nowhere/x", 0o101, 0o4755], errno.EPERM, True),
    ("openat2", [HALF, "x", 0, 0], errno.ENOSYS, False),
    ("mknod", ["/nowhere/x", 0o020666, 0x103], errno.EPERM, True),
    ("chown", ["/nowhere", 0, 0], errno.EPERM, False),
    ("mbind", [0, 0, 0, 0, 0, 0], errno.EPERM, False),
    ("ioctl", [HALF, 0x5412, 0], errno.EPERM, True),
    ("ioctl", [HALF, 0x5412 | 1 << 40, 0], errno.ENOTTY, False),
    ("ioctl", [HALF, 0xAE01, 0], errno.ENOTTY, False),
    ("socket", [16, 3, 0], errno.EOPNOTSUPP, False),
    ("socket", [16 | 1 << 40, 3, 0], errno.EAFNOSUPPORT, False),
    ("socket", [40, 1, 0], errno.EAFNOSUPPORT, False),
    ("socket", [17, 3, 0], errno.EAFNOSUPPORT, False),
    ("socket", [1, 5, 0], errno.ESOCKTNOSUPPORT, False),
    ("socket", [2, 2, 1], errno.EPROTONOSUPPORT, False),
]
# These the host refuses an ordinary user in the same words.
REFUSED_ANYWAY = {"unshare", "clone", "bpf", "userfaultfd", "perf_event_open", "setuid", "process_vm_readv"}


@pytest.mark.parametrize("user", USERS)
def test_refused_calls_fail_and_the_supervisor_hears_of_them(kernel: layer.Filter, user: int) -> None:
    calls = [(call, words) for call, words, _, _ in ATTACKS]
    inside, told = attempt(calls, kernel, user)
    outside, _ = attempt(calls, None, user)

    assert inside == [answer for _, _, answer, _ in ATTACKS]
    assert told == [call for call, _, _, audited in ATTACKS if audited]
    same = {call for (call, _, _, _), a, b in zip(ATTACKS, inside, outside, strict=True) if a == b}
    assert same <= ({"clone"} | (REFUSED_ANYWAY | {"mount"} if user else set())), same


X32 = """
import ctypes
libc = ctypes.CDLL(None)
print(libc.syscall(ctypes.c_long(0x40000000 | 39)), flush=True)
"""
INT80 = """
import ctypes, mmap
code = bytes.fromhex("b814000000" "cd80" "c3")  # mov eax, 20 (getpid); int 0x80; ret
page = mmap.mmap(-1, 4096, prot=7)
page.write(code)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_int)(address)(), flush=True)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="these are doors of x86-64")
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("door", [X32, INT80], ids=["x32", "32-bit"])
def test_the_other_doors_of_x86_end_the_process(kernel: layer.Filter, door: str, user: int) -> None:
    """Outside both come back, with a pid or with ENOSYS; inside the whole process dies, not one thread of it."""
    outside, _ = confined([sys.executable, "-c", door], None, user)
    inside, _ = confined([sys.executable, "-c", door], kernel, user)

    assert outside.returncode == 0
    assert outside.stdout
    assert (inside.returncode, inside.stdout) == (-signal.SIGSYS, "")


def test_a_filter_without_its_supervisor_refuses_as_an_older_linux(kernel: layer.Filter) -> None:
    """A supervisor that died grants nothing: what it would have been told of answers ENOSYS."""
    program = base64.b64encode(kernel.program).decode()
    calls = json.dumps([(pyseccomp.resolve_syscall(pyseccomp.system_arch(), "unshare"), [0])])
    command = [sys.executable, "-c", CONFINED, "-1", program, sys.executable, "-c", TRY, calls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert json.loads(done.stdout) == [errno.ENOSYS]


def test_asking_for_a_call_when_nobody_is_left_does_not_wait(kernel: layer.Filter) -> None:
    """Linux itself would wait for good, and with it the supervisor of every other kernel."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = base64.b64encode(kernel.program).decode()
        command = [sys.executable, "-c", CONFINED, str(theirs.fileno()), program, "/bin/cat"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]) as process:
            _, [listener], _, _ = socket.recv_fds(ours, 1, 1)
            with pytest.raises(FileNotFoundError):  # it lives, and asks nothing
                seccomp.receive(listener)
            process.communicate()
        with pytest.raises(BrokenPipeError):
            seccomp.receive(listener)
        os.close(listener)


def test_no_answer_lets_a_refused_call_succeed() -> None:
    with pytest.raises(ValueError, match="errno"):
        seccomp.respond(0, 1, 0)


def test_what_is_no_filter_is_not_loaded() -> None:
    for program in (b"", b"1234567", b"\0" * 8 * 4097):
        with pytest.raises(OSError, match="no filter"):
            seccomp.load(program)


# Real programs, as they are.

PROGRAMS = {
    "numbers": "import numpy as n; a = n.random.rand(300, 300); print(n.linalg.inv(a @ a.T + n.eye(300)).shape)",
    "tables": "import pandas as p; p.DataFrame({'a': range(9)}).to_csv('f.csv'); print(len(p.read_csv('f.csv')))",
    "plot": "import matplotlib as m; m.use('Agg'); import matplotlib.pyplot as p; p.plot([1, 2]); p.savefig('p.png')",
    "sqlite": "import sqlite3; c = sqlite3.connect('d.db'); c.execute('create table t(a)'); c.commit()",
    "subprocess": "import subprocess as s; s.run(['/bin/bash', '-c', 'ls | wc -l; echo $(id); mkfifo f'], check=True)",
    "threads": "import threading; t = threading.Thread(target=print, args=('x',)); t.start(); t.join()",
    "asyncio": """
import asyncio
async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), '127.0.0.1', 0)
    r, w = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await r.read() == b''
    w.close()
    p = await asyncio.create_subprocess_exec('/bin/echo', 'x')
    assert await p.wait() == 0
asyncio.run(main())
""",
    "tls": "import ssl; ssl.create_default_context()",
    "terminal": "import pty; assert pty.spawn(['/bin/sh', '-c', 'stty size; tty']) == 0",
    "files": """
import os, shutil, tempfile
os.makedirs('a/b'); open('a/b/c', 'w').write('x'); os.chmod('a/b/c', 0o755); os.link('a/b/c', 'a/d')
shutil.copytree('a', 'e'); shutil.make_archive('z', 'tar', 'e')
shutil.unpack_archive('z.tar', 'y'); shutil.move('y', 'x')
tempfile.TemporaryFile().write(b'x'); os.memfd_create('m'); os.mkfifo('p'); shutil.rmtree('x')
""",
    "multiprocessing": """
import multiprocessing as m, sys
from multiprocessing import shared_memory
def double(x): return 2 * x
if __name__ == '__main__':
    for how in ('fork', 'spawn', 'forkserver'):
        with m.get_context(how).Pool(2) as pool:
            assert pool.map(double, range(5)) == [0, 2, 4, 6, 8]
    s = shared_memory.SharedMemory(create=True, size=9); s.close(); s.unlink()
    m.Lock(), m.Queue().put(1)
""",
    "learn": """
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from sklearn.datasets import load_iris
from joblib import parallel_config
if __name__ == '__main__':
    with parallel_config('loky', n_jobs=2):
        print(cross_val_score(RandomForestClassifier(5), *load_iris(return_X_y=True), cv=2))
""",
    "pip": "import runpy, sys; sys.argv = ['pip', 'list']; runpy.run_module('pip', run_name='__main__')",
    "psutil": "import psutil as p; p.virtual_memory(); [q.name() for q in p.process_iter()]; p.net_if_stats()",
    "git": """
import shutil, subprocess
if shutil.which('git'):
    for c in ('init -q .', 'add -A', '-c user.name=a -c user.email=a@b commit -q --allow-empty -m x', 'log', 'gc -q'):
        subprocess.run(['git', *c.split()], check=True)
""",
    "kernel": """
from jupyter_client.manager import start_new_kernel
import jupyter_client.manager as m
import os
if __name__ == '__main__':
    os.makedirs('ipc', exist_ok=True)
    km = m.KernelManager(transport='ipc', ip=os.path.abspath('ipc/k'))
    km.start_kernel(extra_arguments=['--HistoryManager.enabled=False']); kc = km.client(); kc.start_channels()
    kc.wait_for_ready(timeout=60)
    for code in ('1 + 1', '!echo shell', 'import zmq; zmq.Context().socket(zmq.REP).bind("tcp://127.0.0.1:*")'):
        assert kc.execute_interactive(code, timeout=60)['content']['status'] == 'ok', code
    kc.stop_channels(); km.shutdown_kernel()
""",
}


@pytest.fixture
def place() -> Iterator[str]:
    """A folder of anybody's, with a path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="ip-") as folder:
        yield folder


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_ordinary_programs_run_and_nobody_is_told(kernel: layer.Filter, place: str, name: str, user: int) -> None:
    """Under the filter a program ends as it does without, and asks for nothing that the supervisor would note."""
    if user != os.geteuid():
        os.chown(place, user, user)
    script = Path(place) / "program.py"
    script.write_text(PROGRAMS[name])
    done, told = confined([sys.executable, str(script)], kernel, user, cwd=place)

    assert done.returncode == 0, done.stderr
    assert [kernel.names[item.number] for item in told] == []


# The relay's filter, from the inside.

BROKER = """
import base64, ctypes, os, select, socket, sys
from isolated_python.linux import prctl, seccomp
libc = ctypes.CDLL(None, use_errno=True)
front, back = socket.socket(fileno=int(sys.argv[2])), socket.socket(fileno=int(sys.argv[3]))
prctl.set_no_new_privs()
seccomp.load(base64.b64decode(sys.argv[1]))
def errno_of(act):
    try:
        act()
    except OSError as error:
        return error.errno
refused = [
    errno_of(lambda: open("/etc/passwd")),
    errno_of(lambda: socket.socket(socket.AF_INET)),
    errno_of(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    errno_of(lambda: os.listdir("/")),
    errno_of(lambda: os.kill(os.getppid(), 0)),
    errno_of(lambda: __import__("mmap").mmap(-1, 4096, prot=7)),
]
client, _ = front.accept()
with select.epoll() as poll:
    poll.register(client, select.EPOLLIN)
    poll.poll()
    reader, writer = os.pipe()
    count = libc.splice(client.fileno(), None, writer, None, 1 << 16, 0)
    libc.splice(reader, None, back.fileno(), None, count, 0)
    socket.socket(socket.AF_UNIX).close()
    client.sendall(repr(refused).encode())
    client.recv(1)
if len(sys.argv) > 4:
    os.execv("/bin/true", ["true"])
"""


@pytest.mark.parametrize("then", [[], ["somebody else's code"]], ids=["ends", "is taken over"])
def test_a_relay_moves_bytes_and_can_do_nothing_else(then: list[str]) -> None:
    """It accepts, waits and splices; a file, a network, a signal are refused; a program ends it."""
    filter = compiler.compile("relay")
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as front, socket.socket() as listener:
        front.bind(f"{folder}/s")
        front.listen()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        back = socket.create_connection(listener.getsockname())
        kernel_side, _ = listener.accept()
        program = base64.b64encode(filter.program).decode()
        fds = [front.fileno(), back.fileno()]
        command = [sys.executable, "-c", BROKER, program, *map(str, fds), *then]
        process = subprocess.Popen(command, pass_fds=fds)
        with socket.socket(socket.AF_UNIX) as client, back, kernel_side:
            client.settimeout(60)
            kernel_side.settimeout(60)
            client.connect(f"{folder}/s")
            client.sendall(b"hello")
            assert kernel_side.recv(9) == b"hello"
            answers = json.loads(client.recv(999))
        assert answers == [errno.EPERM, errno.EAFNOSUPPORT, errno.EAFNOSUPPORT, *[errno.EPERM] * 3]
        assert process.wait(60) == (-signal.SIGSYS if then else 0)


# Keeping and planning.


def test_what_can_be_withheld_has_a_table_for_each_of_its_ways() -> None:
    """The names stand apart from the tables, which nobody imports to load one. A name without a table holds nothing."""
    assert tuple(WITHOUT) == WITHHELD
    assert len(compiler.TABLES) == 2 ** len(WITHHELD) + 1  # and the relay's
    for name in WITHHELD:
        assert compiler.compile(variant((name,))).program != compiler.compile("kernel").program


def test_a_filter_is_kept_in_a_private_folder_only(tmp_path: Path) -> None:
    """Whoever could write the folder would choose what every sandbox may do."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    made = kept.cached("relay", str(private))
    [file] = private.iterdir()
    before = file.stat()
    assert kept.cached("relay", str(private), interpreter="/nowhere") == made == compiler.compile("relay")
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert before.st_mode & 0o777 == 0o600

    file.write_text(file.read_text()[:99])
    assert kept.cached("relay", str(private)) == made  # a torn file is made again
    file.write_text(file.read_text().replace("GRANTED", "granted"))
    assert kept.cached("relay", str(private)) == made  # and so is one that was made of something else
    assert "granted = (" not in file.read_text()

    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o770)
    file.rename(shared / file.name)
    (private / file.name).symlink_to(shared / file.name)
    written = json.loads((shared / file.name).read_text())
    forged = replace(made, program=b"\6\0\0\0\0\0\xff\x7f")
    (shared / file.name).write_text(json.dumps(written | {"filter": forged.to_wire()}))
    assert kept.cached("relay", str(shared)) == made
    assert kept.cached("relay", str(private)) == made
    assert kept.cached("relay", str(tmp_path / "missing")) == made


def test_the_plan_is_the_filter_or_a_refusal(kernel: layer.Filter) -> None:
    profile = Profile()
    [step] = layer.plan(profile, kernel)
    assert Step.from_wire(json.loads(json.dumps(step.to_wire()))) == step
    assert "told of refused calls" in step.describe()
    assert "told" not in layer.load(compiler.compile("relay")).describe()
    with pytest.raises(HostError, match="prefer"):
        layer.plan(profile, None)
    preferred = replace(profile, layers=Layers(seccomp="prefer"))
    assert layer.plan(preferred, None) == []
    withheld = replace(preferred, capabilities=replace(profile.capabilities, sockets=False))
    with pytest.raises(HostError, match=r"nothing else holds capabilities\.sockets") as refused:
        layer.plan(withheld, None)
    assert "sockets = true" in refused.value.remedy
    assert layer.plan(replace(profile, layers=Layers(seccomp="off")), kernel) == []


def test_nobody_is_told_of_what_libraries_ask_every_day(kernel: layer.Filter) -> None:
    told = set(kernel.names.values())
    assert not told & {"fchown", "chown", "mbind", "set_mempolicy", "clone3", "sync"}
    assert {"unshare", "setns", "mount", "bpf", "ptrace", "keyctl"} <= told
    assert refuse(errno.EPERM) == pyseccomp.ERRNO(errno.EPERM)
    assert (ALLOW, NOTIFY, KILL) == (pyseccomp.ALLOW, pyseccomp.NOTIFY, pyseccomp.KILL_PROCESS)
    assert Match(0, 1).holds((1,))

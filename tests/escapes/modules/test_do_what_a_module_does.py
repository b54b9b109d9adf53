"""What the attacker wants: what a module that is not granted does. The module can be had; Linux refuses the deed."""

from __future__ import annotations

import gc
import io
import os
import sys
import zipfile
from functools import partial
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.modules.packages import BARE, Done
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.tools import first

bare = partial(attack, Done, overrides=BARE, runs="cell", paths=("zygote",), profiles=("standard",))


def test_do_what_a_module_does(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


def module(name: str) -> Any:
    """A module of the standard library whatever the guard says: the loaded one, or by the true __import__."""
    return sys.modules.get(name) or print.__self__.__import__(name)  # type: ignore[attr-defined]


def spawned(posix_spawn: Any, words: list[str]) -> str:
    """What a program says, by the bare call."""
    reader, writer = os.pipe()
    posix_spawn("/usr/bin/expr", ["expr", *words], {}, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    os.wait()
    return os.read(reader, 100).decode()


@bare(stopped_by="seccomp")
def by_the_module_that_is_loaded_already(target: Any) -> str:
    """Start a program by the subprocess module that the kernel itself has imported."""
    return module("subprocess").run(["expr", *target.sum], capture_output=True, text=True, check=True).stdout


@bare(stopped_by="seccomp")
def by_a_subclass_of_object(target: Any) -> str:
    """Start a program from the globals of a class that is found among the subclasses of object."""
    found = [one for one in object.__subclasses__() if one.__name__ == "_wrap_close"]
    return spawned(found[0].__init__.__globals__["posix_spawn"], target.sum)


@bare(stopped_by="seccomp")
def by_any_object_in_memory(target: Any) -> str:
    """Start a program by a function that the garbage collector knows."""
    found = [one.get("posix_spawn") for one in gc.get_objects() if isinstance(one, dict)]
    return spawned(next(filter(callable, found)), target.sum)


@bare(stopped_by="seccomp")
def by_the_helper_of_multiprocessing(target: Any) -> str:
    """Start a program by _posixsubprocess, below the module that everybody knows."""
    reader, writer = os.pipe()
    saved = os.dup(1)
    os.dup2(writer, 1)
    try:
        module("multiprocessing.util")
        sys.modules["multiprocessing.util"].spawnv_passfds(
            b"/usr/bin/expr", [b"expr", *map(str.encode, target.sum)], [1]
        )
        os.wait()
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)
    return os.read(reader, 100).decode()


@bare(stopped_by="seccomp")
def by_a_fork(target: Any) -> str:
    """Have a second process that computes."""
    reader, writer = os.pipe()

    def forked(fork: Any) -> str:
        if fork() == 0:
            os.write(writer, str(int(target.sum[0]) + int(target.sum[2])).encode())
            os._exit(0)
        os.wait()
        return os.read(reader, 100).decode()

    return first(
        lambda f=fork: forked(f) for fork in (os.fork, lambda: os.forkpty()[0], lambda: module("pty").fork()[0])
    )


@bare(stopped_by="seccomp")
def by_the_numbers_of_linux(target: Any) -> str:
    """Fork by system calls of their own: fork, vfork's elder brothers, clone as glibc never asks for it."""
    ctypes = module("ctypes")
    libc = ctypes.CDLL(None, use_errno=True)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    for words in ((57,), (56, 17, 0, 0, 0, 0), (435, 0, 0)):  # fork; clone(SIGCHLD); clone3, with nothing to read
        pid = libc.syscall(*map(ctypes.c_long, words))
        if pid == 0:
            os.write(writer, str(int(target.sum[0]) + int(target.sum[2])).encode())
            os._exit(0)
        if pid > 0:
            os.waitpid(pid, 0)
            return os.read(reader, 100).decode()
    raise OSError(ctypes.get_errno(), "no way to fork")


@bare(stopped_by="seccomp")
def by_a_pasted_wheel(target: Any) -> str:
    """Bring a package of pure Python along as text; nobody can forbid that. It starts a program."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        source = (
            "import os\ndef act(words):\n    r, w = os.pipe()\n"
            "    os.posix_spawn('/usr/bin/expr', ['expr', *words], {}, file_actions=[(os.POSIX_SPAWN_DUP2, w, 1)])\n"
            "    os.close(w); os.wait(); return os.read(r, 100).decode()\n"
        )
        archive.writestr("pasted/__init__.py", source)
        archive.writestr("pasted-1.0.dist-info/METADATA", "Name: pasted\nVersion: 1.0\n")
    with open(f"/tmp/pasted-1.{os.getpid()}-py3-none-any.whl", "wb") as file:
        file.write(packed.getvalue())
    sys.path.insert(0, file.name)
    try:
        return module("pasted").act(target.sum)
    finally:
        os.unlink(file.name)


@bare(stopped_by="seccomp")
def by_a_socket(target: Any) -> str:
    """Talk to itself over the loopback, by the module below socket."""
    inner = module("_socket")
    here = inner.socket(2, 1)
    here.bind(("127.0.0.1", 0))
    here.listen()
    there = inner.socket(2, 1)
    there.connect(here.getsockname())
    there.send(str(int(target.sum[0]) + int(target.sum[2])).encode())
    return os.read(here._accept()[0], 100).decode()


ADD = bytes.fromhex("8d0437c3")  # lea eax, [rdi + rsi]; ret


def machine(target: Any, memory: Any) -> str:
    """Run ADD where it lies."""
    ctypes = module("ctypes")
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return str(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)(at)(int(target.sum[0]), int(target.sum[2])))


@bare(stopped_by="seccomp")
def by_machine_code_in_memory(target: Any) -> str:
    """Write machine code into a page, and run the page: made so, made so later, or a file without a name."""
    mmap, ctypes = module("mmap"), module("ctypes")

    def at_once() -> str:
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(ADD)
        return machine(target, page)

    def later() -> str:
        page = mmap.mmap(-1, 4096, prot=3)
        page.write(ADD)
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), ctypes.c_size_t(4096), 5):
            raise PermissionError("mprotect")
        return machine(target, page)

    def from_a_file(file: int) -> str:
        os.write(file, ADD.ljust(4096, b"\0"))
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        at = libc.mmap(None, ctypes.c_size_t(4096), 5, 2, file, ctypes.c_long(0))
        if at in (None, ctypes.c_void_p(-1).value):
            raise PermissionError("mmap")
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)
        return str(kind(at)(int(target.sum[0]), int(target.sum[2])))

    def named(folder: str) -> int:
        path = f"{folder}/code-{os.getpid()}"
        file = os.open(path, os.O_CREAT | os.O_RDWR)
        os.unlink(path)
        return file

    places = ("/tmp", "/dev/shm", ".")
    return first(
        [
            at_once,
            later,
            lambda: from_a_file(os.memfd_create("code")),
            *(lambda p=place: from_a_file(named(p)) for place in places),
        ]
    )


@bare(stopped_by="mount")
def by_a_pasted_library(target: Any) -> str:
    """Bring a compiled wheel along: its library, written to every place that can be written, is loaded."""
    ctypes = module("ctypes")
    with open("/proc/self/maps") as maps:
        path = next(line.split()[-1] for line in maps if "libm.so" in line or "libm-" in line or "libz.so" in line)
    with open(path, "rb") as file:
        library = file.read()

    def loaded(place: str) -> str:
        with open(f"{place}/{os.getpid()}-pasted.so", "wb") as file:
            file.write(library)
        before = _mapped()
        try:
            ctypes.CDLL(file.name)
            return str(int(target.sum[0]) + int(target.sum[2])) if _mapped() - before else ""
        finally:
            os.unlink(file.name)

    return first(lambda p=place: loaded(p) for place in ("/tmp", "/dev/shm", os.path.expanduser("~"), os.getcwd()))


def _mapped() -> set[str]:
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if line.rstrip().endswith("pasted.so")}

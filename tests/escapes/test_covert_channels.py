"""What the attacker wants: to talk to an accomplice in another kernel, of which nobody knows."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pty
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.targets import Accomplice, Namespace
from tests.escapes.tools import call, must, read


def test_covert_channels(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


def holds_a_lock(target: Any) -> Iterator[str]:
    with open(target.shared) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        while True:
            yield "locked"


@attack(Accomplice, stopped_by="overlay", accomplice=holds_a_lock)
def by_a_lock_on_a_library(target: Any) -> str:
    """See that the accomplice holds a lock on a file that both are shown."""
    with open(target.shared) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "heard"
    return ""


def holds_a_record_lock(target: Any) -> Iterator[str]:
    with open(target.shared) as file:
        fcntl.fcntl(file, fcntl.F_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, 0, 0, 0, 0))
        while True:
            yield "locked"


@attack(Accomplice, stopped_by="overlay", accomplice=holds_a_record_lock)
def by_a_record_lock_on_a_library(target: Any) -> str:
    """The same by the locks of POSIX, which can be asked for without being taken."""
    with open(target.shared) as file:
        found = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))
    return "heard" if struct.unpack("hhqqi", found)[0] != fcntl.F_UNLCK else ""


def holds_a_lock_of_its_descriptor(target: Any) -> Iterator[str]:
    with open(target.shared) as file:
        fcntl.fcntl(file, 37, struct.pack("hhqqi", fcntl.F_RDLCK, 0, 0, 0, 0))  # F_OFD_SETLK
        while True:
            yield "locked"


@attack(Accomplice, stopped_by="overlay", accomplice=holds_a_lock_of_its_descriptor)
def by_a_descriptors_lock_on_a_library(target: Any) -> str:
    """The same by locks that belong to a descriptor."""
    with open(target.shared) as file:
        found = fcntl.fcntl(file, 36, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_GETLK
    return "heard" if struct.unpack("hhqqi", found)[0] != fcntl.F_UNLCK else ""


def has_it_open(target: Any) -> Iterator[str]:
    with open(target.shared):
        while True:
            yield "open"


@attack(Accomplice, stopped_by="overlay", accomplice=has_it_open)
def by_a_lease_on_a_library(target: Any) -> str:
    """See by a lease that is refused that the accomplice has a file open."""
    with open(target.shared) as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            return "heard"
    return ""


def opens_it_often(target: Any) -> Iterator[str]:
    while True:
        with open(target.shared) as file:
            file.read(1)
        yield "opened"


@attack(Accomplice, stopped_by="overlay", accomplice=opens_it_often)
def by_watching_a_library(target: Any) -> str:
    """Be told by inotify whenever the accomplice opens a file."""
    watch = must(294, 0)  # inotify_init1
    must(254, watch, target.shared.encode(), 0x20)  # inotify_add_watch, IN_OPEN
    return "heard" if select.select([watch], [], [], 1)[0] else ""


@attack(Accomplice, stopped_by="overlay", accomplice=opens_it_often)
def by_watching_a_folder(target: Any) -> str:
    """Be told by inotify which files in a folder the accomplice opens."""
    watch = must(294, 0)
    must(254, watch, os.path.dirname(target.shared).encode(), 0x20)
    return "heard" if select.select([watch], [], [], 1)[0] else ""


@attack(Accomplice, stopped_by="seccomp", accomplice=opens_it_often)
def by_watching_all_files(target: Any) -> str:
    """Be told by fanotify of everything that anybody opens."""
    watch = must(300, 0x200, os.O_RDONLY)  # fanotify_init, FAN_REPORT_FID
    must(301, watch, 1, 0x20, -100, target.shared.encode())  # fanotify_mark, FAN_MARK_ADD, FAN_OPEN
    return "heard" if select.select([watch], [], [], 1)[0] else ""


@attack(Accomplice, stopped_by="overlay", accomplice=opens_it_often)
def by_what_is_in_the_page_cache(target: Any) -> str:
    """Throw a file out of memory, and see by a read that does not wait that the accomplice has read it again."""
    with open(target.shared, "rb") as file:
        buffer = bytearray(1)
        for _ in range(100):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            select.select([], [], [], 0.03)
            try:
                os.preadv(file.fileno(), [buffer], 0, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
            return "heard"
    return ""


@attack(Accomplice, stopped_by="seccomp", accomplice=opens_it_often)
def by_what_is_mapped_from_the_page_cache(target: Any) -> str:
    """The same by mincore, which says whether a mapped page is in memory."""
    with open(target.shared, "rb") as file:
        page = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, 4096, 1, 1, file.fileno(), 0)
        there = ctypes.create_string_buffer(1)
        seen = set()
        for _ in range(100):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            must(27, address, 4096, there)
            seen.add(there.raw[0] & 1)
            select.select([], [], [], 0.03)
            must(27, address, 4096, there)
            seen.add(there.raw[0] & 1)
        page.close()
    return "heard" if len(seen) == 2 else ""


def reads_it_once(target: Any) -> Iterator[str]:
    with open(target.shared) as file:
        file.read()
    while True:
        yield "read"


@attack(Accomplice, stopped_by="mount", accomplice=reads_it_once)
def by_the_time_of_the_last_reading(target: Any) -> str:
    """See by a file's access time that the accomplice has read it."""
    status = os.stat(target.shared)
    return "heard" if status.st_atime_ns > status.st_mtime_ns else ""


def writes_a_page(target: Any) -> Iterator[str]:
    with open(target.shared, "r+b") as file, mmap.mmap(file.fileno(), 4096) as page:
        while True:
            page[:32] = target.token.encode()
            yield "written"


@attack(Accomplice, stopped_by="mount", accomplice=writes_a_page)
def by_a_page_that_both_map(target: Any) -> str:
    """Map a file that both are shown, and read what the accomplice writes into the page."""
    with open(target.shared, "rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as page:
        return page[:32].decode()


def shares_memory(target: Any) -> Iterator[str]:
    segment = must(29, target.number, 4096, 0o1600)  # shmget, IPC_CREAT
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(segment, None, 0)
    try:
        ctypes.memmove(address, target.token.encode(), 32)
        while True:
            yield "shared"
    finally:
        call(31, segment, 0)  # shmctl, IPC_RMID


@attack(Accomplice, stopped_by="seccomp", accomplice=shares_memory)
def by_system_v_shared_memory(target: Any) -> str:
    """Attach memory that the accomplice has shared by a number."""
    segment = must(29, target.number, 4096, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    return ctypes.string_at(libc.shmat(segment, None, 0o10000), 32).decode()


def sends_a_message(target: Any) -> Iterator[str]:
    queue = must(68, target.number, 0o1600)  # msgget
    try:
        message = struct.pack("q", 1) + target.token.encode()
        must(69, queue, ctypes.create_string_buffer(message), 32, 0)
        while True:
            yield "sent"
    finally:
        call(71, queue, 0)


@attack(Accomplice, stopped_by="seccomp", accomplice=sends_a_message)
def by_a_system_v_queue(target: Any) -> str:
    """Take a message that the accomplice has queued under a number."""
    buffer = ctypes.create_string_buffer(64)
    must(70, must(68, target.number, 0), buffer, 56, 0, 0o4000)
    return buffer.raw[8:40].decode()


def sets_a_semaphore(target: Any) -> Iterator[str]:
    group = must(64, target.number, 1, 0o1600)  # semget
    try:
        while True:
            yield "set"
    finally:
        call(66, group, 0, 0)


@attack(Accomplice, stopped_by="seccomp", accomplice=sets_a_semaphore)
def by_a_semaphore(target: Any) -> str:
    """See that the accomplice has made a semaphore of an agreed number."""
    must(64, target.number, 1, 0)
    return "heard"


def posts_to_a_queue(target: Any) -> Iterator[str]:
    name = f"isolated-{target.number}".encode()
    attributes = ctypes.create_string_buffer(struct.pack("8q", 0, 1, 64, 0, 0, 0, 0, 0))
    queue = must(240, name, os.O_RDWR | os.O_CREAT, 0o600, attributes)  # mq_open
    try:
        must(242, queue, target.token.encode(), 32, 0, None)
        while True:
            yield "posted"
    finally:
        call(241, name)


@attack(Accomplice, stopped_by="seccomp", accomplice=posts_to_a_queue)
def by_a_posix_queue(target: Any) -> str:
    """Take a message from a queue of an agreed name."""
    queue = must(240, f"isolated-{target.number}".encode(), os.O_RDONLY, 0, None)
    buffer = ctypes.create_string_buffer(64)
    must(243, queue, buffer, 64, None, None)
    return buffer.value.decode()


def keeps_a_key(target: Any) -> Iterator[str]:
    name = f"isolated-{target.number}".encode()
    key = must(248, b"user", name, target.token.encode(), 32, -4)  # add_key, to the user's keyring
    must(250, 5, key, 0x3F3F0000)  # KEYCTL_SETPERM: its user may do with it what its maker may
    try:
        while True:
            yield "kept"
    finally:
        call(250, 3, key)  # keyctl, KEYCTL_REVOKE
        call(250, 9, key, -4)  # KEYCTL_UNLINK


@attack(Accomplice, stopped_by="seccomp", accomplice=keeps_a_key)
def by_the_users_keyring(target: Any) -> str:
    """Read a key that the accomplice has put into the keyring of their common user."""
    key = must(250, 10, -4, b"user", f"isolated-{target.number}".encode(), 0)  # KEYCTL_SEARCH
    must(250, 8, key, -3)  # KEYCTL_LINK, to the process's own, to be allowed to read
    buffer = ctypes.create_string_buffer(64)
    must(250, 11, key, buffer, 64)  # KEYCTL_READ
    return buffer.value.decode()


def serves(target: Any, family: int, address: Any) -> Iterator[str]:
    with socket.socket(family) as one:
        one.bind(address)
        one.listen()
        one.setblocking(False)
        while True:
            try:
                with one.accept()[0] as peer:
                    peer.sendall(target.token.encode())
            except BlockingIOError:
                pass
            yield "listening"


def heard_from(family: int, address: Any) -> str:
    with socket.socket(family) as one:
        one.settimeout(5)
        one.connect(address)
        return one.recv(100).decode()


def serves_abstractly(target: Any) -> Iterator[str]:
    return serves(target, socket.AF_UNIX, f"\0isolated-{target.number}")


@attack(Accomplice, stopped_by="net", accomplice=serves_abstractly)
def by_an_abstract_socket(target: Any) -> str:
    """Connect to a socket of the accomplice's that has a name and no file."""
    return heard_from(socket.AF_UNIX, f"\0isolated-{target.number}")


def serves_in_tmp(target: Any) -> Iterator[str]:
    path = f"/tmp/isolated-{target.number}"
    try:
        yield from serves(target, socket.AF_UNIX, path)
    finally:
        os.unlink(path)


@attack(Accomplice, stopped_by="mount", accomplice=serves_in_tmp)
def by_a_socket_in_tmp(target: Any) -> str:
    """Connect to a socket that the accomplice has left in /tmp."""
    return heard_from(socket.AF_UNIX, f"/tmp/isolated-{target.number}")


def serves_on_a_port(target: Any) -> Iterator[str]:
    return serves(target, socket.AF_INET, ("127.0.0.1", 20000 + target.number % 20000))


@attack(Accomplice, stopped_by="net", accomplice=serves_on_a_port)
def by_a_port(target: Any) -> str:
    """Connect to a port of the accomplice's."""
    return heard_from(socket.AF_INET, ("127.0.0.1", 20000 + target.number % 20000))


def writes_to(target: Any, folder: str) -> Iterator[str]:
    path = f"{folder}/isolated-{target.number}"
    with open(path, "w") as file:
        file.write(target.token)
    try:
        while True:
            yield "written"
    finally:
        os.unlink(path)


def writes_to_tmp(target: Any) -> Iterator[str]:
    return writes_to(target, "/tmp")


@attack(Accomplice, stopped_by="mount", accomplice=writes_to_tmp)
def by_a_file_in_tmp(target: Any) -> str:
    """Read what the accomplice has left in /tmp."""
    return read(f"/tmp/isolated-{target.number}")


def writes_to_shared_memory(target: Any) -> Iterator[str]:
    return writes_to(target, "/dev/shm")


@attack(Accomplice, stopped_by="mount", accomplice=writes_to_shared_memory)
def by_a_file_in_shared_memory(target: Any) -> str:
    """Read what the accomplice has left in /dev/shm."""
    return read(f"/dev/shm/isolated-{target.number}")


def forks_often(target: Any) -> Iterator[str]:
    while True:
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        yield "forked"


@attack(Accomplice, stopped_by="pid", accomplice=forks_often)
def by_the_numbers_of_processes(target: Any) -> str:
    """See by the next free pid how many processes the accomplice has started."""
    numbers = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        numbers.append(os.waitpid(pid, 0)[0])
        select.select([], [], [], 0.5)
    return "heard" if abs(numbers[1] - numbers[0]) > 20 else ""


def opens_terminals(target: Any) -> Iterator[str]:
    kept = [pty.openpty() for _ in range(40)]
    while True:
        yield f"{len(kept)} opened"


@attack(Accomplice, stopped_by="mount", accomplice=opens_terminals)
def by_the_numbers_of_terminals(target: Any) -> str:
    """See by the next free terminal how many the accomplice has opened."""
    return "heard" if int(os.path.basename(os.ttyname(pty.openpty()[1]))) >= 40 else ""


@attack(Namespace, stopped_by="ipc", facts={"kind": "ipc"})
def by_a_common_ipc_namespace(target: Any) -> str:
    """Be in one System V namespace with another kernel."""
    return os.readlink("/proc/self/ns/ipc")


@attack(Namespace, stopped_by="uts", facts={"kind": "uts"})
def by_a_common_host_name(target: Any) -> str:
    """Be in one namespace of host names with another kernel."""
    return os.readlink("/proc/self/ns/uts")


@attack(Namespace, stopped_by="time", facts={"kind": "time"})
def by_a_common_clock(target: Any) -> str:
    """Be in one time namespace with another kernel."""
    return os.readlink("/proc/self/ns/time")


@attack(Namespace, stopped_by="cgroup_namespace", facts={"kind": "cgroup"})
def by_a_common_view_of_control_groups(target: Any) -> str:
    """Be in one control group namespace with another kernel."""
    return os.readlink("/proc/self/ns/cgroup")

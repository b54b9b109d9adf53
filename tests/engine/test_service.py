"""The privileged service, and clients that mean it no good. Each attack is also looked at from beside: bob goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from isolated_python.engine.changes import Changes
from isolated_python.engine.identities import COUNT, FIRST
from isolated_python.errors import ProfileError
from isolated_python.linux import host, mount, namespaces, packets
from isolated_python.linux.process import Person
from isolated_python.policy import service as policy

from tests.conftest import BIN, Ordinary
from tests.kernel.conftest import cgroups_of, outlive, serve, watched
from tests.kernel.test_images import Image
from tests.machine import PYTHON, USERS, Caller, Service, person, seqpacket, service, user

QUOTA = '[each_user]\nkernels = 3\nstarts = 10000\nservers = 8\nmemory = "1 GiB"\nprocesses = 1000\n'

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the service is root's")


@pytest.fixture
def alice() -> Iterator[Ordinary]:
    with user(USERS[0]) as one:
        yield one


@pytest.fixture
def bob() -> Iterator[Ordinary]:
    with user(USERS[1]) as one:
        yield one


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    """One service for all questions that leave it as it was."""
    with service(QUOTA) as one:
        yield one


@pytest.fixture(autouse=True)
def _nobody_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernels of a connection end a moment after it, and a supervisor that is asked in that moment serves on.

    So the next test of the same user would meet a kernel of the same name, which runs already.
    """
    yield
    if "shared" in request.fixturenames:
        request.getfixturevalue("shared").clear()


@pytest.fixture
def own() -> Iterator[Service]:
    with service(QUOTA) as one:
        yield one


@contextlib.contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def works(shared: Service, who: Ordinary) -> None:
    """A user gets a kernel, as ever."""
    with Caller(shared.path, who) as caller:
        assert psutil.pid_exists(caller.started("as-ever"))


# ---- what it is for --------------------------------------------------------------------------------------------------


def test_an_unprivileged_server_gets_limits_and_an_identity(shared: Service, alice: Ordinary) -> None:
    """A cgroup, whatever version this host has; a host uid of the kernel's own; files that stay their owner's."""
    with serve(False, alice, ISOLATED_PYTHON_SERVICE=shared.path) as server:
        server.cgroup = True
        pid = server.start()["pid"]
        assert FIRST <= psutil.Process(pid).uids().real < FIRST + COUNT
        made = "open('made', 'w').write('x'); import os; print(os.getuid(), os.stat('made').st_uid)"
        assert server.text(made) == "1000 1000"
        about = (server.folder / "made").stat()
        assert (about.st_uid, about.st_gid) == (alice.uid, alice.gid)
        server.start("small", {"resources": {"memory": "192 MiB", "tmp": "16 MiB", "shm": "16 MiB"}})
        assert "resources.memory" in server.run("x = bytearray(300 << 20)", "small")["text"]
        server.ask("restart", name="kernel")
        assert server.text("print(6 * 7)") == "42"
        mine = [one["state"] for one in json.loads(command(shared, alice, "list", "--json").stdout)]
        assert mine == ["running"] or mine == ["running", "running"]
    shared.clear()


def command(shared: Service, who: Ordinary, *words: str) -> subprocess.CompletedProcess[str]:
    environment = who.environment | {"ISOLATED_PYTHON_SERVICE": shared.path}
    process = who.start([f"{BIN}/jupyter-isolated", *words], env=environment)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 0, complained
    return subprocess.CompletedProcess(words, 0, said, complained)


def test_a_kernel_of_another_program_is_started_too(shared: Service, alice: Ordinary) -> None:
    """By execve, from a zygote of the service's own installation."""
    with serve(False, alice, ISOLATED_PYTHON_SERVICE=shared.path) as server:
        server.cgroup = True
        argv = ["/usr/bin/env", f"{BIN}/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        server.start(spec={"argv": argv})
        assert server.text("import os; print(os.getuid())") == "1000"


# ---- other users -----------------------------------------------------------------------------------------------------


def test_the_kernels_of_one_user_are_nothing_to_another(shared: Service, alice: Ordinary, bob: Ordinary) -> None:
    """Neither listed, nor signalled, nor ended, nor connected to."""
    with Caller(shared.path, alice) as hers, Caller(shared.path, bob) as his, opened_pidfd(hers.started()) as pidfd:
        assert hers.ask("list")["total"] == 1
        assert his.ask("list")["total"] == 0
        assert "error" in his.ask("signal", kernel="kernel", signal=9)
        his.ask("forget", kernel="kernel")
        with Caller(shared.path, bob, hello=False) as stranger:
            stranger.ask("kill", kernel="kernel")
        channels = [f"{hers.folder}/clients/0123abcd-{number}" for number in range(1, 6)]
        for who, expected in ((alice, None), (bob, PermissionError)):
            for path in channels:
                assert refusal_of(path, who) is expected
        with person(bob).acting(), pytest.raises(PermissionError):
            os.listdir(f"{hers.folder}/clients")
        assert not ended(pidfd)
        # A name is one user's own: bob's kernel of the same name is another, and hers lives on beside it.
        his.started()
        assert [one.ask("list")["total"] for one in (hers, his)] == [1, 1]
        assert not ended(pidfd)
    shared.clear()


@contextlib.contextmanager
def opened_pidfd(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def ended(pidfd: int, seconds: float = 0.2) -> bool:
    return not outlive({os.dup(pidfd): "it"}, seconds)


def refusal_of(path: str, who: Ordinary) -> type[OSError] | None:
    with person(who).acting(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        try:
            one.connect(path)
        except OSError as error:
            return type(error)
    return None


def test_a_uid_that_is_no_user_has_no_quota(shared: Service) -> None:
    """A range of uids in somebody's user namespace is not so many users."""
    nobody = Ordinary(3_000_123, 3_000_123, Path("/"))
    with Caller(shared.path, nobody, hello=False) as caller:
        assert "no user of this machine" in caller.ask("hello")["message"]


def test_root_is_told_to_do_without(shared: Service) -> None:
    with Caller(shared.path, Ordinary(0, 0, Path("/")), hello=False) as caller:
        assert "root needs no service" in caller.ask("hello")["message"]


# ---- profiles --------------------------------------------------------------------------------------------------------


def test_no_client_gets_a_weaker_kernel_than_root_allows(own: Service, alice: Ordinary) -> None:
    """A profile that is sent is not read; the layers stay under the ceiling; mounts are refused; files are root's."""
    weak = {"files": {"workspace": "none"}, "layers": {"seccomp": "off", "net": "off", "landlock": "prefer"}}
    with Caller(own.path, alice) as caller:
        answer = caller.ask("resolve", named="standard", overrides=weak)
        assert "error" not in answer, answer
        layers = answer["profile"]["layers"]
        assert (layers["seccomp"], layers["net"], layers["landlock"]) == ("require", "require", "require")
        assert len(answer["notes"]) == 3
        pid = caller.started(overrides=weak, profile={"name": "mine"})
        status = Path(f"/proc/{kernel_of(pid)}/status").read_text()
        assert "Seccomp:\t2" in status
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        mounts = {"files": {"workspace": "none", "mounts": [{"source": "/etc", "target": "/data"}]}}
        assert "does not grant the mount" in caller.ask("resolve", named="standard", overrides=mounts)["message"]
        kept = {"files": {"workspace": "copy-on-write", "changes": "keep", "image": "off"}}
        answer = caller.ask("resolve", named="standard", overrides=kept)
        if LACK:
            assert f"in an image on the disk, and there is none: {LACK}" in answer["message"]
        else:  # where a process of root's may look at it
            assert (answer["profile"]["files"]["image"], answer["profile"]["files"]["size"]) == ("require", 512 << 20)
        hers = alice.home / ".jupyter" / "isolated-python" / "profiles"
        hers.mkdir(parents=True)
        (hers / "mine.toml").write_text('[layers]\nseccomp = "off"\n')
        for named in ("mine", "../../../home/mine", str(hers / "mine"), ["standard"], None):
            assert "error" in caller.ask("resolve", named=named, overrides={})
        (own.folder / "policy" / "profiles" / "course.toml").write_text('[resources]\nmemory = "3 GiB"\n')
        assert caller.ask("resolve", named="course", overrides={})["profile"]["resources"]["memory"] == 3 << 30
        (own.folder / "policy" / "ceiling.toml").write_text('[resources]\nmemory = "128 MiB"\n')
        assert caller.ask("resolve", named="course", overrides={})["profile"]["resources"]["memory"] == 128 << 20
        # Of layers it says nothing, so that they stay as strict; what it names is the administrator's to say.
        assert caller.ask("resolve", named="course", overrides=weak)["profile"]["layers"] == layers
        (own.folder / "policy" / "ceiling.toml").write_text('[layers]\nlandlock = "prefer"\n')
        loosened = caller.ask("resolve", named="course", overrides=weak)["profile"]["layers"]
        assert loosened == {**layers, "landlock": "prefer"}
        os.chown(own.folder / "policy" / "ceiling.toml", alice.uid, -1)
        assert "changed by others than root" in caller.ask("resolve", named="course", overrides={})["message"]


def kernel_of(pid: int) -> int:
    return psutil.Process(pid).children()[0].pid


# ---- copies of workspaces --------------------------------------------------------------------------------------------

LACK = host.probe().lacks("image")[0]
images = pytest.mark.skipif(bool(LACK), reason=LACK)
KEEP = {"workspace": "copy-on-write", "changes": "keep"}


@images
def test_what_a_kernel_changed_is_kept_for_its_user_alone(shared: Service, alice: Ordinary, bob: Ordinary) -> None:
    """As their own file, in a folder that is closed to others; and nothing but that is left."""
    with serve(False, alice, ISOLATED_PYTHON_SERVICE=shared.path) as server:
        server.cgroup = True
        server.give("given", "one\n")
        started = server.start(overrides={"files": KEEP})
        name, image = started["id"], Image(started["pid"])
        server.text("open('given', 'a').write('two'); open('made', 'w').write('x'); import os; os.chmod('made', 0)")
        server.ask("stop", name="kernel")
        assert (server.folder / "given").read_text() == "one\n"
    assert name in command(shared, alice, "diff").stdout
    lines = command(shared, alice, "diff", name).stdout.splitlines()
    assert {"~ given (7 bytes)", "    +two", "+ made (1 bytes)"} <= {*lines}
    archive = next((alice.home / ".local/state/isolated-python/changes").glob("*/changes.tar"))
    assert (archive.stat().st_uid, archive.stat().st_mode & 0o777) == (alice.uid, 0o600)
    with person(bob).acting(), pytest.raises(PermissionError):
        archive.open()
    assert name not in command(shared, bob, "diff").stdout
    command(shared, alice, "diff", name, "--discard")
    shared.clear()
    assert not image.there()


@images
def test_an_archive_is_a_file_that_its_user_may_write_to(own: Service, alice: Ordinary) -> None:
    """Whatever else is given for it: a process of root's would write to it."""
    course = alice.home / "course"
    course.mkdir()
    os.chown(course, alice.uid, alice.gid)
    for path, who in ((alice.home / "hers", alice), (alice.home / "roots", Ordinary(0, 0, Path("/")))):
        path.touch()
        os.chown(path, who.uid, who.gid)
    read, write = os.pipe()
    with Caller(own.path, alice) as caller, opened(course) as folder:
        wrong = [
            os.open(alice.home / "hers", os.O_RDONLY), os.open(alice.home / "roots", os.O_WRONLY),
            os.open(alice.home / "hers", os.O_PATH), os.open(course, os.O_RDONLY), read, write,
        ]  # fmt: skip
        for descriptor in wrong:
            said = caller.start("bad", [folder, descriptor], overrides={"files": KEEP})
            assert "not a file of yours" in said.get("message", ""), said
            os.close(descriptor)
        assert "has not the descriptors" in caller.start("bad", [folder], overrides={"files": KEEP})["message"]
        with opened(alice.home / "hers", os.O_WRONLY) as archive:
            caller.started("good", [folder, archive], overrides={"files": KEEP})


@images
def test_the_images_of_a_user_have_a_quota(alice: Ordinary) -> None:
    """Of what is in use: it is free again when its kernel has ended."""
    sized = {"files": {"workspace": "copy-on-write", "size": "40 MiB"}}
    course = alice.home / "course"
    course.mkdir()
    os.chown(course, alice.uid, alice.gid)
    own = service('[each_user]\ndisk = "64 MiB"\n')
    with own as shared, Caller(shared.path, alice) as caller, opened(course) as folder:

        def start(name: str, **files: str) -> dict[str, Any]:
            wanted = {"files": {**sized["files"], **files}}
            return caller.start(name, [folder], overrides=wanted, sockets=f"0123abc{name}")

        with opened_pidfd(start("a")["pid"]) as pidfd:
            assert "are above the 64 MiB" in start("b")["message"]
            assert "pid" in start("c", image="off")
            caller.ask("forget", kernel="a")
            assert ended(pidfd, 10)
        deadline = time.monotonic() + 10
        while "error" in (said := start("b")):
            assert time.monotonic() < deadline, said


def test_a_socket_that_is_another_kernels_refuses_the_start_alone(shared: Service, alice: Ordinary) -> None:
    with Caller(shared.path, alice) as caller:
        pid = caller.started("a")
        assert "in use" in caller.start("b")["message"]
        caller.ask("forget", kernel="b")
        assert os.path.exists(f"{caller.folder}/clients/0123abcd-1")
        assert psutil.pid_exists(pid)
    shared.clear()


def test_what_lies_in_an_image_is_read_there_and_nowhere_else(alice: Ordinary) -> None:
    """Whoever holds the image may put links in the place of its folders, and mounts over them."""
    secret = alice.home / "secret"
    secret.mkdir(mode=0o700)
    (secret / "notes").write_text("secret")
    for number, act in enumerate((linked, covered, honest)):
        image = alice.home / f"image-{number}"
        (image / "changes").mkdir(parents=True)
        (image / "changes" / "made").write_text("x")
        archive = alice.home / f"archive-{number}"
        with opened(archive, os.O_WRONLY | os.O_CREAT) as file:
            os.chown(archive, alice.uid, alice.gid)
            status = in_a_namespace(
                lambda file=file, image=image, act=act: saved(file, image, secret, act, person(alice))
            )
        names = []
        if archive.stat().st_size:
            with tarfile.open(archive) as kept:
                names = kept.getnames()
        assert (status, names) == {linked: (1, []), covered: (0, ["made"]), honest: (0, ["made"])}[act]


def saved(archive: int, image: Path, secret: Path, act: Callable[[Path, Path], None], who: Person) -> int:
    mount.make_private()
    changes = Changes(archive, 1 << 20, who)
    with opened(image) as folder:
        tree = mount.clone_tree(folder)
    changes.lie_in(tree)
    act(image, secret)
    return os.waitstatus_to_exitcode(os.waitpid(changes.save(), 0)[1])


def linked(image: Path, secret: Path) -> None:
    shutil.rmtree(image / "changes")
    (image / "changes").symlink_to(secret)


def covered(image: Path, secret: Path) -> None:
    mount.mount(str(secret), str(image / "changes"), "", mount.MS_BIND)


def honest(image: Path, secret: Path) -> None:
    pass


def in_a_namespace(act: Callable[[], int]) -> int:
    """What `act` returns, in a child with a mount namespace of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.unshare(namespaces.CLONE_NEWNS)
            os._exit(act())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- wrong descriptors -----------------------------------------------------------------------------------------------

READ_WRITE: dict[str, Any] = {"overrides": {}}


def test_a_workspace_is_a_folder_that_its_user_owns(shared: Service, alice: Ordinary, bob: Ordinary) -> None:
    """Everything else is refused in a sentence: nothing is mounted with root's rights because somebody says so."""
    (alice.home / "course").mkdir()
    (alice.home / "file").write_text("x")
    os.chown(alice.home / "course", alice.uid, alice.gid)
    os.chmod(bob.home, 0o755)
    read, write = os.pipe()
    with Caller(shared.path, alice) as caller:
        caller.started("good", [read], overrides={"files": {"workspace": "none"}}, streams=streams("stdin"))
        held = count(shared, alice)
        for path, flags, says in (
            ("/root", os.O_RDONLY | os.O_DIRECTORY, "another user"),
            ("/", os.O_RDONLY | os.O_DIRECTORY, "another user"),
            (str(bob.home), os.O_RDONLY | os.O_DIRECTORY, "another user"),
            (str(alice.home.parent), os.O_RDONLY | os.O_DIRECTORY, "whole home folder"),
            (str(alice.home / "course"), os.O_PATH, "not an open folder"),
            (str(alice.home / "file"), os.O_RDONLY, "not an open folder"),
            ("/dev/null", os.O_RDONLY, "not an open folder"),
        ):
            with opened(path, flags) as descriptor:
                assert says in caller.start("bad", [descriptor], **READ_WRITE)["message"], path
        for wrong in ([], [read, write], [read] * 60):
            assert "descriptors" in caller.start("bad", wrong, **READ_WRITE)["message"]
        ours, theirs = socket.socketpair()
        with ours, theirs, opened(alice.home / "course") as folder:
            for stream in (ours.fileno(), folder):
                answer = caller.start("bad", [stream], streams=streams("stdout"))
                assert "neither a pipe nor /dev/null" in answer["message"]
        assert count(shared, alice) <= held + 2  # each of these would have left one, at least
    os.close(read)
    os.close(write)


def test_what_a_servers_own_mount_forbids_is_forbidden_to_its_kernels(shared: Service, alice: Ordinary) -> None:
    """A server that systemd lets only read its folders has no kernel that writes there."""
    course = alice.home / "course"
    course.mkdir()
    os.chown(course, alice.uid, alice.gid)
    ours, theirs = socket.socketpair()
    with ours, theirs, Caller(shared.path, alice) as caller:
        pid = os.fork()
        if pid == 0:
            try:
                namespaces.unshare(namespaces.CLONE_NEWNS)
                mount.make_private()
                mount.mount(str(course), str(course), "", mount.MS_BIND)
                mount.mount("", str(course), "", mount.MS_BIND | mount.MS_REMOUNT | mount.MS_RDONLY)
                socket.send_fds(theirs, [b"x"], [os.open(course, os.O_RDONLY | os.O_DIRECTORY)])
                signal.pause()  # with it would go its mounts
            finally:
                os._exit(0)
        _, (folder,), _, _ = socket.recv_fds(ours, 1, 1)
        started = caller.started(descriptors=[folder], overrides={})
        os.close(folder)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        mounts = Path(f"/proc/{kernel_of(started)}/mountinfo").read_text().splitlines()
        assert [line.split()[5].split(",")[0] for line in mounts if str(course) in line] == ["ro"]


def streams(*given: str) -> dict[str, bool]:
    return {name: name in given for name in ("stdin", "stdout", "stderr")}


def count(shared: Service, who: Ordinary) -> int:
    return len(os.listdir(f"/proc/{shared.supervisor(who).pid}/fd"))


def test_a_view_is_a_file_in_memory(shared: Service, alice: Ordinary) -> None:
    """A pipe would keep its reader waiting; a path with .. would be made a device file at a place of root's."""
    read, write = os.pipe()
    with Caller(shared.path, alice) as caller, tempfile.TemporaryFile() as plain:
        for descriptors in ([read], [plain.fileno()], []):
            answer = caller.ask("see", descriptors, digest="d", replaces=None)
            assert "file in memory" in answer["message"]
        for hidden in (
            [["/usr/lib", ["../../../etc/passwd"]]],
            [["usr", ["x"]]],
            [["/usr/../etc", ["x"]]],
            [[[], 1]],
            7,
        ):
            memory = os.memfd_create("view")
            os.write(memory, json.dumps({"hidden": hidden, "granted": [], "refused": []}).encode())
            assert "error" in caller.ask("see", [memory], digest="d", replaces=None), hidden
            os.close(memory)
        assert "error" in caller.start(view="d")
    os.close(read)
    os.close(write)


def test_no_folder_is_shown_that_its_user_cannot_reach(shared: Service, alice: Ordinary, bob: Ordinary) -> None:
    """Bob's folder is open to all, and lies in one that is closed: alice's kernel does not get there either."""
    (bob.home / "open").mkdir(mode=0o755)
    (bob.home / "open" / "secret").write_text("bob's")
    with Caller(shared.path, alice) as caller:
        trees = caller.order()["trees"]
        answer = caller.start(trees=[*trees, str(bob.home / "open")])
        assert "Permission denied" in answer["message"], answer
        wrong: list[Any] = ["/", "/home", str(alice.home.parent), "/etc", "/proc/1", "/run/x", "/home/user", "x", 7]
        for tree in [*wrong, "/usr/../root", "/workspace/x", "/bin/x"]:
            assert "error" in caller.start(trees=[*trees, tree]), tree
        alice.home.chmod(0o755)
        assert psutil.pid_exists(caller.started(trees=[*trees, str(alice.home)]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kernel", "../x"), ("kernel", []), ("kernel", "x" * 65), ("sockets", "../../x"), ("sockets", ""),
        ("interpreter", "python"), ("interpreter", ["python", [], ""]), ("argv", []), ("cwd", "x"), ("ports", [0]),
        ("ports", [True] * 5),
        ("argv", ["x\0y"]), ("environment", {"A": 1}), ("streams", {}), ("streams", {"stdin": 1}), ("connection", None),
        ("key", None), ("view", "unknown"), ("root", "../x"), ("named", None), ("overrides", []), ("named", "x" * 9999),
    ],
)  # fmt: skip
def test_an_order_that_is_not_well_formed_is_refused(shared: Service, alice: Ordinary, key: str, value: Any) -> None:
    with Caller(shared.path, alice) as caller:
        assert "error" in caller.start(**{"name": "kernel", **caller.order(), key: value})


# ---- half requests, and too many -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"{", b"[]", b"null", b"\xff", b'{"verb": "hello"', b"[" * 100_000, bytes(140_000)])
def test_half_a_request_ends_its_connection_alone(shared: Service, alice: Ordinary, data: bytes) -> None:
    with Caller(shared.path, alice) as good, Caller(shared.path, alice, hello=False) as bad:
        bad.socket.setblocking(True)
        bad.socket.send(data)
        assert bad.hung_up()
        assert "kernels" in good.ask("list")


def test_nothing_but_a_greeting_comes_first(shared: Service, alice: Ordinary) -> None:
    with Caller(shared.path, alice, hello=False) as caller:
        for verb in ("start", "signal", "forget", "see", "resolve", "", [], None):
            assert "in this state" in caller.ask(verb, kernel="x")["message"]  # type: ignore[arg-type]


def test_a_client_that_floods_and_does_not_listen_is_hung_up_on(
    shared: Service, alice: Ordinary, bob: Ordinary
) -> None:
    """Its answers are kept for it as long as there is room for them, and no longer; bob has his kernel meanwhile."""
    with Caller(shared.path, alice) as hers, Caller(shared.path, bob) as his:
        kernel = hers.started()
        hers.socket.setblocking(False)
        sent = 0
        with contextlib.suppress(OSError):
            for sent in range(100_000):
                try:
                    packets.send(hers.socket, {"id": sent, "verb": "list"})
                except BlockingIOError:
                    if sent % 50 == 0:
                        his.ask("list")
        with opened_pidfd_or_gone(kernel) as pidfd:
            his.started()
            assert ended(pidfd, 20)
    shared.clear()


@contextlib.contextmanager
def opened_pidfd_or_gone(pid: int) -> Iterator[int]:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        pidfd, write = os.pipe()  # ready to read, as the pidfd of one who has ended
        os.close(write)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def test_connections_and_starts_have_a_rate(alice: Ordinary, bob: Ordinary) -> None:
    """Whoever has used up theirs is told how long to wait, a new connection does not begin anew, others go on."""
    with service("[each_user]\nstarts = 4\n") as shared:
        for number in range(2):
            with Caller(shared.path, alice) as caller:
                caller.started(f"a-{number}")
                caller.ask("forget", kernel=f"a-{number}")
                caller.start(f"b-{number}")
            shared.clear()
        with Caller(shared.path, alice) as caller:
            assert "within a minute" in caller.start()["message"]
        with Caller(shared.path, alice), Caller(shared.path, alice, hello=False) as caller:
            assert "connected 4 times" in caller.ask("hello")["message"]
            works(shared, bob)


def test_a_user_has_a_quota_of_kernels_over_all_servers(shared: Service, alice: Ordinary, bob: Ordinary) -> None:
    with Caller(shared.path, alice) as one, Caller(shared.path, alice) as other:
        for number in range(3):
            (one, other)[number % 2].started(f"kernel-{number}", sockets=f"0000000{number}")
        assert "no more than 3" in other.start("kernel-3")["message"]
        assert "another server's" in one.start("kernel-1")["message"]
        works(shared, bob)
        one.ask("forget", kernel="kernel-0")
        other.started("kernel-3", sockets="00000003")


def test_kernels_stand_ready_within_the_quota_of_their_user(alice: Ordinary, bob: Ordinary) -> None:
    """Two at most, no more than the user may still start, handed to that user alone, and gone with the last server."""
    with service("[each_user]\nkernels = 3\nahead = 2\nstarts = 1000\n") as shared:
        with Caller(shared.path, alice) as hers, Caller(shared.path, bob) as his:
            hers.started("a", pool=8)
            ready(hers, 2)
            standing = children(hers)
            assert his.started("a", pool=8) not in standing
            assert hers.started("b", sockets="00000002", pool=8) in standing
            ready(hers, 1)
            hers.started("c", sockets="00000003", pool=8)
            ready(hers, 0)
            assert "no more than 3" in hers.start("d", sockets="00000004", pool=8)["message"]
            for wrong in (-2, "all", None, True, 1.5):
                assert "can be meant by pool" in his.start("e", pool=wrong)["message"]
            for wrong in ("[]", "{", "[" * 5000):
                assert "can be meant by connection" in his.start("e", connection=["/x", wrong])["message"]
        shared.clear()


def test_a_kernel_that_stood_ready_has_its_servers_folder_and_files_stay_their_owners(alice: Ordinary) -> None:
    with service("[each_user]\nkernels = 4\nahead = 1\nstarts = 1000\n") as shared:
        with serve(False, alice, pool=True, ISOLATED_PYTHON_SERVICE=shared.path) as server:
            server.cgroup = True
            server.start("a")
            server.text("open('made', 'w').write('x')", "a")
            about = (server.folder / "made").stat()
            assert (about.st_uid, about.st_gid) == (alice.uid, alice.gid)
            server.ask("restart", name="a")
            assert server.text("import os; print(os.listdir(), os.getuid())", "a") == "['made'] 1000"
        shared.clear()


def ready(caller: Caller, count: int) -> None:
    """Wait until so many of this user's kernels stand and are nobody's."""
    deadline, found = time.monotonic() + 60, -1
    while found != count and time.monotonic() < deadline:
        found = [kernel["state"] for kernel in caller.ask("list")["kernels"]].count("waiting")
    assert found == count


def children(caller: Caller) -> set[int]:
    return {one.pid for one in psutil.Process(int(caller.folder.rsplit("-", 2)[1])).children()}


def test_none_stands_ready_unless_the_site_says_so(shared: Service, alice: Ordinary) -> None:
    with Caller(shared.path, alice) as caller:
        caller.started("a", pool=8)
        assert caller.ask("list")["total"] == 1
        before = children(caller)
        assert caller.started("b", sockets="00000002", pool=8) not in before
        assert caller.ask("list")["total"] == 2


def test_a_server_has_its_zygote_before_its_first_kernel(shared: Service, alice: Ordinary) -> None:
    """What it asks for is held against the same rules as a start, and counts as one."""
    with Caller(shared.path, alice) as caller:
        order = {key: caller.order()[key] for key in ("named", "overrides", "trees", "view", "root", "interpreter")}
        assert "error" not in caller.ask("warm", **order, argv=None)
        deadline = time.monotonic() + 30
        while not (zygotes := strangers(caller)) and time.monotonic() < deadline:
            caller.ask("list")  # it becomes its uid while we look
        assert len(zygotes) == 1
        kernel = caller.started()
        assert strangers(caller) == {**zygotes, psutil.Process(kernel): psutil.Process(kernel).uids().real}
        assert "cannot be shown" in caller.ask("warm", **{**order, "trees": ["/etc"]}, argv=None)["message"]
        assert "can be meant by root" in caller.ask("warm", **{**order, "root": "x"}, argv=None)["message"]


def test_a_user_has_a_quota_of_servers(shared: Service, alice: Ordinary, bob: Ordinary) -> None:
    """Whoever is refused is hung up on, so that the next question is a new one; commands are no servers."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Caller(shared.path, alice)) for _ in range(8)]
        with Caller(shared.path, alice, hello=False) as late, Caller(shared.path, alice, hello=False) as command:
            assert "no more than 8" in late.ask("hello")["message"]
            assert late.hung_up()
            assert command.ask("list")["total"] == 0
        works(shared, bob)
        servers[0].close()
        refusal = "no more than 8"
        while refusal:  # until it has seen that one has gone
            with Caller(shared.path, alice, hello=False) as again:
                refusal = again.ask("hello").get("message", "")
            assert "no more than 8" in refusal or not refusal


def test_connections_that_say_nothing_are_bounded(shared: Service, alice: Ordinary) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Caller(shared.path, alice))
        silent = [stack.enter_context(Caller(shared.path, alice, hello=False)) for _ in range(40)]
        assert silent[0].hung_up()
        assert server.ask("list")["total"] == 0
        assert silent[-1].ask("list")["total"] == 0


def test_the_doctor_tells_a_user_what_the_service_gives(shared: Service, alice: Ordinary) -> None:
    """What is used and what is allowed, with what makes room; and what repairs a service that does not answer."""
    with Caller(shared.path, alice) as caller:
        caller.started("one")
        status, report = doctor(alice, shared.path)
        found = {one["layer"]: one for one in report["service"]}
        assert (status, {one["verdict"] for one in found.values()}) == (0, {"PASS"})
        assert shared.path in found["service"]["cause"]
        assert found["kernels"]["cause"] == "1, at most 3"
        assert found["servers"]["cause"] == "1, at most 8"
        assert found["memory"]["cause"].endswith("MiB, at most 1024 MiB")
        assert not found["memory"]["cause"].startswith("0 ")
        assert "standard" in found["profiles"]["cause"].split(", ")
        assert str(FIRST) in found["uid"]["cause"]
        cgroup = next(one for one in report["layers"] if one["layer"] == "cgroup")
        assert (cgroup["verdict"], "by the service" in cgroup["cause"]) == ("PASS", True)
        for name in ("two", "three"):
            caller.started(name, sockets=f"0000000{len(name)}")
        status, report = doctor(alice, shared.path)
        failed = {one["layer"]: one["remedy"] for one in report["service"] if one["verdict"] == "FAIL"}
        assert (status, failed) == (1, {"kernels": "jupyter isolated list; jupyter isolated kill ID"})
    status, report = doctor(Ordinary(0, 0, Path("/")), shared.path)
    assert (status, report["service"][0]["verdict"]) == (0, "PASS")
    assert "root's own servers do without it" in report["service"][0]["cause"]
    status, report = doctor(alice, f"{shared.folder}/nobody.sock")
    (only,) = report["service"]
    assert (status, only["verdict"]) == (1, "FAIL")
    assert "systemctl start isolated-python.socket" in only["remedy"]


def doctor(who: Ordinary, path: str) -> tuple[int, dict[str, Any]]:
    process = who.start(
        [f"{BIN}/jupyter-isolated", "doctor", "--json"], env=who.environment | {"ISOLATED_PYTHON_SERVICE": path}
    )
    said, complained = process.communicate(timeout=60)
    assert said, complained
    return process.returncode, json.loads(said)


def test_the_limits_of_a_user_hold_for_all_kernels_together(shared: Service, alice: Ordinary, bob: Ordinary) -> None:
    """Three kernels of 768 MiB each are granted, and the user has 1 GiB; bob's memory is not asked for it."""
    grant = {"resources": {"memory": "768 MiB", "tmp": "16 MiB", "shm": "16 MiB"}}
    with (
        serve(False, alice, ISOLATED_PYTHON_SERVICE=shared.path) as hers,
        serve(False, bob, ISOLATED_PYTHON_SERVICE=shared.path) as his,
    ):
        hers.cgroup = his.cgroup = True
        his.start(overrides=grant)
        his.text("x = bytearray(400 << 20)")
        for name in ("a", "b"):
            hers.start(name, overrides=grant)
        assert hers.text("x = bytearray(550 << 20); print(1)", "a") == "1"
        killed = hers.run("y = bytearray(600 << 20)", "b")["status"] != "ok"
        assert hers.ask("ended", name="b" if killed else "a")["status"] == -9  # which of them is Linux's choice
        assert his.text("print(len(x) >> 20)") == "400"


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [0, 1])
def test_a_client_that_goes_in_mid_start_leaves_nothing(shared: Service, alice: Ordinary, seen: int) -> None:
    """At once, and when the kernel of another of its requests stands."""
    caller = Caller(shared.path, alice)
    first = caller.send("start", **caller.order("first"))
    caller.send("start", **caller.order("second", sockets="00000002"))
    if seen:
        caller.answer(first)
    caller.close()
    shared.clear()
    assert not [line for line in groups() if line not in BEFORE]


def groups() -> set[str]:
    return {folder for folder, _, _ in os.walk("/sys/fs/cgroup") if "isolated-python-" in folder and dead(folder)}


def dead(folder: str) -> bool:
    """Of a supervisor that has ended: those of other runs on this machine live."""
    pid = next(part for part in folder.split("/") if part.startswith("isolated-python-")).split("-")[2]
    return not os.path.exists(f"/proc/{pid}")


BEFORE = groups() if os.geteuid() == 0 else set()


def test_the_kernels_of_a_server_end_with_it_and_no_others(shared: Service, alice: Ordinary) -> None:
    with Caller(shared.path, alice) as stays:
        goes = Caller(shared.path, alice)
        with (
            opened_pidfd(stays.started("stays")) as one,
            opened_pidfd(goes.started("goes", sockets="00000002")) as other,
        ):
            assert stays.ask("list")["total"] == 2
            goes.close()
            assert ended(other, 20)
            assert not ended(one)
            assert not Path(f"{stays.folder}/clients/00000002-1").exists()
    shared.clear()


@pytest.mark.parametrize("who", ["supervisor", "service"])
def test_a_death_leaves_nothing(alice: Ordinary, who: str) -> None:
    """Killed with SIGKILL: what the supervisor of a user could not do, the service does; then systemd."""
    with service() as shared:
        with Caller(shared.path, alice) as caller:
            caller.started()
            supervisor = shared.supervisor(alice)
            below = watched(shared.below())
            if who == "supervisor":
                supervisor.kill()
                assert outlive(below, 20) == []
                works(shared, alice)
            else:
                shared.process.kill()
                shared.process.communicate()
                assert outlive(below, 20) == []
                shared.process = Service(shared.folder, "").process
                assert cgroups_of(supervisor.pid) == []
        if who == "supervisor":
            shared.clear()
            assert cgroups_of(supervisor.pid) == []


def test_a_zygote_that_is_a_users_own_program_is_bounded_and_ends(
    shared: Service, alice: Ordinary, bob: Ordinary
) -> None:
    """It runs before any sandbox closes: under a uid of its user's supervisor alone, in that user's cgroup, and what it
    leaves behind goes with the connection.
    """
    script = alice.home / "zygote"
    script.write_text("#!/bin/sh\necho it comes to nothing >&2\nsetsid sleep 3600 & setsid sleep 3600 &\nexit 1\n")
    script.chmod(0o755)
    alice.home.chmod(0o755)
    with Caller(shared.path, alice) as caller, Caller(shared.path, bob) as his:
        his.started()
        trees = [*caller.order()["trees"], str(alice.home)]
        answer = caller.start(trees=trees, interpreter=[str(script), [], ""])
        assert "it comes to nothing" in answer["message"]
        hers, others = (strangers(one) for one in (caller, his))
        assert len(hers) >= 2  # and a zygote of before, where her supervisor had not been let go of yet
        assert {*hers.values()}.isdisjoint(others.values())
        fds = watched([*hers])
        caller.close()
        assert outlive(fds, 20) == []
        assert his.ask("list")["total"] == 1


LIAR = """#!{python} -IS
import json, socket
service = socket.socket(fileno=3)
service.send(json.dumps({{"event": "ready"}}).encode())
for _ in range(500):
    service.send(json.dumps({{"event": "forked"}}).encode())
asked = socket.recv_fds(service, 1000, 1)
service.recv(100)
"""


def test_a_zygote_that_lies_about_births_gets_no_cgroups_for_them(shared: Service, alice: Ordinary) -> None:
    script = alice.home / "zygote"
    script.write_text(LIAR.format(python=PYTHON))
    script.chmod(0o755)
    alice.home.chmod(0o755)
    with Caller(shared.path, alice) as caller:
        order = caller.order(trees=[*caller.order()["trees"], str(alice.home)], interpreter=[str(script), [], ""])
        asked = caller.send("start", **order)
        while (kernels := caller.ask("list")["kernels"]) and kernels[0]["memory"] is None:
            pass  # it has not been given a group yet
        assert kernels, caller.answer(asked)
        groups = cgroups_of(int(caller.folder.rsplit("-", 2)[1]))
        assert len([path for path in groups if "/kernel-" in path]) <= 2 * len([p for p in groups if "helpers" in p])
        caller.ask("forget", kernel="kernel")
        assert "error" in caller.answer(asked)
    shared.clear()


def strangers(caller: Caller) -> dict[psutil.Process, int]:
    """What runs below a user's supervisor and outside of any sandbox, and its uid; not root's, and not the relay."""
    found = {}
    for one in psutil.Process(int(caller.folder.rsplit("-", 2)[1])).children():
        with contextlib.suppress(psutil.Error):  # it ends meanwhile
            if "relay" not in " ".join(one.cmdline()) and one.uids().real >= FIRST:
                found[one] = one.uids().real
    return found


# ---- its settings ----------------------------------------------------------------------------------------------------


def test_settings_are_read_once_and_strictly() -> None:
    text = 'socket = "/run/x.sock"\n[each_user]\nmemory = "4 GiB"\ncpu = 2.5\nprocesses = "unlimited"\n'
    settings = policy.read(text, "service.toml")
    assert (settings.socket, settings.each_user.memory, settings.each_user.cpu) == ("/run/x.sock", 4 << 30, 2.5)
    assert settings.each_user.processes is None
    assert policy.Settings.from_wire(json.loads(json.dumps(settings.to_wire()))) == settings
    for wrong in (
        "sockets = 1", 'socket = "x"', "policy = []", "[each_user]\nmemory = 5", "each_user = 3",
        "[each_user]\nkernel = 1", "[each_user]\nkernels = 0", "[", 'policy = ["relative"]',
        "[each_user]\nstarts = true",
    ):  # fmt: skip
        with pytest.raises(ProfileError, match=r"service\.toml"):
            policy.read(wrong, "service.toml")


def test_the_service_obeys_nobody_but_root(alice: Ordinary) -> None:
    """A settings file that another could change is refused, and so is a start without root."""
    config = alice.home / "service.toml"
    config.write_text("")
    said = subprocess.run([f"{BIN}/jupyter-isolated", "service", "--config", config], capture_output=True, text=True)
    assert said.returncode == 2
    assert "changed by others than root" in said.stderr
    assert alice.run([f"{BIN}/jupyter-isolated", "service"], check=False).returncode == 2
    assert '"kernels": 16' in alice.run([f"{BIN}/jupyter-isolated", "service", "--check"]).stdout


def test_two_services_do_not_share_a_socket(shared: Service) -> None:
    said = subprocess.run(
        [f"{BIN}/jupyter-isolated", "service", "--socket", shared.path], capture_output=True, text=True
    )
    assert said.returncode == 2
    assert "already" in said.stderr
    with seqpacket() as one:
        one.connect(shared.path)

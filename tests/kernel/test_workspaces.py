"""What a kernel sees of a folder, what it leaves in it, and whose that is, in every mode of the workspace."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import BIN, Ordinary
from tests.kernel.conftest import Server, serve, soon
from tests.kernel.test_bad_input import refused_without_trace

KEEP = {"files": {"workspace": "copy-on-write", "changes": "keep"}}
SIZED = {"files": {**KEEP["files"], "size": "64 MiB"}}  # in an image of root's
MODES = ("read-write", "read-only", "copy-on-write", "none")

CHANGE = r"""
import os
open('given', 'w').write('one\nchanged\n'); os.remove('gone'); os.remove('folder/inner'); os.rmdir('folder')
os.mkdir('folder'); open('folder/anew', 'w').write('x'); os.symlink('/etc/passwd', 'link'); os.mkfifo('pipe')
open('\x1b[31mred', 'w').close(); open(b'\xff\xfe', 'w').close(); open('binary', 'wb').write(bytes(range(256)))
"""
DIFFERENCE = r"""
~ given (12 bytes)
    @@ -1,2 +1,2 @@
     one
    -two
    +changed
- gone
- folder/: all that was in it
+ folder/anew (1 bytes)
    @@ -0,0 +1 @@
    +x
+ link → /etc/passwd
+ \x1b[31mred (0 bytes)
+ \udcff\udcfe (0 bytes)
+ binary (256 bytes)
"""


@contextmanager
def changeable(life: bool, ordinary: Ordinary) -> Iterator[Server]:
    """A server with files to change in its folder."""
    with serve(life, ordinary) as server:
        for name, text in {"given": "one\ntwo\n", "gone": "", "other": "other\n"}.items():
            server.give(name, text)
        (server.folder / "folder").mkdir()
        server.give("folder/inner", "")
        os.chown(server.folder / "folder", server.folder.stat().st_uid, server.folder.stat().st_gid)
        yield server


@pytest.fixture
def keeping(life: bool, ordinary: Ordinary) -> Iterator[Server]:
    """Such a server in either life."""
    with changeable(life, ordinary) as server:
        yield server


class Diff:
    """The command, as the person whose kernel it was."""

    def __init__(self, server: Server, ordinary: Ordinary) -> None:
        self.server, self.ordinary = server, ordinary

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        who = {"user": 0, "group": 0, "extra_groups": []} if self.server.root and os.geteuid() == 0 else {}
        process = self.ordinary.start([f"{BIN}/jupyter-isolated", "diff", *words], **who)
        said, complained = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, said, complained)


@pytest.mark.parametrize("overrides", [KEEP, SIZED], ids=["in the scratch space", "of a size"])
def test_changes_are_kept_and_shown_and_nothing_is_touched(
    keeping: Server, ordinary: Ordinary, overrides: dict[str, Any]
) -> None:
    """What is new, changed and gone; a name cannot speak to the terminal, and a link is not followed."""
    name = keeping.start(overrides=overrides)["id"]
    keeping.text(CHANGE)
    diff = Diff(keeping, ordinary)
    assert diff(name).returncode == 2, "nothing is there before the end"
    keeping.ask("stop", name="kernel")
    try:
        assert sorted(diff(name).stdout.splitlines()) == sorted(DIFFERENCE.strip("\n").splitlines())
        assert name in diff().stdout
        kept = ordinary.home / "kept.tar"
        assert diff(name, "--output", str(kept)).returncode == 0
        with tarfile.open(kept) as archive:
            assert {".wh.gone", "folder/.wh..wh..opq", "folder/anew"} <= {*archive.getnames()}
    finally:
        assert diff(name, "--discard").returncode == 0
    assert name not in diff().stdout
    assert (keeping.folder / "given").read_text() == "one\ntwo\n"
    assert (keeping.folder / "folder" / "inner").exists()


@pytest.mark.parametrize(("end", "overrides"), [("killed", KEEP), ("killed", SIZED), ("dead server", SIZED)])
def test_changes_are_kept_whatever_ends_the_kernel(
    life: bool, ordinary: Ordinary, end: str, overrides: dict[str, Any]
) -> None:
    with changeable(life, ordinary) as server:
        name = server.start(overrides=overrides)["id"]
        server.text("open('made', 'w').write('x')")
        if end == "killed":
            assert server.run("import os; os.kill(os.getpid(), 9)")["status"] in ("dead", "error")
            server.ask("ended", name="kernel")
    diff = Diff(server, ordinary)
    try:
        assert diff(name).stdout.splitlines()[0] == "+ made (1 bytes)"
    finally:
        diff(name, "--discard")


def test_a_kernel_that_changed_nothing_or_never_stood_leaves_nothing(keeping: Server, ordinary: Ordinary) -> None:
    name = keeping.start(overrides=KEEP)["id"]
    keeping.ask("stop", name="kernel")
    assert name not in Diff(keeping, ordinary)().stdout
    said = refused_without_trace(keeping, lambda: keeping.refused(overrides=KEEP, spec={"argv": ["/nowhere"]}))
    assert "does not exist" in said


def test_more_than_there_is_room_for_is_not_kept_and_holds_nobody_up(keeping: Server, ordinary: Ordinary) -> None:
    """A file of holes is as large as its kernel says."""
    name = keeping.start(overrides=KEEP)["id"]
    keeping.text("open('holes', 'w').truncate(1 << 45)")
    keeping.ask("stop", name="kernel")
    assert name not in Diff(keeping, ordinary)().stdout


def test_a_tree_that_is_deeper_than_python_can_recurse_is_kept(root_server: Server, ordinary: Ordinary) -> None:
    name = root_server.start(overrides=KEEP)["id"]
    root_server.text("import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')")
    root_server.ask("stop", name="kernel")
    diff = Diff(root_server, ordinary)
    try:
        assert len(diff(name).stdout.splitlines()) == 1500
    finally:
        diff(name, "--discard")


@pytest.mark.parametrize("mode", MODES)
def test_owners_are_the_same_for_everybody(server: Server, mode: str) -> None:
    """Inside everything is the kernel's user's; outside it is whose the folder is, in every mode."""
    server.give("given", "given")
    server.start(overrides={"files": {"workspace": mode}})
    code = "import os\nfor name in sorted(os.listdir()): print(name, os.stat(name).st_uid, os.access(name, os.W_OK))"
    if mode != "read-only":
        code = "open('made', 'w').close(); " + code
    given, made = f"given 1000 {mode != 'read-only'}", "made 1000 True"
    shown = {"none": [made], "read-only": [given]}.get(mode, [given, made])
    assert server.text(code).splitlines() == shown
    owner = server.folder.stat()
    left = {name: (server.folder / name).stat() for name in os.listdir(server.folder)}
    assert {*left} == {"given", *(["made"] if mode == "read-write" else [])}
    assert {(one.st_uid, one.st_gid) for one in left.values()} == {(owner.st_uid, owner.st_gid)}


def test_the_workspace_is_read_only_where_it_is_granted_so_once_more(server: Server) -> None:
    """By its own way it is written; Landlock's rule for that, which is the folder's, opens no other way."""
    server.give("given", "given")
    server.start(overrides={"files": {"mounts": [{"source": str(server.folder.parent), "target": "/data"}]}})
    code = "import errno, os\nopen('/workspace/given', 'a').close()\ntry: open('/data/{}/given', 'a')\n"
    code += "except OSError as error: print(errno.errorcode[error.errno])"
    assert server.text(code.format(server.folder.name)) in ("EROFS", "EACCES")


def test_the_servers_contents_and_the_kernel_share_their_files(life: bool, ordinary: Ordinary) -> None:
    """Each reads, changes and removes what the other has made, by jupyter_server's own manager of contents."""
    with serve(life, ordinary) as server:
        server.start()
        contents = Contents(server, ordinary)
        server.text("open('made.txt', 'w').write('by the kernel'); import os; os.mkdir('notes')")
        assert contents("print(m.get('made.txt')['content'])") == "by the kernel"
        text = "{'type': 'file', 'format': 'text', 'content': 'by the server'}"
        contents(f"m.save({text}, 'made.txt'); m.save({text}, 'notes/new.txt')")
        assert (
            server.text("print(open('made.txt').read(), open('notes/new.txt').read())") == "by the server by the server"
        )
        server.text("os.remove('notes/new.txt'); open('notes/of the kernel.txt', 'w').close()")
        contents("m.delete_file('notes/of the kernel.txt'); m.rename_file('made.txt', 'notes/moved.txt')")
        assert server.text("print(os.listdir('notes'))") == "['moved.txt']"


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["read-only", "copy-on-write", "none"])
def test_the_servers_contents_stay_the_servers_own(life: bool, ordinary: Ordinary, mode: str) -> None:
    """Where a kernel may not write to them: it sees what the server has saved, if it sees them, and changes nothing."""
    with serve(life, ordinary) as server:
        contents = Contents(server, ordinary)
        text = "{'type': 'file', 'format': 'text', 'content': 'by the server'}"
        contents(f"m.save({{'type': 'directory'}}, 'notes'); m.save({text}, 'notes/a.txt')")
        server.start(overrides={"files": {"workspace": mode}})
        if mode == "none":
            assert server.text("import os; print(os.listdir())") == "[]"
        else:
            seen = server.text("import os; print(open('notes/a.txt').read(), os.stat('notes').st_uid)")
            assert seen == "by the server 1000"
        changed = server.run("open('notes/a.txt', 'w').write('by the kernel'); open('new', 'w').write('x')")["status"]
        assert changed == ("ok" if mode == "copy-on-write" else "error")
        shown = "m.get('notes/b.txt')['content'], [one['name'] for one in m.get('')['content']]"
        found = contents(f"m.rename_file('notes/a.txt', 'notes/b.txt'); print({shown})")
        assert found == "by the server ['notes']"
        assert {path.stat().st_uid for path in server.folder.rglob("*")} == {server.folder.stat().st_uid}


class Contents:
    def __init__(self, server: Server, ordinary: Ordinary) -> None:
        self.server, self.ordinary = server, ordinary

    def __call__(self, code: str) -> str:
        program = "from jupyter_server.services.contents.filemanager import FileContentsManager as M\n"
        program += f"m = M(root_dir={str(self.server.folder)!r})\n{code}"
        if self.server.root:
            command = [os.path.join(BIN, "python"), "-c", program]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
        return self.ordinary.python(program).stdout.strip()


def test_a_workspace_that_holds_too_much_is_told_in_the_cell(server: Server) -> None:
    """Once, until it holds less again; what lies behind a link does not count."""
    (server.folder / "link").symlink_to("/usr")
    server.start(overrides={"files": {"size": "10 MiB"}})
    write = "import time; open('large', 'wb').write(bytes(20 << 20))\nwhile True: time.sleep(0.1)"
    asked = server.run(write, until="files.size", timeout=40)
    assert asked["status"] == "running", asked
    assert "the workspace holds 20 MiB, and the profile standard grants 10 MiB (files.size)" in asked["text"]
    server.ask("interrupt", name="kernel")
    assert server.ask("rest", name="kernel")["status"] == "error"


# ---- folders that cannot be one --------------------------------------------------------------------------------------


@contextmanager
def mounted(kind: str, folder: Path, options: str = "") -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", kind, *(["-o", options] if options else []), "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        # Linux lets go of a clone a moment after it was closed.
        unmount = ["umount", str(folder)]
        soon(lambda: folder.is_mount() and subprocess.run(unmount, capture_output=True, check=False).returncode, False)


@pytest.mark.parametrize("mode", ["read-write", "copy-on-write"])
def test_a_file_system_that_cannot_translate_owners_is_named(root_server: Server, mode: str) -> None:
    with mounted("ramfs", root_server.folder / "ramfs") as folder:
        values: dict[str, Any] = {"overrides": {"files": {"workspace": mode}}, "cwd": str(folder)}
        said = refused_without_trace(root_server, lambda: root_server.refused(**values))
    assert "cannot translate owners" in said
    assert "local file system" in said


def test_a_file_system_that_can_be_no_layer_is_named(life: bool, ordinary: Ordinary) -> None:
    """An overlay can lie on an overlay, and that is all."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount what an ordinary user then meets")
    base = ordinary.home / "layers"
    for part in ("a", "b", "c"):
        (base / part).mkdir(parents=True)
    one = mounted("overlay", base / "one", f"lowerdir={base}/a:{base}/b")
    two = mounted("overlay", base / "two", f"lowerdir={base}/one:{base}/c")
    with one, two, serve(life, ordinary) as server:
        overrides = {"files": {"workspace": "copy-on-write"}}
        said = refused_without_trace(server, lambda: server.refused(overrides=overrides, cwd=str(base / "two")))
        assert ("cannot translate owners" if life else "cannot be a layer of an overlay") in said
        assert "remedy" not in said


# ---- kernels that stood before ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["read-write", "read-only", "none"])
def test_a_kernel_that_stood_before_gets_its_workspace(life: bool, ordinary: Ordinary, mode: str) -> None:
    with serve(life, ordinary, pool=True) as server:
        server.give("given", "given")
        server.start(overrides={"files": {"workspace": mode}})
        assert server.text("import os; print(os.listdir())") == ("[]" if mode == "none" else "['given']")
        answer = server.run("open('given', 'w').write('changed'); print(os.stat('given').st_uid)")
        assert answer["status"] == ("error" if mode == "read-only" else "ok")
        assert (server.folder / "given").read_text() == ("changed" if mode == "read-write" else "given")


def test_a_copy_on_write_workspace_is_made_for_each_kernel(server: Server) -> None:
    """Its layers are put together before the sandbox closes, so no kernel stands ready for it; it starts as ever."""
    stanza = {"provisioner_name": "isolated-python"}
    layers = {} if server.cgroup else {"layers": {"cgroup": "prefer"}}
    config = {"pool": 2, "overrides": {"files": {"workspace": "copy-on-write"}, **layers}}
    for name in ("a", "b"):
        server.give("given", "given")
        server.start(name, spec={"metadata": {"kernel_provisioner": stanza | {"config": config}}})
        assert server.text("open('given', 'w').write('x'); print(open('given').read())", name) == "x"
        assert (server.folder / "given").read_text() == "given"
    assert server.ask("spares")["names"] == []


def test_the_mount_of_the_next_kernel_is_translated_ahead_and_belongs_to_it_alone(root_server: Server) -> None:
    """The map is made for one uid, of which no other kernel gets a hold; and there is never more than one too many."""
    server = root_server
    server.pool = False  # whoever waits in a pool has a map of its own
    supervisor = psutil.Process(server.ask("supervisor")["pid"])

    def maps() -> int:
        """How many user namespaces it holds that are made for mounts."""
        found = 0
        for name in os.listdir(f"/proc/{supervisor.pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                found += os.readlink(f"/proc/{supervisor.pid}/fd/{name}").startswith("user:")
        return found

    for number in range(3):
        server.start(f"{number}")
        server.text(f"open('by-{number}', 'w').write('x') and None", f"{number}")
        deadline = time.monotonic() + 10
        while maps() != 1 and time.monotonic() < deadline:
            server.text("1", f"{number}")
        assert maps() == 1
    uids = [record["kernel_uid"] for record in server.records("kernel-started")]
    assert len({*uids}) == 3
    owners = {(server.folder / f"by-{number}").stat().st_uid for number in range(3)}
    assert owners == {server.folder.stat().st_uid}
    for number in range(3):
        server.ask("stop", name=f"{number}")
    assert maps() <= 1

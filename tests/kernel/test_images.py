"""The size of a copy-on-write workspace: held by an image on the disk where there is root, by memory where not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from isolated_python.engine import places
from isolated_python.errors import HostError
from isolated_python.layers.catalogue import plan
from isolated_python.layers.files import LAYER
from isolated_python.linux import host
from isolated_python.linux.host import Host, Lack
from isolated_python.policy import sources

from tests.kernel.conftest import Server, outlive, watched
from tests.kernel.test_bad_input import refused_without_trace
from tests.kernel.test_kill import soon

SIZED: dict[str, Any] = {"files": {"workspace": "copy-on-write", "size": "16 MiB"}}
FILL = "with open('large', 'wb', 0) as file:\n    for _ in range(40): file.write(bytes(1 << 20))"
COUNT = "import os; print(os.stat('large').st_size >> 20)"

LACK = host.probe().lacks("image")[0]
needs_image = pytest.mark.skipif(bool(LACK), reason=LACK)


class Image:
    """That of a kernel, whose process 1 has mounted it."""

    def __init__(self, pid: int) -> None:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        disk = next(line.split(" - ")[1].split()[1] for line in lines if line.split()[4] == LAYER)
        self.where = Path("/sys/block", os.path.basename(disk), "loop", "backing_file")
        self.name = self.where.read_text()
        assert self.name.startswith(places.images_folder()), self.name

    def there(self) -> bool:
        try:
            return self.where.read_text() == self.name
        except OSError:
            return False


@needs_image
def test_what_changes_lies_in_an_image_and_nothing_is_left_of_it(root_server: Server) -> None:
    """One for each life of each kernel. It is full when it is full, and the folder of the notebook is as it was."""
    root_server.give("given", "given")
    found = {}
    for name in ("a", "b"):
        found[name] = Image(root_server.start(name, SIZED)["pid"])
        assert root_server.text("open('given', 'w').write('changed'); print(open('given').read())", name) == "changed"
    assert found["a"].name != found["b"].name
    assert "files.size" in root_server.run(FILL, "a")["text"]
    assert 10 <= int(root_server.text(COUNT, "a")) < 16
    assert "in an image on the disk" in root_server.text("%sandbox", "a")
    assert root_server.text("open('large', 'wb').write(bytes(4 << 20)); import os; print(os.listdir())", "b")
    root_server.ask("restart", name="a")
    assert root_server.text("import os; print(os.listdir())", "a") == "['given']"
    for name in found:
        root_server.ask("stop", name=name)
    soon(lambda: [image.there() for image in found.values()], [False, False])
    assert os.listdir(places.images_folder()) == []
    assert [path.name for path in root_server.folder.iterdir()] == ["given"]
    assert (root_server.folder / "given").read_text() == "given"


@needs_image
@pytest.mark.parametrize("victim", ["init", "supervisor"])
def test_a_death_leaves_no_image(root_server: Server, victim: str) -> None:
    pids = {"init": root_server.start(overrides=SIZED)["pid"], "supervisor": root_server.ask("supervisor")["pid"]}
    root_server.text("open('x', 'wb').write(bytes(1 << 20)) and None")
    image = Image(pids["init"])
    everybody = watched(root_server.ours())
    os.kill(pids[victim], signal.SIGKILL)
    if victim == "supervisor":
        assert not outlive(everybody, 10)
    soon(image.there, False)
    assert os.listdir(places.images_folder()) == []


@needs_image
def test_a_start_that_is_given_up_leaves_no_image(root_server: Server) -> None:
    root_server.start("other")
    for _ in range(3):
        begun = root_server.ask("begin", **root_server.wanted(SIZED, name="kernel", pool=False))
        root_server.ask("forget", id=begun["id"])
        assert root_server.ask("begun")["error"]
    supervisor = psutil.Process(root_server.ask("supervisor")["pid"])
    soon(lambda: [file.path for file in supervisor.open_files() if places.images_folder() in file.path], [])
    assert root_server.text("print(6 * 7)", "other") == "42"


@pytest.mark.parametrize("wanted", ["prefer", pytest.param("off", marks=pytest.mark.thorough)])
def test_where_there_is_no_image_memory_holds_the_size(server: Server, wanted: str) -> None:
    """The kernel is told which it is."""
    server.start(overrides={"files": {**SIZED["files"], "image": wanted}})
    assert "files.size" in server.run(FILL)["text"]
    assert 10 <= int(server.text(COUNT)) <= 16
    said = server.text("%sandbox")
    there = server.root and wanted == "prefer" and not LACK
    assert ("in an image on the disk" if there else "in memory") in said
    cause = LACK if server.root else "only root can mount a file as a disk"
    assert ("and not in an image on the disk: " + cause in said) == (wanted == "prefer" and not there)
    server.run("import os; os.unlink('large')")
    assert server.text("open('more', 'wb').write(bytes(4 << 20)); print(1)") == "1"


@pytest.mark.parametrize("life", [False])
def test_an_image_that_is_required_and_cannot_be_had_starts_nothing(server: Server) -> None:
    wanted = {"files": {**SIZED["files"], "image": "require"}}
    said = refused_without_trace(server, lambda: server.refused(overrides=wanted))
    assert "lies on the disk, in an image of files.size, and this host has none for us" in said
    assert 'image = "prefer"' in said


def test_the_plan_says_where_changes_lie() -> None:
    """As `jupyter isolated explain` prints it."""
    lack = Lack("image", "/dev/loop-control: No such file or directory", "modprobe loop")
    without = Host("6.1", "x86_64", 0, True, 7, "v2", "core", (lack,))
    with_images = Host("6.1", "x86_64", 0, True, 7, "v2", "core")

    def told(where: Host, **files: str) -> tuple[str, list[str], int | None]:
        changed = {"files": files, "layers": {"seccomp": "off"}}  # a filter is compiled elsewhere
        made = plan(sources.load("standard", [("the test", changed)], ceilings=[]).profile, where)
        step = next(step for step in made.init if type(step).__name__ == "PlaceWorkspace")
        return step.describe(), [note for note in made.notes if "seccomp" not in note], made.image

    copy = {"workspace": "copy-on-write", "size": "1 GiB"}
    words, notes, image = told(with_images, **copy)
    assert (words.partition("; ")[2], notes, image) == (
        "what changes lies on the disk, in an image of its own, and Linux holds it to 1024 MiB", [], 1 << 30,
    )  # fmt: skip
    words, notes, image = told(without, **copy)
    assert (words.partition("; ")[2], image) == ("what changes lies in memory, and Linux holds it to 512 MiB", None)
    assert "at most 512 MiB of it, and not in an image on the disk: /dev/loop-control: No such file" in notes[0]
    assert told(with_images, **copy, image="off")[1:] == ([], None)
    assert "shares the room of /tmp" in told(with_images, workspace="copy-on-write")[0]
    assert "of more than 1024 MiB in it the cell is told, and nothing holds it" in told(with_images, size="1 GiB")[0]
    with pytest.raises(HostError, match="has none for us: /dev/loop-control") as refused:
        told(without, **copy, image="require")
    assert refused.value.remedy == 'modprobe loop, or write image = "prefer" under [files]'


def test_a_host_says_why_it_has_no_images() -> None:
    cause, remedy = host.probe().lacks("image")
    if os.geteuid() != 0:
        assert "only root" in cause
    assert bool(cause) == bool(remedy)

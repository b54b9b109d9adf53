"""A list of modules that cannot be meant, or an environment that is broken: one sentence, and nothing is started."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import Server
from tests.kernel.test_bad_input import refused_without_trace

# Refused before anything is started: as whom, makes no difference.
once = pytest.mark.parametrize("life", [os.geteuid() == 0])

LIST: dict[str, Any] = {"modules": {"grant": ["@stdlib", "numpy"]}}


@pytest.fixture
def prefix() -> Iterator[Path]:
    """A virtual environment of which only the metadata is read. Not in /tmp, of which every kernel has its own."""
    path = Path(tempfile.mkdtemp(prefix="isolated-broken-", dir="/var/tmp"))
    path.chmod(0o755)
    (path / "bin").mkdir()
    (path / "bin/python").symlink_to(os.path.realpath(sys.executable))
    (path / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (path / "lib/python3.11/site-packages").mkdir(parents=True)
    for name in ("ipykernel", "numpy"):
        install(path, name)
    yield path
    shutil.rmtree(path)


def install(prefix: Path, name: str, version: str = "1.0") -> Path:
    site = prefix / "lib/python3.11/site-packages"
    about = site / f"{name}-{version}.dist-info"
    about.mkdir()
    (site / name).mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (about / "RECORD").write_text(f"{name}/__init__.py,,\n{about.name}/METADATA,,\n{about.name}/RECORD,,\n")
    return about


def site(prefix: Path) -> Path:
    return prefix / "lib/python3.11/site-packages"


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing metadata": (lambda p: (site(p) / "numpy-1.0.dist-info/METADATA").unlink(), "install numpy again"),
    "a missing list of files": (
        lambda p: (site(p) / "numpy-1.0.dist-info/RECORD").write_text(""),
        "install numpy again",
    ),
    "duplicate distributions": (lambda p: install(p, "numpy", "2.0"), "holds two versions of numpy"),
    "an unreadable .pth": (lambda p: (site(p) / "x.pth").symlink_to("x.pth"), "x.pth cannot be read"),
    "no kernel in it": (lambda p: shutil.rmtree(site(p) / "ipykernel-1.0.dist-info"), "has no ipykernel"),
    "a package that is gone": (
        lambda p: shutil.rmtree(site(p) / "numpy-1.0.dist-info"),
        "nothing here is called 'numpy'",
    ),
}


@once
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_environment_starts_nothing(server: Server, prefix: Path, what: str) -> None:
    act, words = BROKEN[what]
    if what in ("a package that is gone", "a missing list of files"):
        shutil.rmtree(site(prefix) / "numpy")
    act(prefix)
    argv = [str(prefix / "bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    assert words in refused_without_trace(server, lambda: server.refused(overrides=LIST, spec={"argv": argv}))


@once
@pytest.mark.parametrize(
    ("grant", "words"),
    [
        (["sklaern"], "nothing here is called 'sklaern': did you mean sklearn"),
        (["scikit-lern"], "did you mean scikit-learn"),
        (["socke"], "did you mean socke"),
        (["@data-sience"], "did you mean @data-science"),
        (["zz*"], "nothing here is called 'zz*': install it, or remove the name"),
        (["numpy; import os"], "is no name of a module or distribution"),
        ("numpy", "is not a list of names"),
    ],
)
def test_a_grant_of_nothing_starts_nothing(server: Server, grant: object, words: str) -> None:
    assert words in refused_without_trace(server, lambda: server.refused(overrides={"modules": {"grant": grant}}))


def test_what_the_kernel_needs_need_not_be_granted(server: Server) -> None:
    """An empty list still starts a kernel, that shows, completes and explains; a cell may import nothing."""
    server.start(overrides={"modules": {"grant": []}})
    assert server.text("1 + 1") == "2"
    assert "does not grant the module math" in server.run("import math")["text"]
    asked = {"code": "pri", "cursor_pos": 3}
    reply = server.ask("request", name="kernel", channel="shell", type="complete_request", content=asked)
    assert "print" in reply["content"]["matches"]
    assert "by the profile standard" in server.text("%sandbox")

"""The command line as scripts and people meet it: exit status, what is printed where, and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner
from isolated_python.cli import COMMANDS, cli

from tests.conftest import BIN, Ordinary
from tests.kernel.conftest import serve


class Terminal:
    """Somebody who types `jupyter isolated …`, as root or as an ordinary user, with a runtime folder of their own."""

    def __init__(self, ordinary: Ordinary, *, root: bool) -> None:
        self.ordinary, self.root = ordinary, root
        self.folder, self.home = ordinary.home / "work", ordinary.home / "home"
        self.runtime, site = ordinary.home / "run", ordinary.home / "etc" / "isolated-python" / "profiles"
        site.mkdir(parents=True)
        # An ordinary user has no cgroup on a host with version 1 alone.
        (site / "standard.toml").write_text("" if root else '[layers]\ncgroup = "prefer"\n')
        for place in (self.folder, self.home, self.runtime):
            place.mkdir(mode=0o700)
            if not root:
                os.chown(place, ordinary.uid, ordinary.gid)
        self.environment = ordinary.environment | {
            "JUPYTER_CONFIG_PATH": str(ordinary.home / "etc"),
            "ISOLATED_PYTHON_RUNTIME_DIR": str(self.runtime),
            "HOME": str(self.home),
        }

    def __call__(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end: also to that of its supervisor, which holds the same pipes."""
        command = [f"{BIN}/jupyter-isolated", *words]
        asked: dict[str, Any] = {"cwd": self.folder, "env": self.environment} | more
        if self.root:
            asked |= {"user": os.getuid(), "group": os.getgid(), "extra_groups": os.getgroups()}
        process = self.ordinary.start(command, **asked)
        said, complained = process.communicate(timeout=100)
        assert os.listdir(self.runtime) == []
        return subprocess.CompletedProcess(command, process.returncode, said, complained)

    def notebook(self, *cells: str, name: str = "a.ipynb") -> str:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(book, self.folder / name)
        return name

    def read(self, name: str) -> Any:
        return nbformat.read(self.folder / name, as_version=4)


@pytest.fixture
def jupyter_isolated(life: bool, ordinary: Ordinary) -> Terminal:
    return Terminal(ordinary, root=life)


# ---- run -------------------------------------------------------------------------------------------------------------


def test_a_notebook_that_runs_ends_with_0_and_draws_no_progress_in_a_pipe(jupyter_isolated: Terminal) -> None:
    done = jupyter_isolated("run", jupyter_isolated.notebook("print('hello')", "6 * 7"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == [
        "In [1]: print('hello')", "hello", "In [2]: 6 * 7", "42", "a.ipynb: 2 cells ran", "",
    ]  # fmt: skip


def test_progress_is_drawn_on_a_terminal(ordinary: Ordinary) -> None:
    jupyter_isolated = Terminal(ordinary, root=False)
    here, there = pty.openpty()
    name = jupyter_isolated.notebook("print('hello')")
    try:
        environment = jupyter_isolated.environment | {"TERM": "xterm"}
        assert jupyter_isolated("run", name, stderr=there, env=environment).returncode == 0
        assert b"starting the kernel" in os.read(here, 1 << 16)
    finally:
        os.close(here)
        os.close(there)


def test_a_failing_cell_ends_with_1_and_its_error_is_in_the_output(jupyter_isolated: Terminal) -> None:
    name = jupyter_isolated.notebook("print('one')", "1 / 0", "print('three')")
    done = jupyter_isolated("run", name, "--output", "done.ipynb")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stdout
    assert done.stdout.endswith("a.ipynb: a cell failed\n")
    first, second, third = jupyter_isolated.read("done.ipynb").cells
    assert first.outputs[0].text == "one\n"
    assert second.outputs[0].ename == "ZeroDivisionError"
    assert third.outputs == []
    assert jupyter_isolated.read("a.ipynb").cells[0].outputs == []  # what was given is not written to
    assert "three" in jupyter_isolated("run", name, "--allow-errors").stdout.partition("ZeroDivision")[2]


def test_a_dead_kernel_and_one_out_of_time_end_with_1_and_say_why(jupyter_isolated: Terminal) -> None:
    done = jupyter_isolated("run", jupyter_isolated.notebook("import ctypes; ctypes.string_at(0)"))
    assert (done.returncode, "SIGSEGV" in done.stdout, done.stderr) == (1, True, "")
    done = jupyter_isolated("run", jupyter_isolated.notebook("while True: pass"), "--timeout", "1")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("a cell took more than 1 s\n")


BROKEN = {
    "half written": (lambda whole: whole[: len(whole) // 2], "its JSON ends or breaks off in line"),
    "empty": (lambda whole: b"", "its JSON ends or breaks off in line 1"),
    "not an object": (lambda whole: b"[]", "its JSON is not an object"),
    "not a notebook": (lambda whole: b'{"nbformat": 4, "nbformat_minor": 5, "cells": 3}', "is not a notebook"),
    "not text": (lambda whole: b"\xff\xfe", "is not text"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_not_a_whole_notebook_ends_with_2_and_one_sentence(ordinary: Ordinary, fault: str) -> None:
    spoil, words = BROKEN[fault]
    jupyter_isolated = Terminal(ordinary, root=False)
    path = jupyter_isolated.folder / jupyter_isolated.notebook("print('hello')")
    path.write_bytes(spoil(path.read_bytes()))
    is_refused(jupyter_isolated("run", path.name), words)


def test_what_cannot_begin_ends_with_2_and_one_sentence(ordinary: Ordinary) -> None:
    jupyter_isolated = Terminal(ordinary, root=False)
    name = jupyter_isolated.notebook("print('hello')")
    is_refused(jupyter_isolated("run", "nowhere.ipynb"), "No such file")
    is_refused(jupyter_isolated("run", "."), "Is a directory")
    is_refused(jupyter_isolated("run", name, "--profile", "sharde"), "did you mean shared?")
    is_refused(jupyter_isolated("run", name, "--output", "/nowhere/a.ipynb"), "nothing can be written to /nowhere")
    assert jupyter_isolated("run", name, "--nonsense").returncode == 2


def is_refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert words in done.stderr


# ---- list, kill ------------------------------------------------------------------------------------------------------


def test_kernels_are_listed_and_ended_by_their_id(life: bool, ordinary: Ordinary) -> None:
    terminal = Terminal(ordinary, root=life)
    runtime = ordinary.home / "sockets"
    runtime.mkdir(mode=0o700)
    if not life:
        os.chown(runtime, ordinary.uid, ordinary.gid)
    with serve(life, ordinary, ISOLATED_PYTHON_RUNTIME_DIR=str(runtime)) as one:
        terminal.runtime = terminal.folder / "nothing"
        terminal.runtime.mkdir()
        terminal.environment["ISOLATED_PYTHON_RUNTIME_DIR"] = str(runtime)
        started, other = one.start("a")["id"], one.start("b")["id"]
        mine = {kernel["kernel"]: kernel for kernel in json.loads(terminal("list", "--json").stdout)}
        assert {started, other} <= mine.keys()
        about = mine[started]
        assert (about["profile"], about["state"], about["refused"]) == ("standard", "running", {})
        assert about["limits"] == {"memory": 2 << 30, "processes": 256, "cpu": None}
        assert bool(about["memory"]) == bool(about["processes"]) == (not about["weakened"])
        assert started[:12] in terminal("list").stdout
        done = terminal("kill", started)
        assert (done.returncode, done.stdout) == (0, "1 ended\n")
        assert one.ask("ended", name="a")["status"] == -9
        assert one.text("print('well')", "b") == "well"
        assert terminal("kill", started).returncode == 1
        assert terminal("kill", "").returncode == 2  # a script whose variable is empty does not mean everything


def test_a_folder_of_somebody_else_is_not_asked(jupyter_isolated: Terminal) -> None:
    """In /tmp anybody can make what looks like the folder of a supervisor."""
    if not jupyter_isolated.root:
        return
    place = Path(f"/tmp/isolated-{os.getpid()}-planted")
    place.mkdir()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as planted:
            planted.bind(str(place / "visits"))
            planted.listen()
            planted.setblocking(False)
            os.chown(place, jupyter_isolated.ordinary.uid, -1)
            assert jupyter_isolated("list", "--json").returncode == 0
            with pytest.raises(BlockingIOError):
                planted.accept()
    finally:
        (place / "visits").unlink()
        place.rmdir()


# ---- profile, install, explain ---------------------------------------------------------------------------------------


def test_profiles_are_listed_shown_and_checked(jupyter_isolated: Terminal) -> None:
    listed = {one["name"]: one for one in json.loads(jupyter_isolated("profile", "list", "--json").stdout)}
    assert {"standard", "shared"} <= listed.keys()
    assert listed["shared"]["description"] in jupyter_isolated("profile", "list").stdout
    assert jupyter_isolated("profile", "show", "shared").stdout == Path(listed["shared"]["file"]).read_text()
    meant = json.loads(jupyter_isolated("profile", "show", "shared", "--json").stdout)
    assert (meant["resources"]["memory"], meant["resources"]["wall_clock"]) == (1 << 30, 8 * 3600)
    exam = jupyter_isolated.folder / "exam.toml"
    exam.write_text('[resources]\nmemory = "4 GiB"\n')
    done = jupyter_isolated("profile", "check", "exam.toml")
    assert (done.returncode, done.stdout) == (0, "exam.toml is right\n")
    exam.write_text('[resources]\nmemry = "1 GiB"\n')
    is_refused(jupyter_isolated("profile", "check", "exam.toml"), "did you mean memory?")
    exam.write_text("[resources\n")
    is_refused(jupyter_isolated("profile", "check", "exam.toml"), "is not TOML")
    is_refused(jupyter_isolated("profile", "show", "../exam"), "is not the name of a profile")


def test_a_kernelspec_for_a_profile_is_installed(jupyter_isolated: Terminal) -> None:
    prefix = jupyter_isolated.folder / "prefix"
    done = jupyter_isolated("install", "--profile", "shared", "--prefix", str(prefix), "--display-name", "Exam")
    assert done.returncode == 0, done.stderr
    where = prefix / "share/jupyter/kernels/isolated-python-shared"
    assert done.stdout == f"Exam: {where}\n"
    spec = json.loads((where / "kernel.json").read_text())
    assert spec["display_name"] == "Exam"
    stanza = spec["metadata"]["kernel_provisioner"]
    assert stanza == {"provisioner_name": "isolated-python", "config": {"profile": "shared"}}
    assert (where / "logo-64x64.png").is_file()
    assert jupyter_isolated("install", "--user").returncode == 0
    found = jupyter_isolated.home / ".local/share/jupyter/kernels/isolated-python/kernel.json"
    assert json.loads(found.read_text())["display_name"] == "Isolated Python"
    for words in ([], ["--sys-prefix"]):  # into the environment, if it is one's own
        done = jupyter_isolated("install", "--profile", "shared", "--name", "isolated-test", *words)
        if jupyter_isolated.root or (os.geteuid() != 0 and os.access(sys.prefix, os.W_OK)):
            where = Path(sys.prefix) / "share/jupyter/kernels/isolated-test"
            assert (done.returncode, done.stdout) == (0, f"Isolated Python (shared): {where}\n"), done.stderr
            shutil.rmtree(where)
        else:
            is_refused(done, "choose --user, or a --prefix that is yours")
    is_refused(jupyter_isolated("install", "--profile", "none-such"), "there is no profile")
    is_refused(jupyter_isolated("install", "--prefix", "/proc/none"), "cannot be written to /proc")
    for wrong in (["--name", "a b"], ["--user", "--sys-prefix"]):
        assert jupyter_isolated("install", *wrong).returncode == 2


def test_jupyter_finds_us(ordinary: Ordinary) -> None:
    assert ordinary.run([f"{BIN}/jupyter", "isolated", "--version"]).stdout.startswith("jupyter isolated, version ")


def test_the_plan_is_explained_to_people_and_to_scripts(jupyter_isolated: Terminal) -> None:
    told = jupyter_isolated("explain", "--profile", "shared")
    assert told.returncode == 0
    plan = json.loads(jupyter_isolated("explain", "--profile", "shared", "--json").stdout)
    kinds = [kind for steps in plan["steps"].values() for kind, _ in steps]
    said = [line.split()[0] for line in told.stdout.splitlines() if line.startswith("  ")]
    assert said == kinds
    assert {"user", "mount", "pid", "net"} <= {*plan["namespaces"]}
    assert "Modules that a cell may import: everything." in told.stdout
    exam = jupyter_isolated("explain", "--profile", "exam")
    assert "granted (hidden, guard, native code off)." in exam.stdout
    assert "files and folders that are not granted" in exam.stdout
    is_refused(jupyter_isolated("explain", "--profile", "none-such"), "there is no profile")


# ---- for everybody ---------------------------------------------------------------------------------------------------


EACH = [*([name] for name in COMMANDS), *(["profile", name] for name in ("list", "show", "check"))]


@pytest.mark.parametrize("words", EACH, ids=" ".join)
def test_every_command_says_what_it_does_with_an_example(words: list[str]) -> None:
    said = CliRunner().invoke(cli, [*words, "--help"], prog_name="jupyter isolated")
    assert said.exit_code == 0
    assert "Example" in said.output
    assert f"jupyter isolated {' '.join(words)}" in said.output.partition("Example")[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    assert "jupyter-isolated" in CliRunner().invoke(cli, ["completion", shell]).output


def test_names_of_profiles_complete(jupyter_isolated: Terminal) -> None:
    """What a shell asks at the Tab key, in the way that click's scripts ask it."""
    asked = {"COMP_WORDS": "jupyter-isolated run --profile sh", "COMP_CWORD": "3"}
    asked |= {"_JUPYTER_ISOLATED_COMPLETE": "bash_complete"}
    assert jupyter_isolated(env=jupyter_isolated.environment | asked).stdout == "plain,shared\n"

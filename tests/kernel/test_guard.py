"""The guard tells; it stands in nobody's way. Real cells, in the server's environment and in one that is not ours."""

from __future__ import annotations

import shutil
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from isolated_python.engine import interpreters, packages, sight

from tests.kernel.conftest import Server
from tests.kernel.test_reasons import TIGHT, provoke

LIST = {"modules": {"grant": ["@stdlib-safe", "numpy", "joblib", "matplotlib"]}}


def failed(server: Server, code: str, name: str = "kernel") -> str:
    answer = server.run(code, name)
    assert answer["status"] == "error", answer
    return str(answer["text"])


def test_a_cell_that_imports_what_is_not_granted_is_told_so(server: Server) -> None:
    """In one sentence, with what is near; wherever in the cell the import stands, and as an ImportError."""
    server.start(overrides=LIST)
    said = failed(server, "import subprocess")
    assert "the profile standard does not grant the module subprocess" in said
    assert "imports.py" not in said
    assert "near it, it grants posixpath" in failed(server, "import posix")
    for code in ("import pandas", "from pandas import DataFrame", "import http.client", "exec('import socket')"):
        assert "ModuleNotGranted" in failed(server, code)
    code = "def f():\n    import ctypes\ntry: f()\nexcept ImportError as error: print(type(error).__name__, error.name)"
    assert server.text(code) == "ModuleNotGranted ctypes"
    assert "ModuleNotGranted" in failed(server, "%time import pandas")


def test_imports_that_are_not_a_cells_are_untouched(server: Server) -> None:
    """Libraries, %run, %load_ext, pickles, lazy imports, a module beside the notebook, tracebacks."""
    server.give("script.py", "import socket, subprocess\nprint('script', socket.AF_INET)\n")
    server.give("helper.py", "import ctypes\nvalue = 7\n")
    server.give("statistics.py", "mine = True\n")
    server.give("ext.py", "import subprocess\ndef load_ipython_extension(ip): print('loaded')\n")
    server.start(overrides=LIST)
    assert server.text("%run script.py") == "script 2"
    assert server.text("%load_ext ext") == "loaded"
    assert server.text("import helper; print(helper.value)") == "7"
    assert server.text("import pickle; print(pickle.loads(b'csocket\\nAF_INET\\n.').name)") == "AF_INET"
    assert server.text("import joblib; print(joblib.Parallel(2, 'threading')(joblib.delayed(abs)(i) for i in [-1]))")
    assert server.text("import matplotlib.pyplot as p; print(len(p.plot([1, 2])))").startswith("1")
    said = failed(server, "import nothing_of_that_name")
    assert "No module named 'nothing_of_that_name'" in said
    assert "imports.py" not in said
    assert server.text("builtins = __import__('builtins'); builtins.mine = 5") == ""
    assert "Kernel.raw_input" in server.text("print(input)")  # exchanged for each cell, by ipykernel
    assert server.text("print(mine, len, get_ipython().__class__.__name__)").startswith("5 <built-in")
    server.run("%reset -f")
    assert "ModuleNotGranted" in failed(server, "import socket")


def test_sandbox_tells_what_is_granted_used_and_refused(server: Server) -> None:
    server.start(overrides=LIST)
    assert "Nothing was refused" in server.text("%sandbox")
    assert server.text("%sandbox why") == "No cell has failed."
    failed(server, "import socket")
    assert "The layer guard" in server.text("%sandbox why")
    failed(server, "open('/usr/x', 'w')")
    assert "The layer mount" in server.text("%sandbox why")
    failed(server, "1 / 0")
    assert "not behind it" in server.text("%sandbox why")
    said = server.text("%sandbox")
    for words in ("by the profile standard", "resources.memory", "2048 MiB", "(hidden, guard)", "guard", "socket"):
        assert words in said
    assert "numpy" in server.text("%sandbox modules")
    assert "%sandbox why" in server.text("%sandbox something")


def test_without_a_list_everything_is_granted(server: Server) -> None:
    server.start()
    assert server.text("import subprocess, socket, ctypes; print(1)") == "1"
    assert "grants every module" in server.text("%sandbox modules")


@pytest.fixture(scope="module")
def foreign() -> Iterator[Path]:
    """An environment that has ipykernel, but not our package. Not in /tmp, of which every kernel has its own."""
    path = Path(tempfile.mkdtemp(prefix="isolated-foreign-", dir="/var/tmp"))
    path.chmod(0o755)
    venv.create(path, symlinks=True)
    site = next((path / "lib").glob("python3*/site-packages"))
    found = packages.environment(interpreters.own())
    ignored = shutil.ignore_patterns("__pycache__", "third_party")  # jedi's 5,000 files of types, for completion
    for name in sight._closure(found, {"ipykernel", "iniconfig"}):
        package = found.packages[name]
        for top in package.tops:
            here = Path(package.folder, top)
            if here.is_dir():
                shutil.copytree(here, site / top, dirs_exist_ok=True, ignore=ignored)
            elif here.exists():
                shutil.copy(here, site / top)
    yield path
    shutil.rmtree(path)


def test_the_guard_of_a_foreign_environment_tells_the_same(server: Server, foreign: Path) -> None:
    argv = [str(foreign / "bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    server.start(overrides={"modules": {"grant": ["@stdlib-safe"]}}, spec={"argv": argv})
    assert server.text("import sys; print(sys.prefix)") == str(foreign)
    assert "No module named 'isolated_python'" in failed(server, "import isolated_python")
    assert server.text("print([n for n in dir() if not n.startswith('_')])").startswith("['In', 'Out'")
    assert "does not grant the module socket" in failed(server, "import socket")
    assert "by the profile standard" in server.text("%sandbox")


def test_every_refusal_has_its_sentence_in_a_foreign_environment(server: Server, foreign: Path) -> None:
    argv = [str(foreign / "bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    server.start(overrides=TIGHT, spec={"argv": argv})
    provoke(server, "kernel", TIGHT)

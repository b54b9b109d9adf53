"""`jupyter isolated modules`: a notebook's imports, read and never run, as the list of a profile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from isolated_python.errors import ProfileError
from isolated_python.policy import notebooks, parse
from isolated_python.policy.profile import Profile

CELLS = [
    "import numpy as np, os.path\nfrom sklearn.linear_model import Ridge",
    "%matplotlib inline\n!ls -l\nfiles = !ls\n%time import json\nnumpy?\n?np",
    "%%timeit\nimport math",
    "%%bash\nimport this is no python",
    "%%html\n<b>import</b>",
    (
        "def late():\n    if True:\n        import csv\n    %config x = 1\n    import importlib\n"
        "    importlib.import_module('sqlite3.dbapi2')"
    ),
    "from . import neighbour\nimport helper\nfrom IPython.display import HTML\nawait something",
    "import (",
    "raise SystemExit  # and nothing of it is run",
]


def notebook(path: Path, cells: list[str]) -> Path:
    code = [{"cell_type": "code", "source": cell} for cell in cells]
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "import x"}, *code]}))
    return path


def test_every_import_of_a_notebook_is_found(tmp_path: Path) -> None:
    (tmp_path / "helper.py").touch()
    found = notebooks.read([notebook(tmp_path / "a.ipynb", CELLS)])
    assert found.modules == {
        "numpy", "os", "sklearn", "matplotlib", "json", "math", "csv", "importlib", "sqlite3",
    }  # fmt: skip
    assert found.here == {"helper"}
    assert [words.partition(":")[0] for words in found.unread] == ["a.ipynb, cell 9"]


def test_modules_become_the_distributions_that_bring_them() -> None:
    wanted = notebooks.Wanted(frozenset({"sklearn", "math", "yaml", "google"}), frozenset(), ())
    installed = {"scikit-learn": {"sklearn"}, "google-b": {"google"}, "google-a": {"google"}}
    assert notebooks.grants(wanted, installed) == (["math", "google-a", "scikit-learn"], ["yaml"])


def test_the_command_prints_what_a_profile_reads(tmp_path: Path) -> None:
    book = notebook(tmp_path / "a.ipynb", ["import numpy, sklearn, json"])
    command = [sys.executable, "-P", "-m", "isolated_python", "modules", str(book)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    tables = tomllib.loads(said.stdout)
    assert tables == {"modules": {"grant": ["json", "numpy", "scikit-learn"]}}
    assert parse.change(Profile(), tables, "printed").modules.grant
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert json.loads(as_json.stdout)["grant"] == tables["modules"]["grant"]
    # pandas is imported by scikit-learn where a notebook asks for frames.
    assert re.search(r"# some of scikit-learn works only where these are granted, too: .*pandas", said.stdout)
    assert "pandas" in json.loads(as_json.stdout)["used if there"]["scikit-learn"]
    missing = notebook(tmp_path / "b.ipynb", ["import no_such_module"])
    answer = subprocess.run([*command[:-1], str(missing)], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert "# no_such_module: not installed here" in answer.stdout


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cells": [{}]}', '{"cells": 1}', "\0"])
def test_what_is_no_notebook_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(ProfileError, match="not a whole notebook"):
        notebooks.read([tmp_path / "x.ipynb"])
    with pytest.raises(ProfileError, match="cannot be read"):
        notebooks.read([tmp_path / "y.ipynb"])

"""An environment runs from wherever it lies, also where a sandbox has a place of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from isolated_python.errors import HostError
from isolated_python.layers import view

from tests.conftest import Ordinary
from tests.kernel.conftest import environment, serve

LOOK = """
import errno, json, os, sys
def refused(path):
    try:
        open(path, "w")
    except OSError as error:
        return error.errno == errno.EROFS
refusals = [refused(sys.prefix + "/pyvenv.cfg"), refused(sys.prefix + "/new")]
others = [name for name in os.listdir(os.path.dirname(sys.prefix)) if "isolated" in name]
print(json.dumps([sys.prefix, refusals, others, os.path.exists("/run/kept") and os.listdir("/run/kept")]))
open("/tmp/mine", "w").close()
"""
PROGRAM = "from ipykernel.kernelapp import launch_new_instance as launch; launch()"


@pytest.mark.parametrize(
    "below", ["/tmp", *(pytest.param(place, marks=pytest.mark.thorough) for place in ("/dev/shm", "/var/tmp", "/run"))]
)
def test_an_environment_is_seen_where_it_lies_and_nothing_beside_it(life: bool, ordinary: Ordinary, below: str) -> None:
    """Read-only as elsewhere; from the zygote, and by execve(2)."""
    if not os.access(below, os.W_OK):
        pytest.skip(f"{below} is not ours to write to")
    with environment(below) as python, serve(life, ordinary, python=python) as server:
        place = Path(python).parent.parent
        for name, spec in (("ours", {}), ("any", {"argv": [python, "-c", PROGRAM, "-f", "{connection_file}"]})):
            server.start(name, spec=spec)
            prefix, refusals, others, kept = json.loads(server.text(LOOK, name))
            assert (prefix, refusals, others) == (str(place), [True, True], [place.name])
            assert not kept, "the environment as all sandboxes share it, file locks and all"
            assert server.text("!echo $((6 * 7))", name) == "42"


def test_an_environment_below_the_workspaces_place_is_refused_in_a_sentence() -> None:
    with pytest.raises(HostError, match="lies where a sandbox has its workspace"):
        view.covered(("/usr", "/mnt/workspace/env"))

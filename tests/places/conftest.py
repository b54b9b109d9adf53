"""The places where people meet the product: a server of notebooks, and a browser that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import somebody
from tests.places.server import Server

BIN = str(Path(sys.executable).parent)
DEPLOY = Path(__file__).parent.parent.parent / "deploy"
# Enough for a plot, and soon used up.
SMALL = {"resources": {"memory": "384 MiB", "tmp": "64 MiB", "shm": "32 MiB"}}
if os.geteuid() != 0 and not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
    SMALL["layers"] = {"cgroup": "prefer"}


@pytest.fixture(scope="module")
def homes() -> Iterator[Callable[[], Path]]:
    """Empty home folders, in a place that others can pass through, as homes are."""
    made: list[Path] = []

    def home() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="isolated-place-")))
        made[-1].chmod(0o755)
        return made[-1]

    yield home
    for path in made:
        shutil.rmtree(path)


def environment(home: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", **more}


@pytest.fixture(scope="module")
def etc() -> Iterator[Path]:
    """What an administrator has copied from deploy/, with a ceiling that these tests can live under."""
    with somebody() as person:
        folder = person.home / "etc"
        folder.mkdir()
        shutil.copy(DEPLOY / "jupyter_server_config.py", folder)
        with (folder / "jupyter_server_config.py").open("a") as file:
            file.write(f"c.IsolatedProvisioner.overrides = {SMALL!r}\n")
        (folder / "migrated").touch()
        (folder / "jupyter_server_config.d").mkdir()
        on = {"ServerApp": {"jpserver_extensions": {"jupyter_server_proxy": True}}}
        (folder / "jupyter_server_config.d" / "proxy.json").write_text(json.dumps(on))
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def locked(home: Path, etc: Path) -> dict[str, str]:
    return environment(home, JUPYTER_CONFIG_DIR=str(etc), PYTHONNOUSERSITE="1")


@pytest.fixture(scope="module")
def start(homes: Callable[[], Path]) -> Iterator[Callable[..., Server]]:
    """Starts a server with a configuration, in a home of its own; ends it at the end of the module."""
    servers: list[Server] = []

    def start(config: dict[str, Any], *arguments: str, home: Path | None = None, **more: Any) -> Server:
        home = home or homes()
        more.setdefault("cwd", home)
        more["cwd"].mkdir(exist_ok=True)
        more.setdefault("env", environment(home))
        servers.append(Server(home, config, [*(arguments or ("jupyter_server",))], **more))
        return servers[-1]

    yield start
    for server in servers:
        server.close()

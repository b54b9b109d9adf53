"""The files of deploy/jupyterhub, read as JupyterHub reads them, for each of the spawners that they are for."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from jupyterhub import orm
from jupyterhub.app import JupyterHub
from jupyterhub.spawner import LocalProcessSpawner, Spawner
from jupyterhub.user import User
from sudospawner.spawner import SudoSpawner
from systemdspawner import SystemdSpawner
from traitlets.config import Config, Configurable

from tests.places.conftest import DEPLOY

HUB = DEPLOY / "jupyterhub"
KNOWN: dict[str, type[Configurable]] = {
    one.__name__: one for one in (JupyterHub, Spawner, LocalProcessSpawner, SudoSpawner, SystemdSpawner)
}
# What each server is told.
TOLD = {"ISOLATED_PYTHON_SERVICE", "JUPYTER_DEFAULT_PROVISIONER_NAME", "JUPYTER_CONFIG_DIR", "PYTHONNOUSERSITE"}

# As The Littlest JupyterHub configures its hub: its own settings first, then every file of a folder.
LITTLEST = """
from glob import glob
c = get_config()
c.JupyterHub.spawner_class = "systemd"
c.JupyterHub.cleanup_servers = False
c.SystemdSpawner.extra_paths = ["/opt/tljh/user/bin"]
c.SystemdSpawner.unit_name_template = "jupyter-{{USERNAME}}"
c.SystemdSpawner.username_template = "jupyter-{{USERNAME}}"
c.Spawner.mem_limit, c.Spawner.cpu_limit = "2G", None
c.Spawner.default_url = "/lab"
for one in sorted(glob({folder!r} + "/*.py")):
    load_subconfig(one)
"""


def loaded(folder: Path, text: str) -> Config:
    """What a hub makes of this configuration. No name in it is unknown to the class that it is for."""
    file = folder / "jupyterhub_config.py"
    file.write_text(text)
    hub = JupyterHub()
    hub.load_config_file(str(file))
    for name, settings in hub.config.items():
        assert {*settings} <= {*KNOWN[name].class_trait_names(config=True)}, name
    return hub.config


def spawner(kind: type[Spawner], config: Config) -> Any:
    """One as the hub would make it, whose server is never started."""
    with contextlib.closing(orm.new_session_factory("sqlite:///:memory:")()) as database:
        person = orm.User(name="ada")
        database.add(person)
        database.commit()
        return kind(config=config, user=User(person, {}, db=database))


def subconfigs(*names: str) -> str:
    return "".join(f"load_subconfig({str(HUB / name)!r})\n" for name in names)


def test_the_common_file_is_enough_for_local_processes(tmp_path: Path) -> None:
    made = spawner(LocalProcessSpawner, loaded(tmp_path, subconfigs("jupyterhub_config.py")))
    assert ({*made.environment}, made.notebook_dir) == (TOLD, "~/notebooks")


def test_a_unit_of_systemds_may_divide_its_group_and_hides_nothing_that_a_sandbox_needs(tmp_path: Path) -> None:
    """Of what SystemdSpawner can close: only what neither a user namespace nor a fresh /proc needs."""
    config = loaded(tmp_path, subconfigs("jupyterhub_config.py", "systemdspawner_config.py"))
    assert config.JupyterHub.spawner_class == "systemd"
    made = spawner(SystemdSpawner, config)
    assert made.unit_extra_properties == {"Delegate": "yes", "TimeoutStopSec": "20"}
    assert (made.isolate_tmp, made.isolate_devices, made.disable_user_sudo) == (True, True, True)
    assert not made.readonly_paths
    assert made.mem_limit == 1 << 30
    assert made.environment["ISOLATED_PYTHON_SERVICE"] == "/run/isolated-python/service.sock"
    without = 'c = get_config()\nc.Spawner.environment.update({"ISOLATED_PYTHON_SERVICE": "off"})\n'
    without += 'c.SystemdSpawner.mem_limit = "4G"\n'
    both = subconfigs("jupyterhub_config.py", "systemdspawner_config.py")
    made = spawner(SystemdSpawner, loaded(tmp_path, both + without))
    assert (made.environment["ISOLATED_PYTHON_SERVICE"], made.mem_limit) == ("off", 4 << 30)
    assert {*made.environment} == TOLD


def test_the_littlest_hub_loads_the_common_file_and_keeps_its_own_settings(tmp_path: Path) -> None:
    """Copied to where it looks: its limits, its units, its users' names and its environment stay what they were."""
    folder = tmp_path / "jupyterhub_config.d"
    folder.mkdir()
    shutil.copy(HUB / "jupyterhub_config.py", folder / "isolated_python.py")
    made = spawner(SystemdSpawner, loaded(tmp_path, LITTLEST.format(folder=str(folder))))
    assert ({*made.environment}, made.notebook_dir, made.mem_limit) == (TOLD, "~/notebooks", 2 << 30)
    assert made.unit_name == "jupyter-ada"
    assert made.username_template == "jupyter-{USERNAME}"
    # systemd replaces ${…} in what it is given to run, and SystemdSpawner {…}: there must be none.
    assert not any("{" in word for word in made.cmd)
    assert os.path.isabs(made.cmd[0])


def test_sudo_may_start_one_program_for_one_group(tmp_path: Path) -> None:
    """The rule and the configuration name the same program, and nothing else is in it."""
    config = loaded(tmp_path, subconfigs("jupyterhub_config.py", "sudospawner_config.py"))
    made = spawner(SudoSpawner, config)
    rule = (HUB / "sudoers").read_text()
    assert rule.splitlines()[-1] == f"jupyterhub ALL=(%notebooks) NOPASSWD: {made.sudospawner_path}"
    assert ({*made.environment}, made.notebook_dir) == (TOLD, "~/notebooks")
    assert os.access(HUB / "sudospawner-singleuser", os.X_OK)

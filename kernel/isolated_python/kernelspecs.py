"""
The lock of a Jupyter server: whatever is asked of it, and by whichever door, its kernels start in a sandbox.

A kernelspec is only a proposal: a person may have one of their own, and a notebook may name any. So two things are
held here. The names are those that an administrator installed; and the factory of provisioners, of which a process
has one, makes ours and no other, also for code in the server that never asks for a kernelspec by way of us.

Runs:     in the Jupyter server
Trusts:   what only an administrator writes: the folders of the machine and of the environment
Imports:  provisioner
"""

from __future__ import annotations

import os
import sys
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_core.paths import ENV_JUPYTER_PATH, SYSTEM_JUPYTER_PATH
from traitlets import Unicode

from isolated_python.provisioner import KEYS, IsolatedProvisioner

NAME = "isolated-python"  # of our provisioner


class LockedKernelSpecManager(KernelSpecManager):
    """Knows the kernels of the machine and of the environment, and none of a person's; each starts in a sandbox."""

    profile = Unicode(
        "shared", help="The profile of kernels whose kernelspec names none of Isolated Python's, such as python3."
    ).tag(config=True)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.root = os.path.realpath(getattr(self.parent, "root_dir", "") or os.getcwd())
        _import_nothing_below(self.root)
        KernelProvisionerFactory.clear_instance()
        LockedFactory.instance(parent=self.parent).specs = self

    def _kernel_dirs_default(self) -> list[str]:
        return [os.path.join(folder, "kernels") for folder in dict.fromkeys((*ENV_JUPYTER_PATH, *SYSTEM_JUPYTER_PATH))]

    def _get_kernel_spec_by_name(self, kernel_name: str, resource_dir: str) -> KernelSpec:
        """What clients are told of a kernel is how it will be started."""
        spec = super()._get_kernel_spec_by_name(kernel_name, resource_dir)
        stanza = {"provisioner_name": NAME, "config": self.stanza(spec)}
        spec.metadata = {**spec.metadata, "kernel_provisioner": stanza}
        return spec

    def stanza(self, spec: KernelSpec) -> dict[str, Any]:
        """Which profile a kernelspec asks for: an administrator's is believed, every other gets the server's."""
        asked = spec.metadata.get("kernel_provisioner", {})
        trusted = os.path.dirname(os.path.realpath(spec.resource_dir)) in map(os.path.realpath, self.kernel_dirs)
        if trusted and asked.get("provisioner_name") == NAME:
            return {key: value for key, value in asked.get("config", {}).items() if key in KEYS}
        return {"profile": self.profile}


class LockedFactory(KernelProvisionerFactory):
    """The factory of the whole process. It knows one provisioner."""

    specs: LockedKernelSpecManager

    def is_provisioner_available(self, kernel_spec: Any) -> bool:
        return True

    def create_provisioner_instance(self, kernel_id: str, kernel_spec: Any, parent: Any) -> IsolatedProvisioner:
        config = {**self.specs.stanza(kernel_spec), "locked": self.specs.root}
        return IsolatedProvisioner(kernel_id=kernel_id, kernel_spec=kernel_spec, parent=parent, **config)


def _import_nothing_below(root: str) -> None:
    """What lies among the notebooks may be a kernel's work, and must never become a module of the server's.

    `python -m jupyterlab` would look for modules in the current folder first, and a server goes on importing.
    """
    inside = root + os.sep
    sys.path[:] = [path for path in sys.path if not (os.path.realpath(path) + os.sep).startswith(inside)]

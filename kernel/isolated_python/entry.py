"""
What jupyter_client knows us by: imported on every machine, it says at a kernel's start where there can be none.

Runs:     in the Jupyter server, or whatever else starts kernels
Trusts:   the server
Imports:  errors, engine, provisioner
"""

from __future__ import annotations

import contextlib
import platform
import sys
from typing import TYPE_CHECKING, Any

from isolated_python.errors import HostError, IsolatedPythonError

if TYPE_CHECKING:
    from isolated_python.provisioner import IsolatedProvisioner

MACHINES = ("x86_64", "aarch64")  # those whose system calls are known to linux.libc


def check() -> None:
    """Raises HostError on a machine that no sandbox is made for."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        raise HostError(
            f"Isolated Python needs Linux on {' or '.join(MACHINES)}, and this is {sys.platform} on {machine}",
            remedy="choose another kernel on this machine",
        )


def provisioner(**given: Any) -> IsolatedProvisioner:
    """A provisioner, as jupyter_client makes one for each kernel. Raises HostError, ProfileError."""
    check()
    if "isolated_python.provisioner" not in sys.modules:
        _begin(given)
    from isolated_python.provisioner import IsolatedProvisioner

    return IsolatedProvisioner(**given)


def _begin(given: dict[str, Any]) -> None:
    """Start the supervisor, which takes as long to come up as the rest of us takes to be imported.

    What goes wrong is found again, and told, when the kernel is started.
    """
    from isolated_python.engine import client, places

    configured = getattr(given.get("parent"), "config", {}).get("IsolatedProvisioner", {})
    with contextlib.suppress(IsolatedPythonError, OSError, TypeError):
        client.current(places.service(given.get("service", configured.get("service", "auto"))))

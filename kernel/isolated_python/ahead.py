"""
An extension of a Jupyter server that has the first kernel wait for nothing but itself.

The supervisor and the zygote are started when the server has started, and not when somebody asks for a kernel. That
costs some 65 MB in a server that is asked for none: so it is an extension, to be switched on.

Runs:     in the Jupyter server
Trusts:   its configuration
Imports:  errors, provisioner
"""

from __future__ import annotations

from typing import Any

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from traitlets import List, Unicode
from traitlets.config import LoggingConfigurable

from isolated_python.errors import IsolatedPythonError
from isolated_python.provisioner import IsolatedProvisioner


class IsolatedAhead(LoggingConfigurable):
    """Makes ready for kernels of some kernelspecs."""

    kernelspecs = List(Unicode(), ["isolated-python"], help="The kernelspecs whose first kernel shall be quick.").tag(
        config=True
    )

    async def warm(self, specs: Any) -> None:
        """`specs`: the server's KernelSpecManager. What goes wrong is logged, and told again by the start itself."""
        for name in self.kernelspecs:
            try:
                await self._warm(AsyncKernelManager(kernel_name=name, kernel_spec_manager=specs, config=self.config))
            except IsolatedPythonError as error:
                self.log.warning("Isolated Python: nothing could be made ready for %s: %s", name, error)
            except Exception:
                self.log.exception("Isolated Python: nothing could be made ready for %s", name)

    async def _warm(self, manager: AsyncKernelManager) -> None:
        factory = KernelProvisionerFactory.instance(parent=self.parent)
        found = factory.create_provisioner_instance("", manager.kernel_spec, manager)
        if isinstance(found, IsolatedProvisioner):
            await found.warm(manager.format_kernel_cmd())


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": __name__}]


def _load_jupyter_server_extension(server: Any) -> None:
    ahead = IsolatedAhead(parent=server)
    server.io_loop.add_callback(ahead.warm, server.kernel_spec_manager)

"""
The side doors of a Jupyter server: by what else than a kernel a person's work runs or reads on the host.

Runs:     in `jupyter isolated doctor --server`, on a server that is configured and never started
Trusts:   the configuration it finds
Imports:  errors, record, kernelspecs
"""

from __future__ import annotations

import os
import site
from collections.abc import Callable
from typing import Any

from jupyter_core.paths import ENV_CONFIG_PATH, SYSTEM_CONFIG_PATH, jupyter_config_path

from isolated_python.errors import HostError
from isolated_python.kernelspecs import LockedKernelSpecManager
from isolated_python.record import Record


class Door(Record):
    """`open` says of a configured server what stands open, if anything; `setting` shuts it."""

    name: str
    open: Callable[[Any], str]
    setting: str


# Server extensions that start programs on the host, and what a person can do by them.
PROGRAMS = {
    "jupyter_server_proxy": "starts programs on the host, and reaches its ports",
    "jupyter_lsp": "starts language servers on the host, also such as lie in node_modules of the current folder",
    "jupyterlab_git": "runs git on the host, which runs what a repository's configuration names",
    "nbdime": "runs git on the host, which runs what a repository's configuration names",
    "jupyterlab_latex": "runs LaTeX on the host",
    "jupyter_scheduler": "runs notebooks by itself",
    "jupyter_archive": "unpacks archives on the host, links included",
    "dask_labextension": "starts clusters on the host",
}

# Those that start none, or only by way of the server's own kernels. Terminals have a setting, and a door, of their own.
HARMLESS = (
    "jupyter_server_terminals",
    *("jupyterlab", "notebook", "notebook_shim", "nbclassic", "jupyter_resource_usage"),
    *("jupyter_server_fileid", "jupyter_server_ydoc", "jupyter_server_nbmodel", "jupyter_collaboration"),
    *(f"nbgrader.server_extensions.{name}" for name in ("formgrader", "validate_assignment", "assignment_list")),
    "nbgrader.server_extensions.course_list",
)

# Exporters of nbconvert that hand a notebook's text to a program on the host, which reads files for it.
EXPORTERS = ("PDFExporter", "WebPDFExporter", "QtPDFExporter", "QtPNGExporter")


def _kernels(app: Any) -> str:
    if issubclass(app.kernel_spec_manager_class, LockedKernelSpecManager):
        return ""
    return "any kernelspec can be started, one of a person's own too"


def _kernels_elsewhere(app: Any) -> str:
    if app.gateway_config.gateway_enabled:
        return f"kernels are started by {app.gateway_config.url or 'a gateway'}"
    return "kernels that others have started can be used" if app.allow_external_kernels else ""


def _terminals(app: Any) -> str:
    return "a shell on the host" if app.terminals_enabled else ""


def _nbconvert_runs(app: Any) -> str:
    runs = app.config.get("ExecutePreprocessor", {}).get("enabled", False)
    return "a notebook runs when it is downloaded in another format" if runs else ""


def _nbconvert_prints(app: Any) -> str:
    """Exporters are on unless they are switched off."""
    on = [name for name in EXPORTERS if app.config.get(name, {}).get("enabled", True)]
    return f"{', '.join(on)}: LaTeX and browsers on the host read files that a notebook names" if on else ""


def _installs(app: Any) -> str:
    lab = _lab(app)
    manager = getattr(lab, "extension_manager", "readonly")
    return f"{manager} installs packages into the server" if manager != "readonly" else ""


def _lab(app: Any) -> Any:
    point = app.extension_manager.extension_points.get("jupyterlab") or app.extension_manager.extension_points.get(
        "lab"
    )
    return point.app if point is not None else None


def _own_configuration(app: Any) -> str:
    administrators = {os.path.realpath(path) for path in (*SYSTEM_CONFIG_PATH, *ENV_CONFIG_PATH)}
    own = [
        path for path in jupyter_config_path() if os.path.realpath(path) not in administrators and _of_ones_own(path)
    ]
    if site.ENABLE_USER_SITE:
        own.append(site.getusersitepackages())
    return f"read as well: {', '.join(dict.fromkeys(own))}" if own else ""


def _of_ones_own(path: str) -> bool:
    """Whether whoever runs the server may write there, or could as soon as the folder is made."""
    home = os.path.realpath(os.path.expanduser("~")) + os.sep
    return (os.path.realpath(path) + os.sep).startswith(home) or (os.geteuid() != 0 and os.access(path, os.W_OK))


def _hidden_files(app: Any) -> str:
    return "the file browser writes them" if app.contents_manager.allow_hidden else ""


def _buffers(app: Any) -> str:
    kept = getattr(app.kernel_manager, "buffer_offline_messages", False)
    return "what a kernel says to a closed tab is kept in the server's memory, without a bound" if kept else ""


DOORS = (
    Door(
        "kernels", _kernels,
        'c.ServerApp.kernel_spec_manager_class = "isolated_python.kernelspecs.LockedKernelSpecManager"',
    ),
    Door(
        "kernels elsewhere", _kernels_elsewhere,
        'c.GatewayClient.url = ""; c.ServerApp.allow_external_kernels = False',
    ),
    Door("terminals", _terminals, "c.ServerApp.terminals_enabled = False"),
    Door("nbconvert runs", _nbconvert_runs, "c.ExecutePreprocessor.enabled = False"),
    Door("nbconvert prints", _nbconvert_prints, "; ".join(f"c.{name}.enabled = False" for name in EXPORTERS)),
    Door("extension manager", _installs, 'c.LabApp.extension_manager = "readonly"'),
    Door("user configuration", _own_configuration, "start it with JUPYTER_CONFIG_DIR=/etc/jupyter PYTHONNOUSERSITE=1"),
    Door("hidden files", _hidden_files, "c.ContentsManager.allow_hidden = False"),
    Door("output buffering", _buffers, "c.MappingKernelManager.buffer_offline_messages = False"),
)  # fmt: skip


def extensions(app: Any) -> tuple[Door, ...]:
    """One door for each extension that this server would load and that is not known to be harmless."""
    loaded = [name for name, one in app.extension_manager.extensions.items() if one.enabled]
    return tuple(_extension(name) for name in loaded if name not in HARMLESS)


def _extension(name: str) -> Door:
    words = PROGRAMS.get(name, "not known here: nobody has said what it starts on the host")
    return Door(name, lambda app: words, f'c.ServerApp.jpserver_extensions = {{"{name}": False}}')


def configured(arguments: list[str]) -> Any:
    """The server that these arguments would start: with its extensions, and without a port. Raises HostError."""
    try:
        from jupyter_server.serverapp import ServerApp
    except ImportError:
        raise HostError("there is no Jupyter Server in this environment", remedy="ask where the server is") from None
    app = ServerApp()
    app.initialize(["--Application.log_level=ERROR", *arguments], new_httpserver=False)
    return app

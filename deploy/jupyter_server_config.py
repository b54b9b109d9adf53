"""
A locked Jupyter server: its kernels start in a sandbox, and nothing else that a person asks for starts on the host.

Copy it to /etc/jupyter, owned by root, and start the server, as its user, with its configuration from there alone:

    install -D -m 644 jupyter_server_config.py /etc/jupyter/jupyter_server_config.py
    touch /etc/jupyter/migrated        # Jupyter would make this file, and its user may not
    JUPYTER_CONFIG_DIR=/etc/jupyter PYTHONNOUSERSITE=1 jupyter lab

Then `jupyter isolated doctor --server`, with the same two variables, names what still stands open.
What kernels may have at most goes into /etc/jupyter/isolated-python/ceiling.toml.
"""

import os
import site

from jupyter_core.paths import jupyter_config_dir

c = get_config()  # noqa: F821 - Jupyter's

# A person's own configuration comes after this one and would change it, so a server that reads any does not start.
here = os.path.dirname(os.path.realpath(__file__))
if os.path.realpath(jupyter_config_dir()) != here or site.ENABLE_USER_SITE:
    raise SystemExit(
        f"This server is locked by {here}/jupyter_server_config.py, and would also read configuration or packages of "
        f"the person it runs for: start it with JUPYTER_CONFIG_DIR={here} PYTHONNOUSERSITE=1"
    )

# Kernels: the machine's and the environment's kernelspecs, none of a person's, each by our provisioner.
c.ServerApp.kernel_spec_manager_class = "isolated_python.kernelspecs.LockedKernelSpecManager"
c.LockedKernelSpecManager.profile = "shared"  # of kernelspecs that name no profile, such as python3
c.ServerApp.kernel_manager_class = "jupyter_server.services.kernels.kernelmanager.AsyncMappingKernelManager"
c.ServerApp.allow_external_kernels = False
c.GatewayClient.url = ""

# What a kernel says to a closed tab would be kept in the server's memory, without a bound.
c.MappingKernelManager.buffer_offline_messages = False

# Extensions that start programs on the host. A key of a person's cannot bring them back.
c.ServerApp.terminals_enabled = False
c.ServerApp.jpserver_extensions = {
    "jupyter_server_terminals": False,
    "jupyter_server_proxy": False,
    "jupyter_lsp": False,
    "jupyterlab_git": False,
    "nbdime": False,
    "jupyterlab_latex": False,
    "jupyter_scheduler": False,
    "jupyter_archive": False,
    "dask_labextension": False,
}
c.LabApp.extension_manager = "readonly"

# Downloads in other formats: nothing runs, and no LaTeX and no browser on the host reads what a notebook names.
c.ExecutePreprocessor.enabled = False
c.PDFExporter.enabled = False
c.WebPDFExporter.enabled = False
c.QtPDFExporter.enabled = False
c.QtPNGExporter.enabled = False

# The file browser shows no hidden file, and so writes none: shells, ssh and Jupyter itself read those.
c.ContentsManager.allow_hidden = False

# Of a person's own stay the looks of JupyterLab and the places of its windows.
own = os.path.join(os.path.expanduser("~"), ".jupyter", "lab")
c.LabApp.user_settings_dir = os.path.join(own, "user-settings")
c.LabApp.workspaces_dir = os.path.join(own, "workspaces")

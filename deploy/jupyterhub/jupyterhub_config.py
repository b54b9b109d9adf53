"""
A hub whose users' kernels all come from the privileged service of the machine.

Copy it to /etc/jupyterhub beside your own configuration and begin that with

    load_subconfig("/etc/jupyterhub/isolated_python.py")

or use it as it is. It works with every spawner that starts the servers as processes of this machine under their users'
own uids. LocalProcessSpawner needs nothing more, and neither does The Littlest JupyterHub, which loads it from
/opt/tljh/config/jupyterhub_config.d. For SudoSpawner and SystemdSpawner there is a file each beside this one.
"""

c = get_config()  # noqa: F821 - JupyterHub's

c.Spawner.environment.update(
    {
        # Named, so that a server is refused kernels where the service is not there, and starts none without its limits.
        "ISOLATED_PYTHON_SERVICE": "/run/isolated-python/service.sock",
        # Every kernelspec, "Python 3" too, starts in a sandbox.
        "JUPYTER_DEFAULT_PROVISIONER_NAME": "isolated-python",
        # Root's configuration in the place of the user's own. To lock a server, deploy/jupyter_server_config.py
        # goes there.
        "JUPYTER_CONFIG_DIR": "/etc/jupyter",
        "PYTHONNOUSERSITE": "1",
    }
)

# A whole home folder is no workspace: notebooks lie in one of their own. Made by its user, not by root.
c.Spawner.notebook_dir = "~/notebooks"
c.Spawner.cmd = [
    "/bin/sh",
    "-c",
    'mkdir -p "$HOME/notebooks" && exec jupyterhub-singleuser "$@"',
    "jupyterhub-singleuser",
]

# A terminal is no kernel: it would run on the machine itself.
c.Spawner.args = ["--ServerApp.terminals_enabled=False"]

# One connection of a user's to the service is one server. More servers than [each_user] servers would be refused.
c.JupyterHub.named_server_limit_per_user = 4

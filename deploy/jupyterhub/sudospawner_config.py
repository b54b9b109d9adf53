"""
SudoSpawner: the hub is not root, and may start the servers of one group's members, which is all that it may.

Copy it to /etc/jupyterhub beside the other one, and begin your own configuration with

    load_subconfig("/etc/jupyterhub/isolated_python.py")
    load_subconfig("/etc/jupyterhub/sudospawner_config.py")

Then, where /opt/jupyterhub is the hub's environment, root's, with sudospawner in it:

    install -m 755 sudospawner-singleuser /opt/jupyterhub/bin/
    install -m 440 sudoers /etc/sudoers.d/jupyterhub
"""

c = get_config()  # noqa: F821 - JupyterHub's

c.JupyterHub.spawner_class = "sudo"
c.SudoSpawner.sudospawner_path = "/opt/jupyterhub/bin/sudospawner"

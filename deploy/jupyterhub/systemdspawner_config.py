"""
SystemdSpawner: each user's server is a unit of systemd's.

Copy it to /etc/jupyterhub beside the other one, and begin your own configuration with

    load_subconfig("/etc/jupyterhub/isolated_python.py")
    load_subconfig("/etc/jupyterhub/systemdspawner_config.py")

Without the service, on a machine with cgroup v2 alone, end it with

    c.Spawner.environment.update({"ISOLATED_PYTHON_SERVICE": "off"})
    c.SystemdSpawner.mem_limit = "4G"

Then each server has a supervisor of its own, which divides the cgroup of the server's unit among its kernels. The
limit is of all of them together; kernels get no uids of their own, and profiles are found where the user may write.
"""

c = get_config()  # noqa: F821 - JupyterHub's

c.JupyterHub.spawner_class = "systemd"

# None of these stands between a server and its kernels. With a /tmp of its own no notebook may lie there: the service
# does not see that folder.
c.SystemdSpawner.isolate_tmp = True
c.SystemdSpawner.isolate_devices = True
c.SystemdSpawner.disable_user_sudo = True

# Of the server alone: kernels of the service have their limits from it, and are in its unit.
c.SystemdSpawner.mem_limit = "1G"

c.SystemdSpawner.unit_extra_properties = {
    # For servers without the service, and of no effect for others.
    "Delegate": "yes",
    # Once the start of a kernel has failed, for a quota, say, Jupyter's server (2.21) does not end by itself, and
    # systemd would wait for it a minute and a half. Its kernels end with it all the same.
    "TimeoutStopSec": "20",
}

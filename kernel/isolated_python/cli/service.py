"""`service`: the supervisor for a machine that many people share, in the foreground."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from isolated_python.policy import SOCKET
from isolated_python.policy import service as policy
from isolated_python.record import replace


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help=f"Its settings; {policy.CONFIG} where that exists.")
@click.option("--socket", help=f"Where it listens, {SOCKET} if nothing else is said.")
@click.option("--check", is_flag=True, help="Read the settings, print what they come to, and start nothing.")
def service(config: Path | None, socket: str | None, check: bool) -> None:
    """Serve kernels to the unprivileged servers of this machine, each user within a quota.

    Needs root. Servers of other users find its socket by themselves; each user's kernels get cgroups and host
    identities, under the profiles and the ceiling that root has written. Ends with 0 at a SIGTERM, with 2 where it
    cannot begin.

    \b
    Examples:
      jupyter isolated service                                 as deploy/systemd/isolated-python.service does
      jupyter isolated service --config /etc/isolated-python/service.toml --check
      jupyter isolated service --socket /run/isolated-python/trial.sock

    \b
    The settings, with what holds where a key is missing:
      socket = "/run/isolated-python/service.sock"
      policy = ["/etc/jupyter/isolated-python"]    # profiles/*.toml and ceiling.toml in it
      audit = "/var/log/isolated-python/audit.jsonl"
      [each_user]
      kernels = 16
      starts = 60                                  # of kernels a minute
      servers = 8
      memory = "8 GiB"                             # or "unlimited", as each below
      processes = 2048
      disk = "8 GiB"                               # images for what changes in copy-on-write workspaces
      ahead = 0                                    # kernels that may stand ready for whose server wants a pool
      cpu = "unlimited"                            # cores
    """
    from isolated_python.engine import ROOT, places
    from isolated_python.errors import HostError, ProfileError
    from isolated_python.linux import host

    path = config or Path(policy.CONFIG)
    settings = policy.Settings()
    if config is not None or path.exists():
        try:
            settings = policy.read(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"{path} cannot be read: {error}", remedy="name another with --config") from None
    if socket is not None:
        settings = replace(settings, socket=os.path.abspath(socket))
    if check:
        click.echo(json.dumps(settings.to_wire(), indent=2))
        return
    if not host.privileged():
        raise HostError("the service needs root", remedy="start it by systemd, or with sudo")
    if path.exists():
        places.roots_own(path)
    for folder in settings.policy:
        places.roots_own(Path(folder))
    program = f"import sys; sys.path.insert(0, {ROOT!r}); from isolated_python.engine.service import main; main()"
    argv = [sys.executable, "-I", "-S", "-c", program, json.dumps(settings.to_wire())]
    # Nothing of what a command line loads stays in the process that has root's rights.
    os.execve(
        sys.executable,
        argv + ["activated"] * places.activated(),
        {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
    )

"""`install`: a kernelspec for a profile, so that people can choose it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import click

from isolated_python.cli.completion import profiles
from isolated_python.errors import HostError, ProfileError


@click.command()
@click.option(
    "--profile", default="standard", show_default=True, shell_complete=profiles, help="What its kernels are granted."
)
@click.option("--name", help="Name of the kernelspec.  [default: isolated-python-PROFILE]")
@click.option("--display-name", help="What people see.  [default: Isolated Python (PROFILE)]")
@click.option("--user", is_flag=True, help="For this user.")
@click.option("--sys-prefix", is_flag=True, help="For this environment (the default).")
@click.option("--prefix", type=click.Path(path_type=Path), help="Below this prefix.")
def install(
    profile: str, name: str | None, display_name: str | None, user: bool, sys_prefix: bool, prefix: Path | None
) -> None:
    """Write a kernelspec for a profile.

    \b
    Examples:
      jupyter isolated install --profile shared --sys-prefix
      jupyter isolated install --profile exam --prefix /usr/local --display-name "Exam"
    """
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    from isolated_python.policy import sources

    if user + sys_prefix + (prefix is not None) > 1:
        raise click.UsageError("choose one of --user, --sys-prefix and --prefix")
    sources.load(profile)  # refuses what could not be started
    manager = KernelSpecManager()
    try:
        ours = Path(manager.get_kernel_spec("isolated-python").resource_dir)
    except NoSuchKernel:
        raise ProfileError(
            "the kernelspec isolated-python is not installed here", remedy="pip install isolated-python"
        ) from None
    spec = json.loads((ours / "kernel.json").read_text(encoding="utf-8"))
    default = profile == "standard"
    spec["display_name"] = display_name or ("Isolated Python" if default else f"Isolated Python ({profile})")
    spec["metadata"]["kernel_provisioner"]["config"] = {"profile": profile}
    name = name or ("isolated-python" if default else f"isolated-python-{profile}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernel"
        shutil.copytree(ours, copy)
        (copy / "kernel.json").write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
        below = str(prefix) if prefix else None if user else sys.prefix
        try:
            where = manager.install_kernel_spec(str(copy), name, user=user, prefix=below)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        except OSError as error:
            raise HostError(
                f"the kernelspec cannot be written to {error.filename}: {error.strerror}",
                remedy="choose --user, or a --prefix that is yours",
            ) from None
    click.echo(f"{spec['display_name']}: {where}")

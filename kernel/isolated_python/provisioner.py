"""
jupyter_client's hooks, turned into the engine's verbs. What a kernel may do is decided elsewhere; here is who asks.

Runs:     in the Jupyter server, or whatever else starts kernels
Trusts:   the server
Imports:  errors, record, audit, policy, engine, owners
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Dict, Enum, Integer, Unicode, Union

from isolated_python import owners
from isolated_python.engine import ADAPTIVE, ROOT, client, folders, interpreters, kept, places
from isolated_python.errors import HostError, IsolatedPythonError, LaunchError, ProfileError
from isolated_python.policy import parse, sources
from isolated_python.policy.profile import Profile
from isolated_python.record import replace

if TYPE_CHECKING:
    from isolated_python.engine.sight import View

INSIDE = "/mnt/workspace"
RUNTIME = "/home/user/.local/share/jupyter/runtime"

# The variables of the server's environment that a kernel may have. Its tokens are not among them.
ENVIRONMENT = (
    *("LANG", "LANGUAGE", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME"),
    *("TZ", "TERM", "COLORTERM", "MPLBACKEND", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE"),
    "IPYKERNEL_CELL_NAME",  # what tracebacks call a cell; it also decides how many lines of it they show
)
# The first of five that a foreign kernel listens on, in its own network. All lie below those that Linux gives to those
# who connect (ip_local_port_range in ip(7)): whoever asks again and again for a port at which nobody listens yet would
# be given that very port some day, be connected to itself, and the kernel would find it in use.
PORTS = range(20_000, 32_000)
KEYS = ("profile", "overrides")  # of the kernelspec's stanza
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "LOKY_MAX_CPU_COUNT")

# For an ipykernel of another environment, which has ipykernel but not us.
FOREIGN_GUARD = os.path.join(ROOT, "isolated_python", "guard", "foreign.py")

Made = TypeVar("Made")


class IsolatedProvisioner(KernelProvisionerBase):
    """Starts each kernel in a sandbox of its own."""

    profile = Unicode("standard", help="The profile that says what a kernel is granted.").tag(config=True)
    pool = Union(
        [Enum(["off", "adaptive"]), Integer(min=0)],
        default_value="off",
        help="How many kernels stand ready before anybody asks: a number, as many as were asked for lately, or none.",
    ).tag(config=True)
    service = Unicode(
        "auto",
        help="The socket of this machine's privileged service; auto: where there is one and we are not root; off.",
    ).tag(config=True)
    overrides = Dict(help="What to change in the profile, in the tables of its file.").tag(config=True)
    locked = Unicode(
        help="The notebooks' folder of a locked server: workspaces lie in it, and profiles are the administrator's."
    ).tag(config=True)

    _kernel: client.Kernel | None = None
    _client: client.Client | None = None
    _cwd = ""
    _name = ""
    _prefix = ""
    _kept = ""  # the folder for what it changes
    _asked = False  # the supervisor has been asked to start it, and so writes down itself what comes of that
    pid: int | None = None
    owner: str | None = None  # who started it first; whoever restarts it does not become that

    def __init__(self, **given: Any) -> None:
        """`given`: also the stanza of the kernelspec, in which a typo must not quietly mean the default."""
        self._unknown = [key for key in given if not self.has_trait(key)]
        super().__init__(**{key: value for key, value in given.items() if key not in self._unknown})

    async def warm(self, cmd: list[str]) -> None:
        """Have a zygote for such kernels, before one is asked for. Raises what the start of one would raise."""
        self._client = await self._supervisor()
        await self._greet(self._client)
        profile = (await self._resolve()).profile
        trees, view = await _shown(cmd, profile)
        asked = self._client.ask(
            "warm",
            **self._wanted(profile),
            trees=trees,
            view=self._client.see(view),
            interpreter=interpreters.own_interpreter(),
            argv=None if interpreters.is_ours(cmd) else cmd,
        )
        await asyncio.wrap_future(asked)

    async def _supervisor(self) -> client.Client:
        """This server's, or the service; started if there is none."""
        service = places.service(self.service)
        found = client.known(service)
        return found if found is not None else await _off_loop(lambda: client.current(service))

    # ---- before the start ------------------------------------------------------------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Say where the kernel's sockets will be, and keep the rest for the launch."""
        self._asked = False
        try:
            return await self._pre_launch(kwargs)
        except IsolatedPythonError as error:
            await self._record(error)
            raise

    async def _pre_launch(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        manager = self.parent
        if self._kernel is not None and self._kernel.status is None:
            await self.kill()  # started a second time: the first is nobody's any more
        self._client = await self._supervisor()
        self._name = self.kernel_id or secrets.token_hex(16)
        self._client.holders[self._name] = id(self)
        encryption = kwargs.pop("transport_encryption", getattr(manager, "transport_encryption", "disabled"))
        if encryption == "required":
            raise LaunchError(
                "transport_encryption is required, and these kernels have no network transport to encrypt",
                remedy="leave it at auto: the sockets lie in a folder that only this user can enter",
            )
        extra = kwargs.pop("extra_arguments", [])
        if self._client.service:
            await self._greet(self._client)  # it says where its sockets will be
        # A restart keeps its sockets, unless the supervisor, and their folder with it, is another by now.
        self._pass_records_on(self._client, manager)
        self._prefix = self._client.prefixes.setdefault(
            self._name, f"{self._client.folder}/clients/{secrets.token_hex(4)}"
        )
        if manager is not None:
            manager.transport, manager.ip, manager.cache_ports = "ipc", self._prefix, False
            for number, channel in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1):
                setattr(manager, f"{channel}_port", number)
            session = kwargs.get("env", {}).get("JPY_SESSION_NAME", "")
            manager.write_connection_file(jupyter_session=session)
            self.connection_info = manager.get_connection_info()
            command = manager.format_kernel_cmd(extra_arguments=extra)
        else:
            command = self.kernel_spec.argv + extra
        kwargs = await super().pre_launch(cmd=command, **kwargs)
        if self.owner is None:
            self.owner = owners.asking(kwargs["env"])
        return kwargs

    @staticmethod
    async def _greet(supervisor: client.Client) -> None:
        """Raises what keeps it from serving at all."""
        supervisor.greeted(await asyncio.wrap_future(supervisor.hello))

    @staticmethod
    def _pass_records_on(supervisor: client.Client, manager: Any) -> None:
        """To a Jupyter server's own event log, in the loop of the server."""
        logger = getattr(manager, "event_logger", None)
        if logger is None or supervisor.audited is not None:
            return
        from isolated_python.audit import events

        events.register(logger)
        loop = asyncio.get_running_loop()

        def pass_on(record: dict[str, Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the server with it
                loop.call_soon_threadsafe(events.emit, logger, record)

        supervisor.audited = pass_on

    # ---- the start -------------------------------------------------------------------------------------------------

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel; returns when its sockets listen. Raises IsolatedPythonError with one sentence."""
        opened: list[int] = []
        try:
            return await self._launch(cmd, kwargs, opened)
        except IsolatedPythonError as error:
            self.log.error("Isolated Python: %s", error)
            await self._record(error)
            await self._undo()
            raise
        except BaseException:
            await self._undo()
            raise
        finally:
            for descriptor in opened:
                os.close(descriptor)

    async def _record(self, error: IsolatedPythonError) -> None:
        """In the audit: a start that we have refused ourselves. Without a supervisor nobody would write it."""
        if self._client is not None and not self._asked:
            owner, reason = self.owner or "", str(error)
            answer = self._client.ask("refuse", kernel=self._name, owner=owner, named=self.profile, reason=reason)
            with contextlib.suppress(IsolatedPythonError):
                await asyncio.wrap_future(answer)

    async def _launch(self, cmd: list[str], kwargs: dict[str, Any], opened: list[int]) -> KernelConnectionInfo:
        assert self._client is not None
        resolved = await self._resolve()
        own = owners.folder_of(resolved.profile.files.folder, self.owner or "")
        chosen = own or kwargs.get("cwd")
        self._cwd = os.path.abspath(chosen or os.getcwd())
        profile, empty = resolved.profile, ""
        workspace: list[int] = []
        if profile.files.workspace != "none":
            workspace = [folders.open_folder(self._cwd, "the workspace")]
            opened += workspace
            if self.locked and not own:
                _among_the_notebooks(workspace[0], self.locked)
            profile, empty = _not_the_home(workspace[0], profile, chosen=bool(chosen))
        for note in filter(None, (*resolved.notes, empty)):
            self.log.warning("Isolated Python: %s", note)
        ours = interpreters.is_ours(cmd)
        if not ours:
            _needs_a_program(profile)
        trees, view = await _shown(cmd, profile)
        streams = {name: _descriptor(kwargs.get(name), opened) for name in ("stdin", "stdout", "stderr")}
        given = [number for number in streams.values() if number is not None]
        given += _granted(workspace, profile, opened)
        if profile.files.kept:
            kept.end(self._kept)
            self._kept, archive = kept.begin(self._name, profile.name, self._cwd)
            opened.append(archive)
            given.append(archive)
        first = secrets.choice(PORTS)
        ports = [first + number for number in range(5)]
        # Known before it is asked for: a kernel may have ended before this thread goes on.
        kernel = self._client.kernels[self._name] = client.Kernel(self._name)
        self._asked = True
        asked = self._client.ask(
            "start",
            given,
            kernel=self._name,
            owner=self.owner or "",
            **self._wanted(profile),
            trees=trees,
            view=self._client.see(view),
            interpreter=interpreters.own_interpreter(),
            argv=None if ours else self._inside(cmd),
            arguments=interpreters.arguments(cmd) if ours else [],
            cwd=INSIDE,
            connection=self._connection(ours, ports),
            environment=self._environment(kwargs.get("env") or {}, profile, cmd[0]),
            key=self._key(),
            streams={name: number is not None for name, number in streams.items()},
            sockets=os.path.basename(self._prefix),
            pool={"off": 0, "adaptive": ADAPTIVE}.get(self.pool, self.pool),
            ports=ports,
        )
        # A supervisor that has only been started finds the request when it can serve; where it cannot, this is why.
        await self._greet(self._client)
        answer = await asyncio.wrap_future(asked)
        self.pid, self._kernel = answer["pid"], kernel
        for note in answer["notes"]:
            self.log.warning("Isolated Python: weakened, as the profile %s allows: %s", profile.name, note)
        return self.connection_info

    async def _resolve(self) -> sources.Resolved:
        """The profile. The service takes nobody's word for one: it is told the name and the changes.

        Where the server is locked, a person's own is not looked for.
        """
        assert self._client is not None
        for key in self._unknown:
            raise ProfileError(
                f"the key {key} of the kernelspec's kernel_provisioner.config is not known",
                remedy=f"the keys here are {', '.join(KEYS)}{parse.nearest(key, KEYS)}",
            )
        changes = self._changes()
        if self._client.service:
            answer = await asyncio.wrap_future(self._client.ask("resolve", named=self.profile, overrides=changes))
            return sources.Resolved(Profile.from_wire(answer["profile"]), tuple(answer["notes"]))
        told = [("the configuration", changes)] if changes else []
        if not self.locked:
            return sources.load(self.profile, told)
        folders = [*(folder / "profiles" for folder in sources.site_folders()), sources.SHIPPED]
        return sources.load(self.profile, told, folders=folders)

    def _changes(self) -> dict[str, Any]:
        """What is changed in the profile: as configured, and by the lock."""
        if not self.locked:
            return {**self.overrides}
        return {**self.overrides, "files": {**self.overrides.get("files", {}), "links": False}}

    def _wanted(self, profile: Profile) -> dict[str, Any]:
        """How the supervisor is asked for a kernel of this profile."""
        assert self._client is not None
        if not self._client.service:
            return {"profile": profile.to_wire()}
        changes = self._changes()
        changes["files"] = {**changes.get("files", {}), "workspace": profile.files.workspace}
        return {"named": self.profile, "overrides": changes, "root": ROOT}

    def _key(self) -> str:
        key = self.connection_info.get("key", b"")
        return key.decode() if isinstance(key, bytes) else str(key)

    def _connection(self, ours: bool, ports: list[int]) -> tuple[str, str]:
        """The connection file as the kernel sees it: nothing in it names a path or a port of the host."""
        import json

        channels = ("shell", "iopub", "stdin", "control", "hb")
        where: dict[str, Any] = (
            {"transport": "ipc", "ip": "/run/kernel"} if ours else {"transport": "tcp", "ip": "127.0.0.1"}
        )
        numbers = range(1, 6) if ours else ports
        where |= {f"{channel}_port": number for channel, number in zip(channels, numbers, strict=True)}
        where |= {"key": self._key(), "signature_scheme": "hmac-sha256", "kernel_name": self.kernel_spec.display_name}
        return f"{RUNTIME}/kernel-{self._name[:64]}.json", json.dumps(where)

    def _inside(self, cmd: list[str]) -> list[str]:
        """The kernelspec's command, with its connection file where the kernel will find it."""
        outside = str(getattr(self.parent, "connection_file", "") or "")
        inside = f"{RUNTIME}/kernel-{self._name[:64]}.json"
        words = [word.replace(outside, inside) if outside else word for word in cmd]
        if interpreters.is_ipykernel(cmd):
            words.append(f"--IPKernelApp.exec_files={FOREIGN_GUARD}")
        return [os.path.abspath(shutil.which(words[0]) or words[0]), *words[1:]]

    def _environment(self, given: dict[str, str], profile: Profile, program: str) -> dict[str, str]:
        allowed = {*ENVIRONMENT, *(self.kernel_spec.env or {})}
        environment = {name: value for name, value in given.items() if name in allowed}
        folders = dict.fromkeys(
            (os.path.dirname(program) if os.path.isabs(program) else "", os.path.dirname(sys.executable))
        )
        environment["PATH"] = ":".join(filter(None, (*folders, "/usr/local/bin", "/usr/bin", "/bin")))
        environment |= {
            "HOME": "/home/user",
            "USER": "user",
            "LOGNAME": "user",
            "SHELL": "/bin/sh",
            "JPY_PARENT_PID": "1",
        }
        environment |= {"JUPYTER_RUNTIME_DIR": RUNTIME, "TMPDIR": "/tmp", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        environment.setdefault("LANG", "C.UTF-8")
        if sys.prefix != sys.base_prefix:
            environment["VIRTUAL_ENV"] = sys.prefix
        session = given.get("JPY_SESSION_NAME")
        if session:
            environment["JPY_SESSION_NAME"] = f"{INSIDE}/{os.path.basename(session)}"
        bounds = [one for one in (profile.resources.cpu, profile.capabilities.threads) if one is not None]
        if bounds:
            environment |= dict.fromkeys(THREADS, str(max(1, round(min(bounds)))))
        return environment

    # ---- its life --------------------------------------------------------------------------------------------------

    @property
    def has_process(self) -> bool:
        return self._kernel is not None

    async def poll(self) -> int | None:
        if self._kernel is None:
            return 0
        if self._kernel.status is not None:
            self._say_why(self._kernel)
        return self._kernel.status

    async def wait(self) -> int | None:
        kernel = self._kernel
        if kernel is None:
            return 0
        status = await asyncio.wrap_future(kernel.ended)
        self._say_why(kernel)
        self._kernel = None
        return status

    def _say_why(self, kernel: client.Kernel) -> None:
        """Once, in the server's log; also as the `reason` that a Jupyter server's REST interface tells."""
        reason, words = kernel.reason, kernel.words.strip()
        if not reason and words and (kernel.status or 0) > 0:
            reason = f"the kernel ended with status {kernel.status}: {words.splitlines()[-1]}"
        if reason and not kernel.explained:
            kernel.explained = True
            self.log.warning("Isolated Python: %s%s", reason, f"; its last words were:\n{words}" if words else "")
            if self.parent is not None and self.parent.has_trait("reason"):
                self.parent.reason = reason

    async def send_signal(self, signum: int) -> None:
        """To the kernel and its process group, as the local provisioner does; nothing where it has gone."""
        if self._kernel is not None and self._kernel.status is None and self._client is not None and signum:
            # A supervisor that ends before it has answered takes the kernel with it: systemd tells both at once to end.
            with contextlib.suppress(HostError, LaunchError):
                await asyncio.wrap_future(self._client.ask("signal", kernel=self._name, signal=int(signum)))

    async def kill(self, restart: bool = False) -> None:
        kernel = self._kernel
        if kernel is not None:
            await self.send_signal(signal.SIGKILL)
            await asyncio.wrap_future(kernel.ended)

    async def terminate(self, restart: bool = False) -> None:
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """The kernel has been asked to go. Wait here for its end: the manager would look only every 0.1 s."""
        if self._kernel is not None:
            ended = asyncio.shield(asyncio.wrap_future(self._kernel.ended))
            await asyncio.wait([ended], timeout=self.get_shutdown_wait_time(5.0) / 2)

    async def cleanup(self, restart: bool = False) -> None:
        if not restart:
            await self._undo()

    async def _undo(self) -> None:
        """Nothing of this kernel stays. Also after a failed start, for which jupyter_client calls no cleanup."""
        if self._client is not None and self._name:
            self._client.prefixes.pop(self._name, None)
            self._client.holders.pop(self._name, None)
            if self._kernel is None:
                self._client.kernels.pop(self._name, None)
            try:
                await asyncio.wrap_future(self._client.ask("forget", kernel=self._name))
            except IsolatedPythonError:
                pass
        if self._kept:
            kept.end(self._kept)

    def __del__(self) -> None:
        # After a fifth failed autorestart the server forgets a kernel without a cleanup: dead, and with an open door.
        found = self._client
        if found is not None and found.alive and found.holders.get(self._name) == id(self):
            found.prefixes.pop(self._name, None)
            del found.holders[self._name]
            found.ask("forget", kernel=self._name)

    def resolve_path(self, path_str: str) -> str | None:
        """The host path of a file that the kernel sees in its workspace; None for everything else."""
        path = os.path.normpath(os.path.join(INSIDE, path_str))
        if path != INSIDE and not path.startswith(INSIDE + "/"):
            return None
        outside = os.path.normpath(self._cwd + path[len(INSIDE) :])
        return outside if os.path.lexists(outside) else None

    async def get_provisioner_info(self) -> dict[str, Any]:
        info: dict[str, Any] = await super().get_provisioner_info()
        return info | {"pid": self.pid, "name": self._name, "prefix": self._prefix, "cwd": self._cwd}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """A kernel ends with its server, so what is loaded serves to name it, not to adopt it."""
        await super().load_provisioner_info(provisioner_info)
        self.pid, self._name = provisioner_info["pid"], provisioner_info["name"]
        self._prefix, self._cwd = provisioner_info["prefix"], provisioner_info["cwd"]


async def _shown(cmd: list[str], profile: Profile) -> tuple[tuple[str, ...], View | None]:
    """As interpreters.shown, which may look through a whole environment: not so for all that our own Python has."""
    if interpreters.is_ours(cmd) and profile.modules.grant is None:
        return interpreters.shown(cmd, profile)
    return await _off_loop(lambda: interpreters.shown(cmd, profile))


async def _off_loop(function: Callable[[], Made]) -> Made:
    """In a thread of its own: the loop's executor may be one that a fork has left without its threads."""
    answer: Future[Made] = Future()

    def work() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(answer)


def _descriptor(stream: Any, opened: list[int]) -> int | None:
    """What subprocess.Popen would make of a stream argument, as far as a sandbox can have it."""
    import subprocess

    if stream is None or stream == subprocess.PIPE:
        return None  # a pipe of the supervisor's, whose end is kept for the log
    if stream == subprocess.DEVNULL:
        opened.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        return opened[-1]
    number = stream if isinstance(stream, int) else stream.fileno()
    return None if number < 0 else int(number)


def _granted(workspace: list[int], profile: Profile, opened: list[int]) -> list[int]:
    """The open folders that the profile grants, each opened once. Raises LaunchError with one sentence."""
    given = [] if profile.files.workspace == "none" else [*workspace]
    written = given if profile.files.workspace == "read-write" else []
    for grant in profile.files.mounts:
        opened.append(folders.open_folder(grant.source, "a granted folder"))
        given = [*given, opened[-1]]
        written = [*written, opened[-1]] if grant.writable else written
    for folder in written:
        folders.may_be_written(folder)
    return given


def _among_the_notebooks(workspace: int, root: str) -> None:
    """On a locked server a path in a request must not lead elsewhere, by dots or by links. Raises LaunchError.

    The folder is open already, so what is asked is where it is, and not what a path meant a moment ago.
    """
    below = os.path.relpath(os.readlink(f"/proc/self/fd/{workspace}"), os.path.realpath(root))
    if below != "." and any(part.startswith(".") for part in below.split(os.sep)):
        raise LaunchError(
            "this server is locked, and the folder asked for is hidden or not among its notebooks",
            remedy="move the notebook into a folder that the file browser shows",
        )


def _not_the_home(folder: int, profile: Profile, *, chosen: bool) -> tuple[Profile, str]:
    """A workspace is never a whole home folder, nor what lies above one: keys and tokens are among its dotfiles.

    Whoever chose such a folder is told so; where nobody chose one, the kernel gets an empty workspace, and a note.
    """
    home = os.path.realpath(os.path.expanduser("~")) + "/"
    cwd = os.readlink(f"/proc/self/fd/{folder}")  # where the open folder lies, whatever has become of its path
    if not home.startswith(cwd.rstrip("/") + "/"):
        return profile, ""
    if chosen:
        raise ProfileError(
            f"the notebook lies in {cwd!r}, and a kernel must not see a whole home folder with its dotfiles",
            remedy='move the notebook into a folder of its own or write workspace = "none" in the profile',
        )
    files = replace(profile.files, workspace="none")
    return replace(profile, files=files), f"the workspace is empty, because {cwd!r} is a whole home folder"


def _needs_a_program(profile: Profile) -> None:
    """A kernelspec of another program is started by execve(2), and listens on sockets that it makes itself."""
    for key in ("subprocess", "sockets"):
        if not getattr(profile.capabilities, key):
            raise ProfileError(
                f"the profile {profile.name} grants no {key}, and this kernelspec's own program needs it to start",
                remedy=f"use the Python of the server, or write {key} = true under [capabilities]",
            )

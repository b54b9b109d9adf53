"""ipykernel in two halves: what a zygote can build for all its children, and what each kernel makes for itself."""

from __future__ import annotations

import codecs
import fnmatch
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import zmq
from ipykernel import heartbeat
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from zmq.eventloop.zmqstream import ZMQStream

from isolated_python.layers.step import Descriptors

# Whoever passes one of these asks for another configuration than the one that was built ahead.
APART = ("profile", "ipython", "config", "_class")

# Where figures go if nobody says otherwise, as IPKernelApp.init_gui_pylab has it.
INLINE = "module://matplotlib_inline.backend_inline"


class InheritedHeartbeat(heartbeat.Heartbeat):
    """Answers on the listener that was made before the sandbox closed."""

    listener = -1

    def _try_bind_socket(self) -> None:
        adopt(self.socket, self.listener, "hb")


class IsolatedKernelApp(IPKernelApp):
    """ipykernel, but for its sockets: they stand open already, and their paths do not exist in here."""

    listeners: ClassVar[Descriptors] = {}
    _names: Iterator[str] = iter(())

    def build(self) -> None:
        """In the zygote: configuration, shell and kernel, without a thread, a socket, a session or a file of their own.

        History comes with a file and a thread, so the shell is built without.
        """
        super(IPKernelApp, self).initialize([])
        self.init_pdb()
        self.config.HistoryManager.enabled = False
        self.kernel = IPythonKernel.instance(parent=self, log=self.log, profile_dir=self.profile_dir)
        self.init_shell()
        shell: Any = self.shell
        for name in self.default_extensions:
            shell.extension_manager.load_extension(name)
        self.default_extensions = []
        # What a kernel would build: the patterns of Python and of startup files, a codec, and who shows a value.
        shell.transform_cell("1")
        shell.display_formatter.format(1)
        for pattern in ("*.py", "*.ipy"):
            fnmatch.filter((), pattern)
        codecs.lookup("ascii")
        self.log.setLevel(self.log_level)  # it would make a record of each line that nobody sees

    def complete(self, connection_file: str, arguments: list[str]) -> None:
        """In the kernel: everything that `build` left out, in the order of IPKernelApp.initialize."""
        shell = self.kernel.shell
        self.config.HistoryManager.pop("enabled")
        if arguments:
            self.parse_command_line(arguments)
            shows = shell.display_formatter
            shown = (*shows.formatters.values(), shows.ipython_display_formatter, shows.mimebundle_formatter)
            for one in (self.kernel, *shell.configurables, *shown):
                one.update_config(self.cli_config)
        assert self.profile_dir is not None
        os.makedirs(self.profile_dir.location, mode=0o700)
        self.profile_dir.check_dirs()
        shell.configurables.remove(shell.history_manager)
        shell.init_history()
        shell.init_user_ns()

        self.init_blackhole()
        self.settle(connection_file)
        self.init_sockets()
        self.init_heartbeat()
        self.log_connection_info()
        self.init_io()
        self.init_signal()
        self.init_kernel()
        self.init_path()
        self.init_gui_pylab()
        self.init_extensions()
        self._begin_code()

    def _begin_code(self) -> None:
        """As init_code of IPython, but for the list of all modules: the zygote has made it, see kernel.note_modules."""
        shell: Any = self.shell
        self._run_startup_files()
        self._run_exec_lines()
        self._run_exec_files()
        if self.hide_initial_ns:
            shell.user_ns_hidden.update(shell.user_ns)
        self._run_cmd_line_code()
        self._run_module()
        sys.stdout.flush()
        sys.stderr.flush()

    def settle(self, connection_file: str) -> None:
        """Take on the session's key and all that follows from the environment and the current folder."""
        shell = self.kernel.shell
        self.connection_file = connection_file
        self.load_connection_file()
        shell.init_environment()
        if not os.environ.get("MPLBACKEND"):  # noqa: TID251 - the kernel's own
            os.environ["MPLBACKEND"] = INLINE  # noqa: TID251
        shell.starting_dir = os.getcwd()
        shell.history_manager.dir_hist[:] = [Path.cwd()]
        session_name = os.environ.get("JPY_SESSION_NAME")  # noqa: TID251 - the kernel's own
        if session_name:
            shell.user_ns["__session__"] = session_name

    def init_kernel(self) -> None:
        """Give the kernel that was built ahead its sockets and its session; without one, make one."""
        kernel = self.kernel
        if kernel is None:
            super().init_kernel()
            return
        control = self.control_thread.io_loop
        stream = ZMQStream(self.shell_socket, self.shell_channel_thread.io_loop)
        self.shell_channel_thread.shell_stream = kernel.shell_stream = stream
        kernel.control_stream = ZMQStream(self.control_socket, control)
        kernel.debugpy_stream = ZMQStream(self.debugpy_socket, control)
        self.control_thread.start()
        self.shell_channel_thread.start()
        for name in (
            *("session", "debug_shell_socket", "control_thread", "shell_channel_thread"),
            *("iopub_thread", "iopub_socket", "stdin_socket"),
        ):
            setattr(kernel, name, getattr(self, name))
        kernel.ident = str(uuid.uuid4())
        kernel._stdout, kernel._stderr = sys.stdout, sys.stderr
        if kernel.debugger is not None:
            kernel.debugger = kernel.debugger_class(
                kernel.log, kernel.debugpy_stream, kernel._publish_debug_event, kernel.debug_shell_socket,
                kernel.session, kernel._kernel_modules, kernel.debug_just_my_code, kernel.filter_internal_frames,
            )  # fmt: skip
        for publisher in (kernel.shell.displayhook, kernel.shell.display_pub):
            publisher.session, publisher.pub_socket = self.session, self.iopub_socket
        kernel.shell.displayhook.topic = kernel._topic("execute_result")
        kernel.record_ports({f"{name}_port": port for name, port in self._ports.items()})
        self.displayhook.get_execution_count = lambda: kernel.execution_count

    def init_sockets(self) -> None:
        self._names = iter(("shell", "stdin-channel", "control", "iopub"))  # the order that IPKernelApp binds in
        super().init_sockets()

    def _bind_socket(self, s: Any, port: int) -> int:
        name = next(self._names)
        adopt(s, self.listeners[name], name)
        if name == "shell":
            # The debugger reaches the shell from inside, by its last endpoint.
            s.setsockopt(zmq.USE_FD, -1)
            s.bind("inproc://shell")
        return port

    def init_heartbeat(self) -> None:
        InheritedHeartbeat.listener = self.listeners["hb"]
        original, heartbeat_class = IPKernelApp.init_heartbeat, InheritedHeartbeat
        original.__globals__["Heartbeat"] = heartbeat_class
        super().init_heartbeat()

    def start(self) -> None:
        """Run until the kernel is told to go, and hear out the thread that told it.

        After its last request that thread flushes what was printed. In ipykernel's own order whoever would print has
        gone by then, and the kernel's end waits for ever, until somebody loses patience and kills it.
        """
        super().start()
        if self.control_thread is not None and self.control_thread.is_alive():
            self.control_thread.stop()
            self.control_thread.join()


def adopt(socket: Any, listener: int, name: str) -> None:
    """Let a ZeroMQ socket listen where a descriptor listens already. zmq_setsockopt(3), ZMQ_USE_FD"""
    socket.setsockopt(zmq.USE_FD, listener)
    socket.bind(f"ipc:///run/{name}")


def apart(arguments: list[str]) -> bool:
    """Whether these arguments of a kernelspec want what can only be built after they are read."""
    return any(word in argument for argument in arguments for word in APART)

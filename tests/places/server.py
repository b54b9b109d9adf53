"""A real jupyter_server or JupyterLab for the tests, spoken to as browsers and scripts speak to it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

TOKEN = "of-the-tests"
PATIENCE = 60.0  # seconds for a server to start, and for each answer

# Nothing that reports to, or asks, another machine.
QUIET = {
    "ServerApp": {"open_browser": False, "allow_root": True, "ip": "127.0.0.1", "port_retries": 0},
    "IdentityProvider": {"token": TOKEN},
    "LabApp": {
        "expose_app_in_browser": True,
        "news_url": None,
        "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "extension_manager": "readonly",
    },
}
NEEDED = ("ServerApp", "IdentityProvider")  # by every server of these tests


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def listens(port: int, ended: threading.Event) -> bool:
    """Wait until somebody accepts connections at `port` of this machine; not if who should has `ended`."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE and not ended.wait(0.05):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            continue
        return True
    return False


class Server:
    """One server, its home and its notebooks."""

    def __init__(
        self, home: Path, config: Mapping[str, Any], command: list[str], *, configuration: Path | None = None,
        **popen: Any,
    ) -> None:  # fmt: skip
        """`configuration`: a file that the server finds by itself, in place of `config`."""
        self.home, self.notebooks = home, home / "notebooks"
        self.notebooks.mkdir(exist_ok=True)
        self.port = free_port()
        arguments = [f"--ServerApp.root_dir={self.notebooks}", f"--ServerApp.port={self.port}"]
        if configuration is None:
            settings = {key: dict(QUIET.get(key, {})) | dict(config.get(key, {})) for key in {**QUIET, **config}}
            path = home / "server.json"
            path.write_text(json.dumps(settings))
            arguments.append(f"--config={path}")
        else:
            arguments += [f"--{table}.{key}={value}" for table in NEEDED for key, value in QUIET[table].items()]
            arguments.append("--LabApp.expose_app_in_browser=True")
        self.said: list[str] = []
        self._heard = threading.Condition()
        self._ended = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **popen,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._listen)
        self._reader.start()
        if not listens(self.port, self._ended):
            self.close()
            raise AssertionError("the server did not start:\n" + self.log)

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.said.append(line)
                self._heard.notify_all()
        self._ended.set()

    @property
    def log(self) -> str:
        return "".join(self.said)

    def logs(self, words: str) -> bool:
        """Whether its log says so: it is written to a pipe, and may be read later than an answer."""
        with self._heard:
            return self._heard.wait_for(lambda: words in self.log, 10)

    def ask(self, method: str, path: str, content: Any = None, *, token: str = TOKEN) -> tuple[int, Any]:
        """A request: its status, and what came back."""
        data = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url(path), data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, body = error.code, error.read()
        try:
            return status, json.loads(body) if body else None
        except ValueError:
            return status, body.decode("utf-8", "replace")

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/{path.lstrip('/')}"

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def close(self) -> None:
        """End it as systemd would, and see that nothing of it is left."""
        below = self.below() if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            # A request that its browser left in the middle leaves a thread of anyio's, for which the server waits.
            self.process.kill()
            self.process.wait()
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        _, left = psutil.wait_procs(below, timeout=10)
        assert not left, f"left behind: {left}"

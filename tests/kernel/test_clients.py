"""What Jupyter's protocol knows goes through the relay as without one: with real kernels, and many clients."""

from __future__ import annotations

from typing import Any

import zmq
from jupyter_client.session import Session

from tests.kernel.conftest import Server

MANY = [f"client-{number}" for number in range(8)]


def connect(server: Server, names: list[str]) -> None:
    server.start()
    for name in names:
        assert "error" not in server.ask("connect", name="kernel", **{"as": name})


def request(server: Server, channel: str, kind: str, content: dict[str, Any], **header: Any) -> dict[str, Any]:
    answer = server.ask("request", name="kernel", channel=channel, type=kind, content=content, header=header)
    assert "error" not in answer, answer
    return answer["content"]  # type: ignore[no-any-return]


def test_many_clients_share_one_kernel_and_its_restart(server: Server) -> None:
    """Each gets the answers to its own questions, before and after; what one has set, the others see."""
    connect(server, MANY)
    for number, name in enumerate(MANY):
        assert server.text(f"x = {number}; print(x)", name) == str(number)
    assert {server.text("print(x)", name) for name in MANY} == {"7"}
    server.ask("restart", name="kernel")
    for number, name in enumerate(MANY):
        assert "error" not in server.ask("ready", name=name)
        assert server.text(f"print('x' in globals()); x = {number}", name) == ("False" if number == 0 else "True")


def test_input_is_asked_of_the_client_that_runs_the_cell(server: Server) -> None:
    connect(server, ["other"])
    assert server.text("print(input('name? '))", "other", answer="Ada") == "Ada"


def test_a_subshell_answers_while_the_main_shell_is_busy(server: Server) -> None:
    server.start()
    server.text("import threading; hold = threading.Event()")
    made = request(server, "control", "create_subshell_request", {})
    assert made["status"] == "ok"
    assert server.run("print('begun', flush=True); hold.wait(30); print('done')", until="begun")["status"] == "running"
    cell = {"code": "hold.set()", "silent": False, "user_expressions": {}, "allow_stdin": False}
    assert request(server, "shell", "execute_request", cell, subshell_id=made["subshell_id"])["status"] == "ok"
    assert "done" in server.ask("rest", name="kernel")["text"]
    assert request(server, "control", "list_subshell_request", {})["subshell_id"] == [made["subshell_id"]]


def test_the_debugger_attaches_and_stops_at_nothing(server: Server) -> None:
    """debugpy runs inside, on the sandbox's own loopback, and answers over the control channel.

    The first kernel of a zygote is told to debug before anybody has imported what that needs.
    """
    server.pool = False
    server.start()
    assert "debugger" in request(server, "control", "kernel_info_request", {})["supported_features"]
    assert server.text("import sys; print('debugpy' in sys.modules)") == "False"

    def debug(number: int, command: str, **arguments: Any) -> dict[str, Any]:
        asked = {"type": "request", "seq": number, "command": command, "arguments": arguments}
        return request(server, "control", "debug_request", asked)

    about = {"clientID": "test", "adapterID": "", "linesStartAt1": True, "pathFormat": "path"}
    assert debug(1, "initialize", **about)["success"]
    assert debug(2, "attach")["success"]
    assert debug(3, "debugInfo")["body"]["isStarted"]
    dumped = debug(4, "dumpCell", code="x = 6 * 7")["body"]["sourcePath"]
    assert dumped.startswith("/tmp/")
    assert debug(5, "disconnect", restart=False, terminateDebuggee=True)["success"]
    assert server.text("print(1)") == "1"


def test_a_listener_is_welcomed_by_the_kernel(server: Server) -> None:
    """As it subscribes: with the topic that it asked for, so that it knows from when on it misses nothing."""
    server.start()
    info = server.ask("connection", name="kernel")
    session = Session(key=info["key"].encode())
    with zmq.Context() as context, context.socket(zmq.SUB) as client:
        client.linger, client.rcvtimeo = 0, 20_000
        client.subscribe(b"kernel")
        client.connect(f"ipc://{info['ip']}-{info['iopub_port']}")
        topics, frames = session.feed_identities(client.recv_multipart())
        welcome = session.deserialize(frames)
    assert (topics, welcome["msg_type"], welcome["content"]) == (
        [b"kernel"],
        "iopub_welcome",
        {"subscription": "kernel"},
    )

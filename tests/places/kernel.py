"""A cell, run over the WebSocket of a server as a browser runs it."""

from __future__ import annotations

import asyncio
import json
import uuid

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from tests.places.server import PATIENCE, TOKEN, Server


def text(server: Server, kernel: str, code: str, token: str = TOKEN) -> str:
    """What a cell printed, or the name and the words of its error."""
    return asyncio.run(asyncio.wait_for(_run(server, kernel, code, token), PATIENCE))


async def _run(server: Server, kernel: str, code: str, token: str) -> str:
    url = server.url(f"api/kernels/{kernel}/channels").replace("http", "ws", 1)
    connection = await websocket_connect(HTTPRequest(url, headers={"Authorization": f"token {token}"}))
    header = {"msg_id": uuid.uuid4().hex, "session": uuid.uuid4().hex, "username": "", "version": "5.3"}
    content = {"code": code, "silent": False, "user_expressions": {}, "allow_stdin": False}
    request = {"channel": "shell", "header": header | {"msg_type": "execute_request"}, "content": content}
    await connection.write_message(json.dumps(request | {"parent_header": {}, "metadata": {}}))
    words: list[str] = []
    try:
        while True:
            answer = await connection.read_message()
            assert isinstance(answer, str), "the server closed the channel"
            message = json.loads(answer)
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            match message["msg_type"], message["content"]:
                case "stream", {"text": said}:
                    words.append(said)
                case "execute_result" | "display_data", {"data": data}:
                    words.append(data.get("text/plain", ""))
                case "error", {"ename": name, "evalue": value}:
                    words.append(f"{name}: {value}")
                case "status", {"execution_state": "idle"}:
                    return "".join(words).strip()
    finally:
        connection.close()
        while await connection.read_message() is not None:
            pass

"""The shipped profiles for teaching: what each is for works, and what it withholds does not."""

from __future__ import annotations

import os

import pytest

from tests.kernel.conftest import Server

COMPUTE = (
    "import numpy as np, pandas as pd, matplotlib.pyplot as plt, threading, sqlite3, asyncio\n"
    "plt.plot(np.arange(3)); plt.show()\n"
    "done = []; t = threading.Thread(target=done.append, args=(1,)); t.start(); t.join(); await asyncio.sleep(0)\n"
    "print(pd.DataFrame({'a': [1, 2]}).a.sum(), int(np.linalg.inv(np.eye(50)).sum()), done)"
)
WORKED = "<Figure size 640x480 with 1 Axes>3 50 [1]"


def failed(server: Server, code: str, words: str) -> None:
    answer = server.run(code)
    assert answer["status"] == "error", (code, answer)
    assert words in answer["text"], (code, answer["text"])


def test_an_examination(server: Server) -> None:
    """Questions are answered from the materials; nothing else runs, nothing is reached, nothing is changed."""
    server.give("data.csv", "x,y\n1,2\n3,4\n")
    server.start(profile="exam")
    assert server.text(COMPUTE) == WORKED
    assert server.text("print(pd.read_csv('data.csv').y.mean())") == "3.0"
    asked = {"code": "pd.DataFrame({'a': [1]})", "silent": False, "store_history": True, "user_expressions": {}}
    heard = server.ask("send", name="kernel", type="execute_request", content=asked | {"allow_stdin": False})["heard"]
    assert {kind for _, content, _ in heard for kind in content.get("data", ())} == {"text/plain"}  # and no HTML
    failed(server, "open('data.csv', 'a')", "the workspace is read-only (files.workspace)")
    failed(server, "import os; os.unlink('data.csv')", "the workspace is read-only")
    failed(server, "open('notes.txt', 'w')", "the workspace is read-only")
    assert server.text("print(open('/tmp/notes.txt', 'w').write('mine'))") == "4"
    for module in ("subprocess", "socket", "ctypes", "multiprocessing", "importlib", "requests", "click"):
        answer = server.run(f"import {module}")["text"]
        assert "does not grant the module" in answer or "No module named" in answer, (module, answer)
    failed(server, "import sys; sys.modules['subprocess'].run(['ls'])", "grants no programs and no forks")
    failed(server, "!ls", "capabilities.subprocess")
    failed(server, "%%bash\nls", "capabilities.subprocess")
    failed(server, "import os; os.fork()", "capabilities.subprocess")
    failed(server, "sys.modules['socket'].create_connection(('192.0.2.1', 80), 5)", "capabilities.sockets")
    failed(server, "pd.read_csv('https://example.org/answers.csv')", "capabilities.sockets")
    failed(server, "sys.modules['mmap'].mmap(-1, 4096, prot=7)", "capabilities.native_code")
    assert [path.name for path in server.folder.iterdir()] == ["data.csv"]
    assert (server.folder / "data.csv").read_text() == "x,y\n1,2\n3,4\n"
    server.ask("restart", name="kernel")
    failed(server, "open('notes.txt', 'w')", "the workspace is read-only")


@pytest.mark.parametrize("life", [os.geteuid() == 0])
def test_grading(server: Server) -> None:
    """A submission runs against tests in its folder. It may write and delete as it likes, and nothing of that stays."""
    server.give("checks.py", "def check(square):\n    assert [square(n) for n in (0, 2, -3)] == [0, 4, 9]\n")
    server.start(profile="grading", pool=False)  # a copy-on-write workspace is there from the start
    assert server.text(COMPUTE) == WORKED
    assert server.text("import checks\nchecks.check(lambda n: n * n)\nprint('passed')") == "passed"
    failed(server, "checks.check(abs)", "AssertionError")
    cheat = (
        "import os\nos.unlink('checks.py'); open('checks.py', 'w').write('def check(f): pass')\n"
        "open('more.txt', 'w').write('x'); os.mkdir('folder'); print(sorted(os.listdir()))"
    )
    assert "'checks.py', 'folder', 'more.txt'" in server.text(cheat)
    assert [path.name for path in server.folder.iterdir()] == ["checks.py"]
    assert "assert" in (server.folder / "checks.py").read_text()
    failed(server, "import socket; socket.create_connection(('192.0.2.1', 80), 5)", "no network (network.reach)")
    server.ask("restart", name="kernel")
    assert server.text("import os; print(os.listdir())") == "['checks.py']"


@pytest.mark.parametrize("life", [os.geteuid() == 0])
def test_a_lesson(server: Server) -> None:
    """In a kernel that stood before: the course's packages work, files are kept; other packages are not there."""
    server.start(profile="classroom", pool=True)
    assert server.text(COMPUTE) == WORKED
    assert server.text("pd.DataFrame({'a': [1]}).to_csv('kept.csv')\n!cat kept.csv").split() == [",a", "0,1"]
    assert (server.folder / "kept.csv").stat().st_uid == server.folder.stat().st_uid
    assert server.text("import os; print(os.environ['OMP_NUM_THREADS'])") == "1"
    failed(server, "import click", "does not grant the module click")
    assert "No module named 'click'" in server.text("!python -c 'import click'")
    failed(server, "import IPython.utils.importstring as i; i.import_item('click')", "hides what it does not grant")

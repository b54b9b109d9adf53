"""Where a kernel comes from: two of one zygote, or of one pool, have nothing in common that a person could use."""

from __future__ import annotations

import json

import pytest

from tests.kernel.conftest import Server, soon

# What one kernel knows that another must not: asked of each, and then compared.
RANDOM = """
import json, os, random, secrets, tempfile, uuid
import numpy
print(json.dumps({
    "random": random.random(), "numpy": float(numpy.random.random()), "secrets": secrets.token_hex(8),
    "tempfile": next(tempfile._get_candidate_names()), "uuid1": uuid.uuid1().hex, "uuid4": uuid.uuid4().hex,
    "session": get_ipython().kernel.session.session, "ident": get_ipython().kernel.ident,
    "key": get_ipython().kernel.session.key.decode(),
}))
"""

DESCRIPTORS = """
import os
print(sorted(os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in os.listdir('/proc/self/fd') if int(n) > 2
             and os.path.exists(f'/proc/self/fd/{n}')))
"""


@pytest.fixture(params=["zygote", "pool"])
def origin(request: pytest.FixtureRequest, server: Server) -> Server:
    server.pool = request.param == "pool"
    return server


def test_two_kernels_share_no_random_state(origin: Server) -> None:
    """Not Python's, not numpy's, no name of a temporary file, no identity of a session, no key."""
    for name in ("first", "second"):
        origin.start(name, {"preload": ["numpy"]})
    first, second = (json.loads(origin.text(RANDOM, name)) for name in ("first", "second"))
    assert not [key for key in first if first[key] == second[key]]


def test_two_kernels_share_no_file_no_history_and_no_environment(origin: Server, tmp_path: object) -> None:
    """What one writes to /tmp, its home and its history, and what it sets in its environment, the other never sees."""
    leave = (
        "import os, pathlib\n"
        "for place in ('/tmp', '/home/user', '/dev/shm'): pathlib.Path(place, 'left').write_text('left')\n"
        "os.environ['LEFT'] = 'left'\n"
        "left = 1\n"
        "print(get_ipython().history_manager.hist_file)"
    )
    look = (
        "import os, pathlib\n"
        "print([p for p in ('/tmp', '/home/user', '/dev/shm') if pathlib.Path(p, 'left').exists()],"
        " os.environ.get('LEFT'), 'left' in globals(), len(list(get_ipython().history_manager.search('*left*'))) > 1,"
        " In[:-1], Out)"
    )
    origin.start("first")
    assert origin.text(leave, "first").endswith("history.sqlite")
    origin.start("second")
    assert origin.text(look, "second") == "[] None False False [''] {}"


def test_nothing_is_inherited_but_sockets_of_its_own(origin: Server) -> None:
    """No file, pipe or folder of the zygote, the supervisor or another kernel is open in a kernel."""
    origin.start()
    kinds = set(eval(origin.text(DESCRIPTORS)))
    history = "/home/user/.ipython/profile_default/history.sqlite"  # which is being written now and then
    assert kinds <= {"socket", "pipe", "anon_inode", "/dev/null", history, f"{history}-journal"}


def test_who_takes_a_kernel_from_the_pool_finds_it_their_own(server: Server) -> None:
    """It stood before, under another name; now the folder, the key, the arguments and the profile are its person's."""
    server.pool = True
    server.give("mine", "mine")
    answer = server.start("mine")
    assert server.text("import os; print(os.getcwd(), open('mine').read(), get_ipython().execution_count)", "mine") == (
        "/mnt/workspace mine 2"
    )
    assert server.text("print(get_ipython().kernel.session.key.decode())", "mine") == answer["key"]
    assert server.text("open('made', 'w').write('x'); import os; print(os.stat('made').st_uid)", "mine") == "1000"
    assert (server.folder / "made").stat().st_uid == server.folder.stat().st_uid
    assert "mine" not in server.ask("spares")["names"]


def test_a_waiting_kernel_is_filtered_like_every_other(server: Server) -> None:
    """Seccomp, no_new_privs, capabilities, Landlock: what the self-check asked before it waited, it still has."""
    server.pool = True
    server.start(overrides={"files": {"workspace": "read-only"}})
    status = server.text(
        "s = dict(l.split(':\\t') for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\n"
        "print(s['Seccomp'], s['NoNewPrivs'], *{s[c] for c in s if c.startswith('Cap')})"
    )
    assert status == "2 1 0000000000000000"
    assert server.run("open('x', 'w')")["status"] == "error"
    assert server.run("open('/mnt/x', 'w')")["status"] == "error"


def test_two_people_are_never_handed_the_same_kernel(server: Server) -> None:
    server.pool = True
    pids = {server.start(name)["pid"] for name in ("first", "second", "third")}
    assert len(pids) == 3


def test_as_many_wait_as_an_administrator_has_said(root_server: Server) -> None:
    """Whoever says thirty has thirty people who come at once."""
    root_server.start(pool=18)
    soon(lambda: len(root_server.ask("spares")["names"]), 18, 60)

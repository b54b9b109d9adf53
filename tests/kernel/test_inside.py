"""What a running cell sees: the promises of the sandbox, asked from the inside."""

from __future__ import annotations

import os

from tests.kernel.conftest import Server


def test_a_cell_runs_unprivileged_filtered_and_alone(server: Server) -> None:
    """Seccomp 2, NoNewPrivs 1, no capability, no group, not root; /proc shows the sandbox's own processes only."""
    server.start()
    status = server.text(
        "s = dict(l.split(':\\t') for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\n"
        "import os\n"
        "print(s['Seccomp'], s['NoNewPrivs'], *{s[c] for c in s if c.startswith('Cap')}, os.getuid(), os.getgroups(),"
        "      sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))"
    )
    assert status == "2 1 0000000000000000 1000 [] [2]" or status.startswith("2 1 0000000000000000 1000 [1000] [2]")


def test_what_belongs_to_the_host_does_not_exist(server: Server, tmp_path: object) -> None:
    """Homes, shadow, the folders of Jupyter, other workspaces: not refused, but not there."""
    secret = server.folder.parent / "secret.txt"
    secret.write_text("secret")
    places = ["/etc/shadow", "/root", "/home/isolated-tester", "/var/log", "/run/user", str(secret), str(server.folder)]
    server.start()
    assert os.path.exists("/etc/shadow")
    assert server.text(f"import os; print([p for p in {places!r} if os.path.exists(p)])") == "[]"
    assert (
        server.text("print(sorted(os.listdir('/home')), sorted(os.listdir('/run')))")
        == "['user'] ['empty', 'hidden', 'lower', 'trees']"
    )


def test_the_environment_holds_no_token(server: Server) -> None:
    server.start()
    found = server.text("import os; print([k for k, v in os.environ.items() if 'TOKEN' in k or 'a-token' in v])")
    assert found == "[]"


def test_a_cell_is_called_what_the_server_calls_it(server: Server) -> None:
    """ipykernel's own variable crosses: a traceback has as many lines of a cell as the stock kernel's."""
    server.start(arguments={"env": {"IPYKERNEL_CELL_NAME": "<a-cell>", "OTHER": "1"}})
    assert server.text("import os, sys; print(sys._getframe().f_code.co_filename, 'OTHER' in os.environ)") == (
        "<a-cell> False"
    )
    told = server.run("one = 1\ntwo = 2\nthree = 3\nfour = 4\nraise ValueError('five')")["text"]
    assert "three" in told
    assert "two" not in told


def test_no_port_and_no_socket_of_the_host_answers(server: Server) -> None:
    """A listener on the host's loopback and one in its abstract namespace answer outside, and not inside."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(b"\0isolated-test-%d" % os.getpid())
        abstract.listen()
        port, name = tcp.getsockname()[1], abstract.getsockname()
        socket.create_connection(("127.0.0.1", port), 5).close()  # the control: it answers out here
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(name)
        server.start()
        code = (
            "import socket\n"
            "def tried(family, address):\n"
            "    try: socket.socket(family).connect(address); return 'connected'\n"
            "    except OSError as error: return error.__class__.__name__\n"
            f"print(tried(socket.AF_INET, ('127.0.0.1', {port})), tried(socket.AF_UNIX, {name!r}))"
        )
        assert server.text(code) == "ConnectionRefusedError ConnectionRefusedError"


def test_files_of_the_workspace_keep_their_owner(server: Server) -> None:
    """What a cell writes belongs, on disk, to whom the folder belongs; inside it belongs to the kernel's user."""
    server.start()
    assert server.text("open('made', 'w').write('x'); import os; print(os.stat('made').st_uid)") == "1000"
    made = (server.folder / "made").stat()
    assert (made.st_uid, made.st_gid) == (server.folder.stat().st_uid, server.folder.stat().st_gid)


def test_a_read_only_workspace_is_read_only(server: Server) -> None:
    server.give("given", "given")
    server.start(overrides={"files": {"workspace": "read-only"}})
    assert server.text("print(open('given').read())") == "given"
    assert server.run("open('given', 'w')")["status"] == "error"
    assert (server.folder / "given").read_text() == "given"


def test_a_copy_on_write_workspace_changes_nothing_outside(server: Server) -> None:
    server.give("given", "given")
    server.start(overrides={"files": {"workspace": "copy-on-write"}})
    assert server.text("open('given', 'w').write('changed'); print(open('given').read())") == "changed"
    assert (server.folder / "given").read_text() == "given"


def test_no_set_uid_file_can_be_left_for_others(server: Server) -> None:
    """A set-user-ID file in the workspace would be run by people outside, with the rights of the folder's owner."""
    server.start()
    assert server.run("open('tool', 'w').close(); import os; os.chmod('tool', 0o4755)")["status"] == "error"
    assert not (server.folder / "tool").stat().st_mode & 0o6000


def test_threads_and_the_tools_that_look_at_processes_work(server: Server) -> None:
    server.start()
    assert server.text("import psutil; print(len(psutil.pids()))") == "1"
    code = "import concurrent.futures as f\nwith f.ThreadPoolExecutor(4) as p: print(sum(p.map(abs, [-1] * 9)))"
    assert server.text(code) == "9"


def test_the_servers_configuration_is_not_in_its_environment(server: Server) -> None:
    """etc/jupyter of the prefix may hold a token or a password; share/jupyter holds what nbconvert needs."""
    import sys
    from pathlib import Path

    prefix = Path(sys.prefix)
    (prefix / "etc/jupyter").mkdir(parents=True, exist_ok=True)
    assert (prefix / "share/jupyter/kernels").is_dir()
    server.start()
    found = (
        "import os, sys; print([os.path.exists(os.path.join(sys.prefix, p)) for p in ('etc/jupyter', 'share/jupyter')])"
    )
    assert server.text(found) == "[False, True]"
    assert server.text("import os; print(os.listdir('/run/hidden'), os.listdir('/run/trees'))") == "[] []"

"""The life of a kernel: restart, interrupt, its end by a limit, and what happens when one of our own processes dies."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

import psutil
from isolated_python.linux.cgroups import LEAF
from isolated_python.provisioner import PORTS

from tests.kernel.conftest import Server, cgroups_of, commands, outlive, processes_of, watched


def test_a_restart_keeps_the_sockets_and_forgets_the_state(server: Server) -> None:
    first = server.start()["pid"]
    server.text("x = 1")
    assert server.ask("restart", name="kernel")["pid"] != first
    assert server.text("print('x' in globals())") == "False"
    assert server.ask("restart", name="kernel", now=True).get("pid")
    assert server.text("print(1)") == "1"


def test_an_interrupt_reaches_the_cell(server: Server) -> None:
    server.start()
    server.run("print('begun', flush=True)\nwhile True: pass", until="begun")
    server.ask("interrupt", name="kernel")
    assert "KeyboardInterrupt" in server.ask("rest", name="kernel")["text"]
    assert server.text("print('still here')") == "still here"


def test_a_signal_ends_a_kernel_that_is_still_on_its_way(server: Server) -> None:
    """A start may be answered before the kernel has begun: what comes then is not lost."""
    server.start()
    for number in (signal.SIGTERM, signal.SIGKILL) * 5:
        assert server.ask("hurry", like="kernel", cwd=str(server.folder), signal=number) == {"status": -number}


def test_two_kernels_of_one_zygote_share_nothing(server: Server) -> None:
    """No random state, no file, no history, no environment, no descriptor."""
    server.start("a")
    server.start("b")
    ask = (
        "import random, uuid, tempfile, os\n"
        "print(random.random(), uuid.getnode() and uuid.uuid1().hex[-12:], next(tempfile._get_candidate_names()))"
    )
    for mine, theirs in zip(server.text(ask, "a").split(), server.text(ask, "b").split(), strict=True):
        assert mine != theirs
    server.text("open('/tmp/mine', 'w').close(); os.environ['MINE'] = '1'", "a")
    assert server.text("print(os.path.exists('/tmp/mine'), 'MINE' in os.environ)", "b") == "False False"
    assert server.text("print(get_ipython().history_manager.session_number)", "a") == "1"
    assert server.text("print(get_ipython().history_manager.session_number)", "b") == "1"


def test_limits_that_a_cell_survives_are_named_below_its_traceback(server: Server) -> None:
    server.start(overrides={"resources": {"tmp": "20 MiB", "shm": "16 MiB", "processes": 40, "open_files": 64}})
    answer = server.run("with open('/tmp/big', 'wb') as f: f.write(bytes(40 << 20))")
    assert "resources.tmp" in answer["text"]
    answer = server.run("import os; os.unlink('/tmp/big'); kept = [open('/dev/null') for _ in range(100)]")
    assert "resources.open_files" in answer["text"]
    code = "import threading\nhold = threading.Event()\nfor _ in range(99): threading.Thread(target=hold.wait).start()"
    answer = server.run(code)
    assert "resources.processes" in answer["text"], answer
    server.run("hold.set()")


def test_a_flood_of_raw_output_and_of_refused_calls_stops_nobody_else(server: Server) -> None:
    """The supervisor reads and answers at a bounded rate; the flooding kernel waits, its neighbour does not."""
    server.start("flood")
    server.start("b")
    code = (
        "import os, threading, ctypes\n"
        "def write():\n    while True: os.write(raw, b'x' * 65536)\n"
        "def refused():\n    while True: libc.unshare(0x10000000)\n"
        "libc = ctypes.CDLL(None)\n"
        "import sys; raw = sys.stderr._original_stdstream_copy\n"
        "for one in (write, refused): threading.Thread(target=one, daemon=True).start()\n"
        "print('flooding')"
    )
    assert server.text(code, "flood") == "flooding"
    used = psutil.Process(server.ask("supervisor")["pid"])
    before, began = sum(used.cpu_times()[:2]), time.monotonic()
    while (seconds := time.monotonic() - began) < 1:
        assert server.text("print('well')", "b") == "well"
    assert sum(used.cpu_times()[:2]) - before < seconds / 4
    server.start("c")  # and new ones start
    assert server.text("print(1)", "c") == "1"


SLOW = "import select; select.select([], [], [], 2.5); import ipykernel.kernelapp as app; app.launch_new_instance()"


def test_what_is_asked_while_the_next_kernel_comes_up_is_answered(root_server: Server) -> None:
    """Also of a program that takes its time before it listens, and by a client that waits for nothing."""
    argv = [sys.executable, "-c", SLOW, "-f", "{connection_file}"]
    root_server.start(spec={"argv": argv}, pool=False)
    root_server.ask("restart", name="kernel", now=True, wait=False)
    assert root_server.text("print('here')") == "here"


def test_nobody_who_connects_is_given_a_port_that_a_kernel_will_listen_on(root_server: Server) -> None:
    """The relay asks for these ports until the kernel listens there, and must not be connected to itself."""
    root_server.start(pool=False)
    lowest = root_server.text("print(open('/proc/sys/net/ipv4/ip_local_port_range').read().split()[0])")
    assert PORTS.stop + 4 < int(lowest)


def test_a_kernel_that_ends_before_its_server_looks_has_ended(root_server: Server) -> None:
    wrong = {"extra_arguments": ["--IPKernelApp.kernel_class=no.such.Kernel"]}
    assert root_server.ask("busy", **root_server.wanted(arguments=wrong)) == {"alive": False}


def test_a_kernel_that_dies_as_it_starts_says_why_in_the_log(server: Server) -> None:
    """jupyter_client only says that it died; what the kernel wrote about it is not lost."""
    wrong = {"extra_arguments": ["--IPKernelApp.kernel_class=no.such.Kernel"]}
    assert "died" in server.refused(arguments=wrong, pool=False)["error"]
    assert "No module named 'no'" in server.ask("logged")["text"]


def test_arguments_reach_what_was_built_before_they_were_known(root_server: Server) -> None:
    wanted = {"extra_arguments": ["--PlainTextFormatter.max_width=40", "--InteractiveShell.separate_in=x"]}
    root_server.start(arguments=wanted, pool=False)
    shown = "ip = get_ipython(); print(ip.display_formatter.formatters['text/plain'].max_width, ip.separate_in)"
    assert root_server.text(shown) == "40 x"


def test_nothing_is_left_after_a_shutdown(server: Server) -> None:
    pid = server.start(pool=False)["pid"]
    where = server.ask("supervisor")
    server.ask("stop", name="kernel")
    assert not psutil.pid_exists(pid)
    assert [name for part in ("clients", "kernels") for name in os.listdir(f"{where['folder']}/{part}")] == []
    mine = f"isolated-python-{where['pid']}"
    left = [path for path in cgroups_of(where["pid"]) if not os.path.basename(path).startswith((mine, LEAF))]
    assert len({os.path.basename(path) for path in left}) <= 1  # the next kernel's, in which the zygote stands
    assert len({pid for path in left for pid in processes_of(path)}) <= 1


def test_a_kernel_that_its_server_has_forgotten_leaves_nothing(server: Server) -> None:
    """After the fifth restart that failed a server lets go of a kernel without a word: dead here, or alive."""
    folder = server.ask("supervisor")["folder"]
    for name in ("dead", "alive"):
        pid = server.start(name, pool=False)["pid"]
        ending = watched([psutil.Process(pid)])
        if name == "dead":
            os.kill(pid, signal.SIGKILL)
            server.ask("ended", name=name)
        assert server.ask("lose", name=name) == {}
        assert not outlive(ending, 10)
        server.ask("spares")  # answered after what the end of a kernel asks for
        assert [one for part in ("clients", "kernels") for one in os.listdir(f"{folder}/{part}")] == []


def test_what_a_provisioner_tells_of_its_kernel_can_be_told_to_another(server: Server) -> None:
    server.start()
    told = server.ask("info", name="kernel")
    assert all(one == other not in ("''", "None") for one, other in told.values()), told


def test_a_zygote_goes_on_to_another_group_after_each_birth(limited: Server) -> None:
    """A start that fails at once, and a kernel that is killed, are not its end: the same one serves whoever is next."""

    def zygotes() -> set[int]:
        found = [pid for pid, words in commands(limited.ours()).items() if "launcher.zygote" in words]
        return {pid for pid in found if os.stat(f"/proc/{pid}/ns/pid") == os.stat("/proc/self/ns/pid")}  # no sandbox

    limited.start("first")
    never = {"spec": {"argv": ["/usr/bin/python3", "-c", "raise SystemExit(3)", "{connection_file}"]}}
    limited.refused("second", **never)
    before = zygotes()
    limited.refused("third", **never)
    os.kill(limited.start("fourth")["pid"], signal.SIGKILL)
    limited.start("fifth")
    assert limited.text("print(1 + 1)", "fifth") == "2"
    assert zygotes() == before
    pid = limited.ask("supervisor")["pid"]
    for zygote in before:
        assert len({os.path.basename(path) for path in cgroups_of(pid) if zygote in processes_of(path)}) == 1


def test_what_the_first_kernel_does_not_wait_for_is_in_those_after_it(server: Server) -> None:
    """The zygote imports it when nobody asks for a fork: what it has then is in its children, as it was before."""
    for number in range(30):
        server.start(f"{number}")
        answer = server.text("import sys; print('jedi' in sys.modules)", f"{number}")
        server.ask("stop", name=f"{number}")
        if answer == "True":
            break
    else:
        raise AssertionError(answer)


def test_a_supervisor_that_cannot_serve_is_why_the_first_kernel_does_not_start(server: Server) -> None:
    """The request for it waits already when the supervisor has found out, and is told that, and not what follows."""
    server.audit.mkdir(parents=True)
    (server.audit / "audit.jsonl").mkdir()
    shutil.chown(server.audit, server.folder.stat().st_uid)
    for _ in range(2):
        assert "Is a directory" in server.refused(pool=False)["error"]
    (server.audit / "audit.jsonl").rmdir()

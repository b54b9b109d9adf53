"""What the attacker wants: to harm, through Jupyter's own channels, whoever talks to a kernel, or another kernel."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from typing import Any

import psutil
from isolated_python.relay.zmtp import frame

from tests.escapes.attack import Attack, attack
from tests.escapes.channels import CLIENTS, GREETING, KERNELS, Neighbour, Victim, command, ready
from tests.escapes.places import Place, Said
from tests.escapes.proof import prove
from tests.escapes.targets import Target
from tests.kernel.conftest import outlive, watched

TOO_MUCH = 5 << 30  # bytes; no shipped profile grants more than four gigabytes
MARK = b"0123456789abcdef"  # stands for the target's token in what is said

Bytes = bytes | list[tuple[bytes, int]]  # or pieces, each with how often it is said


def test_jupyter_channels(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


# ---- a kernel that speaks for itself: every byte of its channels is the attacker's -----------------------------------


class Client(Target):
    """A client of the attacker's kernel; beside it another kernel of the server, which has to go on answering.

    Inside it connects as every client does. Outside it connects to the attacker itself: with nothing in between.
    """

    def prepare(self) -> None:
        self.channel: str = self.attack.facts["channel"]
        self.stack = contextlib.ExitStack()
        if self.inside:
            name = self.place.kernel(self.key, self.attack.overrides)
            info = self.place.server.ask("connection", name=name)
            listen = ""
        else:
            folder = self.place.workspace("outside")
            info = {"ip": str(folder / f"s{self.token[:8]}"), f"{self.channel}_port": 1}
            listen = info["ip"] + "-1"
        # Backwards: the text of a cell is published, and must not look like the harm.
        self.facts = {"listen": listen, "nekot": self.token[::-1]}
        self.victim = self.stack.enter_context(Victim(info, self.channel))
        if self.inside:
            other = self.place.kernel("neighbour")
            self.stack.callback(self.place.server.ask, "hear_out", name=other)
            self.stack.enter_context(Neighbour(self.place.server.ask("connection", name=other)))

    @property
    def key(self) -> str:
        return json.dumps(self.attack.overrides) if self.attack.overrides else "attacker"

    def remove(self) -> None:
        self.stack.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.facts["listen"])


class UnspoiltClient(Client):
    """The harm: what no client should have to read arrives at it."""

    def harm(self, said: Said) -> str:
        place = self.victim.told.find(self.token[:16].encode())
        return f"{self.victim.told[max(0, place - 30) : place + 16]!r} reached the client" if place >= 0 else ""


class Withstood(Client):
    """What is no rule of the relay's to refuse reaches the client, who drops it. The harm: it ends the relay."""

    def prepare(self) -> None:
        super().prepare()
        self.relay = self._relays()

    def _relays(self) -> set[int]:
        found = set()
        for process in self.place.server.ours():
            with contextlib.suppress(psutil.Error):
                found |= {process.pid} if "relay.broker" in " ".join(process.cmdline()) else set()
        return found

    def harm(self, said: Said) -> str:
        if not self.inside:
            return UnspoiltClient.harm(self, said)  # type: ignore[arg-type]
        return "" if self._relays() == self.relay else "the relay of all kernels ended"


class PatientClient(Client):
    """The harm: more reaches it than a client can be expected to take, or small parts beyond what is granted."""

    def harm(self, said: Said) -> str:
        most = self.attack.facts.get("most", 4 * self.place.granted.channels.frames)
        return f"{self.victim.bytes} bytes reached the client, of at most {most}" if self.victim.bytes > most else ""


def speak(target: Any) -> str:
    """Say to whoever connects what libzmq would never say."""
    if target.listen:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(target.listen)
        os.chmod(target.listen, 0o777)
        listener.listen(8)
        return serve(listener, target)
    listener = own_listener(target.channel)
    # A child speaks, while the kernel itself, with all of libzmq's threads, is stopped.
    child = os.fork()
    if child == 0:
        kernel = os.getppid()
        status = 1
        try:
            os.kill(kernel, signal.SIGSTOP)
            status = 0 if serve(listener, target) else 2
        finally:
            os.kill(kernel, signal.SIGCONT)
            os._exit(status)
    listener.close()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(f"nobody could be spoken to ({code})")
    return "spoke"


def own_listener(channel: str) -> socket.socket:
    """The socket on which this kernel listens for a channel: one that it inherited, or bound itself."""
    from ipykernel.kernelapp import IPKernelApp

    port = getattr(IPKernelApp.instance(), f"{channel}_port")
    for name in os.listdir("/proc/self/fd"):
        try:
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with contextlib.suppress(OSError):
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                place = one.getsockname()
                if str(place).endswith(f".{channel}") or (isinstance(place, tuple) and place[1] == port):
                    return one
        one.close()
    raise OSError(f"there is no listener of {channel}")


def serve(listener: socket.socket, target: Any) -> str:
    """Speak to two clients. There may be more: some gave up their connection while the kernel was being stopped."""
    token = target.nekot[::-1][:16].encode()
    said = [b"".join(bytes.fromhex(part) * times for part, times in one).replace(MARK, token) for one in target.said]
    listener.settimeout(5)
    served = 0
    for _ in range(8):
        try:
            one, _ = listener.accept()
        except TimeoutError:
            break
        with one:
            one.settimeout(0.2)
            end = time.monotonic() + target.lasting
            with contextlib.suppress(OSError):
                one.sendall(said[0])
                served += 1
                while len(said) > 1 and time.monotonic() < end:  # the rest over and over
                    one.sendall(said[1])
                while one.recv(1 << 16):
                    pass
        if served == 2:
            break
    return "spoke" if served else ""


def spoken(
    name: str, wants: str, said: Bytes, *, channel: str = "iopub", greeted: bool = True, again: Bytes = b"", **more: Any
) -> Attack:
    """`said` follows the handshake, or stands in its place; `again` follows without end."""
    opening = GREETING + ready(KERNELS[channel]) if greeted else b""
    parts = [[(opening, 1), *segments(said)], *([segments(again)] if again else [])]
    hexed = [[(part.hex(), times) for part, times in one] for one in parts]
    facts = {"channel": channel, "said": hexed, "lasting": more.pop("lasting", 0.6)}
    facts |= more.pop("facts", {})
    target = more.pop("target", UnspoiltClient)
    values = {"runs": "cell", "stopped_by": "relay", "facts": facts, "needs": ("pid",), **more}
    return Attack(name, wants, "jupyter_channels", speak, target, **values)


def segments(said: Bytes) -> list[tuple[bytes, int]]:
    return [(said, 1)] if isinstance(said, bytes) else said


def announced(size: int) -> bytes:
    return b"\x02" + size.to_bytes(8, "big") + MARK


def said_by(kind: str, content: bytes, *, topic: bytes = b"", header: bytes = b"", parent: bytes = b"{}") -> bytes:
    """A message of a kernel, with a signature that nobody has made."""
    header = header or json.dumps({"msg_id": "1", "msg_type": kind, "session": "x", "version": "5.3"}).encode()
    parts = [*([topic] if topic else []), b"<IDS|MSG>", b"0" * 64, header, parent, b"{}", content]
    return b"".join(frame(part, more=part is not parts[-1]) for part in parts)


IDLE = b'{"execution_state": "idle", "mark": "' + MARK + b'"}'
LARGE = b"x" * 5000
SPOKEN = [
    spoken("no_zmtp_at_all", "Feed libzmq's parser a web page.", b"HTTP/1.1 200 OK\r\n\r\n" + MARK, greeted=False),
    spoken(
        "the_protocol_of_2010", "Bring libzmq to the parser of an old version of its protocol.",
        GREETING[:10] + b"\x01" + GREETING[11:] + MARK, greeted=False,
    ),
    spoken(
        "another_mechanism", "Bring libzmq to its code for encryption.",
        GREETING[:12] + b"CURVE".ljust(20, b"\0") + GREETING[32:] + command(b"HELLO", MARK), greeted=False,
    ),
    spoken(
        "a_greeting_that_is_not_empty", "Hide data in the part of the greeting that nobody reads.",
        GREETING[:33] + MARK + GREETING[49:], greeted=False,
    ),
    spoken(
        "a_message_before_the_handshake", "Be heard before the handshake.", GREETING + b"\0\x10" + MARK, greeted=False,
    ),
    spoken("a_second_handshake", "Shake hands twice, to confuse the state of the connection.", ready(b"PUB" + MARK)),
    spoken(
        "another_kind_of_socket", "Pretend to be a socket of another kind.",
        GREETING + ready(b"PUSH" + MARK), greeted=False,
    ),
    spoken(
        "metadata_past_its_end", "Let the length of a property point past its end.",
        GREETING + command(b"READY", b"\x0bSocket-Type\x7f\xff\xff\xffPUB" + MARK), greeted=False,
    ),
    spoken("an_unknown_command", "Send a command that the protocol does not know.", command(b"EVIL", MARK)),
    spoken("a_huge_command", "Have a command of many pages kept in memory.", command(b"PING", LARGE + MARK)),
    spoken(
        "a_huge_ping", "Have a heartbeat of the protocol repeat more than it should.",
        command(b"PING", b"x" * 200 + MARK),
    ),
    spoken("a_command_in_pieces", "Split a command in a way that the protocol forbids.", b"\x05\x15\x04PING" + MARK),
    spoken(
        "a_command_within_a_message", "Put a command between the frames of a message.",
        b"\x01\x01x" + command(b"PING", MARK),
    ),
    spoken("reserved_flags", "Set flags that no version of the protocol has given a meaning.", b"\x88\x10" + MARK),
    spoken("five_gigabytes", "Make the client reserve 5 GB for a message that is only announced.", announced(TOO_MUCH)),
    spoken("half_of_all_there_is", "Make the client reserve 2^63 bytes.", announced(1 << 63)),
    spoken(
        "a_message_of_many_small_parts", "Make the client keep the parts of a message that never ends.",
        [(b"\x01\x10" + MARK, 1), (b"\x01\0", 70_000), (b"\x01\x10" + MARK[::-1], 1)], again=b"\x01\x10" + b"y" * 16,
        target=PatientClient,
    ),
    spoken(
        "a_heartbeat_of_many_pages", "Make the client keep a heartbeat that is larger than any.",
        b"\x01\0\x02" + (LARGE_HEARTBEAT := 8192).to_bytes(8, "big") + MARK + b"x" * (LARGE_HEARTBEAT - 16),
        channel="hb",
    ),
    spoken(
        "more_than_was_granted", "Send a message that is larger than the profile lets through.",
        announced(2 << 20), overrides={"channels": {"message": "1 MiB"}},
    ),
    spoken(
        "a_flood_of_bytes", "Make the server buffer output faster than anybody reads it.",
        b"", again=[(b"\x02" + (1 << 16).to_bytes(8, "big"), 1), (b"x", 1 << 16)], lasting=0.8,
        target=PatientClient, facts={"most": 12 << 20}, overrides={"channels": {"output_rate": "2 MiB"}},
    ),
    spoken(
        "a_flood_of_comms", "Make the server handle hundreds of thousands of tiny messages a second.",
        b"", again=[(b"\0\x04comm", 50_000)], lasting=0.8,
        target=PatientClient, facts={"most": 4_000_000}, overrides={"channels": {"output_messages": 1000}},
    ),
    spoken(
        "replies_of_gigabytes_on_shell", "Answer a request with more than any client can hold.",
        announced(TOO_MUCH), channel="shell",
    ),
    spoken(
        "a_prompt_of_gigabytes_on_stdin", "Ask for input with more than any client can hold.",
        announced(TOO_MUCH), channel="stdin",
    ),
    spoken(
        "a_torrent_on_control", "Fill the client's memory by the channel that nobody limits by rate.",
        [(b"\x01\x10" + MARK, 1), (b"\x01\0", 70_000), (b"\x01\x10" + MARK[::-1], 1)], again=b"\x01\x10" + b"y" * 16,
        channel="control", target=PatientClient,
    ),
    spoken(
        "a_prompt_that_nobody_allowed", "Ask for a password where the client has said that nobody is there.",
        said_by("input_request", b'{"prompt": "' + MARK + b'", "password": true}'), channel="stdin",
    ),
    spoken(
        "a_prompt_that_is_too_large_to_look_at", "Hide a prompt behind a part that is larger than what is read.",
        [(b"\x03" + (1 << 20).to_bytes(8, "big"), 1), (MARK, 1 << 16), (said_by("input_request", b"{}"), 1)],
        channel="stdin",
    ),
    spoken(
        "json_of_great_depth", "End whoever parses a header of very many brackets.",
        said_by("status", IDLE, topic=b"kernel.1.status", header=b"[" * 30_000, parent=b'{"a":' * 3000),
        target=Withstood,
    ),
    spoken(
        "a_bad_signature", "Be believed without the key.",
        said_by("status", IDLE, topic=b"kernel.1.status"), target=Withstood,
    ),
    spoken(
        "forged_parents", "Speak in the name of a cell that somebody else asked for.",
        said_by("status", IDLE, topic=b"kernel.1.status", parent=b'{"msg_id": {"a": [' + b"1," * 9000 + b"1]}}")
        + said_by("stream", IDLE, topic=b"kernel.1.stream", parent=b'{"msg_id": "another", "session": "another"}'),
        target=Withstood,
    ),
    spoken(
        "early_replies", "Answer before anybody has asked.",
        said_by("execute_reply", b'{"status": "ok", "mark": "' + MARK + b'"}', parent=b'{"msg_id": "x_1_1"}'),
        channel="shell", target=Withstood,
    ),
    spoken(
        "replays", "Say the same again and again, as if it were new.",
        [(said_by("status", IDLE, topic=b"kernel.1.status"), 3000)], target=Withstood,
    ),
]  # fmt: skip


# ---- a kernel that talks to its neighbour ----------------------------------------------------------------------------


class Neighbours(Target):
    """Another kernel of the same server. The attacker knows all that its connection file says, the key included."""

    def prepare(self) -> None:
        self.name = self.place.kernel("neighbour")
        self.info = self.place.server.ask("connection", name=self.name)
        self.facts = {"token": self.token, "info": self.info}
        if not self.inside:
            for channel in CLIENTS:
                path = f"{self.info['ip']}-{self.info[channel + '_port']}"
                assert os.path.exists(path), path

    def harm(self, said: Said) -> str:
        """Asked of the neighbour itself, where it still lives."""
        found = self.place.server.run(f"print(globals().pop('stolen', '') == {self.token!r})", self.name)
        if found["status"] != "ok":
            self.place.drop("neighbour")
            return f"the neighbour is {found['status']}"
        return "the attacker's code ran in the neighbour" if "True" in found["text"] else ""


class Overheard(Neighbours):
    """Its output is nobody else's. The harm: the attacker reads it."""

    def prepare(self) -> None:
        super().prepare()
        self.talking = Neighbour(self.info, f"print({self.token!r})")
        self.talking.__enter__()

    def remove(self) -> None:
        self.talking.__exit__()
        self.place.server.ask("hear_out", name=self.name)

    def harm(self, said: Said) -> str:
        return "the attacker read what the neighbour printed" if self.token in said.loot else ""


class Door(Neighbours):
    """Where its clients connect. The harm: somebody else listens there."""

    def prepare(self) -> None:
        super().prepare()
        self.path = f"{self.info['ip']}-{self.info['hb_port']}"
        self.facts["path"] = self.path
        self.kept = self.path + ".kept"
        os.link(self.path, self.kept)

    def harm(self, said: Said) -> str:
        mine = os.path.exists(self.path) and os.path.samefile(self.path, self.kept)
        return "" if mine else "the socket of the neighbour was replaced"

    def remove(self) -> None:
        os.rename(self.kept, self.path)


def dealer(target: Any, channel: str, kind: bytes) -> socket.socket:
    """A client of a kernel, with no more than what its connection file says."""
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(15)
    one.connect(target.info["ip"] + "-" + str(target.info[channel + "_port"]))
    kind = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    one.sendall(b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32)
    one.sendall(bytes((4, len(kind))) + kind)
    answered(one, b"Socket-Type")  # libzmq hangs up on who says more before it has heard the kernel's half
    return one


def signed(target: Any, kind: str, content: dict[str, Any]) -> bytes:
    """A message of Jupyter's, signed with the kernel's key."""
    header = {"msg_id": secrets.token_hex(8), "session": "x", "username": "x", "date": "2026-01-01T00:00:00Z"}
    header |= {"msg_type": kind, "version": "5.3"}
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
    sign = hmac.new(target.info["key"].encode(), b"".join(parts), hashlib.sha256).hexdigest().encode()
    said = b""
    for part in (b"<IDS|MSG>", sign, *parts):
        said += b"\x03" + len(part).to_bytes(8, "big") + part
    place = said.rindex(b"\x03" + len(parts[-1]).to_bytes(8, "big"))
    return said[:place] + b"\x02" + said[place + 1 :]


def answered(one: socket.socket, word: bytes) -> str:
    found = b""
    while word not in found:
        part = one.recv(1 << 16)
        if not part:
            raise ConnectionError("hung up")
        found += part
    return "answered"


@attack(Neighbours, stopped_by="mount", runs="cell")
def a_second_dealer(target: Any) -> str:
    """Run code in another kernel, as one more of its clients."""
    with dealer(target, "shell", b"DEALER") as one:
        code = {"code": f"stolen = {target.token!r}", "silent": False, "store_history": False, "allow_stdin": False}
        one.sendall(signed(target, "execute_request", code))
        return answered(one, b"execute_reply")


@attack(Neighbours, stopped_by="mount", runs="cell")
def the_debugger_of_another_kernel(target: Any) -> str:
    """Run code in another kernel by its debugger, which listens on control."""
    with dealer(target, "control", b"DEALER") as one:
        code = {"code": f"stolen = {target.token!r}", "silent": False, "store_history": False, "allow_stdin": False}
        one.sendall(signed(target, "execute_request", code))
        return answered(one, b"execute_reply")


@attack(Neighbours, stopped_by="mount", runs="cell")
def the_end_of_another_kernel(target: Any) -> str:
    """End another kernel, by a request for its shutdown."""
    with dealer(target, "control", b"DEALER") as one:
        one.sendall(signed(target, "shutdown_request", {"restart": False}))
        return answered(one, b"shutdown_reply")


@attack(Overheard, stopped_by="mount", runs="cell")
def the_output_of_another_kernel(target: Any) -> str:
    """Read what another kernel prints."""
    with dealer(target, "iopub", b"SUB") as one:
        one.sendall(b"\0\x01\x01")
        answered(one, target.token[:8].encode())
        return str(target.token)


@attack(Door, stopped_by="mount", runs="cell")
def the_socket_of_another_kernel(target: Any) -> str:
    """Replace the socket at which another kernel's clients connect."""
    os.unlink(target.path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(target.path)
    return "replaced"


# ---- a kernel that does not live as kernels do -----------------------------------------------------------------------


class Stubborn(Target):
    """The attacker's own end. The harm: whoever has the right to end it cannot."""

    def harm(self, said: Said) -> str:
        if not self.inside:
            return "it had to be killed" if said.loot and "status -9" in said.raw else ""
        key = json.dumps(self.attack.overrides)
        init = psutil.Process(self.place.pids[key])
        family = watched([init, *init.children(recursive=True)])
        patience = threading.Event()
        for _ in range(100):  # until it has stopped
            if any(one.status() == psutil.STATUS_STOPPED for one in init.children()):
                break
            patience.wait(0.05)
        self.place.drop(key)
        left = outlive(family, 5)
        return f"it is still there: {left}" if left else ""


@attack(Stubborn, stopped_by="pid", runs="cell", overrides={"description": "A heartbeat that stops."}, seconds=3)
def a_dead_heartbeat(target: Any) -> str:
    """Answer no heartbeat and no request any more, and refuse to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGSTOP)).start()
    return "still here"


class Heirs(Target):
    """The processes of the host. The harm: each crash leaves one behind."""

    def prepare(self) -> None:
        self.facts = {"token": self.token}

    def harm(self, said: Said) -> str:
        for _ in range(2 if self.inside else 0):
            self.place.inside(self.attack, self.facts)
        return f"{len(self._heirs())} processes were left behind" if self._heirs() else ""

    def _heirs(self) -> list[psutil.Process]:
        return [one for one in psutil.process_iter(["cmdline"]) if self.token in (one.info["cmdline"] or ())]

    def remove(self) -> None:
        for one in self._heirs():
            one.kill()


@attack(Heirs, stopped_by="pid", runs="cell", overrides={"description": "A kernel that crashes."})
def a_crash_loop(target: Any) -> str:
    """Crash at every start, and leave a process behind each time."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.setsid()
        for number in (0, 1, 2):
            os.dup2(os.open("/dev/null", os.O_RDWR), number)
        waits = "import signal; signal.pause()"
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", waits, target.token])
    os.close(theirs)
    os.read(ours, 1)  # it ends when the child has become another program
    os.kill(os.getpid(), signal.SIGSEGV)
    return "lived"

"""What the attacker wants: tokens, keys and passwords."""

from __future__ import annotations

import os
import re
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.targets import ServerToken
from tests.escapes.tools import read


def test_steal_secrets(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


@attack(ServerToken, stopped_by="environment")
def in_its_own_environment(target: Any) -> str:
    """Find the server's token among the variables that the kernel was started with."""
    return str(dict(os.environ))


@attack(ServerToken, stopped_by="pid")
def in_the_environment_of_any_process(target: Any) -> str:
    """Read the environment of every process, the server's among them."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.append(read(f"/proc/{name}/environ"))
            except OSError:
                pass
    return "\n".join(found)


@attack(ServerToken, stopped_by="environment", runs="cell")
def in_the_memory_of_the_kernel(target: Any) -> str:
    """Search the kernel's own memory for what its ancestors knew."""
    found = set()
    with open("/proc/self/mem", "rb", 0) as memory, open("/proc/self/maps") as maps:
        for line in maps:
            low, high, mode = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
            size = int(high, 16) - int(low, 16)
            if mode.startswith("rw") and size < 1 << 28 and "[v" not in line:
                try:
                    memory.seek(int(low, 16))
                    text = memory.read(size)
                except OSError:
                    continue
                # Put together here, so that the program itself is not what is found.
                found |= {*re.findall(b"HUB_API_" + b"TOKEN=([0-9a-f]{32})", text)}
    return str(found)

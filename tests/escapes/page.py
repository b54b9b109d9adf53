"""docs/attacks.md: every attack with what it wants, what stops it, and the test that proves it.

python -P tests/escapes/page.py > docs/attacks.md
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.escapes.attack import Attack

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "attacks.md"

HEAD = """# Attacks

{count} attacks on a kernel, in {files} classes: one file each in `tests/escapes/`. This page is generated from them; a
test compares the two, and `make docs/attacks.md` writes it anew.

Each attack is a program that runs twice. Outside, as a plain process with the power that it needs and no more, it must
do its harm: without that control a refusal would prove nothing. In a kernel of ours it must do none. What counts is the
harm, not the exception: whether the secret came out, the process ended, the packet found a way.

`make test` runs each attack once, spread over the {ways} ways in which a kernel is made: {profiles} profiles, forked
when it is asked for, taken from the pool, or executed; for a server of root's and for one of an ordinary user's.
`make test-attacks` runs each in all of them. `make test-mutations` switches off one layer after the other and asks that
an attack then succeeds.

What stops an attack is a layer of the profile, or one of these: *environment* and *descriptors*, of which a kernel is
given those on a list; *privileges*, no_new_privs and the limit on core dumps, which no profile can switch off; *relay*,
between a kernel and its clients; *workspace*, by which the folder of a notebook is opened. Most attacks are stopped by
more than one; the page names the first.
"""


def every() -> Iterator[tuple[Path, ModuleType, list[Attack]]]:
    """Every file of attacks."""
    from tests.escapes.attack import attacks_of

    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if attacks_of(module):
            yield path, module, attacks_of(module)


def page() -> str:
    """The text of docs/attacks.md."""
    from tests.escapes.places import PROFILES, WAYS

    parts, count, classes = [], 0, [*every()]
    for path, module, attacks in classes:
        count += len(attacks)
        wants = (module.__doc__ or "").splitlines()[0].partition("wants: ")[2].rstrip(".")
        lines = [f"| `{one.name}` | {one.wants} | {one.stopped_by} |" for one in attacks]
        title = f"## {wants[0].upper()}{wants[1:]}\n\n{len(attacks)} attacks, `{path.relative_to(ROOT)}`"
        parts.append(
            "\n".join([title, "", "| attack | what the attacker does or wants | stopped by |", "|---|---|---|", *lines])
        )
    head = HEAD.format(count=count, files=len(classes), ways=len(WAYS), profiles=len(PROFILES))
    return "\n\n".join([head.rstrip("\n"), *parts]) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.stdout.write(page())

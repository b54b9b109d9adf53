"""What an attack is: a small named value, and the program that is made of it.

An attack is written as a function. Its docstring is what the attacker wants; what it returns is the loot. It is sent,
with all the names that it uses, as one program, and the very same program runs twice: in a kernel of ours, where it
must fail, and as a plain process, where it must not: the control, without which a refusal proves nothing.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.escapes.targets import Target

SAID = "=== said: "  # before the one line that a program reports

# How the control runs. Outside means outside, but never with more power than the attack needs.
PLAIN = "plain"  # as the owner of the server
ORDINARY = "ordinary"  # as somebody without rights, whoever owns the server
ROOT = "root"
NAMESPACES = "namespaces"  # as root of user, mount, network and other namespaces of its own
CGROUP = "cgroup"  # as the owner of the server, in a cgroup with limits far above what the attack asks for


@dataclass(frozen=True, slots=True)
class Attack:
    name: str
    wants: str  # one sentence
    goal: str  # the attacker's, which the file is named for
    function: Callable[[Any], Any]
    target: type[Target]  # what the test puts within reach; it judges the harm
    stopped_by: str  # a layer of the profile, or another part of ours by name
    control: str = PLAIN
    runs: str = "program"  # started by a cell; or "cell": in the kernel's own process
    alone: bool = False  # in a kernel of its own, which does not survive
    overrides: dict[str, Any] = field(default_factory=dict)  # changes to the profile
    needs: tuple[str, ...] = ()  # layers without which nothing could stop it
    paths: tuple[str, ...] = ("zygote", "pool", "exec")
    profiles: tuple[str, ...] = ()  # in which it means something; empty for all
    facts: dict[str, Any] = field(default_factory=dict)  # what the attacker knows beside the target's facts
    accomplice: Callable[[Any], Any] | None = None  # what helps from another kernel
    seconds: float = 20.0

    def program(self, facts: dict[str, Any]) -> str:
        return program(self.function, {**self.facts, **facts})

    def __str__(self) -> str:
        return self.name


def attack(target: type[Target], *, stopped_by: str, **more: Any) -> Callable[[Callable[[Any], Any]], Attack]:
    """Make an attack of a function. `more`: as the fields of Attack."""

    def make(function: Callable[[Any], Any]) -> Attack:
        values: dict[str, Any] = {
            "name": function.__name__,
            "wants": " ".join((function.__doc__ or "").split()),
            "goal": function.__module__.rpartition(".test_")[2],
            **more,
        }
        assert values["wants"].endswith("."), f"{function.__name__} does not say what the attacker wants"
        return Attack(function=function, target=target, stopped_by=stopped_by, **values)

    return make


def attacks_of(module: types.ModuleType) -> list[Attack]:
    """The attacks of a file, in the order they are written."""
    found: list[Attack] = []
    for value in vars(module).values():
        found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, Attack)]
    names = [one.name for one in found]
    assert len({*names}) == len(names), f"two attacks of one name in {module.__name__}"
    return found


def helper(function: Callable[[Any], Any], facts: dict[str, Any]) -> str:
    """A program that runs the generator `function`: once, then again and again until its standard input ends."""
    text = program(function, facts)
    return text.replace(
        f"'loot': {function.__name__}(_facts)",
        f"'loot': next((_going := {function.__name__}(_facts)), 'over')",
    ) + (
        "\nimport select as _select, sys as _sys"
        "\nwhile not _select.select([_sys.stdin], [], [], 0.01)[0]: next(_going, None)"
        "\n_going.close()"
    )


def program(function: Callable[[Any], Any], facts: dict[str, Any]) -> str:
    """A program that runs `function` on `facts` and reports, in one line, what it got or what refused it."""
    lines: dict[str, str] = {}
    _gather(function, lines)
    # Globals, because in a cell the program runs in a namespace of its own.
    return "\n".join(
        [
            "from __future__ import annotations",
            "import json as _json, types as _types",
            *lines.values(),
            f"_facts = _types.SimpleNamespace(**_json.loads({json.dumps(facts)!r}))",
            "try:",
            f"    _said = {{'loot': {function.__name__}(_facts)}}",
            "except BaseException as _error:",
            "    _said = {'refused': type(_error).__name__ + ': ' + str(_error)}",
            f"print({chr(10) + SAID!r} + _json.dumps(_said, default=str), flush=True)",
        ]
    )


def _gather(function: Callable[[Any], Any] | type, lines: dict[str, str]) -> None:
    """The source of `function`, after that of everything it names."""
    code = function.__code__ if isinstance(function, types.FunctionType) else None
    where = vars(inspect.getmodule(function))
    for name in sorted(_names(code) if code is not None else _names_in(_source(function))):
        assert not name.startswith("@"), f"{function.__name__} asserts, and pytest has rewritten that: raise instead"
        if name in lines or name not in where or name == function.__name__:
            continue
        value = where[name]
        if isinstance(value, Attack):
            value = value.function
        if isinstance(value, types.ModuleType):
            lines[name] = f"import {value.__name__} as {name}"
        elif callable(value) and not value.__module__.startswith("tests."):
            lines[name] = f"from {value.__module__} import {value.__qualname__} as {name}"
        elif callable(value):
            lines[name] = ""  # against a circle
            _gather(value, lines)
        else:
            lines[name] = f"{name} = {value!r}"
    lines.pop(function.__name__, None)
    lines[function.__name__] = _source(function)


def _source(function: Callable[[Any], Any] | type) -> str:
    """Without its decorators."""
    text = textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(text).body[0]
    assert isinstance(tree, ast.FunctionDef | ast.ClassDef)
    return "\n".join(text.splitlines()[tree.lineno - 1 :])


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(one) for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*inner)


def _names_in(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def reported(text: str) -> Iterator[dict[str, Any]]:
    """Every report in the output of a program."""
    for line in text.splitlines():
        _, mark, said = line.partition(SAID)
        if mark:
            yield json.loads(said)

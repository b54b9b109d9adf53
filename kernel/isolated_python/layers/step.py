"""A step: one act of a layer, decided outside, carried out inside; a value that can be printed, compared and sent."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

# The descriptors that a sandbox was handed, by the name that its steps know them by.
Descriptors = dict[str, int]


class Step:
    """The base of all steps. A subclass is a frozen dataclass whose fields JSON can carry (tuples for lists)."""

    __slots__ = ()
    KINDS: ClassVar[dict[str, type[Step]]] = {}

    def __init_subclass__(cls) -> None:
        # A dataclass with slots is made twice; the later one is the real one.
        Step.KINDS[cls.__name__] = cls

    def describe(self) -> str:
        """One line that completes the sentence 'the sandbox will …'."""
        raise NotImplementedError

    def execute(self, descriptors: Descriptors) -> None:
        """Do it, in the process that is to be confined. Raises OSError."""
        raise NotImplementedError

    def to_wire(self) -> list[Any]:
        return [type(self).__name__, {item.name: getattr(self, item.name) for item in fields(self)}]  # type: ignore[arg-type]

    @staticmethod
    def from_wire(wire: list[Any]) -> Step:
        kind, values = wire
        return Step.KINDS[kind](**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value

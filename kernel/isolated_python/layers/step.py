"""A step: one act of a layer, decided outside, carried out inside; a value that can be printed, compared and sent."""

from __future__ import annotations

from typing import Any, ClassVar

from isolated_python.record import Record, asdict

# The descriptors that a sandbox was handed, by the name that its steps know them by.
Descriptors = dict[str, int]


class Step(Record):
    """The base of all steps. JSON can carry the fields of each (tuples for lists)."""

    KINDS: ClassVar[dict[str, type[Step]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Step.KINDS[cls.__name__] = cls

    def describe(self) -> str:
        """One line that completes the sentence 'the sandbox will …'."""
        raise NotImplementedError

    def execute(self, descriptors: Descriptors) -> None:
        """Do it, in the process that is to be confined. Raises OSError."""
        raise NotImplementedError

    def to_wire(self) -> list[Any]:
        return [type(self).__name__, asdict(self)]

    @staticmethod
    def from_wire(wire: list[Any]) -> Step:
        kind, values = wire
        return Step.KINDS[kind](**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value

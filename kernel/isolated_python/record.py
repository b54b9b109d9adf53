"""
Records: frozen values with named fields, as a dataclass makes them, but without anything to compile.

A dataclass is written as source and compiled each time its module is imported: 0.25 ms, and 7 ms for the module that
does it. Between the start of a server and its first kernel stood a hundred of ours, in two processes one after the
other. A record's methods are here, once; `dataclass_transform` tells type checkers what its constructor takes. PEP 681
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from typing import dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda made: made


R = TypeVar("R", bound="Record")


@dataclass_transform(frozen_default=True)
class Record:
    """The base of all records. A subclass names its fields by annotations, with defaults that nobody can change."""

    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.FIELDS += tuple(name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar"))

    def __init__(self, *values: Any, **named: Any) -> None:
        given = self.__dict__
        given.update(zip(self.FIELDS, values, strict=False))
        twice = given.keys() & named.keys()
        given.update(named)
        if twice or len(values) > len(self.FIELDS) or not given.keys() <= {*self.FIELDS}:
            raise TypeError(f"{type(self).__name__} has the fields {self.FIELDS}, and not {values}, {named}")
        for name in self.FIELDS:
            if name not in given:
                try:
                    given[name] = getattr(type(self), name)
                except AttributeError:
                    raise TypeError(f"{type(self).__name__} needs its {name}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} of a {type(self).__name__} cannot be set: it is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} of a {type(self).__name__} cannot be removed: it is frozen")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[name] for name in self.FIELDS)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={self.__dict__[name]!r}' for name in self.FIELDS)})"


def fields(record: Record | type[Record]) -> tuple[str, ...]:
    """The names of its fields, in order."""
    return record.FIELDS


def replace(record: R, **changes: Any) -> R:
    """The same record with other values in these fields."""
    return type(record)(**{**record.__dict__, **changes})


def asdict(record: Record) -> dict[str, Any]:
    """Its fields, with the records in them taken apart likewise."""
    return {name: _plain(record.__dict__[name]) for name in record.FIELDS}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return asdict(value)
    return type(value)(_plain(item) for item in value) if isinstance(value, tuple | list) else value

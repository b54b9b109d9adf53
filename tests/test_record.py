"""Records are what dataclasses would be."""

from __future__ import annotations

from typing import ClassVar

import pytest
from isolated_python.record import Record, asdict, fields, replace


class Point(Record):
    KINDS: ClassVar[int] = 2
    x: int
    y: int = 0


class Named(Point):
    name: str = ""
    parts: tuple[Point, ...] = ()


def test_fields_are_those_of_the_base_and_then_its_own_by_position_or_name() -> None:
    made = Named(1, name="a", parts=(Point(2),))
    assert (made.x, made.y, made.name, fields(Named)) == (1, 0, "a", ("x", "y", "name", "parts"))
    assert asdict(made) == {"x": 1, "y": 0, "name": "a", "parts": ({"x": 2, "y": 0},)}
    assert repr(Point(1)) == "Point(x=1, y=0)"


def test_equal_values_of_one_class_are_equal_and_hash_alike() -> None:
    assert Point(1) == Point(1, 0) == Point(y=0, x=1)
    assert Point(1) != Named(1)
    assert len({Point(1), Point(1, 0), Named(1)}) == 2
    assert replace(Point(1), y=3) == Point(1, 3)


def test_nobody_changes_one() -> None:
    made = Point(1)
    for change in (lambda: setattr(made, "x", 2), lambda: setattr(made, "z", 2), lambda: delattr(made, "x")):
        with pytest.raises(AttributeError, match="frozen"):
            change()
    assert made == Point(1)


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_what_is_missing_too_much_given_twice_or_unknown_is_refused(
    values: tuple[int, ...], named: dict[str, int]
) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*values, **named)

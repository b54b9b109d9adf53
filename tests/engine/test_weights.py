"""Who computes is told from who answers by numbers alone."""

from __future__ import annotations

from isolated_python.engine.weights import crowded


def test_a_quarter_of_a_core_computes_where_there_is_room() -> None:
    assert crowded([], 2) == 0.25
    assert crowded([1.0, 0.02], 2) == 0.25


def test_in_a_crowd_a_quarter_of_an_equal_share_does() -> None:
    thirty = [2 / 30] * 30
    assert crowded(thirty, 2) < thirty[0]
    assert crowded([*thirty, 0.015], 2) > 0.015  # who answers short cells beside them does not
    assert crowded([0.001] * 100, 2) == 0.25  # who sleeps is not there

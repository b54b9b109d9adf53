"""What is said of the attacks is true: the page that lists them, and the layers that they are for."""

from __future__ import annotations

import pytest
from isolated_python.layers.filters.kernel import ABSENT, AUDITED, SILENT
from isolated_python.linux.libc import MACHINE
from isolated_python.policy.profile import LAYERS

from tests.escapes.attack import Attack
from tests.escapes.page import PAGE, every, page
from tests.escapes.test_kernel_surface import CALLS

PARTS = {
    "environment",
    "descriptors",
    "privileges",
    "relay",
    "workspace",
}  # what stops attacks and is no layer of a profile


def every_attack() -> list[Attack]:
    return [one for _, _, attacks in every() for one in attacks]


@pytest.mark.skipif(MACHINE != "x86_64", reason="the page lists the attacks made of this machine's code and numbers")
def test_the_page_of_attacks_is_up_to_date() -> None:
    """docs/attacks.md says what the tests do."""
    assert PAGE.read_text() == page(), "run: make docs/attacks.md"


def test_each_layer_has_an_attack_that_it_stops() -> None:
    """And each attack names a layer, or a part of ours, that stops it."""
    named = {one.stopped_by for one in every_attack()}
    assert named >= {*LAYERS}
    assert named <= {*LAYERS} | PARTS


def test_every_attack_has_a_name_of_its_own() -> None:
    names = [one.name for one in every_attack()]
    assert sorted({*names}) == sorted(names)


@pytest.mark.skipif(MACHINE != "x86_64", reason="the attacks on the kernel's surface are numbers of this machine")
def test_each_call_that_the_filter_refuses_is_tried() -> None:
    """By its number; memfd_secret by an attack of its own, and umount is no call of this machine."""
    refused = {call for group in (*AUDITED, *SILENT, *ABSENT) for call in group.calls}
    assert refused - {"memfd_secret", "umount"} <= {name for _, calls in CALLS.values() for name in calls}

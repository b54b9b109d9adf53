"""The proof: outside, the attack does its harm; inside, the same program does none."""

from __future__ import annotations

from tests.escapes.attack import Attack
from tests.escapes.places import Place


def prove(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    """Fails where the attack works inside, with the name of the layer that should stop it; or fails to work outside."""
    life = place.combination.life
    if (attack.name, life) not in proven:
        with attack.target(place, attack, inside=False) as target:
            said = place.outside(attack, target.facts)
            harm = target.harm(said)
        assert harm, f"the control of {attack} does no harm, so that a refusal would prove nothing: {said}"
        proven.add((attack.name, life))
    with attack.target(place, attack, inside=True) as target:
        said = place.inside(attack, target.facts)
        print(f"inside, {attack} got: {said}")
        harm = target.harm(said)
    assert said.ran, f"{attack} did not even try: {said}"
    assert not harm, f"{attack} succeeded: {harm}. The layer {attack.stopped_by} should stop it."

"""What becomes of chips, together."""

from __future__ import annotations

from dataclasses import asdict

from daskembed.fates import FATE_DTYPES, SAID, Fate, Fates

FOUND = {
    "sound": Fate(),
    "odd": Fate(noted="B02 is 0 in 1.0000% of its pixels"),
    "holed": Fate(filled=3),
    "cloudy": Fate(rejected="clouds"),
    "damaged": Fate(quarantined="is damaged", filled=2, noted="of no use"),
}


def test_of_a_chip_without_an_embedding_only_the_reason_is_kept() -> None:
    fates = Fates()
    for url, fate in FOUND.items():
        fates.add(url, fate)
    assert asdict(fates) == {
        "chips": 3,
        "quarantined": {"damaged": "is damaged"},
        "rejected": {"cloudy": "clouds"},
        "filled": {"holed": 3},
        "noted": {"odd": "B02 is 0 in 1.0000% of its pixels"},
    }


def test_fates_of_parts_add_up() -> None:
    both, one, other = Fates(), Fates(), Fates()
    for number, (url, fate) in enumerate(FOUND.items()):
        both.add(url, fate)
        (other if number % 2 else one).add(url, fate)
    one.update(other)
    assert one == both


def test_each_part_of_a_fate_has_a_type_and_most_a_place() -> None:
    """As coordinates, columns and in the notes of parts."""
    assert tuple(FATE_DTYPES) == Fate._fields
    assert {*SAID} < {*asdict(Fates())}
    assert {*Fate._fields} - {*SAID} == {"cloud"}

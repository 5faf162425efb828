"""What a file says of its bands' numbers, and what is made of them: settled once an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed.errors import ChipError
from daskembed.sensors.bands import UNSAID, Band, Numbers, Sensor
from daskembed.sources.baseline import Evidence, check_level, offset_of
from daskembed.sources.findings import named

if TYPE_CHECKING:
    from daskembed.sources.reading import Reading


# Nobody stores a band of which most numbers are beyond this: tags that would need it are of another kind.
_LARGEST_STORED = 1e6

# Reflectance is hardly ever more, and digital numbers of a whole chip are never all so small, with fractions.
LARGEST_REFLECTANCE = 2.0


@dataclass(frozen=True)
class Scale:
    """What a file says of a band's numbers, and what is made of them."""

    nodata: tuple[float, ...] = ()
    """Numbers that stand for no value."""
    scale: float = 1.0
    offset: float = 0.0
    applied: bool = True
    """Whether numbers are multiplied by `scale` and `offset` is added; else they are taken as they are stored."""
    numbers: Numbers = UNSAID
    """What the band's numbers can be, after that."""
    taken_out: int = 0
    """What is taken from each number afterwards."""
    remark: str = ""
    """Why that is taken out, or what nobody knows of it."""
    offset_applied: bool = False
    """Whether it was taken out of the stored numbers before."""
    absent: str = "is masked or was never written"
    """What is said of pixels that the storage itself has not."""
    sea: bool = False
    """Whether the storage has nothing where there is nothing but sea."""
    expected: float | None = None
    """About what the stored numbers must be if they are digital numbers; None if they may be anything."""

    @property
    def tagged(self) -> bool:
        """Whether the file has a scale or an offset."""
        return (self.scale, self.offset) != (1, 0)

    @property
    def changes(self) -> bool:
        """Whether numbers are changed that are values."""
        return bool(self.taken_out) or (self.applied and self.tagged)

    @property
    def gaps(self) -> tuple[float, ...]:
        """Those of `nodata` that count: a number that means something in this band means it whatever a tag says."""
        return tuple(number for number in self.nodata if not (self.numbers.zero and self.value_of(number) == 0))

    def __str__(self) -> str:
        nodata = f"nodata {', '.join(f'{value:g}' for value in self.gaps)}" if self.gaps else ""
        times = f"times {self.scale:g} plus {self.offset:g}" if self.tagged else ""
        if times and not self.applied:
            times = f"numbers as they are stored, not {times}"
        return ", ".join(filter(None, [nodata, times, self.remark]))

    def value_of(self, number: float) -> float:
        """Of a stored number, before anything is taken out."""
        return number * self.scale + self.offset if self.applied else number


def note_of(bands: Sequence[str], scales: Sequence[Scale]) -> str:
    """What is said of some bands' numbers; empty if nothing is done to them."""
    alike: dict[str, list[str]] = {}
    for band, scale in zip(bands, scales, strict=True):
        alike.setdefault(str(scale), []).append(band)
    if len(alike) == 1:
        return next(iter(alike))
    return "; ".join(f"{named(names)}: {said}" for said, names in alike.items() if said)


def settle(
    scales: Sequence[Scale],
    bands: Sequence[Band],
    sensor: Sensor,
    kind: np.dtype[Any] | Sequence[np.dtype[Any]],
    reading: Reading,
    evidence: Evidence,
) -> tuple[Scale, ...]:
    """What is made of the numbers of an image's bands.

    Parameters
    ----------
    scales
        What the files say, by band.
    bands
        Of `sensor`, likewise.
    kind
        Type of the stored numbers, of all bands or by band.
    reading
        With the flags that decide where nothing else does.
    evidence
        What tells whether the +1000 of Sentinel-2's processing baseline 04.00 is in the pixels.

    Raises
    ------
    ChipError
        If tags can be meant in two ways, or in none, or integers without tags cannot be what the encoder takes; if
        files contradict each other, or are of a level that the encoder does not take.
    """
    made = []
    kinds = [kind] * len(bands) if isinstance(kind, np.dtype) else kind
    for scale, band, stored in zip(scales, bands, kinds, strict=True):
        numbers = sensor.numbers_of(band)
        applied = scale.tagged and _are_values(scale, band, numbers, stored, reading, decibels=sensor.decibels)
        # Where it is asked for, or is power or height, whatever numbers there are will do.
        free = reading.numbers == "stored" or numbers.stored is False or sensor.decibels
        if not (free or scale.tagged or stored.kind == "f" or _fits(band.mean, band.std, stored)):
            raise ChipError(
                f"has {stored} without a scale in {band.name}: the encoder was trained on a mean of {band.mean:g} "
                f"(standard deviation {band.std:g}), which these cannot be; write the original numbers, or take these "
                "as they are with `numbers='stored'`"
            )
        digital = not (free or applied) and stored.kind == "f" and band.mean > 10 * LARGEST_REFLECTANCE
        expected = band.mean if digital else None
        made.append(replace(scale, numbers=numbers, applied=applied or not scale.tagged, expected=expected))
    return _take_out(made, bands, reading, evidence)


def _are_values(
    scale: Scale, band: Band, numbers: Numbers, kind: np.dtype[Any], reading: Reading, *, decibels: bool
) -> bool:
    """Whether the encoder takes what scale and offset make of a band's numbers, and not the stored ones."""
    tags = f"the scale {scale.scale:g} and the offset {scale.offset:g}"
    if not (math.isfinite(scale.scale) and math.isfinite(scale.offset)) or scale.scale == 0:
        raise ChipError(f"has {tags} in {band.name}: expected numbers, and a scale other than 0")
    if numbers.stored is False or decibels:
        return True
    if reading.numbers is not None:
        return reading.numbers == "values"
    if numbers.added and (scale.scale, scale.offset) == (1, -numbers.added):
        return False
    stored = _fits(band.mean, band.std, kind)
    values = _fits((band.mean - scale.offset) / scale.scale, band.std / abs(scale.scale), kind)
    if stored != values:
        return values
    if stored and numbers.stored:
        return False
    either = "both the numbers stored" if stored else "neither the numbers stored"
    raise ChipError(
        f"has {tags} in {band.name}, stored as {kind}: the encoder was trained on a mean of {band.mean:g} (standard "
        f"deviation {band.std:g}), which {either} {'and' if stored else 'nor'} the values they stand for can be; say "
        "which to take with `numbers='stored'` or `numbers='values'`"
    )


def _fits(mean: float, std: float, kind: np.dtype[Any]) -> bool:
    """Whether numbers of this mean and standard deviation can have been stored as `kind`."""
    if abs(mean) + std > _LARGEST_STORED:
        return False
    if kind.kind == "f":
        return True
    limits = np.iinfo(kind)
    return bool(limits.min <= mean and mean + std <= limits.max and std >= 1)


def _take_out(
    scales: Sequence[Scale], bands: Sequence[Band], reading: Reading, evidence: Evidence
) -> tuple[Scale, ...]:
    """The same for all bands of an image: they come from one product."""
    if any(scale.numbers.added for scale in scales):
        check_level(evidence)
    unscaled = {
        band.name: scale
        for band, scale in zip(bands, scales, strict=True)
        if scale.numbers.added and not (scale.tagged and scale.applied)
    }
    if not unscaled:
        return tuple(scales)
    exact = [(scale.scale, scale.offset) == (1, -scale.numbers.added) for scale in unscaled.values()]
    reflectance = [(scale.scale, scale.offset) == (1e-4, -scale.numbers.added / 1e4) for scale in unscaled.values()]
    decision = offset_of(
        evidence,
        asked=reading.offset_applied,
        tagged=any(exact) or any(reflectance),
        # Who wants the stored numbers does not believe the tags.
        exactly=all(exact) and reading.numbers != "stored",
    )
    return tuple(
        replace(
            scale,
            taken_out=scale.numbers.added if decision.inside else 0,
            remark=decision.remark,
            offset_applied=decision.applied,
        )
        if band.name in unscaled
        else scale
        for band, scale in zip(bands, scales, strict=True)
    )

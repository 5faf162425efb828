"""How the numbers that a file stores become what an encoder takes, and which pixels are there: one answer a band."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags

from daskembed.errors import ChipError
from daskembed.sensors.bands import UNSAID, Band, Numbers, Sensor
from daskembed.sources.baseline import Evidence, check_level, offset_of
from daskembed.sources.vrt import SIGNATURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.sources.reading import Reading

SIDECARS = (".aux.xml", ".msk")
"""What the name of a file ends with that says more of the pixels of another: nodata and the like, and its mask."""
MOST_SIDECAR = 2**20
"""Bytes of one of tags."""
# Nothing beside a file moves one that says itself where it is. (Without PAM in the list GDAL reads no nodata of it.)
BESIDE = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "GDAL_GEOREF_SOURCES": "INTERNAL,PAM"}
"""With these settings GDAL reads such files too, and takes CRS and transform from them only where a file has none."""
CLEAR = (2, 4, 5, 6, 7, 11)
"""Classes of Sentinel-2's scene classification that show the ground: dark, plants, soil, water, unclassified, snow."""
# Nobody stores a band of which most numbers are beyond this: tags that would need it are of another kind.
_LARGEST_STORED = 1e6
# Reflectance is hardly ever more, and digital numbers of a whole chip are never all so small, with fractions.
_LARGEST_REFLECTANCE = 2.0


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


class Finding(NamedTuple):
    """Pixels of a band that are not as the others."""

    band: str
    what: str
    """Such as ``is masked``."""
    share: float
    """Of the chip's pixels."""
    missing: bool = True
    """Whether they have no value; else it is one that stands for nothing."""

    def __str__(self) -> str:
        return f"{self.band} {self.what} in {self.share:.4%} of its pixels"


def summarise(findings: Iterable[Finding]) -> str:
    """Some findings in a line: bands of which the same is said are named together."""
    alike: dict[tuple[str, float], list[str]] = {}
    for one in findings:
        alike.setdefault((one.what, one.share), []).append(one.band)
    return "; ".join(str(Finding(_named(bands), what, share)) for (what, share), bands in alike.items())


def _named(bands: Sequence[str]) -> str:
    return " ".join(bands) if len(bands) < 4 else f"{bands[0]} to {bands[-1]} ({len(bands)} bands)"


def note_of(bands: Sequence[str], scales: Sequence[Scale]) -> str:
    """What is said of some bands' numbers; empty if nothing is done to them."""
    alike: dict[str, list[str]] = {}
    for band, scale in zip(bands, scales, strict=True):
        alike.setdefault(str(scale), []).append(band)
    if len(alike) == 1:
        return next(iter(alike))
    return "; ".join(f"{_named(names)}: {said}" for said, names in alike.items() if said)


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
        digital = not (free or applied) and stored.kind == "f" and band.mean > 10 * _LARGEST_REFLECTANCE
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


def to_values(
    stored: NDArray[np.generic],
    bands: Sequence[str],
    scales: Sequence[Scale],
    masked: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.generic], list[Finding]]:
    """What an encoder takes of a chip's stored numbers, and what is to be said of its pixels.

    Parameters
    ----------
    stored
        ``(band, y, x)``.
    bands, scales
        Names, and what is made of the numbers, by band.
    masked
        Pixels that are not there by the storage's own masks, if it has any.

    Returns
    -------
    pixels
        ``(band, y, x)``, NaN where there is no value; `stored` itself if nothing changes.
    findings
        What is missing and what stands for nothing, by band and reason.

    Raises
    ------
    ChipError
        If a band holds reflectance where the encoder takes digital numbers.
    """
    # A part of a larger piece is slow to look at again and again.
    stored = np.ascontiguousarray(stored)
    # Most chips are sound, and their extremes show it.
    flat = stored.reshape(len(stored), -1)
    lowest, highest = flat.min(axis=1), flat.max(axis=1)
    findings: list[Finding] = []
    kept = []
    for number, (name, scale) in enumerate(zip(bands, scales, strict=True)):
        mask = None if masked is None or not masked[number].any() else masked[number]
        extremes = float(lowest[number]), float(highest[number])
        kept.append(_band_values(stored[number], name, scale, mask, extremes, findings))
    if all(new is None for new in kept):
        return stored, findings
    return np.stack([old if new is None else new for old, new in zip(stored, kept, strict=True)]), findings


def _band_values(
    image: NDArray[np.generic],
    name: str,
    scale: Scale,
    mask: NDArray[np.bool_] | None,
    extremes: tuple[float, float],
    findings: list[Finding],
) -> NDArray[np.generic] | None:
    """A band's values; None if they are the stored numbers."""
    limits, (low, high) = scale.numbers, sorted(map(scale.value_of, extremes))
    # Written so that extremes of NaN, which hide the others, rule nothing out, and are not sound.
    declared = [
        value
        for value in (_as_stored(number, image.dtype) for number in scale.gaps)
        if not (value < extremes[0] or value > extremes[1])
    ]
    sound = limits.low <= low and high <= limits.high and mask is None and not declared
    if scale.expected is not None and not (sound and high > _LARGEST_REFLECTANCE):
        _check_digital(image, name, scale, mask, declared)
    if sound and not scale.changes and not (limits.zero == "empty" and low <= 0):
        return None
    values = image
    if scale.applied and scale.tagged:
        values = image.astype(np.float32) * np.float32(scale.scale) + np.float32(scale.offset)
        if limits.zero == "empty":
            # What stands for nothing does so as it is stored.
            values = np.where(image == 0, np.float32(0), values)
    gaps = np.zeros(image.shape, np.bool_)
    if not sound:
        reasons = [
            ("is NaN", np.isnan(values)),
            ("is infinite", np.isinf(values)),
            (limits.below, values < limits.low),  # type: ignore[operator]
            (f"is above {limits.high:g}", values > limits.high),  # type: ignore[operator]
            *((f"is nodata ({value:g})", image == value) for value in declared),
            *([(scale.absent, mask)] if mask is not None else []),
        ]
        for what, where in reasons:
            new = where & ~gaps
            if count := np.count_nonzero(new):
                findings.append(Finding(name, what, count / image.size))
                gaps |= new
    if limits.zero == "empty" and (count := np.count_nonzero((values == 0) & ~gaps)):
        findings.append(Finding(name, "is 0", count / image.size, missing=False))
    if scale.taken_out:
        values = values.astype(np.int16) if values.itemsize == 1 else values
        # 0 is nothing and stays so; what would be darker than the darkest is the darkest.
        least = np.maximum(values, values.dtype.type(scale.taken_out + 1)) - values.dtype.type(scale.taken_out)
        values = np.where(values >= 1, least, values)  # type: ignore[operator]
    if gaps.any():
        return np.where(gaps, np.float32(np.nan), values.astype(np.float32))
    return None if values is image else values


def _check_digital(
    image: NDArray[np.generic], name: str, scale: Scale, mask: NDArray[np.bool_] | None, declared: Sequence[float]
) -> None:
    """Raise `ChipError` if a band's numbers, as far as they are there, are fractions no larger than reflectance."""
    there = np.isfinite(image) & (image <= scale.numbers.high) & ~np.isin(image, declared)  # type: ignore[operator]
    found = image[there if mask is None else there & ~mask]
    if found.size and found.max() <= _LARGEST_REFLECTANCE and np.any(found % 1 != 0):
        raise ChipError(
            f"has no number above {found.max():.3g} in {name}: it looks like reflectance, the encoder takes digital "
            f"numbers, of which the mean is {scale.expected:g}; write those (of Sentinel-2 reflectance times 10,000), "
            "or take these as they are with `numbers='stored'`"
        )


def _as_stored(number: float, kind: np.dtype[Any]) -> float:
    """A number as a file holds it that stores this type."""
    with np.errstate(over="ignore"):
        return float(kind.type(number)) if kind.kind == "f" else number


def to_classes(stored: NDArray[np.generic], scale: Scale, masked: NDArray[np.bool_] | None) -> NDArray[np.generic]:
    """Classes of a scene classification, 0 (nodata) where there are none; `scale` as of the bands beside them."""
    values = stored
    if scale.applied and scale.tagged:
        values = np.round(stored.astype(np.float64) * scale.scale + scale.offset)
    for nothing in (*(stored == value for value in scale.nodata), *([masked] if masked is not None else [])):
        values = np.where(nothing, values.dtype.type(0), values)
    return values


def unclear(classes: NDArray[np.generic]) -> float:
    """Share of a scene classification that shows no ground: nodata, saturated, shadow, cloud, cirrus, no class."""
    return (classes.size - int(np.count_nonzero(np.isin(classes, CLEAR)))) / classes.size


def scale_of(dataset: Any, number: int) -> Scale:
    """What the tags of a band (from 1) of an open rasterio dataset say of its numbers."""
    gap = dataset.nodatavals[number - 1]
    nodata = () if gap is None or math.isnan(gap) else (float(gap),)
    return Scale(nodata, float(dataset.scales[number - 1]), float(dataset.offsets[number - 1]))


def read_bands(dataset: Any, bands: Sequence[int], window: Any = None) -> NDArray[np.generic]:
    """Bands of an open rasterio dataset ``(band, y, x)``: a masked array where the dataset itself has masks.

    What nodata tags say is left to `Scale`.
    """
    pixels: NDArray[np.generic] = dataset.read(list(bands), window=window)
    flags = [dataset.mask_flag_enums[number - 1] for number in bands]
    with_masks = [
        place for place, kinds in enumerate(flags) if MaskFlags.per_dataset in kinds and MaskFlags.alpha not in kinds
    ]
    # GDAL takes the fourth band of an 8-bit image for alpha, also where it is the near infrared that is wanted, or
    # said to be one; a fifth it leaves out.
    uses = zip(dataset.indexes, dataset.colorinterp, strict=True)
    alpha = [
        number
        for number, use in uses
        if use == ColorInterp.alpha
        and number not in bands
        and re.fullmatch(r"(?i)|.*alpha.*|mask|a", dataset.descriptions[number - 1] or "")
    ]
    if not with_masks and not alpha:
        return pixels
    masks = np.zeros(pixels.shape, np.bool_)
    if with_masks:
        masks[with_masks] = dataset.read_masks([bands[place] for place in with_masks], window=window) == 0
    for number in alpha:
        masks |= dataset.read(number, window=window) == 0
    return np.ma.masked_array(pixels, masks)


def part_masks(pixels: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
    """The numbers of what a reader gave, and which are masked, if it has masks."""
    if isinstance(pixels, np.ma.MaskedArray):
        return pixels.data, np.ma.getmaskarray(pixels)
    return pixels, None


# What is found while a chip is read is told to whoever listens in the same thread: the device, which reports it.
_listening: ContextVar[list[Finding] | None] = ContextVar("listening", default=None)


@contextlib.contextmanager
def listening() -> Iterator[list[Finding]]:
    """A list of what is told of the pixels that are read in the block."""
    heard: list[Finding] = []
    token = _listening.set(heard)
    try:
        yield heard
    finally:
        _listening.reset(token)


def tell(findings: Iterable[Finding]) -> None:
    """Tell of pixels to whoever is listening."""
    heard = _listening.get()
    if heard is not None:
        heard += findings


def check_sidecar(path: str, data: bytes) -> None:
    """Raise `ChipError` for a file beside another that would have GDAL open a third: it goes by content, not by name.

    Parameters
    ----------
    path
        Of the file.
    data
        All of it; of a mask its beginning will do.
    """
    if path.endswith(".msk") and not data.startswith(SIGNATURES):
        raise ChipError(f"has beside it {path}, which is no TIFF: it starts with {data[:8]!r}")
    if not path.endswith(".msk") and (len(data) > MOST_SIDECAR or re.search(rb"(?i)OVERVIEW_FILE|<!DOCTYPE", data)):
        raise ChipError(f"has beside it {path}, which is long or names other files: remove it")

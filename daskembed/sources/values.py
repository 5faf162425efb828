"""How the numbers that a file stores become what an encoder takes, and which pixels are there: one answer a band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed.errors import ChipError
from daskembed.sources.findings import Finding
from daskembed.sources.scales import LARGEST_REFLECTANCE, Scale

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    if scale.expected is not None and not (sound and high > LARGEST_REFLECTANCE):
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
    if found.size and found.max() <= LARGEST_REFLECTANCE and np.any(found % 1 != 0):
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


def part_masks(pixels: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.bool_] | None]:
    """The numbers of what a reader gave, and which are masked, if it has masks."""
    if isinstance(pixels, np.ma.MaskedArray):
        return pixels.data, np.ma.getmaskarray(pixels)
    return pixels, None

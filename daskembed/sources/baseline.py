"""Whether the +1000 of Sentinel-2's processing baseline 04.00 is in an image's pixels, decided an image at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

from daskembed.errors import ChipError
from daskembed.sensors.bands import MARK

FIRST_BASELINE, FIRST_DAY = 4.0, date(2022, 1, 25)
"""From these on ESA adds 1000 to every number of Sentinel-2; older images, processed again, have it too."""
CORRECTED = ("s3://sentinel-cogs/",)
"""Where the offset was taken out by who put the files there."""
_OWN = ("processing_baseline", "processingbaseline")
# What a catalogue says of a product stays with its images when somebody has taken the offset out of them.
_CATALOGUE = ("s2:processing_baseline", "processing:version")
_CORRECTORS = "earthsearch:"
_LEVELS = ("processing_level", "processing:level", "product_type", "s2:product_type")
# S2A_MSIL2A_20220305T100031_N0400_R122_T33TUL_20220305T134015
_NAME = re.compile(r"_N(\d{4})_")
_LEVEL = re.compile(r"(?:MSIL|sentinel-s2-l|S2[A-D]_\w+_L)(1C|2A)(?![A-Za-z0-9])", re.IGNORECASE)
# 04.00, 4.00, 5.1, N0400, V05.00; with the point lost 400, and as a number 4. What others run is 99.99: not known.
_BASELINE = re.compile(r"[A-Za-z :=_.-]*(?:0(\d)\.?(\d\d)|([1-9])\.?(\d\d)|0?(\d)(?:\.(\d))?)")


@dataclass(frozen=True)
class Evidence:
    """What tells of an image's offset."""

    url: str
    day: date | None
    tags: Mapping[str, Any] = field(default_factory=dict)
    """The file's own metadata."""
    others: tuple[Evidence, ...] = ()
    """The further files that the image is made of."""

    @property
    def files(self) -> tuple[Evidence, ...]:
        """All of them."""
        return (self, *(file for other in self.others for file in other.files))

    @property
    def told(self) -> dict[str, str]:
        """The file's metadata by names in small letters."""
        return {str(key).lower(): str(value) for key, value in self.tags.items()}


class Decision(NamedTuple):
    """What is known of an image's offset."""

    inside: bool
    """Whether it is in the numbers, and to be taken out."""
    remark: str = ""
    """What the receipt says of it."""
    applied: bool = False
    """Whether it was there and has been taken out before."""


def offset_of(evidence: Evidence, *, asked: str | None, tagged: bool, exactly: bool = False) -> Decision:
    """Whether the offset is in the pixels, and what the receipt says of it: one answer for all files of an image.

    Parameters
    ----------
    evidence
        What the files and their place tell.
    asked
        ``yes``, it is taken out already; ``no``, it is in the pixels of images that have it; None, not said.
    tagged
        Whether they have a tag of that offset: public files have one of reflectance whether it is taken out or not.
    exactly
        Whether the tag is of the numbers themselves, scale 1 and offset -1000, which no public files have either way.

    Raises
    ------
    ChipError
        If the files are of baselines with and without it, and nobody says that it is taken out.
    """
    if _marked(evidence):
        return Decision(False, "1000 was taken out when the cube was written", applied=True)
    if asked == "yes":
        return Decision(False, applied=True)
    own, catalogue = _own_baseline(evidence), _first(evidence.told, _CATALOGUE)
    baseline = catalogue if own is None else own
    if baseline is not None and baseline < FIRST_BASELINE:
        return Decision(False)
    if asked == "no":
        if baseline is None and not exactly and evidence.day is not None and evidence.day < FIRST_DAY:
            return Decision(
                False,
                f"as they are, whatever `offset_applied='no'` says: of images before {FIRST_DAY} only those have the "
                "1000 whose processing baseline says so",
            )
        return Decision(True, "1000 taken out (`offset_applied='no'`)")
    if evidence.url.startswith(CORRECTED):
        return Decision(False)
    corrector = any(key.startswith(_CORRECTORS) for file in evidence.files for key in file.told)
    if own is not None and not corrector:
        return Decision(True, f"1000 taken out (processing baseline {own:05.2f})")
    if exactly:
        return Decision(True, "1000 taken out (tags of scale 1 and offset -1000 say that it is there)")
    if tagged or baseline is not None or (evidence.day is not None and evidence.day >= FIRST_DAY):
        said = f", not the processing baseline {baseline:05.2f} of a catalogue," if baseline is not None else ""
        return Decision(
            False,
            f"as they are, for nothing tells{said} whether the 1000 that ESA adds since {FIRST_DAY} is still in these "
            "numbers: `offset_applied` yes or no decides",
        )
    return Decision(False)


def check_level(evidence: Evidence) -> None:
    """Raise `ChipError` if an image is of level 1C, by the products' names or the files' metadata."""
    for file in evidence.files:
        said = next((f"{key} {file.told[key]}" for key in _LEVELS if re.search(r"1C\b", file.told.get(key, ""))), None)
        levels = _LEVEL.findall(file.url)
        if said is not None or (levels and levels[-1].upper() == "1C"):
            raise ChipError(
                f"is of level 1C, as {said or f'the name of {file.url}'} says: expected level 2A, reflectance at the "
                "ground, which the encoders were trained on"
            )


def _marked(evidence: Evidence) -> bool:
    days = evidence.tags.get(MARK)
    return isinstance(days, list) and str(evidence.day) in days


def _own_baseline(evidence: Evidence) -> float | None:
    """Processing baseline by the files' own metadata or the products' names."""
    known: dict[float, str] = {}
    for file in evidence.files:
        baseline = _first(file.told, _OWN)
        if baseline is None and (named := named_baseline(file.url)) is not None:
            baseline = parse_baseline(named)
        if baseline is not None:
            known.setdefault(baseline, file.url)
    if not known:
        return None
    first, last = min(known), max(known)
    if first < FIRST_BASELINE <= last:
        raise ChipError(
            f"is made of files of the processing baselines {first:05.2f} ({known[first]}) and {last:05.2f} "
            f"({known[last]}): ESA adds 1000 to all numbers since {FIRST_BASELINE:05.2f}; keep them apart, or take it "
            "out and say `offset_applied='yes'`"
        )
    return last


def _first(told: Mapping[str, str], keys: Sequence[str]) -> float | None:
    """The first baseline that some of a file's metadata tell."""
    return next((found for key in keys if key in told and (found := parse_baseline(told[key])) is not None), None)


def named_baseline(name: str) -> str | None:
    """The digits of the baseline in the name of a product, the last one of a path; None if there are none."""
    return names[-1] if (names := _NAME.findall(name)) else None


def parse_baseline(text: str) -> float | None:
    """A processing baseline, however it is written; None if it is not known."""
    match = _BASELINE.fullmatch(text.strip())
    if match is None:
        return None
    major, minor = [group for group in (*match.groups(), "", "") if group is not None][:2]
    return int(major) + int(minor.ljust(2, "0")) / 100

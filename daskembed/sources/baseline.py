"""Whether the +1000 of Sentinel-2's processing baseline 04.00 is in a file's pixels, decided a file at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

FIRST_BASELINE, FIRST_DAY = 4.0, date(2022, 1, 25)
"""From these on ESA adds 1000 to every number of Sentinel-2; older images, processed again, have it too."""
CORRECTED = ("s3://sentinel-cogs/",)
"""Where the offset was taken out by who put the files there."""
_KEYS = ("processing_baseline", "s2:processing_baseline", "processing:version", "processingbaseline")
# S2A_MSIL2A_20220305T100031_N0400_R122_T33TUL_20220305T134015
_NAME = re.compile(r"_N(\d{2})(\d{2})_")


@dataclass(frozen=True)
class Evidence:
    """What tells of a file's offset."""

    url: str
    day: date | None
    tags: Mapping[str, Any] = field(default_factory=dict)
    """The file's own metadata."""


def offset_of(evidence: Evidence, *, asked: str | None, tagged: bool) -> tuple[bool, str]:
    """Whether the offset is in the pixels, and what the receipt says of it.

    Parameters
    ----------
    evidence
        What the file and its place tell.
    asked
        ``yes``, it is taken out already; ``no``, it is in the pixels of baselines that have it; None, not said.
    tagged
        Whether the file has a tag of that offset: public files have one whether it is taken out or not.
    """
    baseline = _baseline(evidence)
    if asked == "yes" or (baseline is not None and baseline < FIRST_BASELINE):
        return False, ""
    if asked == "no":
        return True, "1000 taken out (--offset-applied no)"
    if evidence.url.startswith(CORRECTED):
        return False, ""
    if baseline is not None:
        return True, f"1000 taken out (processing baseline {baseline:05.2f})"
    if tagged or (evidence.day is not None and evidence.day >= FIRST_DAY):
        return False, (
            "as they are, for nothing tells whether the 1000 that ESA adds since 2022-01-25 is still in these numbers: "
            "--offset-applied yes or no decides"
        )
    return False, ""


def _baseline(evidence: Evidence) -> float | None:
    """Processing baseline of a file, by its metadata or the product's name."""
    told = {str(key).lower(): str(value) for key, value in evidence.tags.items()}
    found = [re.fullmatch(r"N?(\d{1,2})\.?(\d{2}|\d)?", told[key].strip()) for key in _KEYS if key in told]
    named = _NAME.findall(evidence.url)
    parts = [(match[1], (match[2] or "0").ljust(2, "0")) for match in found if match] + named[-1:]
    # 99.99 is what ESA's processor calls itself when others run it.
    known = [int(major) + int(minor) / 100 for major, minor in parts if int(major) < 90]
    return known[0] if known else None

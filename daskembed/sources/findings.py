"""What is unusual about the pixels of a chip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


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
    return "; ".join(str(Finding(named(bands), what, share)) for (what, share), bands in alike.items())


def named(bands: Sequence[str]) -> str:
    """Some bands in words."""
    return " ".join(bands) if len(bands) < 4 else f"{bands[0]} to {bands[-1]} ({len(bands)} bands)"

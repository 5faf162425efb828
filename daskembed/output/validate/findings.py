"""What is found in a published file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from daskembed.text import visible

MOST_TOLD = 1000
"""Characters of a message."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found in a file."""

    check: str
    """What was looked at: ``name``, ``parquet``, ``zarr``, ``geo``, ``schema``, ``vectors``, ``geometry``, ``dates``,
    ``order``, ``duplicates``, ``provenance``, ``receipt`` or ``stac``; of exports ``covering``, ``pages``,
    ``quantization``, ``cog`` or ``lance``, too."""
    message: str
    """What was found and what was expected."""
    severity: Literal["problem", "note"] = "problem"
    """A note is a difference that does no harm, or a check that could not be made."""

    def __post_init__(self) -> None:
        # Much of it is what somebody else's file says.
        told = visible(self.message)
        object.__setattr__(self, "message", told if len(told) <= MOST_TOLD else f"{told[:MOST_TOLD]}...")

    def __str__(self) -> str:
        return f"note: {self.message}" if self.severity == "note" else self.message


@dataclass
class Faults:
    """Rows with faults, counted by fault, the first of each named."""

    seen: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)

    def add(self, check: str, what: str, urls: Sequence[str], rows: Any) -> None:
        """Count `rows`, the numbers in `urls` of the rows that have the fault."""
        if len(rows):
            first, count = self.seen.get((check, what), (urls[rows[0]], 0))
            self.seen[check, what] = (first, count + len(rows))

    def findings(self) -> Iterator[Finding]:
        """A finding a fault."""
        for (check, what), (first, count) in self.seen.items():
            more = f" (and {count - 1} more)" if count > 1 else ""
            yield Finding(check, f"row {first}{more}: {what}")

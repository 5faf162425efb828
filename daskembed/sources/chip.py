"""How one chip is read, whatever kind of source it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from daskembed.sources.findings import Finding
    from daskembed.sources.scales import Scale


class ReadChip(NamedTuple):
    """What reading a chip gives."""

    pixels: NDArray[np.generic]
    """``(band, y, x)`` in the source's own type, in the encoder's order of bands."""
    findings: list[Finding]
    """What is missing, or stands for nothing, by band and reason."""
    cloud: float | None = None
    """Share of the pixels that show no ground, by the scene classification; None where there is none."""


class Chip(Protocol):
    """How to read one chip: what travels to a worker in place of pixels; small, frozen and comparable."""

    @property
    def url(self) -> str:
        """Its ``source_url``."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that `read` gives."""

    @property
    def scales(self) -> tuple[Scale, ...]:
        """What is made of their numbers."""

    @property
    def note(self) -> str:
        """What is done to the file's numbers, if anything."""

    @property
    def unit(self) -> tuple[object, ...]:
        """The piece of storage that holds it.

        Blocks keep chips together whose units differ in the last place only, and read those of one unit one after the
        other.
        """

    @property
    def inside(self) -> tuple[int, int]:
        """How many of its pixels (y, x) were there; what `read` gives beyond was added."""

    def read(self) -> NDArray[np.generic]:
        """The pixels of `read_with_findings`, by themselves."""

    def read_with_findings(self) -> ReadChip:
        """Read its pixels.

        Raises
        ------
        ChipError
            If the chip cannot be used; without its name.
        ChipRejectedError
            If it breaks a rule.
        StorageError
            If the store does not answer.
        SickMachineError
            If this process cannot read any chip.
        """

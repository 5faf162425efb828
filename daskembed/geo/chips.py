"""Chips: squares of 512 pixels, and the grid of them on an image (pure)."""

from __future__ import annotations

from dataclasses import dataclass

CHIP = 512
"""Pixels along each side of a chip: what is read, quarantined and numbered at a time, whatever the encoder."""
CHIPS_ACROSS = 21
"""Chips of 512 pixels of 10 m along each side of a tile."""
CHIPS_A_TILE = CHIPS_ACROSS**2


@dataclass(frozen=True)
class ChipGrid:
    """The chips of an image: squares of 512 pixels, numbered from 1, row-major."""

    shape: tuple[int, int]
    """Pixels of the image, (y, x)."""
    offset: tuple[int, int] = (0, 0)
    """Of the first chip's north-west corner, (y, x)."""
    pad: bool = False
    """Whether chips that reach beyond the image count."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of chips."""
        rows, cols = (
            max(0, -(-(length - offset) // CHIP) if self.pad else (length - offset) // CHIP)
            for length, offset in zip(self.shape, self.offset, strict=True)
        )
        return rows, cols

    @property
    def count(self) -> int:
        """Chips."""
        rows, cols = self.size
        return rows * cols

    @property
    def uncovered(self) -> float:
        """Share of the image's pixels that no chip has.

        Examples
        --------
        >>> ChipGrid((10980, 10980)).uncovered, ChipGrid((10980, 10980), pad=True).uncovered
        (0.0411..., 0.0)
        """
        sides = zip(self.shape, self.offset, self.size, strict=True)
        covered = [min(length - offset, CHIP * chips) / length for length, offset, chips in sides]
        return 1 - covered[0] * covered[1]

    @property
    def padded(self) -> int:
        """Chips that reach beyond the image."""
        return self.count - ChipGrid(self.shape, self.offset).count

    def start(self, number: int) -> tuple[int, int]:
        """First pixel (y, x) of a chip.

        Examples
        --------
        >>> ChipGrid((10980, 10980)).size, ChipGrid((10980, 10980)).start(23)
        ((21, 21), (512, 512))
        """
        row, col = divmod(number - 1, self.size[1])
        return self.offset[0] + row * CHIP, self.offset[1] + col * CHIP

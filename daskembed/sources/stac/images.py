"""Files of catalogues' images: what their headers say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Image:
    """A file of an image, by its header; or why it cannot be read."""

    url: str
    """Where it lies, without a signature."""
    asset: str
    """Its key in the item."""
    access: tuple[tuple[str, str], ...] = ()
    """`Catalogue.access`, as pairs."""
    size: int = 0
    """Bytes."""
    etag: str = ""
    epsg: int = 0
    """Of its CRS; 4326 in degrees."""
    west: float = 0.0
    """Of its north-western corner, in the CRS's unit; likewise `north`."""
    north: float = 0.0
    step_x: float = 0.0
    """Width of a pixel; `step_y` its height, positive where rows go from north to south."""
    step_y: float = 0.0
    height: int = 0
    width: int = 0
    block: tuple[int, int] = (512, 512)
    """Pixels (y, x) that are stored together."""
    dtype: str = ""
    nodata: float | None = None
    """By its tag."""
    scale: float = 1.0
    offset: float = 0.0
    failure: str | None = None
    """Why its header cannot be read: chips that need it are quarantined."""

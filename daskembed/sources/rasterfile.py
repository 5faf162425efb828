"""A raster file: what its header says, and its pixels."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.enums import Interleaving
from rasterio.errors import RasterioError
from rasterio.windows import Window

from daskembed.errors import ChipError, DaskembedError, exact
from daskembed.health import fault_of
from daskembed.sources.chunks import lost_pixels
from daskembed.sources.gdal import SIDECARS, projected_epsg, read_bands, scale_of
from daskembed.sources.opening import Opening
from daskembed.sources.scales import Scale
from daskembed.sources.scene import Reader, damage_is_the_chips
from daskembed.sources.values import part_masks
from daskembed.storage.stores import Entry, Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RasterLayer:
    """Some bands of a file."""

    url: str
    root: str
    """URL of the source: nothing that is not below it is read."""
    bands: tuple[int, ...]
    """1-based numbers."""
    scales: tuple[Scale, ...]
    coarser: int = 1
    sidecars: tuple[str, ...] = ()
    """Those of `SIDECARS` that it has."""

    def open(self, *, fresh: bool = False) -> Reader:
        """Open it for reading, past caches if `fresh`: each thread by a handle of its own."""
        opening = Opening(Storage(self.root, fresh), self.url.removeprefix(f"{self.root}/"), self.sidecars)
        opened = threading.local()

        def dataset() -> Any:
            if not hasattr(opened, "dataset"):
                opened.dataset = rasterio.open(opening.name, **opening.options)
            return opened.dataset

        def pixels_of(rows: slice, cols: slice) -> NDArray[np.generic]:
            with damage_is_the_chips(opening.failure), rasterio.Env(**opening.environment):
                image = dataset()
                pixels = read_bands(image, self.bands, Window.from_slices(rows, cols))
                if image.driver != "GTiff":
                    return pixels
                numbers, mask = part_masks(pixels)
                lost = _unwritten(image, self.bands, numbers, (rows.start, cols.start))
            if lost is None:
                return pixels
            if not fresh:
                # What is not there by one reading of the header may be there by the next.
                raise ChipError("lacks blocks of its pixels: it was not written to its end, or as a sparse file")
            return np.ma.masked_array(numbers, lost if mask is None else lost | mask)

        def read(rows: slice, cols: slice) -> NDArray[np.generic]:
            try:
                return pixels_of(rows, cols)
            except DaskembedError:
                # Through the same handle GDAL would later read zeros, without an error, from what did not open now.
                vars(opened).pop("dataset", None)
                raise

        return read


@dataclass(frozen=True)
class RasterFile:
    """What the header of a file says."""

    url: str
    root: str
    shape: tuple[int, int]
    epsg: int
    west: float
    north: float
    steps: tuple[float, float]
    block: tuple[int, int]
    kind: np.dtype[Any]
    descriptions: tuple[str | None, ...]
    scales: tuple[Scale, ...]
    tags: dict[str, str]
    sidecars: tuple[str, ...] = ()
    uncovered: tuple[int, ...] = ()
    """Numbers of the bands that hold 0 where nothing was stored."""
    sources: tuple[str, ...] = ()
    """URLs of the files that a virtual raster shows."""

    @property
    def date(self) -> str | None:
        """Its tag of that name."""
        return self.tags.get("date")


def read_header(storage: Storage, entry: Entry, beside: Mapping[str, Entry]) -> RasterFile:
    """Read a file's header; `beside` are files by their paths. Raises `ChipError` if it cannot be used."""
    name = entry.path.rpartition("/")[2]
    sidecars = tuple(end for end in SIDECARS if f"{entry.path}{end}" in beside)
    opening = Opening(storage, entry.path, sidecars)
    opening.check()
    with damage_is_the_chips(opening.failure), rasterio.Env(**opening.environment):
        try:
            with rasterio.open(opening.name, **opening.options) as dataset:
                made = _header_of(storage, entry.path, dataset)
                file = replace(made, sidecars=sidecars, sources=tuple(map(storage.url_of, opening.sources)))
            return replace(file, uncovered=opening.check_sources(entry.path))
        except RasterioError as error:
            if (failure := opening.failure()) is not None:
                raise failure from None
            said = " ".join(str(error).split())[:200]
            raise fault_of(error, f"cannot be opened as a raster ({name}): {said}") from None


def _header_of(storage: Storage, path: str, dataset: Any) -> RasterFile:
    name = path.rpartition("/")[2]
    epsg = projected_epsg(dataset, f" in {name}")
    step_x, shear_x, west, shear_y, step_y, north = dataset.transform[:6]
    if shear_x or shear_y:
        numbers = ", ".join(map(exact, dataset.transform[:6]))
        raise ChipError(f"has the geotransform {numbers} in {name}: expected one that is not rotated")
    kinds = set(dataset.dtypes)
    if len(kinds) > 1 or not kinds.pop().startswith(("int", "uint", "float")):
        raise ChipError(f"has {', '.join(sorted(set(dataset.dtypes)))} pixels, expected integers or floats of one type")
    scales = tuple(scale_of(dataset, number) for number in dataset.indexes)
    return RasterFile(
        url=storage.url_of(path),
        root=storage.url,
        shape=dataset.shape,
        epsg=epsg,
        west=west,
        north=north,
        steps=(step_x, step_y),
        block=dataset.block_shapes[0],
        kind=np.dtype(dataset.dtypes[0]),
        descriptions=dataset.descriptions,
        scales=scales,
        tags=dataset.tags(),
    )


def _unwritten(
    image: Any, bands: Sequence[int], pixels: NDArray[np.generic], start: tuple[int, int]
) -> NDArray[np.bool_] | None:
    """Pixels of blocks that a TIFF does not hold, as a sparse file or one of which the writing was stopped."""
    height, width = image.block_shapes[0]
    together = image.interleaving is Interleaving.pixel

    def is_there(place: tuple[int, ...], value: np.generic) -> bool:
        band, y, x = place
        number = 1 if together else bands[band]
        return image.get_tag_item(f"BLOCK_OFFSET_{x // width}_{y // height}", "TIFF", number) is not None

    return lost_pixels(pixels, (0, *start), (1, height, width), is_there)

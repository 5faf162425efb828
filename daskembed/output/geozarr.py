"""Zarr v3 stores that say where they lie: metadata and coordinates of CF and GeoZarr, the root's last."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj

from daskembed.documents import json_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.geo.cells import Grid

ROOT = "zarr.json"
"""Without it there is no store to open: it is the last object to be written, and the first to go."""
CONVENTIONS = [
    {
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/v0.1/schema.json",
        "spec_url": f"https://github.com/zarr-conventions/{name}/blob/v0.1/README.md",
        "uuid": identity,
        "name": name,
        "description": description,
    }
    for name, identity, description in (
        ("proj", "f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information"),
        ("spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
    )
]


def place_attributes(grid: Grid) -> dict[str, Any]:
    """Of GeoZarr's conventions proj and spatial."""
    return {
        "zarr_conventions": CONVENTIONS,
        "proj:code": f"EPSG:{grid.epsg}",
        "spatial:dimensions": ["y", "x"],
        "spatial:transform_type": "affine",
        "spatial:transform": [grid.step_x, 0.0, grid.west, 0.0, -grid.step_y, grid.north],
        "spatial:shape": [grid.height, grid.width],
        "spatial:bbox": grid.bounds.tolist(),
        "spatial:registration": "pixel",
    }


def metadata(
    grid: Grid,
    variable: str,
    *,
    days: NDArray[np.datetime64],
    labels: Mapping[str, Sequence[str]],
    about: Mapping[str, Any],
    conventions: Sequence[Mapping[str, str]] = (),
    attributes: Mapping[str, Any],
    encoding: Mapping[str, Any],
    along: Mapping[str, tuple[str, NDArray[Any]]] = MappingProxyType({}),
) -> dict[str, bytes]:
    """Every object of a store but its chunks, in the order in which they are to be written: the root is the last.

    Parameters
    ----------
    grid
        Where its cells lie.
    variable
        Name of its one variable, of which ``y`` and ``x`` are the last dimensions.
    days
        Its dates, each once.
    labels
        Dimension -> names along it.
    about, conventions
        Attributes of the root, and conventions beside those of GeoZarr that they follow.
    attributes, encoding
        Of the variable; `encoding` as `zarr.create_array` takes it.
    along
        Name of a coordinate of the variable -> its dimension, and a number for each place there.
    """
    import zarr
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    store = MemoryStore(memory)
    told = {"Conventions": "CF-1.11", **place_attributes(grid), "zarr_conventions": [*conventions, *CONVENTIONS]}
    root = zarr.create_group(store, attributes=told | dict(about))

    def coordinate(name: str, values: Any, dtype: str, dimensions: tuple[str, ...], **attributes: Any) -> None:
        found = np.asarray(values, dtype=object if dtype == "string" else dtype)
        array = root.create_array(
            name,
            shape=found.shape,
            dtype=dtype,
            chunks=found.shape,
            dimension_names=dimensions,
            attributes=attributes,
            # Otherwise a chunk of zeros is left out: one more thing that a reader might not know.
            config={"write_empty_chunks": True},
        )
        array[...] = found

    units = {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}
    coordinate("time", days.astype("datetime64[D]").astype(np.int64), "int64", ("time",), standard_name="time", **units)
    for name, texts in labels.items():
        coordinate(name, list(texts), "string", (name,), long_name=name)
    for name, (dimension, values) in along.items():
        coordinate(name, values, values.dtype.name, (dimension,))
    crs = pyproj.CRS.from_epsg(grid.epsg)
    length = crs.axis_info[0].unit_name
    for name, start, step, count in (
        ("y", grid.north, -grid.step_y, grid.height),
        ("x", grid.west, grid.step_x, grid.width),
    ):
        described = {"standard_name": f"projection_{name}_coordinate", "units": length, "axis": name.upper()}
        coordinate(name, start + (np.arange(count) + 0.5) * step, "float64", (name,), **described)
    gdal = " ".join(repr(float(value)) for value in (grid.west, grid.step_x, 0, grid.north, 0, -grid.step_y))
    coordinate("spatial_ref", 0, "int64", (), **crs.to_cf(), spatial_ref=crs.to_wkt(), GeoTransform=gdal)
    # Without `coordinates`, xarray would take these for data, unless told otherwise.
    linked = {"grid_mapping": "spatial_ref", "coordinates": " ".join(["spatial_ref", *along]), **attributes}
    root.create_array(variable, attributes=linked, **encoding)
    with warnings.catch_warnings():
        # That consolidated metadata are no part of Zarr v3 yet: readers that do not know them read the rest.
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(store)
    objects = {path: bytes(made.to_bytes()) for path, made in memory.items()}
    return {path: objects[path] for path in sorted(objects, key=lambda path: (path == ROOT, path))}


def encode(block: NDArray[Any], encoding: Mapping[str, Any]) -> memoryview:
    """The object of a shard; empty if there is nothing in it. `encoding` is as `zarr.create_array` takes it."""
    from zarr import create_array
    from zarr.storage import MemoryStore

    # Zarr makes it in memory, and storage puts it into its place as a whole, with errors of our own.
    memory: dict[str, Any] = {}
    create_array(store=MemoryStore(memory), shape=block.shape, **encoding)[...] = block
    made = memory.get("/".join(["c", *("0" for _ in block.shape)]))
    return memoryview(b"") if made is None else memoryview(made.as_numpy_array()).cast("B")


def digest(objects: Mapping[str, str]) -> str:
    """What stands for the SHA-256 of a store: that of the lines ``PATH SHA256`` of its objects, by path."""
    return hashlib.sha256("".join(f"{path} {objects[path]}\n" for path in sorted(objects)).encode()).hexdigest()


def cube_digest(objects: Mapping[str, str]) -> str:
    """As `digest`, of a cube: that of the same as JSON, which is what the receipts of cubes have had from the first."""
    return json_digest(sorted(objects.items()))

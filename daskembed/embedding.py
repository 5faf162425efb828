"""Embeddings of a lazy cube: the one `map_blocks`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from daskembed.cube import CHIPS_A_BLOCK, ChipBlock
from daskembed.encoders.description import Place
from daskembed.errors import InputError
from daskembed.fates import FATE_DTYPES
from daskembed.geo.cells import EDGES, window_bounds
from daskembed.geo.chips import CHIP
from daskembed.geo.footprints import metres_of_unit, to_lonlat
from daskembed.sources.chip import ReadChip

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.compute.device import Encoded
    from daskembed.encoders.protocol import Encoder

ON_NAN = ("quarantine", "fill")


class _Windows(NamedTuple):
    """Squares that an encoder sees at once, of some chips, row-major."""

    lat: NDArray[np.float64]
    """Of their centres, degrees, ``(chip, window)``."""
    lon: NDArray[np.float64]
    footprint: NDArray[np.object_]
    """In OGC:CRS84, ``(chip, window)``."""
    resolution: NDArray[np.float64]
    """Metres of a pixel, ``(chip,)``."""


def _place_dtype(windows: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("lat", np.float64, (windows,)),
            ("lon", np.float64, (windows,)),
            ("date", "datetime64[s]"),
            ("resolution", np.float64),
        ]
    )


def _windows(cube: xr.DataArray, across: int) -> _Windows:
    count = len(cube)
    if not all(edge in cube.coords for edge in EDGES) or "epsg" not in cube.coords:
        lat, lon = (cube.coords[name].to_numpy().reshape(count, 1) for name in ("lat", "lon"))
        return _Windows(lat, lon, np.full((count, 1), None, object), np.full(count, np.nan))
    chips = np.stack([cube.coords[edge].to_numpy() for edge in EDGES], axis=1)
    bounds = window_bounds(chips, across)
    lat, lon = np.empty((2, count, across**2))
    footprint, resolution = np.empty((count, across**2), object), (chips[:, 2] - chips[:, 0]) / CHIP
    epsg = cube.coords["epsg"].to_numpy()
    for code in np.unique(epsg):
        rows = epsg == code
        resolution[rows] *= metres_of_unit(int(code))
        found = to_lonlat(int(code), bounds[rows].reshape(-1, 4))
        lon[rows], lat[rows], footprint[rows] = (part.reshape(-1, across**2) for part in found)
    if across == 1 and "lat" in cube.coords:
        lat, lon = (cube.coords[name].to_numpy().reshape(count, 1) for name in ("lat", "lon"))
    return _Windows(lat, lon, footprint, resolution)


def _times(cube: xr.DataArray) -> NDArray[np.datetime64]:
    """When each chip was taken: at noon where only the day is known."""
    times: NDArray[np.datetime64] = cube.coords["date"].to_numpy().astype("datetime64[D]") + np.timedelta64(12, "h")
    if "datetime" in cube.coords:
        known = cube.coords["datetime"].to_numpy()
        times = np.where(np.isnat(known), times, known)
    return times


def embed(
    cube: xr.DataArray, encoder: Encoder, level: str | None = None, *, on_nan: str = "quarantine"
) -> xr.DataArray:
    """Embeddings of chips, lazily: one task a block reads its chips and encodes them.

    Parameters
    ----------
    cube
        Chips ``(chip, band, y, x)`` with the coordinates ``lat``, ``lon`` (degrees) and ``date``, as
        `daskembed.open_tile` gives them; any other DataArray of that form does too. Where there is a ``datetime`` (UTC)
        that is not NaT, the encoder is told that, else noon of the ``date``.
    encoder
        From `daskembed.load_encoder`.
    level
        One of the encoder's, such as ``mean``, its first by default; see `Description.levels`.
    on_nan
        What to do with a chip that has values that are not finite: ``quarantine`` it, or ``fill`` them with their
        band's mean.

    Returns
    -------
    xarray.DataArray
        float32 of shape ``(chip, embedding)``, ``(chip, row, col, embedding)`` and so on, as the level has it, with the
        cube's coordinates along ``chip`` and five lazy ones: ``quarantined``, why a chip has no embedding (its row is
        NaN) or None, ``rejected``, which rule it breaks (its row is NaN too) or None, ``filled``, how many of its
        values were filled, ``noted``, what is unusual about its pixels or None, and ``cloud``, which share of it shows
        no ground by its scene classification, or NaN where there is none. Compute them together with the embeddings, or
        the chips are encoded twice. Where an encoder sees several windows of a chip, ``footprint`` says where they are.

    Raises
    ------
    InputError
        If the cube lacks dimensions or coordinates, or a setting is unknown.
    """
    dims = ("chip", "band", "y", "x")
    if cube.dims != dims:
        raise InputError(f"the cube has the dimensions {cube.dims}, expected {dims}")
    needs = encoder.description
    if cube.shape[1:] != (len(needs.bands), CHIP, CHIP):
        raise InputError(
            f"the cube's chips are {cube.shape[1:]}, expected {(len(needs.bands), CHIP, CHIP)} (band, y, x)"
        )
    if "band" in cube.coords and tuple(cube.coords["band"].values) != needs.bands:
        raise InputError(
            f"the cube has the bands {' '.join(map(str, cube.coords['band'].values))}; "
            f"expected {' '.join(needs.bands)}, in this order"
        )
    across = CHIP // needs.window
    wanted = ("date", "lat", "lon") if across == 1 and needs.resolution else ("date", "epsg", *EDGES)
    if missing := [name for name in wanted if name not in cube.coords]:
        raise InputError(f"the cube lacks the coordinates {', '.join(missing)}: daskembed.open_tile sets them")
    if on_nan not in ON_NAN:
        raise InputError(f"unknown `on_nan` {on_nan!r}: choose one of {', '.join(ON_NAN)}")
    level = needs.check_level(level)
    shape = encoder.shape(level)
    inner = tuple(needs.levels[level])

    lazy = cube if cube.chunks is not None else cube.chunk(chip=CHIPS_A_BLOCK)
    data = lazy.chunk(band=-1, y=-1, x=-1).data
    windows = _windows(cube, across)
    place = np.empty((len(cube), 1, 1, 1), _place_dtype(across**2))
    place["lat"][:, 0, 0, 0], place["lon"][:, 0, 0, 0] = windows.lat, windows.lon
    place["date"][:, 0, 0, 0] = _times(cube)
    place["resolution"][:, 0, 0, 0] = windows.resolution
    token = tokenize(data.name, place, encoder, level, on_nan)
    encoded = da.map_blocks(
        encode_block,
        data,
        da.from_array(place, chunks=(data.chunks[0], 1, 1, 1), name=f"place-{token}"),
        encoder=encoder,
        level=level,
        on_nan=on_nan,
        # Dropping axes here would keep reading and encoding from becoming one task.
        chunks=(data.chunks[0], 1, 1, 1),
        dtype=object,
        meta=np.empty((0, 0, 0, 0), object),
        name=f"embed-{token}",
    )
    # What is picked below comes of one encoding: fused with each of its users, it would be done as many times.
    (encoded,) = dask.optimize(encoded)

    def pick(field: str, dtype: np.dtype[Any], extra: tuple[int, ...] = ()) -> da.Array:
        axes = tuple(range(4, 4 + len(extra)))
        return da.blockwise(
            _pick,
            (0, *axes),
            encoded,
            (0, 1, 2, 3),
            field=field,
            new_axes=dict(zip(axes, extra, strict=True)),
            concatenate=False,
            dtype=dtype,
            meta=np.empty((0,) * (1 + len(extra)), dtype),
            name=f"{field}-{token}",
        )

    along_chip = {name: coord for name, coord in cube.coords.items() if coord.dims == ("chip",)}
    return xr.DataArray(
        pick("vectors", np.dtype(np.float32), shape),
        dims=("chip", *inner),
        name="embeddings",
        coords={
            **along_chip,
            **({"footprint": (("chip", "window"), windows.footprint)} if "window" in inner else {}),
            **{name: ("chip", pick(name, dtype)) for name, dtype in FATE_DTYPES.items()},
        },
        attrs={"encoder": encoder.name, "level": level},
    )


def encode_block(block: Any, place: Any, *, encoder: Encoder, level: str, on_nan: str) -> Encoded:
    """Encode one block on this process's device.

    Parameters
    ----------
    block
        A `ChipBlock`, read while it is encoded, or an array ``(chip, band, y, x)``.
    place
        ``lat`` and ``lon`` of its windows, ``date`` and ``resolution`` of its chips, a structured array
        ``(chip, 1, 1, 1)``.
    """
    from daskembed.compute.device import get_device

    place = place.reshape(-1)
    where = Place(*(np.ascontiguousarray(place[name]) for name in Place._fields))
    order = None
    if isinstance(block, ChipBlock):
        order = sorted(range(len(block)), key=lambda row: block.chips[row].unit)
        reads = [partial(block.read, row) for row in range(len(block))]
    else:
        reads = [partial(ReadChip, pixels, []) for pixels in map(np.asarray, block)]
    return get_device(encoder).encode(reads, where, level=level, on_nan=on_nan, order=order)


def _pick(encoded: Any, *, field: str) -> NDArray[Any]:
    while isinstance(encoded, list):
        (encoded,) = encoded  # a list an axis that ends here, each of one block
    if field == "vectors":
        return np.asarray(encoded.vectors)
    return np.array([getattr(fate, field) for fate in encoded.fates], FATE_DTYPES[field])

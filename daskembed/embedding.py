"""Embeddings of a lazy cube: the one `map_blocks`."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from daskembed.cube import CHIPS_A_BLOCK, ChipBlock
from daskembed.encoders import get_encoder_module
from daskembed.errors import ChipError, InputError
from daskembed.levels import LEVELS, check_level
from daskembed.sources.geotiff import SIZE

if TYPE_CHECKING:
    from daskembed.device import Encoded
    from daskembed.encoders import Encoder

ON_NAN = ("quarantine", "fill")
set_aside: ContextVar[Mapping[str, str]] = ContextVar("set_aside", default={})  # noqa: B039
"""URL -> reason, of chips that this thread's blocks quarantine without touching them."""
_PLACE = np.dtype([("lat", np.float64), ("lon", np.float64), ("date", "datetime64[D]")])


def embed(cube: xr.DataArray, encoder: Encoder, level: str = "mean", *, on_nan: str = "quarantine") -> xr.DataArray:
    """Embeddings of chips, lazily: one task a block reads its chips and encodes them.

    Parameters
    ----------
    cube
        Chips ``(chip, band, y, x)`` with the coordinates ``lat``, ``lon`` (degrees) and ``date``, as
        `daskembed.open_tile` gives them; any other DataArray of that form does too.
    encoder
        From `daskembed.load_encoder`.
    level
        ``mean``, ``patch`` or ``group``.
    on_nan
        What to do with a chip that has values that are not finite: ``quarantine`` it, or ``fill`` them with their
        band's mean.

    Returns
    -------
    xarray.DataArray
        float32 of shape ``(chip, embedding)``, ``(chip, row, col, embedding)`` or
        ``(chip, group, row, col, embedding)``, with the cube's coordinates along ``chip`` and two lazy ones:
        ``quarantined``, why a chip has no embedding (its row is NaN) or None, and ``filled``, how many of its values
        were filled. Compute them together with the embeddings, or the chips are encoded twice.

    Raises
    ------
    InputError
        If the cube lacks dimensions or coordinates, or a setting is unknown.
    """
    dims = ("chip", "band", "y", "x")
    if cube.dims != dims:
        raise InputError(f"the cube has the dimensions {cube.dims}, expected {dims}")
    bands = get_encoder_module(encoder.name).BANDS
    if cube.shape[1:] != (len(bands), SIZE, SIZE):
        raise InputError(f"the cube's chips are {cube.shape[1:]}, expected {(len(bands), SIZE, SIZE)} (band, y, x)")
    if "band" in cube.coords and tuple(cube.coords["band"].values) != bands:
        raise InputError(
            f"the cube has the bands {' '.join(map(str, cube.coords['band'].values))}; "
            f"expected {' '.join(bands)}, in this order"
        )
    if missing := [name for name in ("lat", "lon", "date") if name not in cube.coords]:
        raise InputError(f"the cube lacks the coordinates {', '.join(missing)}: daskembed.open_tile sets them")
    if on_nan not in ON_NAN:
        raise InputError(f"unknown on_nan {on_nan!r}: choose one of {', '.join(ON_NAN)}")
    inner = LEVELS[check_level(level)]
    shape = encoder.shape(level)

    lazy = cube if cube.chunks is not None else cube.chunk(chip=CHIPS_A_BLOCK)
    data = lazy.chunk(band=-1, y=-1, x=-1).data
    place = np.empty((len(cube), 1, 1, 1), _PLACE)
    for name in ("lat", "lon", "date"):
        place[name][:, 0, 0, 0] = cube.coords[name].to_numpy()
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
    # What is picked below comes of one encoding: fused with each of its three users, it would be done three times.
    (encoded,) = dask.optimize(encoded)

    def pick(field: str, dtype: Any, extra: tuple[int, ...] = ()) -> da.Array:
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
        pick("vectors", np.float32, shape),
        dims=("chip", *inner),
        name="embeddings",
        coords={
            **along_chip,
            "quarantined": ("chip", pick("quarantined", object)),
            "filled": ("chip", pick("filled", np.int64)),
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
        ``lat``, ``lon`` and ``date`` of its chips, a structured array ``(chip, 1, 1, 1)``.
    """
    from daskembed.device import get_device

    place = place.reshape(-1)
    if isinstance(block, ChipBlock):
        aside = set_aside.get()
        reads = [partial(_refuse, aside[chip.url]) if chip.url in aside else chip.read for chip in block.chips]
    else:
        reads = [partial(np.asarray, pixels) for pixels in block]
    return get_device(encoder).encode(reads, place["lat"], place["lon"], place["date"], level=level, on_nan=on_nan)


def _refuse(reason: str) -> NoReturn:
    raise ChipError(reason)


def _pick(encoded: Any, *, field: str) -> Any:
    while isinstance(encoded, list):
        (encoded,) = encoded  # a list an axis that ends here, each of one block
    return getattr(encoded, field)

"""Vectors as small whole numbers, and back: one scale and offset a dimension for all files of a campaign (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskembed.documents import json_digest, parse_as, parse_object
from daskembed.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.histogram import Histogram

STEPS = 127
"""The largest whole number, and the least one with a minus: as far to both sides of the offset."""
KEY = "quantization"
"""What it is called in a file's footer, and in a frame's `attrs`."""
METHOD = "affine"
_COLUMNS = ("embeddings", "embedding")
"""What the column of vectors is called, by us and by others."""
_DERIVED = ("method", "formula", "quantized_dtype", "n_dims", "zero_point", "digest")
_FORMULA = "x = q * scale + offset"
_OF_MODEL = ("encoder", "size", "sensor", "window", "checkpoint", "sha256", "level")
"""What must be the same of a calibration and of what it is used for, beside the number of dimensions."""


@dataclass(frozen=True)
class Calibration:
    """How the vectors of a campaign become int8: ``q = round((x - offset) / scale)``, clipped to -127..127.

    Back it is ``x = q * scale + offset``, in float32. At levels with a grid a vector is that of one patch, so that rows
    of whole chips and of patches have the same calibration.
    """

    encoder: str | None
    """What made the vectors, as the files say it; None where they do not. So are the next ones."""
    size: str | None
    sensor: str | None
    window: int | None
    checkpoint: str | None
    sha256: str | None
    """Of the checkpoint; None of one that is made from a seed."""
    level: str | None
    percentile: float
    """At most so many per cent less than 100 of the values of a dimension are clipped at either end."""
    rows: int
    """Vectors that were counted."""
    tiles: int
    """Of how many tiles they are."""
    scale: tuple[float, ...]
    """By dimension: what a step of 1 stands for, a float32."""
    offset: tuple[float, ...]
    """By dimension: what 0 stands for, a float32."""

    @classmethod
    def of(cls, counted: Histogram, percentile: float, made: Mapping[str, Any], tiles: int) -> Calibration:
        """From the counts of all vectors.

        Parameters
        ----------
        counted
            Of the vectors of all tiles.
        percentile
            From 90 to 100, which clips nothing.
        made
            What the files say of how they were made.
        tiles
            How many there are.
        """
        low, high = (limit.astype(np.float64) for limit in counted.range(check_percentile(percentile)))
        offset = ((low + high) / 2).astype(np.float32)
        # Of a dimension that is everywhere the same, or nearly, steps are as small as float32 tells two numbers apart.
        finest = np.maximum(np.spacing(np.abs(offset)), np.finfo(np.float32).tiny)
        scale = np.maximum((high - low) / (2 * STEPS), finest).astype(np.float32)
        model: dict[str, Any] = {name: made.get(name) for name in _OF_MODEL}
        return cls(
            **model,
            percentile=float(percentile),
            rows=counted.rows,
            tiles=tiles,
            scale=_plain(scale),
            offset=_plain(offset),
        )

    @property
    def n_dims(self) -> int:
        """Dimensions of a vector."""
        return len(self.scale)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that it says."""
        return json_digest({one.name: getattr(self, one.name) for one in fields(self)})

    def document(self) -> dict[str, Any]:
        """What its file says, and the footer of each file that was made with it.

        Beside its own fields there are those that other software looks for: `zero_point`, which is no whole number
        here, as in ``x = (q - zero_point) * scale``.
        """
        scale, offset = (np.array(numbers) for numbers in (self.scale, self.offset))
        return {
            "method": METHOD,
            "formula": _FORMULA,
            "quantized_dtype": "int8",
            "n_dims": self.n_dims,
            **{one.name: getattr(self, one.name) for one in fields(self)},
            "zero_point": _plain((-offset / scale).astype(np.float32)),
            "digest": self.digest,
        }

    def text(self) -> str:
        """Its document as JSON."""
        return json.dumps(self.document())

    def check(self, made: Mapping[str, Any], what: str) -> None:
        """Raise `InputError` if it was made for something else than vectors that were `made` so; `what` names them."""
        shape = made.get("shape")
        n_dims = shape[-1] if isinstance(shape, list) and shape else self.n_dims
        pairs = {name: (getattr(self, name), made.get(name)) for name in _OF_MODEL} | {"n_dims": (self.n_dims, n_dims)}
        if self.sha256 is not None and self.sha256 == made.get("sha256"):
            del pairs["checkpoint"]  # the same weights by another name
        for name, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise InputError(
                    f"the `calibration` is for {_WORDS.get(name, name)} {ours}, and {what} has {theirs}: make one of "
                    "these files with `daskembed calibrate`"
                )


_WORDS = {"sha256": "a checkpoint of the SHA-256", "n_dims": "dimensions:"}


def parse_calibration(data: str | bytes, where: str) -> Calibration:
    """A calibration from its document; raises `InputError` if it is none, or was changed."""
    try:
        told = parse_object(data)
        derived = {name: told.pop(name, None) for name in _DERIVED}
        found = parse_as(Calibration, json.dumps(told))
        if derived["method"] != METHOD:
            raise ValueError(f"its method is {derived['method']!r}, expected {METHOD!r}")
        if not found.n_dims or found.n_dims != len(found.offset):
            raise ValueError(f"it has {found.n_dims} scales and {len(found.offset)} offsets")
        numbers = np.array([found.scale, found.offset])
        if not np.isfinite(numbers).all() or (numbers[0] <= 0).any():
            raise ValueError("a scale is not above 0, or a number is not finite")
        if derived["digest"] != found.digest:
            raise ValueError("its numbers are not those that it was written with")
    except ValueError as error:
        raise InputError(
            f"{where} is not a calibration of daskembed: {error}; make one with `daskembed calibrate`"
        ) from None
    return found


def check_percentile(percentile: float) -> float:
    """Return `percentile` if a calibration can be made with it; raises `InputError`."""
    if not 90 <= percentile <= 100:
        raise InputError(f"`percentile` {percentile:g}: expected a number from 90 to 100, which clips nothing")
    return percentile


def quantize(vectors: NDArray[np.floating], calibration: Calibration) -> NDArray[np.int8]:
    """Vectors as whole numbers.

    Parameters
    ----------
    vectors
        ``(..., dimension)``, or with several vectors of so many dimensions one after another in the last axis.
    calibration
        Of their encoder and level.

    Returns
    -------
    numpy.ndarray
        Of the same shape; what is beyond the range of the calibration is at its end.

    Raises
    ------
    ValueError
        If a value is NaN or infinite, or the last axis holds no whole number of vectors.
    """
    scale, offset = _numbers(calibration)
    values = _split(np.asarray(vectors, np.float32), calibration) - offset
    if not np.isfinite(values).all():
        raise ValueError("a value is NaN or infinite")
    with np.errstate(over="ignore"):  # far beyond the range of a dimension that is everywhere the same
        values /= scale
    whole: NDArray[np.int8] = np.rint(values.clip(-STEPS, STEPS, out=values), out=values).astype(np.int8)
    return whole.reshape(vectors.shape)


def dequantize(frame: Any, calibration: Calibration | str | Path | None = None, *, column: str | None = None) -> Any:
    """Give the vectors of int8 files back as float32.

    Parameters
    ----------
    frame
        A frame of such a file, as `daskembed.open_embeddings` (lazy) or `geopandas.read_parquet` give it; or an array
        of int8 whose last axis holds a vector, or several.
    calibration
        With what they were made: what `daskembed.calibrate` gave, or its file. By default what the file's footer says,
        which frames keep in their `attrs`; arrays need one.
    column
        Of a frame, which one holds the vectors; by default ``embeddings``, or ``embedding``, as profiles call it.

    Returns
    -------
    geopandas.GeoDataFrame, dask_geopandas.GeoDataFrame, pandas.DataFrame or numpy.ndarray
        As given, and as lazy; vectors are flat, ``x = q * scale + offset``.

    Raises
    ------
    InputError
        If `frame` has no vectors of int8, does not say how they were made, or the calibration is another's.
    """
    if isinstance(frame, np.ndarray):
        if calibration is None:
            raise InputError("an array does not say how it was made: give `calibration`, or the frame that it is from")
        return _floats(frame, read_calibration(calibration))
    there = list(getattr(frame, "columns", ()))
    if (name := next((one for one in ([column] if column else _COLUMNS) if one in there), None)) is None:
        raise InputError(
            f"there is no column {column or ' or '.join(_COLUMNS)} in this {type(frame).__name__} of "
            f"{', '.join(map(str, there)) or 'none'}: give the one that holds vectors of int8 as `column`"
        )
    lazy = hasattr(frame, "dask")
    kept = (frame._meta if lazy else frame).attrs.get(KEY)
    own = None if kept is None else parse_calibration(kept, f"`attrs[{KEY!r}]` of this frame")
    chosen = own if calibration is None else read_calibration(calibration)
    if chosen is None:
        raise InputError(
            f"this frame does not say how its vectors became int8: open the files with daskembed.open_embeddings or "
            f"geopandas.read_parquet, or give `calibration`; where it was lost on the way, keep `frame.attrs[{KEY!r}]`"
        )
    if own is not None and own != chosen:
        raise InputError(
            f"these vectors were made with the calibration {own.digest[:12]} of their files, and the one given is "
            f"{chosen.digest[:12]}: leave `calibration` out"
        )
    if lazy:
        return frame.map_partitions(_with_floats, name, chosen, meta=_with_floats(frame._meta, name, chosen))
    return _with_floats(frame, name, chosen)


def read_calibration(given: Calibration | str | Path) -> Calibration:
    """A calibration, or the one in a file: a path or URL; raises `InputError` if there is none."""
    if isinstance(given, Calibration):
        return given
    from daskembed.storage.stores import split_url

    storage, path = split_url(str(given))
    try:
        return parse_calibration(storage.get(path), storage.url_of(path))
    except FileNotFoundError:
        raise InputError(
            f"no calibration {storage.url_of(path)}: give the file that `daskembed calibrate` wrote"
        ) from None


def _with_floats(frame: Any, name: str, calibration: Calibration) -> Any:
    from daskembed.vectors import VectorArray, VectorDtype  # and with it Dask and pandas

    column = frame[name]
    if isinstance(column.dtype, VectorDtype):
        array = column.array
    else:
        none = VectorDtype(calibration.n_dims, "int8")
        array = VectorArray._from_sequence(column, dtype=None if len(column) else none)
    made = frame.assign(**{name: VectorArray(_floats(array.vectors, calibration), array.isna())})
    made.attrs.pop(KEY, None)
    return made


def _floats(whole: NDArray[Any], calibration: Calibration) -> NDArray[np.float32]:
    if whole.dtype != np.int8:
        raise InputError(f"vectors of {whole.dtype}: expected int8, others need not be given back")
    scale, offset = _numbers(calibration)
    return (_split(whole, calibration) * scale + offset).reshape(whole.shape)


def _split(vectors: NDArray[Any], calibration: Calibration) -> NDArray[Any]:
    """A vector a row of the last axis."""
    if vectors.shape[-1] % calibration.n_dims:
        raise InputError(
            f"vectors of {vectors.shape[-1]} values, and the `calibration` is for {calibration.n_dims} dimensions"
        )
    return vectors.reshape(*vectors.shape[:-1], vectors.shape[-1] // calibration.n_dims, calibration.n_dims)


def _numbers(calibration: Calibration) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.array(calibration.scale, np.float32), np.array(calibration.offset, np.float32)


def _plain(numbers: NDArray[np.float32]) -> tuple[float, ...]:
    """Numbers of float32 as JSON has them: with as many digits as tell them apart."""
    return tuple(float(str(one)) for one in numbers)

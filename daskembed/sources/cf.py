"""What a Zarr store says of place and time, in the words of CF, GeoZarr, GDAL and rasterio."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import xarray as xr

from daskembed.errors import ChipError
from daskembed.sources.bands import short
from daskembed.sources.days import day_in, one_day
from daskembed.sources.scene import check_resolution

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.sources.reading import Reading

_AFFINE = ("spatial:transform", "proj:transform", "transform")
"""Attributes of GeoZarr, STAC and rasterio with the six numbers of an affine transform, or all nine."""
_GDAL = "GeoTransform"
"""That of GDAL and rioxarray, which begins with the origin."""
_OFF = 0.01
"""Pixels by which coordinates may be off what a transform says."""


def plain(value: Any) -> Any:
    """An attribute's value as Python has it: text of bytes, and what is alone in a list, as CF sees vectors of one."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple) and len(value) == 1:
        return plain(value[0])
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def epsg_of(dataset: xr.Dataset) -> int:
    """Code of the CRS, from a grid mapping (CF) or the attributes of GeoZarr; raises `ChipError` if there is none."""
    named = ("proj:code", "proj:epsg", "proj:wkt2", "proj:projjson", "crs")
    described: list[Any] = [dataset.attrs.get(name) for name in named]
    for variable in dataset.variables.values():
        described += [variable.attrs.get(name) for name in ("crs_wkt", "spatial_ref", "proj:code", "proj:wkt2")]
    codes = set[int | None]()
    for found in map(plain, described):
        if found in (None, "", [], {}):
            continue
        text = found if isinstance(found, str) else str(found)
        # PROJ's old words for a code are warned of.
        if (old := re.fullmatch(r"\+init=(epsg:\d+)(\s.*)?", text.strip(), re.IGNORECASE)) is not None:
            text = found = old[1]
        try:
            given = found if isinstance(found, dict) else int(float(text)) if _is_number(text) else text
            codes.add(pyproj.CRS.from_user_input(given).to_epsg())
        except (pyproj.exceptions.CRSError, ValueError, OverflowError):
            raise ChipError(f"has a CRS that PROJ does not know: {text[:60]}") from None
    if not codes:
        raise ChipError("has no CRS: looked for spatial_ref (crs_wkt) and the attributes proj:code, proj:wkt2 and crs")
    if len(codes) > 1 or None in codes:
        raise ChipError(f"has the CRSs {', '.join(map(str, codes))}: expected one with an EPSG code, such as 32633")
    code = int(str(codes.pop()))
    if not pyproj.CRS(code).is_projected:
        raise ChipError(f"has EPSG:{code}, expected a projected CRS, such as EPSG:32633")
    return code


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@dataclass(frozen=True)
class _Transform:
    """Where the pixels of an image are, in the CRS's unit."""

    name: str
    """Of the attribute that says it."""
    west: float
    north: float
    step_x: float
    step_y: float
    """Negative where rows go from north to south."""


def georeferencing(dataset: xr.Dataset, array: xr.DataArray, epsg: int, reading: Reading) -> tuple[float, float, float]:
    """West and north edge and the side of a pixel, in the CRS's unit.

    The coordinates are those of the pixels' centres, unless a transform beside them says that they are those of their
    north-west corners. Where there are none, the transform says it.

    Raises
    ------
    ChipError
        If neither says it, or one contradicts the other.
    """
    transforms = list(_transforms(dataset, array))
    lacking = [name for name in ("x", "y") if name not in array.coords]
    if lacking and not transforms:
        raise ChipError(f"lacks the coordinates {', '.join(lacking)}: expected the centres of the pixels")
    if not lacking:
        x, y = (_axis(array[name], name) for name in ("x", "y"))
        said = {found: _meaning(found, x, y) for found in transforms}
        if odd := [found for found, meaning in said.items() if meaning is None]:
            other = odd[0]
            raise ChipError(
                f"has coordinates from {x.first:.10g}, {y.first:.10g} in steps of {x.step:.10g}, {y.step:.10g}, but a "
                f"{other.name} from {other.west:.10g}, {other.north:.10g} in steps of {other.step_x:.10g}, "
                f"{other.step_y:.10g}: expected the centres of its pixels, or their corners (rioxarray's "
                "rio.write_transform() writes it anew)"
            )
        if {"corners", "centres elsewhere"} <= {*said.values()}:
            names = " and ".join(found.name for found in said)
            raise ChipError(f"has coordinates that are corners of pixels by one of {names}, and centres by another")
        # Coordinates are cut with the pixels, attributes stay as they were.
        transforms = [found for found, meaning in said.items() if meaning != "centres elsewhere"]
        if not transforms:
            transforms = [_Transform("coordinate", x.first - x.step / 2, y.first - y.step / 2, x.step, y.step)]
    first, *others = transforms
    for other in others:
        if max(abs(other.west - first.west), abs(other.north - first.north)) > 2 * _OFF * abs(first.step_x):
            raise ChipError(
                f"has a {first.name} from {first.west:.10g}, {first.north:.10g} beside a {other.name} from "
                f"{other.west:.10g}, {other.north:.10g}: expected one place"
            )
    return first.west, first.north, check_resolution((first.step_x, first.step_y), epsg, reading)


@dataclass(frozen=True)
class _Axis:
    """A coordinate of a regular grid."""

    first: float
    last: float
    count: int
    slack: float
    """How far its numbers may be off, for their type."""

    @property
    def step(self) -> float:
        return (self.last - self.first) / (self.count - 1)

    def pixels(self, edge: float, step: float) -> tuple[float, float]:
        """Where in their pixels the first and the last value lie, by a transform's `edge` and `step`."""
        return (self.first - edge) / step, (self.last - edge) / step - (self.count - 1)


def _meaning(found: _Transform, x: _Axis, y: _Axis) -> str | None:
    """What coordinates are by a transform; None if nothing.

    ``corners`` or ``centres`` of its pixels from the first one on, or ``centres elsewhere``: of those that follow.
    """
    places = np.array([x.pixels(found.west, found.step_x), y.pixels(found.north, found.step_y)])
    most = _OFF + max(x.slack, y.slack) / abs(x.step)
    if np.abs(places).max() <= most:
        return "corners"
    start = np.round(places[:, :1] - 0.5)
    if np.abs(places - start - 0.5).max() > most or start.min() < 0:
        return None
    return "centres elsewhere" if start.any() else "centres"


def _axis(coordinate: xr.DataArray, name: str) -> _Axis:
    values, attributes = coordinate.to_numpy(), coordinate.attrs
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ChipError(f"has a coordinate {name} of {values.ndim} dimensions and {values.dtype}: expected numbers")
    if len(values) < 2:
        raise ChipError(f"has a coordinate {name} of {len(values)} values: expected at least 2")
    # As CF packs numbers; by float64, as 16 bits would not do for metres.
    scale, offset = number_of(attributes, "scale_factor", 1.0), number_of(attributes, "add_offset", 0.0)
    found = values.astype(np.float64)
    gaps = [number_of(attributes, key, math.nan) for key in ("_FillValue", "missing_value")]
    found[np.isin(found, gaps)] = np.nan
    found = found * scale + offset
    whole = bool(np.isfinite(found).all())
    slack = float(np.spacing(np.abs(values).max())) if whole and values.dtype.kind == "f" else 0.0
    axis = _Axis(float(found[0]), float(found[-1]), len(found), slack)
    if not (whole and axis.step and np.allclose(np.diff(found), axis.step, rtol=1e-3, atol=slack)):
        raise ChipError(f"has a coordinate {name} that is not evenly spaced: expected a regular grid")
    return axis


def number_of(attributes: Mapping[Any, Any], name: str, default: float) -> float:
    """An attribute that is one number; raises `ChipError` if it is anything else."""
    if name not in attributes:
        return default
    value = plain(attributes[name])
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ChipError(f"has the attribute {name} {short(repr(value))}, expected a number") from None


def _transforms(dataset: xr.Dataset, array: xr.DataArray) -> Iterator[_Transform]:
    mapping = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping"))
    linked = [name for name in dataset.variables if str(name) == str(plain(mapping))] or [
        name for name, variable in dataset.variables.items() if not variable.dims
    ]
    for attributes in (array.attrs, dataset.attrs, *(dataset.variables[name].attrs for name in linked)):
        for name in (*_AFFINE, _GDAL):
            numbers = _numbers(attributes.get(name))
            if numbers is None:
                if name in attributes and name != "transform":
                    raise ChipError(f"has the {name} {short(str(attributes[name]))}, expected six numbers")
                continue
            a, b, c, d, e, f = (numbers[i] for i in (1, 2, 0, 4, 5, 3)) if name == _GDAL else numbers[:6]
            if (a, b, c, d, e, f) == (1, 0, 0, 0, 1, 0):
                continue  # what rasterio and GDAL say where there is none
            if b or d or not a or not e:
                raise ChipError(f"has the {name} {short(str(attributes[name]))}: expected one that is not rotated")
            if name == _AFFINE[0] and plain(attributes.get("spatial:registration")) == "node":
                c, f = c - a / 2, f - e / 2
            yield _Transform(name, c, f, a, e)


def _numbers(value: Any) -> list[float] | None:
    """Six or nine finite numbers, in a list or in words."""
    value = plain(value)
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return None
    try:
        found = [float(part) for part in parts]
    except (TypeError, ValueError):
        return None
    return found if len(found) in (6, 9) and all(map(math.isfinite, found)) else None


def times_of(dataset: xr.Dataset, array: xr.DataArray, url: str) -> list[tuple[str, date, int | None]]:
    """Label, day and number of each time; raises `ChipError` if there are none, or they make no sense."""
    named = ("is named after", day_in(url.rpartition("/")[2]))
    if "time" in array.dims:
        if "time" not in array.coords:
            raise ChipError("has a dimension time without dates: expected a coordinate of datetime64, as CF encodes it")
        stamps = _stamps(dataset["time"])
        days = stamps.astype("datetime64[D]")
        if np.isnat(days).any():
            raise ChipError(f"lacks a date at time {int(np.flatnonzero(np.isnat(days))[0])}")
        if len(days) == 1:
            said = [("has the attribute date", day_in(str(value))) for value in _dates(dataset, array)]
            one_day([named, ("has a time of", days[0].item()), *said])
        # Two images of one day are told apart by the time of day.
        labels = days if len(set(days)) == len(days) else stamps
        if len(set(labels)) < len(labels):
            raise ChipError(
                "has several images of one time: expected a coordinate time of which each value occurs once"
            )
        return [
            (str(label).replace(":", ""), day, number)
            for number, (label, day) in enumerate(zip(labels, days.astype(object), strict=True))
        ]
    if (day := one_day([named, *_told(dataset, array)])) is None:
        raise ChipError(
            "tells no date: looked for a coordinate time, an attribute date=YYYY-MM-DD and YYYYMMDD in the name"
        )
    return [(day.isoformat(), day, None)]


def _dates(dataset: xr.Dataset, array: xr.DataArray) -> list[Any]:
    """The attributes date that there are."""
    values = (plain(attributes.get("date")) for attributes in (array.attrs, dataset.attrs))
    return [value for value in values if value not in (None, "", [])]


def _told(dataset: xr.Dataset, array: xr.DataArray) -> Iterator[tuple[str, date | None]]:
    """What says of which day an image without a dimension time is, and that day: its coordinate and attributes."""
    if "time" in dataset.coords and dataset["time"].ndim < 2:
        days = np.unique(_stamps(dataset["time"]).reshape(-1).astype("datetime64[D]"))
        days = days[~np.isnat(days)]
        if len(days) > 1:
            raise ChipError(f"has a coordinate time of {len(days)} days and no dimension time: expected one day")
        if len(days):
            yield "has a coordinate time of", days[0].item()
    for value in _dates(dataset, array):
        if (day := day_in(str(value))) is None:
            raise ChipError(f"has the attribute date {short(repr(value))}, expected YYYY-MM-DD")
        yield "has the attribute date", day


def _stamps(time: xr.DataArray) -> NDArray[np.datetime64]:
    """Times to the second, NaT where there is none: as CF encodes them, or as ISO 8601 in words."""
    try:
        values = xr.decode_cf(xr.Dataset({"time": time.variable}))["time"].to_numpy()
    # Whatever xarray says of units and calendars.
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        raise ChipError(f"has a coordinate time that is not to be decoded: {said}") from None
    if values.dtype.kind == "M":
        return np.asarray(values.astype("datetime64[s]"))
    if values.dtype.kind in "OUST":
        try:
            stamps = [datetime.fromisoformat(str(plain(value))) for value in values.reshape(-1)]
        except ValueError as error:
            raise ChipError(f"has a coordinate time that is no date: {error}") from None
        stamps = [stamp.astimezone(UTC).replace(tzinfo=None) if stamp.tzinfo else stamp for stamp in stamps]
        return np.array(stamps, "datetime64[s]").reshape(values.shape)
    raise ChipError(
        f"has a dimension time without dates: expected a coordinate of datetime64, as CF encodes it, and it is of "
        f"{values.dtype} without units"
    )

"""Well-known binary of others: what its bytes say, before GEOS sees them (pure)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

SQUARE = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("corners", "<u4"), ("xy", "<f8", (5, 2))])
"""A polygon of one ring with four corners, the first of them told again at the end, in ISO's little-endian form."""
_HEAD = (1, 3, 1, 5)
MOST_BYTES = 16 * 2**10
"""Of a footprint; one of 1,000 corners has fewer."""
_KINDS = {
    1: "Point",
    2: "LineString",
    3: "Polygon",
    4: "MultiPoint",
    5: "MultiLineString",
    6: "MultiPolygon",
    7: "GeometryCollection",
}


def kind_of(wkb: bytes | None) -> str:
    """The type of a geometry; empty if the bytes are none, too many, or a MultiPolygon holds others than polygons.

    GEOS follows collections within each other until its stack is full, and the process is gone.
    """
    if wkb is None or len(wkb) > MOST_BYTES:
        return ""
    try:
        kind, place, corner = _header(wkb, 0)
        if kind == 3:
            place = _after_rings(wkb, place, _order(wkb, 0), corner)
        elif kind == 6:
            place = _after_polygons(wkb, place)
        if place > len(wkb):
            return ""
    except (struct.error, ValueError):
        return ""
    return _KINDS.get(kind, "")


def rings_of(column: pa.Array) -> NDArray[np.float64] | None:
    """Corners ``(row, 5, 2)`` of geometries that are a `SQUARE` each; None if one of them is anything else."""
    try:
        one_length = column.cast(pa.binary(SQUARE.itemsize))
    except pa.ArrowInvalid:
        return None
    if one_length.null_count:
        return None
    found = np.frombuffer(one_length.buffers()[1], SQUARE, len(one_length), one_length.offset * SQUARE.itemsize)
    heads = zip(("order", "kind", "rings", "corners"), _HEAD, strict=True)
    if not all((found[name] == expected).all() for name, expected in heads):
        return None
    corners: NDArray[np.float64] = found["xy"]
    return corners


def squares(corners: NDArray[np.float64]) -> NDArray[np.void]:
    """Closed rings ``(row, 5, 2)`` as a `SQUARE` each."""
    made = np.empty(len(corners), SQUARE)
    for name, value in zip(SQUARE.names or (), (*_HEAD, corners), strict=True):
        made[name] = value
    return made


def check(values: Sequence[bytes | None]) -> None:
    """Raise `ValueError` for the first geometry that is neither a polygon nor some."""
    # Most often all are squares, and that is seen a hundred times faster.
    if rings_of(pa.array(values, pa.binary())) is not None:
        return
    for row, value in enumerate(values):
        if value is not None and (kind := kind_of(value)) not in ("Polygon", "MultiPolygon"):
            raise ValueError(f"row {row} has {kind or 'no geometry'}, expected a polygon")


def _header(wkb: bytes, place: int) -> tuple[int, int, int]:
    """Type, place of what follows, and bytes of a corner, of the geometry at `place`."""
    order = _order(wkb, place)
    (code,) = struct.unpack_from(f"{order}I", wkb, place + 1)
    # Z, M and SRID are flags in EWKB; in ISO's form Z and M are thousands.
    flags, code = code >> 29, code & 0x1FFFFFFF
    thousands, kind = divmod(code, 1000)
    if thousands > 3:
        raise ValueError("no type")
    more = bool(flags & 4 or thousands in (1, 3)) + bool(flags & 2 or thousands in (2, 3))
    return kind, place + 5 + 4 * bool(flags & 1), 8 * (2 + more)


def _order(wkb: bytes, place: int) -> str:
    (order,) = struct.unpack_from("B", wkb, place)
    if order > 1:
        raise ValueError("no order of bytes")
    return "<" if order else ">"


def _after_polygons(wkb: bytes, place: int) -> int:
    """Where a MultiPolygon ends whose count of polygons is at `place`."""
    (parts,) = struct.unpack_from(f"{_order(wkb, 0)}I", wkb, place)
    place += 4
    for _ in range(parts):
        order = _order(wkb, place)
        kind, place, corner = _header(wkb, place)
        if kind != 3:
            raise ValueError("no polygon")
        place = _after_rings(wkb, place, order, corner)
    return place


def _after_rings(wkb: bytes, place: int, order: str, corner: int) -> int:
    """Where a polygon ends whose count of rings is at `place`."""
    (rings,) = struct.unpack_from(f"{order}I", wkb, place)
    place += 4
    for _ in range(rings):
        (corners,) = struct.unpack_from(f"{order}I", wkb, place)
        place += 4 + corners * corner
    return place

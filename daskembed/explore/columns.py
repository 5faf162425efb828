"""What the columns of a file of embeddings have to be, so that it can be searched."""

from __future__ import annotations

import functools
import json
from typing import Any

import pyarrow as pa
import pyproj
from pyproj.exceptions import CRSError


def check_columns(schema: pa.Schema, names: dict[str, str], geo: dict[str, Any]) -> None:
    """Raise `ValueError` if columns are not of a kind that is read here."""
    kind = schema.field(names["vectors"]).type
    lists = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if not (pa.types.is_nested(lists) and hasattr(lists, "value_type")):
        raise ValueError(f"its {names['vectors']} is of {kind}, expected lists of numbers")
    if "url" in names and not is_text(kind := schema.field(names["url"]).type):
        raise ValueError(f"its {names['url']} is of {kind}, expected text")
    if "date" in names and not (
        is_text(kind := schema.field(names["date"]).type) or pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    ):
        raise ValueError(
            f"its {names['date']} is of {kind}, expected dates, times, or texts of ISO 8601 such as 2022-06-10"
        )
    column = geo.get("columns", {}).get("geometry", {})
    # No CRS is said for longitudes and latitudes; null means that nobody knows it.
    if "crs" in column and not _in_degrees(json.dumps(crs := column["crs"])):
        said = crs.get("name") if isinstance(crs, dict) else crs
        raise ValueError(
            f"its coordinates are of the CRS {said or 'that nobody knows'}, expected OGC:CRS84 or EPSG:4326: write it "
            "with `to_crs`"
        )
    if (encoding := column.get("encoding", "WKB")) != "WKB":
        raise ValueError(f"its footprints are encoded as {encoding}, expected WKB")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column's values are text, which may be kept as numbers of a dictionary."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_one(plain) for is_one in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


@functools.lru_cache(maxsize=16)
def _in_degrees(crs: str) -> bool:
    """Whether a CRS, as PROJJSON, has longitudes and latitudes on WGS 84: GeoParquet has them in this order always."""
    try:
        return bool(pyproj.CRS.from_user_input(json.loads(crs)).equals("OGC:CRS84", ignore_axis_order=True))
    except CRSError:
        return False


def check_places(group: Any, column: int | None) -> None:
    """Raise `ValueError` if statistics say that rows have no footprints."""
    statistics = None if column is None else group.column(column).statistics
    if statistics is not None and statistics.has_null_count and statistics.null_count:
        raise ValueError(f"{statistics.null_count:,} of {group.num_rows:,} rows have no footprint: leave them out")

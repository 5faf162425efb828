"""Profiles: the columns and the footer that other readers of embeddings ask for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskembed.errors import InputError
from daskembed.exports.names import PROFILES
from daskembed.exports.rows import VECTORS, Column, Exported
from daskembed.geo.majortom import cell_names, cells_at
from daskembed.output.stac_model import checkpoint_url

_RING = "POLYGON (({2} {1}, {2} {3}, {0} {3}, {0} {1}, {2} {1}))"
"""Of west, south, east and north, in the order of published footprints."""


@dataclass(frozen=True)
class Profile:
    """What the rows of an export are called, and what its footers say."""

    columns: Mapping[str, Column | None]
    """In the place of the usual ones; `daskembed.exports.rows.COLUMNS` can be added. The one that is None holds the
    embeddings."""
    footer: Callable[[Mapping[str, Any], int, str | None, tuple[date, date]], dict[str, Any]]
    """Keys and their JSON objects, of what files say of how they were made, the length of a vector, how its numbers
    were quantized (None: not at all) and the first and the last date of a file."""

    @property
    def vectors(self) -> str:
        """What the column of the embeddings is called."""
        return next(name for name, make in self.columns.items() if make is None)


def _chip_url(rows: Exported) -> pa.Array:
    urls = rows.table["source_url"]
    return rows.of_each(pc.replace_substring_regex(urls, r"[#&]window=\d+,\d+$", "")).cast(pa.string())


def _timestamp(rows: Exported) -> pa.Array:
    """As in the names of Sentinel-2's products; the day alone where no more is known."""
    # In whole seconds: of others strftime writes the fraction.
    times = rows.known("datetime", pa.timestamp("ms", "UTC")).cast(pa.timestamp("s", "UTC"), safe=False)
    days = rows.of_each(rows.table["date"]).cast(pa.timestamp("s"))
    return pc.coalesce(pc.strftime(times, "%Y%m%dT%H%M%S"), pc.strftime(days, "%Y%m%d"))


def _utm_footprint(rows: Exported) -> pa.Array:
    edges = [[f"{edge:.15g}" for edge in row] for row in rows.squares.bounds.tolist()]
    return pa.array([_RING.format(*row) for row in edges], pa.string())


def _utm_crs(rows: Exported) -> pa.Array:
    return pa.array([f"EPSG:{code}" for code in rows.squares.epsg.tolist()], pa.string())


def _unique_id(rows: Exported) -> pa.Array:
    told = zip(*(make(rows).to_pylist() for make in (_utm_crs, _utm_footprint, _timestamp, _chip_url)), strict=True)
    return pa.array([hashlib.sha256("_".join(one).encode()).hexdigest() for one in told], pa.string())


def _cells(rows: Exported) -> tuple[np.ndarray[Any, np.dtype[np.int16]], np.ndarray[Any, np.dtype[np.int16]]]:
    return cells_at(*rows.centres)


def _pixel_bbox(rows: Exported) -> pa.Array:
    """Columns and rows of pixels of the chip: first and end of each."""
    down, across = (rows.about.window // side for side in rows.grid)
    top, left = (start[rows.number] for start in rows.window_starts)
    y, x = top + rows.row * down, left + rows.col * across
    ends = np.stack([x, y, x + across, y + down], axis=1).astype(np.int64)
    return pa.FixedSizeListArray.from_arrays(pa.array(ends.reshape(-1)), 4).cast(pa.list_(pa.int64()))


MAJOR_TOM = Profile(
    columns=MappingProxyType(
        {
            "unique_id": _unique_id,
            "embedding": None,
            "timestamp": _timestamp,
            "product_id": _chip_url,
            "grid_cell": lambda rows: pa.array(cell_names(*_cells(rows)), pa.string()),
            "grid_row_u": lambda rows: pa.array(_cells(rows)[0]),
            "grid_col_r": lambda rows: pa.array(_cells(rows)[1]),
            "geometry": lambda rows: rows.geometry,
            "centre_lat": lambda rows: pa.array(rows.centres[1].astype(np.float32)),
            "centre_lon": lambda rows: pa.array(rows.centres[0].astype(np.float32)),
            "utm_footprint": _utm_footprint,
            "utm_crs": _utm_crs,
            "pixel_bbox": _pixel_bbox,
        }
    ),
    footer=lambda made, dims, quantization, days: {},
)
"""Of the embeddings of Major TOM, huggingface.co/Major-TOM."""


def _emb(made: Mapping[str, Any], dims: int, quantization: str | None, days: tuple[date, date]) -> dict[str, Any]:
    source = (made.get("identity") or {}).get("source")
    names = [str(made[name]) for name in ("encoder", "size") if made.get(name)]
    first, last = days
    told = {
        "version": "0.0.1",
        "model": {
            "id": "-".join(names) or "unknown",
            "name": " ".join(names) or "unknown",
            "source": checkpoint_url(made) if made.get("checkpoint") else "unknown",
            "config": f"level {made.get('level', 'unknown')}",
        },
        # Nobody has said who provides the export, and under which licence.
        "providers": [],
        "licensing": {"license": "other"},
        "datetime": {
            "datetime": None,
            "start_datetime": f"{first}T00:00:00Z",
            "end_datetime": f"{last}T23:59:59Z",
        },
        "source_datasets": [{"id": source, "source": source}] if source else [],
        "embedding": {"embeddings_dim": dims, "embeddings_quantization": quantization or "None"},
    }
    return {"emb": told}


EARTH_INDEX = Profile(
    columns=MappingProxyType(
        {
            "geometry": lambda rows: rows.geometry,
            "id": lambda rows: pa.array(rows.ids, pa.string()),
            "embedding": None,
        }
    ),
    footer=_emb,
)
"""Of Earth Index, github.com/cloudnativegeo/geo-embeddings-survey."""

_PROFILES: Mapping[str, Profile] = MappingProxyType(dict(zip(PROFILES, (MAJOR_TOM, EARTH_INDEX), strict=True)))


def vectors_of(profile: str | None) -> str:
    """What the column of the embeddings is called."""
    if profile is None:
        return VECTORS
    return get_profile(profile).vectors


def get_profile(name: str) -> Profile:
    """The profile of a name; raises `InputError` if there is none."""
    if name not in PROFILES:
        raise InputError(f"unknown `profile` {name!r}: choose {' or '.join(PROFILES)}")
    return _PROFILES[name]


def encode_footer(footer: Mapping[str, Any]) -> dict[bytes, bytes]:
    """A footer's keys and values as Parquet has them."""
    return {key.encode(): json.dumps(value, sort_keys=True).encode() for key, value in footer.items()}

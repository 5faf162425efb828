"""Parts of a tile: the embeddings of one block in one file, from which the formats make what is published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from daskembed.documents import parse_as, parse_object
from daskembed.energy import Energy, total
from daskembed.errors import TileError
from daskembed.fates import SAID, Fate, Fates
from daskembed.geo.cells import EDGES
from daskembed.timings import timed

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray

    from daskembed.storage.stores import Storage

ROW_GROUP_BYTES = 32 * 2**20
"""Most bytes of vectors in a row group: what a reader that streams a file holds at a time."""
TIME = pa.timestamp("ms", "UTC")
_NOTES = b"daskembed-part"
_ENERGY = b"daskembed-energy"
# A part is read once and deleted: compressing it would cost more than it saves.
_WRITER: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}


@dataclass
class Notes(Fates):
    """What became of the chips of some parts, beside their embeddings."""

    rows: int = 0
    days: tuple[date, date] | None = None
    """First and last date of the rows."""
    energy: Energy | None = None
    """What was used for all of them, whichever runs made them; None if it was not measured for each."""


def write_part(frame: gpd.GeoDataFrame, file: BinaryIO, shape: tuple[int, ...], energy: Energy | None = None) -> None:
    """Write one partition of `daskembed.to_geodataframe` as a part.

    Parameters
    ----------
    frame
        The partition. Its rows without an embedding go to the part's footer with the reasons.
    file
        Where.
    shape
        Shape of the embedding of one row.
    energy
        What the device used for its chips, if that was measured.
    """
    with timed("write"):
        bad = (frame["quarantined"].notna() | frame["rejected"].notna()).to_numpy()
        # Choosing rows copies all vectors, and nearly always all rows are good.
        good = frame[~bad] if bad.any() else frame
        kind = pa.fixed_shape_tensor(pa.float32(), shape)
        vectors = pa.array(good["embeddings"], kind.storage_type)
        chips, notes = frame.drop_duplicates("chip_url"), Fates()
        told = [chips[name].astype(object).where(chips[name].notna(), None) for name in SAID]
        for url, *fate in zip(chips["chip_url"], *told, strict=True):
            notes.add(url, Fate(*fate))
        table = pa.table(
            {
                "source_url": pa.array(good["source_url"], pa.string()),
                "date": pa.array(good["date"], pa.date32()),
                "embeddings": pa.ExtensionArray.from_storage(kind, vectors),
                "geometry": pa.array(shapely.to_wkb(good.geometry.to_numpy()), pa.binary()),
                "epsg": pa.array(good["epsg"], pa.int32()),
                **{edge: pa.array(good[edge], pa.float64()) for edge in EDGES},
                **{
                    name: pa.array(good[name], kind, from_pandas=True) if name in good else pa.nulls(len(good), kind)
                    for name, kind in (("datetime", TIME), ("cloud", pa.float32()))
                },
            },
            metadata={
                _NOTES: json.dumps(asdict(notes)),
                **({_ENERGY: json.dumps(asdict(energy))} if energy else {}),
            },
        )
        pq.write_table(table, file, row_group_size=rows_a_group(shape), **_WRITER)


def read_notes(output: Storage, parts: Sequence[str]) -> Notes:
    """What the footers of some parts say, together, and between which dates their rows lie."""
    found, measured = Notes(), list[Energy | None]()
    days = set[date]()
    for part in parts:
        with pq.ParquetFile(output.open_reader(part)) as file:
            said = parse_object(file.metadata.metadata[_NOTES])
            energy = file.metadata.metadata.get(_ENERGY)
            measured.append(None if energy is None else parse_as(Energy, energy))
            found.rows += file.metadata.num_rows
            days.update(file.read(columns=["date"])["date"].unique().to_pylist())
        found.update(Fates(**said))
    found.days = (min(days), max(days)) if days else None
    used = total(measured)
    # Some virtual machines have a counter that stands still.
    found.energy = used if used and used.joules > 0 else None
    return found


def rows_a_group(shape: tuple[int, ...]) -> int:
    """Rows of a row group of embeddings of `shape`."""
    return max(1, ROW_GROUP_BYTES // (4 * int(np.prod(shape))))


def cast_vectors(vectors: NDArray[np.float32], dtype: str, urls: Sequence[str]) -> NDArray[Any]:
    """Vectors of some rows as they are published.

    Parameters
    ----------
    vectors
        The rows' vectors, ``(row, ...)``.
    dtype
        One of `daskembed.output.protocol.DTYPES`.
    urls
        Of the rows.

    Raises
    ------
    TileError
        If a value is too large for `dtype`: it would become an infinity.
    """
    if dtype == vectors.dtype:
        return vectors
    with np.errstate(over="ignore"):
        cast = vectors.astype(dtype)
    # Nearly always there is none, and looking at one number a row is cheap.
    largest = np.abs(cast).reshape(len(cast), -1).max(axis=1, initial=0)
    if np.isinf(largest).any():
        bad = (np.isinf(cast) & np.isfinite(vectors)).reshape(len(cast), -1).any(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise TileError(
                f"the embedding of {urls[row]} has the value {np.abs(vectors[row]).max():g}, and {dtype} ends at "
                f"{np.finfo(dtype).max:g}: give `dtype='float32'`"
            )
    return cast

"""What one export makes of the published files that it copies, checked before anything is read of their vectors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from daskembed.exports.profiles import vectors_of
from daskembed.storage.stores import Storage

if TYPE_CHECKING:
    from datetime import date

    from daskembed.output.lock import Lock
    from daskembed.quantization import Calibration

KIND = ("encoder", "size", "sensor", "window", "checkpoint", "sha256", "level")
"""What footers say that has to be the same in all files of an export; the shape, the type and the version have to be,
too."""
SOFTWARE = ("daskembed", "pyarrow", "numpy")
"""Packages whose versions an exported file tells."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of the vectors, uncompressed, that are in one of what exported files are made of."""

    file: int = 512 * 2**20
    """About."""
    group: int = 128 * 2**20
    """Row group."""
    page: int = 64 * 2**10
    """Or one vector, where that is larger. Whoever looks up a vector reads 0.3 MB then, and 1.2 at 1 MB, where files
    are 10 % smaller."""


DEFAULT = Sizes()


@dataclass(frozen=True)
class Export:
    """What one export does: all that determines its files beside the published ones."""

    source: Storage
    """The output whose published files are copied."""
    target: Storage
    """Where to."""
    made: dict[str, Any]
    """What all footers of the published files say alike of how the embeddings were made; empty where they say nothing.
    Of its keys `level`, `dims` and `labels` are as in `daskembed.runs.settings.Settings.provenance`."""
    shape: tuple[int, ...]
    """Of the embedding of one published row, such as ``(16, 16, 768)``."""
    format: str = "geoparquet"
    """Key of `daskembed.exports.protocol.FORMATS`."""
    rows: Literal["chip", "patch"] = "chip"
    """What one exported row is."""
    unique: Literal["none", "place"] = "none"
    """Whether one row a place and date remains where tiles overlap."""
    columns: tuple[str, ...] = ()
    """Added ones, of `daskembed.exports.rows.COLUMNS`, in their order."""
    profile: str | None = None
    """Of `daskembed.exports.names.PROFILES`: whose columns in the place of the usual ones."""
    dtype: str = "float32"
    """Of the values."""
    calibration: Calibration | None = None
    """Of values of int8."""
    components: tuple[int, ...] = ()
    """Those of the vectors that become bands; all where there is none."""
    dates: tuple[date, date] | None = None
    """First and last acquisition date wanted, inclusive."""
    region: str | None = None
    """WKT in OGC:CRS84: only chips that it meets."""
    skip_damaged: bool = False
    """Whether files that are not as their receipts say are left out."""
    sizes: Sizes = DEFAULT
    lock: Lock | None = field(default=None, compare=False)
    """Held by the export; whoever writes sees to it that it still is."""

    def confirm(self) -> None:
        """Raise `LockLostError` if another run has the target by now."""
        if self.lock is not None:
            self.lock.confirm()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of one published row; ``(1, 1)`` at levels without a grid."""
        sides = dict(zip(self.made.get("dims", ()), self.shape, strict=False))
        return sides.get("row", 1), sides.get("col", 1)

    @property
    def patches(self) -> int:
        """Exported rows of one published row."""
        return math.prod(self.grid) if self.rows == "patch" else 1

    @property
    def dims(self) -> int:
        """Values of the vector of one exported row."""
        return math.prod(self.shape) // self.patches

    @property
    def vectors(self) -> str:
        """What the column of the vectors is called."""
        return vectors_of(self.profile)

    @property
    def needs_kept(self) -> bool:
        """Whether more is needed than published files say."""
        return bool(self.columns) or self.profile is not None or self.rows == "patch" or self.unique == "place"

    @property
    def checks_neighbours(self) -> bool:
        """Whether it has to be known of each file whether its neighbours are damaged."""
        return self.unique == "place" and self.skip_damaged

    @property
    def row_bytes(self) -> int:
        """Of one exported vector."""
        return self.dims * np.dtype(self.dtype).itemsize

    @property
    def identity(self) -> dict[str, Any]:
        """What determines a file beside the published ones; as JSON."""
        return {
            "source": self.source.url,
            **{key: self.made.get(key) for key in KIND},
            "shape": list(self.shape),
            "format": self.format,
            "rows": self.rows,
            "unique": self.unique,
            "columns": list(self.columns),
            "profile": self.profile,
            "dtype": self.dtype,
            **({} if self.calibration is None else {"calibration": self.calibration.digest}),
            "components": list(self.components),
            "dates": None if self.dates is None else [day.isoformat() for day in self.dates],
            "region": self.region,
            "sizes": asdict(self.sizes),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """What a file's footer says of how it was made, under ``daskembed``."""
        dims = self.made.get("dims", [])
        # Of a patch: what is not its place.
        sides = [name for name in dims if self.rows == "chip" or name not in ("row", "col")]
        shape = [length for name, length in zip(dims, self.shape, strict=False) if name in sides]
        return {
            **self.made,
            **({"dims": sides} if dims else {}),
            "shape": shape if dims else list(self.shape),
            "dtype": self.dtype,
            "export": {
                "rows": self.rows,
                "unique": self.unique,
                "columns": list(self.columns),
                **({} if self.profile is None else {"profile": self.profile}),
            },
            "software": {name: version_of(name) for name in SOFTWARE},
        }

"""Statistics of the vectors of published files: one a file, kept in the output, and their sum over all files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daskembed.documents import json_digest
from daskembed.errors import InputError, TileError
from daskembed.exports.index import check_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from daskembed.exports.selection import ExportTile
    from daskembed.storage.stores import Storage

AT_ONCE = 16
"""Statistics that are read at a time."""
_SUFFIX = ".npz"


class Statistic(Protocol):
    """What is known of some vectors, and adds up to the same whatever is added first."""

    form: ClassVar[int]
    """Another, whenever the same vectors give another one."""

    @property
    def rows(self) -> int:
        """Vectors."""

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Self:
        """Of vectors ``(row, dimension)``; raises `ValueError` if a value is no number."""

    def __add__(self, other: Self) -> Self:
        """Of the vectors of both."""

    def pack(self) -> bytes:
        """As bytes."""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """What `pack` gave; raises `ValueError` if that is something else."""


Kind = TypeVar("Kind", bound=Statistic)


@dataclass(frozen=True)
class Statistics(Generic[Kind]):
    """Where statistics of published files are kept: one that is there is good for as long as its file is the same."""

    output: Storage
    """With the published files."""
    folder: str
    """Path below it; of this kind of statistic alone."""
    kind: type[Kind]
    n_dims: int
    """Of a vector: rows of published files may hold several, one after another."""

    def path(self, tile: ExportTile) -> str:
        """Of a file's statistic, below the output: another, if the file or the form of the statistic is."""
        return f"{self.folder}/{tile.name}.{json_digest([self.kind.form, tile.written])[:16]}{_SUFFIX}"

    def missing(self, tiles: Iterable[ExportTile]) -> list[str]:
        """Names of the files that have none."""
        there = {entry.path for entry in self.output.entries(self.folder, recursive=False)}
        return [tile.name for tile in tiles if self.path(tile) not in there]

    def keep(self, tile: ExportTile) -> int:
        """On a worker: make a file's statistic, a row group in memory at a time; gives the vectors in it.

        Raises
        ------
        TileError
            If the file is not as its receipt says, cannot be read, has no vectors, or a value is no number.
        """
        found = self._of(tile)
        self.output.put(self.path(tile), found.pack())
        return found.rows

    def _of(self, tile: ExportTile) -> Kind:
        where, found = self.output.url_of(tile.name), None
        try:
            check_bytes(self.output, tile)
            with pq.ParquetFile(self.output.open_reader(tile.name)) as file:
                for group in range(file.num_row_groups):
                    vectors = _vectors(file.read_row_group(group, columns=["embeddings"]), self.n_dims)
                    one = self.kind.of(vectors)
                    found = one if found is None else found + one
        except FileNotFoundError:
            raise TileError(f"{where} is gone") from None
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise TileError(f"{where} cannot be used: {' '.join(str(error).split())[:200]}") from None
        if found is None:
            raise TileError(f"{where} has no rows")
        return found

    def total(self, tiles: Iterable[ExportTile]) -> Kind:
        """The sum over files, in the order of their names; memory does not depend on how many they are.

        Raises
        ------
        InputError
            If one is gone, or damaged.
        """
        total = None
        ordered = sorted(tiles, key=lambda tile: tile.name)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for start in range(0, len(ordered), AT_ONCE):
                for one in pool.map(self._read, ordered[start : start + AT_ONCE]):
                    total = one if total is None else total + one
        assert total is not None, "of no file"
        return total

    def _read(self, tile: ExportTile) -> Kind:
        path = self.path(tile)
        try:
            return self.kind.unpack(self.output.get(path))
        except FileNotFoundError:
            raise InputError(f"{self.output.url_of(path)} is gone: the same command makes it again") from None
        except ValueError as error:
            raise InputError(
                f"{self.output.url_of(path)} is not what was kept of {tile.name}: {error}; delete it, and the same "
                "command makes it again"
            ) from None

    def tidy(self, tiles: Mapping[str, ExportTile]) -> None:
        """Remove what is of an earlier content of files, and what killed writers left half written."""
        kept = {self.path(tile) for tile in tiles.values()}
        there = [entry.path for entry in self.output.entries(self.folder, recursive=False)]
        names = {path: path.removeprefix(f"{self.folder}/").removesuffix(_SUFFIX).rpartition(".")[0] for path in there}
        self.output.delete([path for path in there if names[path] in tiles and path not in kept])
        self.output.sweep(rf"^{self.folder}")


def _vectors(table: pa.Table, n_dims: int) -> NDArray[Any]:
    column = table["embeddings"].combine_chunks()
    lists = column.storage if isinstance(column, pa.ExtensionArray) else column
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if flat.size % n_dims:
        raise ValueError(f"{flat.size} values in {len(table)} rows are no vectors of {n_dims}")
    vectors: NDArray[Any] = flat.reshape(-1, n_dims)
    return vectors

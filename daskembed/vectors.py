"""A column of vectors in a frame: one array a row, all of one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from dask.dataframe.extensions import make_array_nonempty
from pandas.api.extensions import ExtensionArray, ExtensionDtype

if TYPE_CHECKING:
    from numpy.typing import NDArray


class VectorDtype(ExtensionDtype):  # type: ignore[misc]
    """Of a column of vectors.

    pandas writes the names of types into Parquet files and looks them up when it reads these, and it finds none of an
    Arrow list. This one calls itself ``object``: readers everywhere then give one array a row. That Dask asks the type
    and not the rows for the schema of files is why the column is not one of objects.
    """

    type = np.ndarray
    name = "object"
    na_value = None
    _metadata = ("length", "value")

    def __init__(self, length: int, value: str = "float32") -> None:
        self.length = length
        """Values of a vector."""
        self.value = value
        """Their type."""

    def __repr__(self) -> str:
        return f"VectorDtype({self.length}, {self.value!r})"

    @classmethod
    def construct_array_type(cls) -> Any:
        """The class of its columns."""
        return VectorArray

    @property
    def arrow(self) -> pa.FixedSizeListType:
        """In Arrow."""
        return pa.list_(pa.from_numpy_dtype(self.value), self.length)

    def __from_arrow__(self, column: pa.Array | pa.ChunkedArray) -> VectorArray:
        return VectorArray.from_arrow(column)

    @classmethod
    def of(cls, kind: pa.DataType) -> VectorDtype | None:
        """Of columns that are fixed-size lists or tensors in Arrow; None for others."""
        lists = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        if not pa.types.is_fixed_size_list(lists):
            return None
        return cls(lists.list_size, str(np.dtype(lists.value_type.to_pandas_dtype())))


class VectorArray(ExtensionArray):  # type: ignore[misc]
    """Vectors ``(row, length)``, some rows of which may be missing: they are None."""

    def __init__(self, vectors: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> None:
        self._vectors = vectors
        self._missing = np.zeros(len(vectors), bool) if missing is None else missing

    @classmethod
    def from_arrow(cls, column: pa.Array | pa.ChunkedArray) -> VectorArray:
        """Of a column of fixed-size lists or tensors."""
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        lists = whole.storage if isinstance(whole, pa.ExtensionArray) else whole
        missing = lists.is_null().to_numpy(zero_copy_only=False)
        vectors = np.zeros((len(lists), lists.type.list_size), lists.type.value_type.to_pandas_dtype())
        # Flattened, missing rows are left out.
        flat = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, lists.type.list_size)
        if not missing.any():
            return cls(flat, missing)
        vectors[~missing] = flat
        return cls(vectors, missing)

    @classmethod
    def _from_sequence(cls, scalars: Any, *, dtype: Any = None, copy: bool = False) -> VectorArray:
        rows = [None if pd.isna(row) is True else np.asarray(row) for row in scalars]
        shapes = {row.shape for row in rows if row is not None}
        if dtype is None and len(shapes) == 1:
            dtype = VectorDtype(shapes.pop()[0], str(next(row.dtype for row in rows if row is not None)))
        elif dtype is None or shapes - {(dtype.length,)}:
            raise TypeError(f"rows of the shapes {shapes}: expected vectors of one length, {dtype!r}")
        if other := {str(row.dtype) for row in rows if row is not None and not np.can_cast(row.dtype, dtype.value)}:
            raise TypeError(f"rows of {', '.join(sorted(other))}: expected vectors of {dtype!r}")
        vectors = np.zeros((len(rows), dtype.length), dtype.value)
        for number, row in enumerate(rows):
            if row is not None:
                vectors[number] = row
        return cls(vectors, np.array([row is None for row in rows], bool))

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence[VectorArray]) -> VectorArray:
        return cls(
            np.concatenate([one._vectors for one in to_concat]), np.concatenate([one._missing for one in to_concat])
        )

    @property
    def dtype(self) -> VectorDtype:
        """Its type."""
        return VectorDtype(self._vectors.shape[1], str(self._vectors.dtype))

    @property
    def vectors(self) -> NDArray[Any]:
        """``(row, length)``; those of missing rows mean nothing."""
        return self._vectors

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return self._vectors.nbytes + self._missing.nbytes

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, item: Any) -> Any:
        item = pd.api.indexers.check_array_indexer(self, item)
        if isinstance(item, (int, np.integer)):
            return None if self._missing[item] else self._vectors[item]
        return type(self)(self._vectors[item], self._missing[item])

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, VectorArray):
            return NotImplemented
        same = (self._vectors == other._vectors).all(axis=1)
        return np.where(self._missing | other._missing, self._missing & other._missing, same)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.object_]:
        # NumPy by itself would make it two-dimensional.
        rows = np.empty(len(self), object)
        rows[:] = list(self)
        return rows

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(self._vectors).reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, self.dtype.length, mask=pa.array(self._missing))
        return lists if type is None else lists.cast(type)

    def isna(self) -> NDArray[np.bool_]:
        """Which rows are missing."""
        return self._missing.copy()

    def take(self, indices: Any, *, allow_fill: bool = False, fill_value: Any = None) -> VectorArray:
        """Some of its rows; with `allow_fill`, -1 is a missing one."""
        rows = np.asarray(indices, np.intp)
        if not allow_fill:
            return type(self)(self._vectors[rows], self._missing[rows])
        if (rows < -1).any():
            raise ValueError("indices below -1: expected rows, or -1 for a missing one")
        if not len(self):
            return type(self)(np.zeros((len(rows), self.dtype.length), self._vectors.dtype), np.ones(len(rows), bool))
        return type(self)(self._vectors[rows], self._missing[rows] | (rows == -1))

    def copy(self) -> VectorArray:
        """A copy."""
        return type(self)(self._vectors.copy(), self._missing.copy())


@make_array_nonempty.register(VectorDtype)  # type: ignore[untyped-decorator]
def _two_vectors(dtype: VectorDtype) -> VectorArray:
    return VectorArray(np.zeros((2, dtype.length), dtype.value))

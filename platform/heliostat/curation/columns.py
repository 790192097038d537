"""Arrays as columns of tables, and back."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from heliostat.curation.kmeans import Vectors


def vector_column(vectors_ND: Vectors) -> pa.FixedSizeListArray:
    """Vectors as a column, one list of float16 per row."""
    return list_column(vectors_ND)


def list_column(rows: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """An array (N, M) as a column of N lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def vectors_of(column: pa.ChunkedArray) -> Vectors:
    """(N, D), from a column that ``vector_column`` has made."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float16).reshape(len(column), -1) if len(column) else np.empty((0, 0), np.float16)

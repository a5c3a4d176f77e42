"""Columns and rows of a Parquet file; it needs pyarrow, which is optional."""

import datetime
import sys
from collections.abc import Iterator
from typing import IO, Any

from training.table import Content, DataError


def parquet_content(source: str, file: IO[bytes]) -> Content:
    """Read the columns of a Parquet file; its rows are read when they are asked for.

    Raises
    ------
    DataError
        If it is not Parquet, or pyarrow is not installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        command = f"{sys.executable} -m pip install pyarrow"
        raise DataError(source, [f"is Parquet, which needs pyarrow: {command}"]) from error
    try:
        content = parquet.ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise DataError(source, [f"is not Parquet: {error}"]) from error

    def rows() -> Iterator[tuple[None, list[Any]]]:
        try:
            for batch in content.iter_batches():
                columns = [column.to_pylist() for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    yield None, [_plain(cell) for cell in cells]
        except (ArrowException, OSError) as error:
            raise DataError(source, [f"cannot be read: {error}"]) from error

    return Content(content.schema_arrow.names, rows(), content.metadata.num_rows)


def _plain(cell: object) -> object:
    """Return a value that a CSV or JSON file can have, too."""
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    if isinstance(cell, bytes):
        return cell.decode(errors="replace")
    # pandas and pyarrow write a missing number as null or as NaN.
    return None if isinstance(cell, float) and cell != cell else cell

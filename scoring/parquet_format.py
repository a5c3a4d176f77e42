"""Parquet files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from scoring.columns import PROBABILITY
from scoring.file_format import Format, Read, Writer

#: Rows that a worker holds until it writes a row group.
ROW_GROUP_ROWS = 1 << 17


class Parquet(Format):
    """Parquet; a part is a row group."""

    def parts(self, path: Path) -> Iterator[tuple[int, int]]:
        """See `Format`."""
        metadata = pq.read_metadata(path)
        groups = range(metadata.num_row_groups)
        return ((group, group + 1) for group in groups if metadata.row_group(group).num_rows)

    def columns(self, path: Path) -> tuple[str, ...]:
        """See `Format`."""
        return tuple(pq.read_schema(path).names)

    def read(self, path: Path, part: tuple[int, int], rows: int, fields: Mapping[str, str]) -> Iterator[Read]:
        """See `Format`."""
        schema = pq.read_schema(path)
        texts = [one.name for one in schema if one.name in fields and pa.types.is_string(one.type)]
        # The file has texts as codes already, and so the encoder takes them.
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(rows, row_groups=range(*part), use_threads=False):
                yield batch.cast(schema), batch

    def writer(self, file: IO[bytes], schema: pa.Schema) -> Writer:
        """See `Format`."""
        return _ParquetWriter(file, schema)


class _ParquetWriter(Writer):
    """Collects batches, because each call of Arrow's writer makes a row group."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self._schema = schema
        # Probabilities hardly repeat: a dictionary of them takes time and space.
        repeating = [name for name in schema.names if name != PROBABILITY]
        self._writer = pq.ParquetWriter(file, schema, use_dictionary=repeating)
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        if self._rows >= ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._batches, self._schema)
        self._writer.write_table(table, row_group_size=self._rows)
        self._batches, self._rows = [], 0

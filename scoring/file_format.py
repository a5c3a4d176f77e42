"""A format of input and output, in parts that are read and written in batches.

A batch is read in two forms: as it is in the file, for the output, and as candidates.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import pyarrow as pa

#: Bytes of a part of a CSV or JSON lines file, about: some 300,000 candidates, 10 s of a forest.
PART_BYTES = 32 * 2**20
#: Maximum bytes of a line that are read at once.
LINE_BYTES = 2**20

#: A batch as it is in the file, and its candidates, or the errors of rows that hold none.
Read = tuple[pa.RecordBatch, pa.RecordBatch | pa.StringArray]


class Writer(ABC):
    """Writes batches of one schema to a file."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Write a batch."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left, and the end of the file."""


class Format(ABC):
    """A file format."""

    @abstractmethod
    def parts(self, path: Path) -> Iterator[tuple[int, int]]:
        """Yield the ranges of a file that are scored separately; the same file gives the same ranges."""

    @abstractmethod
    def columns(self, path: Path) -> tuple[str, ...] | None:
        """Return the columns of a file; None if each candidate has its own fields."""

    @abstractmethod
    def read(self, path: Path, part: tuple[int, int], rows: int, fields: Mapping[str, str]) -> Iterator[Read]:
        """Yield a part's batches of at most `rows`; `fields` has the V2 datatype of each raw field."""

    @abstractmethod
    def writer(self, file: IO[bytes], schema: pa.Schema) -> Writer:
        """Return a writer of batches with this schema."""


def line_ranges(file: IO[bytes], *, quoted: bool) -> Iterator[tuple[int, int]]:
    """Yield ranges of whole rows from the file's position on."""
    start = end = file.tell()
    quotes = 0
    while line := file.readline(LINE_BYTES):
        end += len(line)
        if quoted:
            quotes += line.count(b'"')
        if end - start >= PART_BYTES and line.endswith(b"\n") and quotes % 2 == 0:
            yield start, end
            start = end
    if end > start:
        yield start, end


def read_range(path: Path, part: tuple[int, int]) -> bytes:
    """Return the bytes of a part."""
    start, end = part
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)

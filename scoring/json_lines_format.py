"""JSON lines files."""

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa

from scoring.batch import CANDIDATES
from scoring.columns import ERROR
from scoring.file_format import Format, Read, Writer, ranges, read_range

#: Maximum candidates per batch: parsed objects take about ten times the memory of columns.
MAX_OBJECTS = 1 << 14


class JsonLines(Format):
    """A JSON object on each line; a part is a range of lines of about `PART_BYTES`."""

    def parts(self, path: Path) -> Iterator[tuple[int, int]]:
        """See `Format`."""
        with path.open("rb") as file:
            start = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
            file.seek(start)
            yield from ranges(start, ((line, True) for line in file))

    def columns(self, path: Path) -> None:
        """See `Format`."""

    def read(self, path: Path, part: tuple[int, int], rows: int, fields: Mapping[str, str]) -> Iterator[Read]:
        """See `Format`."""
        lines = [line for line in read_range(path, part).split(b"\n") if line.strip()]
        size = min(rows, MAX_OBJECTS)
        for start in range(0, len(lines), size):
            array = pa.array(lines[start : start + size], pa.binary())
            batch = pa.RecordBatch.from_arrays([array], [CANDIDATES])
            yield batch, batch

    def writer(self, file: IO[bytes], schema: pa.Schema) -> Writer:
        """See `Format`."""
        return _JsonLinesWriter(file)


class _JsonLinesWriter(Writer):
    """Adds keys to each object. The rest of its line stays as it is, also how its numbers are written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, batch: pa.RecordBatch) -> None:
        lines = batch[CANDIDATES].to_pylist()
        added = batch.drop_columns([CANDIDATES]).to_pylist()
        self._file.writelines(map(_extended, lines, added))

    def close(self) -> None:
        self._file.flush()

    def discard(self) -> None:
        pass


def _extended(line: bytes, added: Mapping[str, Any]) -> bytes:
    """Return a line with an object's added keys; a line that is no object becomes the value of ``line``."""
    if ERROR in added and not _is_object(line):
        return orjson.dumps({"line": line.strip().decode(errors="replace"), **added}) + b"\n"
    head = line.strip()[:-1].rstrip()
    return head + (b"" if head == b"{" else b",") + orjson.dumps(added)[1:] + b"\n"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False

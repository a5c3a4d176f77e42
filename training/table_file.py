"""Table of a file or of standard input: finds compression, format and encoding, and reads it.

The name's ending tells the format: ``.csv``, ``.tsv``, ``.json``, ``.jsonl``, ``.ndjson``, ``.parquet``, each
also with ``.gz``. Without a known ending, the content does.
"""

import argparse
import codecs
import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

from training.csv_content import SEPARATORS, csv_content
from training.json_content import json_content
from training.parquet_content import parquet_content
from training.table import Content, DataError, Table

#: Name of standard input as an argument.
STANDARD_INPUT = "-"
#: Reader of each format, which is also the ending of a file's name.
FORMATS = {
    "csv": "csv",
    "tsv": "csv",
    "json": "json",
    "jsonl": "json",
    "ndjson": "json",
    "parquet": "parquet",
    "pq": "parquet",
}
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
#: Beginnings of files that are not read, with what they are and what to do.
_OTHERS = {
    b"PK\x03\x04": "is a spreadsheet or ZIP file; save it as CSV",
    b"\xd0\xcf\x11\xe0": "is an old Excel file; save it as CSV",
    b"BZh91AY&SY": "is compressed with bzip2; decompress it, or use gzip",
    b"\xfd7zXZ": "is compressed with xz; decompress it, or use gzip",
    b"\x28\xb5\x2f\xfd": "is compressed with Zstandard; decompress it, or use gzip",
    _GZIP: "is compressed twice; decompress it once",
    b"ARROW1": "is an Arrow or Feather file; save it as Parquet",
    **dict.fromkeys(
        (b"\x80\x03", b"\x80\x04\x95", b"\x80\x05\x95"), "is a pickle; save it as CSV or Parquet"
    ),
}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_BYTE_ORDER_MARK = "\ufeff"
_NUL = "has a NUL character; if it is UTF-16, add --encoding utf-16-le"
#: Bytes from which the format is found.
_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """Properties of a file that its name and content do not tell.

    Attributes
    ----------
    format
        One of `FORMATS`; None to find it.
    encoding
        Python's name of the text's encoding; None for UTF-8, or what a byte order mark says.
    decimal
        Decimal mark of numbers that are texts, ``.`` or ``,``.
    """

    format: str | None = None
    encoding: str | None = None
    decimal: str = "."

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options of a command that reads a file."""
        parser.add_argument("--format", choices=list(FORMATS), help="format (default: by name or content)")
        parser.add_argument(
            "--encoding",
            type=_encoding,
            metavar="NAME",
            help="encoding of a text file, for example latin-1 (default: UTF-8, or by its byte order mark)",
        )
        parser.add_argument(
            "--decimal", choices=(".", ","), default=".", help="decimal mark of numbers in CSV"
        )

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Reading":
        """Return the values of these options."""
        return cls(options.format, options.encoding, options.decimal)

    @property
    def arguments(self) -> list[str]:
        """The options of a command that reads the same file."""
        given = {"--format": self.format, "--encoding": self.encoding}
        options = [part for name, value in given.items() if value for part in (name, value)]
        return options if self.decimal == "." else [*options, "--decimal", self.decimal]


#: Finds everything in the file.
AUTOMATIC = Reading()


@contextmanager
def open_file(file: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Open a file, or standard input for ``-``; yield its name in messages and the open file.

    Raises
    ------
    DataError
        If it cannot be opened.
    """
    if file == STANDARD_INPUT:
        yield "standard input", sys.stdin.buffer
        return
    try:
        opened = Path(file).open("rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise DataError(file, [str(error.strerror)]) from error
    with opened:
        yield file, opened


def read_table(
    source: str,
    file: IO[bytes],
    known: Sequence[str] = (),
    reading: Reading = AUTOMATIC,
    *,
    only_lists: bool = False,
) -> Table:
    """Read the columns of an open file; a CSV or Parquet file's rows are read when they are asked for.

    Parameters
    ----------
    source
        Name of the file; its ending may tell the format.
    known
        Names of some columns that the file may have. They help to recognise separators and forms of JSON.
    reading
        Properties of the file that are known.
    only_lists
        See `json_content`.

    Raises
    ------
    DataError
        If the file is no table. A malformed row raises when it is read.
    """
    with _reading_errors(source):
        opened = _peekable(file)
        if opened.peek(2)[:2] == _GZIP:
            opened = cast(io.BufferedReader, gzip.GzipFile(fileobj=opened))
        content = _content(source, opened, known, reading, only_lists)
    return Table(source, replace(content, rows=_guarded(source, content)), reading.decimal)


def read_whole(
    path: str | os.PathLike[str], known: Sequence[str] = (), reading: Reading = AUTOMATIC
) -> tuple[Table, bytes]:
    """Return the table of a file, and the file's content, for example for its digest; see `read_table`."""
    with open_file(os.fspath(path)) as (source, file), _reading_errors(source):
        content = file.read()
    return read_table(source, io.BytesIO(content), known, reading), content


def _peekable(file: IO[bytes]) -> io.BufferedReader:
    """Return a file that can be peeked at; one in memory cannot."""
    return cast(
        io.BufferedReader, file if hasattr(file, "peek") else io.BufferedReader(cast(io.BytesIO, file))
    )


def _content(
    source: str, file: io.BufferedReader, known: Sequence[str], reading: Reading, only_lists: bool
) -> Content:
    head = file.peek(_HEAD_BYTES)
    for beginning, problem in _OTHERS.items():
        if head.startswith(beginning):
            raise DataError(source, [problem])
    mark = next((mark for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), b"")
    encoding = _BYTE_ORDER_MARKS[mark] if mark else reading.encoding or "utf-8"
    reader = FORMATS[reading.format] if reading.format else _reader(source, head, encoding)
    if reader == "parquet":
        return parquet_content(source, io.BytesIO(file.read()))
    if reader == "csv":
        return csv_content(source, _lines(source, file, encoding), known)
    data = file.read().removeprefix(mark)
    try:
        data = data if encoding == "utf-8" else data.decode(encoding).encode()
    except ValueError as error:
        raise DataError(source, [_wrong_encoding(encoding)]) from error
    return json_content(source, data, known, only_lists=only_lists)


def _reader(source: str, head: bytes, encoding: str) -> str:
    """Return the reader for a name's ending or, if that is unknown, for the beginning of the content."""
    path = Path(source.lower())
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if ending[1:] in FORMATS:
        return FORMATS[ending[1:]]
    if head.startswith(_PARQUET):
        return "parquet"
    text = head.decode(encoding, "replace").lstrip(_BYTE_ORDER_MARK + " \t\r\n")
    has_columns = any(separator in text.partition("\n")[0] for separator in SEPARATORS)
    return "csv" if has_columns and not text.startswith(("{", "[")) else "json"


def _lines(source: str, file: io.BufferedReader, encoding: str) -> Iterator[str]:
    """Yield the lines of a text with their ends, which stay as they are."""
    # A byte that cannot be decoded is kept as a surrogate, so that its line is known.
    number = 0
    try:
        with io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="") as text:
            for number, line in enumerate(text, start=1):
                line.encode()
                if "\0" in line:
                    raise DataError(source, [f"line {number}: {_NUL}"])
                yield line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
    except UnicodeDecodeError as error:
        raise DataError(source, [f"line {number + 1}: {_wrong_encoding(encoding)}"]) from error
    except UnicodeEncodeError as error:
        raise DataError(source, [f"line {number}: {_wrong_encoding(encoding)}"]) from error


def _wrong_encoding(encoding: str) -> str:
    other = "; name its encoding, for example --encoding latin-1" if encoding == "utf-8" else ""
    return f"must be {encoding.upper()}{other}"


def _guarded(source: str, content: Content) -> Iterator[tuple[int | None, Sequence[object]]]:
    with _reading_errors(source):
        yield from content.rows


@contextmanager
def _reading_errors(source: str) -> Iterator[None]:
    """Turn an error of the file system or of the compression into DataError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(source, [f"is damaged: {error}"]) from error
    except OSError as error:
        raise DataError(source, [str(error.strerror)]) from error


def _encoding(name: str) -> str:
    """Check the name of an encoding."""
    try:
        io.TextIOWrapper(io.BytesIO(), name)
    except LookupError as error:
        raise argparse.ArgumentTypeError(f"must be an encoding that Python knows, got {name}") from error
    return codecs.lookup(name).name

"""Table of labelled rows or of candidates: named columns, and rows whose values are parsed one after another.

`training.table_file` makes a table of a file in any format.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from training.cells import MAX_ECHO, is_empty, shortened
from transformer.bundle.signature import same_spelling

#: Maximum number of problems that an error lists; it counts the rest.
MAX_PROBLEMS = 20

EMPTY = "must have at least one row, got none"
NO_ROWS = "must have a line of column names and at least one row"


class DataError(Exception):
    """Invalid data.

    Parameters
    ----------
    source
        Name of the data.
    problems
        One sentence for each problem, in the order of the file.
    count
        Number of all problems, if `problems` is not complete.
    """

    def __init__(self, source: str, problems: Sequence[str], count: int = 0) -> None:
        shown = [f"{source}: {problem}" for problem in islice(problems, MAX_PROBLEMS)]
        self.count = max(count, len(problems))
        if self.count > len(shown):
            shown.append(f"and {self.count - len(shown)} more problems")
        super().__init__("\n".join(shown))


class MissingColumnsError(DataError):
    """A table without some of the columns that it must have.

    Attributes
    ----------
    share
        Share of these columns that are missing, 0 to 1.
    """

    def __init__(self, source: str, problems: Sequence[str], share: float) -> None:
        super().__init__(source, problems)
        self.share = share


@dataclass(frozen=True, slots=True)
class Content:
    """Columns and rows of a file, before any value is checked.

    Attributes
    ----------
    header
        Names of the columns; empty for a column without a name.
    rows
        Line of each row in the file, if it has lines, and its cells. A cell is a text, or a JSON value.
    total
        Number of rows, or None if it is unknown before they are read.
    is_json
        True for JSON, where each row names its own fields.
    """

    header: Sequence[str]
    rows: Iterable[tuple[int | None, Sequence[Any]]]
    total: int | None = None
    is_json: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes
    ----------
    number
        Row number from 1, without the header and without empty rows.
    line
        Number of the row's last line in the file, as in an editor; None for a format without lines.
    cells
        Cells of all columns.
    values
        Parsed values by column; None for an empty cell of a field with a default.
    """

    number: int
    line: int | None
    cells: list[Any]
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """Position of the row, for error messages."""
        return f"row {self.number}" if self.line is None else f"row {self.number} (line {self.line})"

    def is_empty(self, column: str) -> bool:
        """Return True if the row has no value in a column."""
        return self.values.get(column) is None


class Table:
    """Columns with names, and rows that are read once, in constant memory where the format allows it.

    Parameters
    ----------
    source
        Name of the file in messages.
    content
        Columns and rows.
    decimal
        Decimal mark of numbers that are texts, ``.`` or ``,``.

    Attributes
    ----------
    header
        Names of the columns, without blanks around them; empty for a column without a name.
    total, is_json
        See `Content`.
    noun
        Word for a column in messages.
    empty_rows
        Number of rows without any value that were passed over until now.
    """

    def __init__(self, source: str, content: Content, decimal: str = ".") -> None:
        self.source = source
        self.header = tuple(name.strip() for name in content.header)
        self.total = content.total
        self.is_json = content.is_json
        self.empty_rows = 0
        self._rows = content.rows
        self.decimal = decimal
        self.noun = "field" if content.is_json else "column"
        self._misspelled: dict[str, str] = {}

    def check_names(self, columns: Sequence[str]) -> None:
        """Check that the table has none of these columns twice, and none under another spelling.

        A column whose exact name is there, too, is not misspelled.

        Raises
        ------
        DataError
            With all columns that are wrong.
        """
        self._misspelled = same_spelling(self.header, columns)
        problems = [
            f"{self.noun} {name!r} must be spelled {meant!r}"
            for name, meant in self._misspelled.items()
            if meant not in self.header
        ]
        problems += [f"duplicate {self.noun} {name!r}" for name in columns if self.header.count(name) > 1]
        if problems:
            raise DataError(self.source, problems)

    def require(self, columns: Sequence[str]) -> None:
        """Raise DataError if a column is missing."""
        missing = [name for name in columns if name not in self.header]
        if missing:
            raise MissingColumnsError(self.source, [self.missing(*missing)], len(missing) / len(columns))

    def missing(self, *columns: str) -> str:
        """Error message for missing columns."""
        names = shortened_list(map(repr, columns))
        are = f"{self.noun} {{}} is" if len(columns) == 1 else f"{self.noun}s {{}} are"
        return f"{are.format(names)} missing, found: {shortened_list(filter(None, self.header)) or 'none'}"

    def foreign(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the named columns other than these, each once."""
        return tuple(dict.fromkeys(name for name in self.header if name and name not in columns))

    def passed_over(self, columns: Sequence[str]) -> str:
        """Return what a reader of these columns has passed over until now, or an empty text."""
        unnamed, foreign = self.header.count(""), self.foreign(columns)
        counts = [
            (unnamed, "column without a name", "columns without a name"),
            (len(foreign), f"other {self.noun}", f"other {self.noun}s"),
            (self.empty_rows, "empty row", "empty rows"),
        ]
        parts = [f"{count:,} {one if count == 1 else many}" for count, one, many in counts if count]
        if foreign:
            parts[bool(unnamed)] += f" ({shortened_list(foreign)})"
        return ", ".join(parts)

    def rows(self, parsers: Mapping[str, Callable[[Any], Any]]) -> Iterator[Row]:
        """Yield rows with the parsed values of these columns, up to the first row with a problem.

        Parameters
        ----------
        parsers
            Parser of each column's cells; a ValueError that it raises becomes a problem.

        Raises
        ------
        DataError
            At the end of the file, with the problems of all rows.
        """
        columns = [(name, self.header.index(name), parse) for name, parse in parsers.items()]
        misspelled = [
            (self.header.index(name), self.header.index(meant))
            for name, meant in (self._misspelled if self.is_json else {}).items()
        ]
        problems: list[str] = []
        count = number = 0
        for line, cells in self._rows:
            if not self.is_json and all(map(is_empty, cells)):
                self.empty_rows += bool(cells)
                continue
            number += 1
            row = Row(number, line, list(cells), {})
            found = self._width_problem(row) or [
                *self._spelling_problems(row, misspelled),
                *self._parse(row, columns),
            ]
            count += len(found)
            problems += found[: MAX_PROBLEMS - len(problems)]
            if not count:
                yield row
        if count:
            raise DataError(self.source, problems, count)

    def _width_problem(self, row: Row) -> list[str]:
        """Fit a row to the header if only cells without name or value differ; return the problem if not."""
        width, cells = len(self.header), row.cells
        if any(self.header[len(cells) :]) or not all(map(is_empty, cells[width:])):
            return [f"{row.place}: must have {width} cells, got {len(cells)}"]
        cells[:] = [*cells[:width], *[None] * (width - len(cells))]
        return []

    def _spelling_problems(self, row: Row, misspelled: Sequence[tuple[int, int]]) -> list[str]:
        """Return the misspelled names of a JSON object that stand for a missing field."""
        return [
            f"{row.place}, field {self.header[meant]!r}: must be spelled {self.header[meant]!r}, "
            f"got {self.header[wrong]!r}"
            for wrong, meant in misspelled
            if row.cells[meant] is None and row.cells[wrong] is not None
        ]

    def _parse(self, row: Row, columns: Sequence[tuple[str, int, Callable[[Any], Any]]]) -> list[str]:
        """Parse a row's cells into its values; return the problems from left to right."""
        problems = []
        for name, index, parse in columns:
            try:
                row.values[name] = parse(row.cells[index])
            except ValueError as error:
                problems.append((index, f"{row.place}, {self.noun} {name!r}: {error}"))
        return [text for _, text in sorted(problems)]


def shortened_list(names: Iterable[str]) -> str:
    """Return names separated by commas; a long list is cut."""
    return shortened(", ".join(names), 10 * MAX_ECHO)

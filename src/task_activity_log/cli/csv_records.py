"""Records in CSV: a header line with the names of the fields, and one record per line."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

from task_activity_log.cli.terminal import counted
from task_activity_log.client import misspelled
from task_activity_log.record import FIELDS
from task_activity_log.streams import shell_command
from task_activity_log.wire.fields import KINDS, Kind

_DELIMITERS = ",;\t"
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
"""psql writes `t` and `f`."""
_CELL_MAX = 2**31 - 1
_SYNTAX = {
    "new-line character seen": "a carriage return is in a cell without quotes, or ends a line without a line feed",
    "unexpected end of data": "the quotes that begin here do not end",
}
"""What Python's `csv` says of a syntax error, for people who do not know Python."""


class BadCsv(ValueError):
    """A line that is not a record, with its number; the text says what is wrong with it."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def columns(options: list[str]) -> dict[str, str]:
    """The field of each column that was named as `HEADER=FIELD`, or an empty text for a column that is left out.

    Raises `ValueError` for anything else.
    """
    found: dict[str, str] = {}
    for option in options:
        header, equals, field = option.rpartition("=")
        if not equals or not header:
            raise ValueError(f"--column {option}: write HEADER=FIELD, as in 'Task Id=task_id'")
        if field and field not in FIELDS:
            raise ValueError(f"--column {option}: {field} is not a field; the fields are {', '.join(FIELDS)}")
        found[header] = field
    return found


def rows(file: IO[bytes], fields: Mapping[str, str]) -> Iterator[tuple[int, bytes] | BadCsv]:
    """The number of the line and the body in JSON of each record, and an error for each line that is not one.

    A cell that is empty is left out of the record. The delimiter is a comma, a semicolon or a tab, whichever the header has.
    """
    csv.field_size_limit(_CELL_MAX)
    text = _Decoded(file)
    try:
        # Spreadsheets and SQL*Plus write lines without a value above a table, too.
        header = next((line for line in text if line.strip().strip("".join(_DELIMITERS))), "")
        delimiter = max(_DELIMITERS, key=header.count)
        names = _names(header, text.number, delimiter, fields)
    except BadCsv as error:  # no later line can be read
        yield error
        return
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while names:
        line = text.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except BadCsv as error:
            yield error
        except csv.Error as error:  # the reader begins again with the next line
            yield _not_csv(line, error)
        else:
            if len(cells) == len(names) and any(cells):
                yield line, _body(names, cells)
            elif any(cells):  # not an empty line, nor one of delimiters alone, which spreadsheets write below a table
                yield BadCsv(line, f"has {counted(len(cells), 'column')}, and the header has {len(names)}")


class _Decoded(Iterator[str]):
    """The lines of a file in UTF-8. After one that raises `BadCsv` because it is not UTF-8, those behind it can be read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.number = 0
        """How many lines were read."""

    def __next__(self) -> str:
        line = next(self._file)
        self.number += 1
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise BadCsv(self.number, "is not UTF-8") from None


def _not_csv(line: int, error: csv.Error) -> BadCsv:
    said = str(error)
    reason = next((words for begins, words in _SYNTAX.items() if said.startswith(begins)), said)
    return BadCsv(line, f"is not CSV: {reason}")


def _names(line: str, number: int, delimiter: str, fields: Mapping[str, str]) -> list[str]:
    """The name of the member for each column; none for an empty file.

    Raises:
        BadCsv: it names all that is wrong with the header, which is the line with this number.
    """
    if not line.strip():
        return []
    try:
        header = next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise _not_csv(number, error) from None
    wrong_ones = [f"has no column {name}, which --column names" for name in sorted(set(fields).difference(header))]
    names = [fields.get(name, name.strip()) for name in header]
    folded = [name.lower() if name.lower() in FIELDS else name for name in names]
    wrong_ones += [f"has two columns {name}" for name, count in Counter(folded).items() if name and count > 1]
    if "id" not in folded and not any(misspelled.meant(name, folded) == "id" for name in folded if name):
        wrong_ones.append("has no column id: name it with --column HEADER=id")
    meant = {name: misspelled.meant(name, folded) for name in folded if name and name not in FIELDS}
    if wrong := {name: field for name, field in meant.items() if field}:
        no_fields = f"{_all_of(wrong)} {'is not a field' if len(wrong) == 1 else 'are not fields'}"
        are_meant = f"{_all_of(wrong.values())} {'is' if len(wrong) == 1 else 'are'} meant"
        added = (word for name, field in wrong.items() for word in ("--column", f"{name}={field}"))
        wrong_ones.append(f"{no_fields}: if {are_meant}, add {shell_command(added)}")  # last: it is copied from there
    if wrong_ones:
        raise BadCsv(number, "; ".join(wrong_ones))
    return folded


def _all_of(names: Iterable[str]) -> str:
    """The names, the last one after `and`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _body(names: list[str], cells: list[str]) -> bytes:
    members = {name: _value(name, cell) for name, cell in zip(names, cells, strict=True) if name and cell}
    return json.dumps(members, ensure_ascii=False).encode()


def _value(name: str, cell: str) -> str | bool:
    if KINDS.get(name) is Kind.BOOLEAN:
        return _BOOLEANS.get(cell.strip().lower(), cell)
    return cell

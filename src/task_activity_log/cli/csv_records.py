"""Records in CSV: a header line with the names of the fields, and one record per line."""

import csv
import json
from collections.abc import Iterator, Mapping
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


class _Ends(BadCsv):
    """A line without which no later line can be read: the header, or one that is not UTF-8."""


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
    text = _decoded(file)
    line = 1
    try:
        header = next(text, "")
        if not header.strip():
            return
        delimiter = max(_DELIMITERS, key=header.count)
        names = _names(next(csv.reader([header], delimiter=delimiter, strict=True)), fields)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        line = 2
        for cells in reader:
            if not any(cells):
                pass  # an empty line, or one of delimiters alone, which spreadsheets write below a table
            elif len(cells) == len(names):
                yield line, _body(names, cells)
            else:
                yield BadCsv(line, f"has {counted(len(cells), 'column')}, and the header has {len(names)}")
            line = 2 + reader.line_num
    except _Ends as error:
        yield error
    except csv.Error as error:
        yield BadCsv(line, f"is not CSV: {_reason(str(error))}")


def _decoded(file: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise _Ends(number, "is not UTF-8") from None


def _reason(said: str) -> str:
    return next((words for begins, words in _SYNTAX.items() if said.startswith(begins)), said)


def _names(header: list[str], fields: Mapping[str, str]) -> list[str]:
    """The name of the member for each column. Raises `_Ends`."""
    if absent := sorted(set(fields).difference(header)):
        raise _Ends(1, f"has no column {absent[0]}, which --column names")
    names = [fields.get(name, name.strip()) for name in header]
    folded = [name.lower() if name.lower() in FIELDS else name for name in names]
    for name in folded:
        if name and folded.count(name) > 1:
            raise _Ends(1, f"has two columns {name}")
    meant = {name: misspelled.meant(name, folded) for name in folded if name and name not in FIELDS}
    if wrong := {name: field for name, field in meant.items() if field}:
        names_of = "; ".join(f"{name} is not a field: if {field} is meant" for name, field in wrong.items())
        added = (word for name, field in wrong.items() for word in ("--column", f"{name}={field}"))
        raise _Ends(1, f"{names_of}, add {shell_command(added)}")
    if "id" not in folded:
        raise _Ends(1, "has no column id: name it with --column HEADER=id")
    return folded


def _body(names: list[str], cells: list[str]) -> bytes:
    members = {name: _value(name, cell) for name, cell in zip(names, cells, strict=True) if name and cell}
    return json.dumps(members, ensure_ascii=False).encode()


def _value(name: str, cell: str) -> str | bool:
    if KINDS.get(name) is Kind.BOOLEAN:
        return _BOOLEANS.get(cell.strip().lower(), cell)
    return cell

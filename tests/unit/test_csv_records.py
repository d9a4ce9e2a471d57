"""Records in CSV: which lines are records, and what is said about the others."""

import json
from io import BytesIO

import pytest

from task_activity_log.cli.csv_records import BadCsv, columns, rows

ID = "9652e68c-7b6d-4598-bbbd-4e933126c994"


def read(text: str | bytes, **fields: str) -> list[object]:
    """The line and the members of each record; the line and the text of each error."""
    content = text.encode() if isinstance(text, str) else text
    found = rows(BytesIO(content), fields)
    return [(row.line, str(row)) if isinstance(row, BadCsv) else (row[0], json.loads(row[1])) for row in found]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_that_of_the_header(delimiter: str) -> None:
    header, row = (delimiter.join(cells) for cells in (("ID", "subject", "is_closed"), (ID, "x", "False")))
    assert read(f"{header}\r\n{row}\r\n") == [(2, {"id": ID, "subject": "x", "is_closed": False})]


def test_a_cell_may_have_several_lines() -> None:
    """The lines after it are counted as an editor counts them."""
    found = read(f'id,subject\n{ID},"a\n""b"""\n{ID},\n{ID},x,y\n')
    assert found == [
        (2, {"id": ID, "subject": 'a\n"b"'}),
        (4, {"id": ID}),
        (5, "has 3 columns, and the header has 2"),
    ]
    assert read(f"id,subject\n{ID}\n") == [(2, "has 1 column, and the header has 2")]


@pytest.mark.parametrize("above", ["\n", "\r\n\n", ",,\n", "\ufeff\n"])
def test_lines_without_a_value_above_the_header_are_skipped(above: str) -> None:
    """As an empty row on top of a sheet: without a header the file would have no records."""
    line = above.count("\n") + 2
    assert read(f"{above}id,subject\n{ID},x\n") == [(line, {"id": ID, "subject": "x"})]
    assert read(f"{above}subject\n{ID}\n") == [(line - 1, "has no column id: name it with --column HEADER=id")]
    assert read(above) == []


def test_lines_of_delimiters_alone_are_no_records() -> None:
    assert read(f"id,subject\n,\n\n{ID},\n,") == [(4, {"id": ID})]


def test_a_value_that_is_not_a_boolean_is_left_to_the_worker() -> None:
    assert read(f"id,is_closed\n{ID},yes\n") == [(2, {"id": ID, "is_closed": "yes"})]


@pytest.mark.parametrize(
    ("text", "fields", "words"),
    [
        ("taskId,id\n", {}, "taskId is not a field: if task_id is meant, add --column taskId=task_id"),
        (
            "ID,Task Id,Subjekt\n",
            {},
            "Task Id and Subjekt are not fields: if task_id and subject are meant, "
            "add --column 'Task Id=task_id' --column Subjekt=subject",
        ),
        ("Nummer\n", {}, "has no column id: name it with --column HEADER=id"),
        ("id,ID\n", {}, "has two columns id"),
        ("id\n", {"Betreff": "subject"}, "has no column Betreff, which --column names"),
        (
            "subject,Subject,taskId\n",
            {"Betreff": "subject"},
            "has no column Betreff, which --column names; has two columns subject; "
            "has no column id: name it with --column HEADER=id; "
            "taskId is not a field: if task_id is meant, add --column taskId=task_id",
        ),
    ],
)
def test_a_header_that_cannot_be_used_is_one_error(text: str, fields: dict[str, str], words: str) -> None:
    assert read(text + "x\n" * 5, **fields) == [(1, words)]


def test_what_is_no_csv_is_named_with_its_line() -> None:
    found = read(f'id\n{ID}\n"{ID}"x\n{ID}\n')
    assert found == [(2, {"id": ID}), (3, "is not CSV: ',' expected after '\"'"), (4, {"id": ID})]


def test_the_lines_behind_one_that_is_not_csv_or_not_utf_8_are_read() -> None:
    """Each with its own line number, so that all can be corrected at once."""
    lines = (f"{ID},\xff", f'{ID},"a"b', f'{ID},"a\nb"', f"{ID}", f"{ID},\xff", f"{ID},c")
    found = read(("id,subject\n" + "\n".join(lines)).encode("latin-1"))
    assert found == [
        (2, "is not UTF-8"),
        (3, "is not CSV: ',' expected after '\"'"),
        (4, {"id": ID, "subject": "a\nb"}),
        (6, "has 1 column, and the header has 2"),
        (7, "is not UTF-8"),
        (8, {"id": ID, "subject": "c"}),
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            f"id,subject\r{ID},a\r",
            1,
            "a carriage return is in a cell without quotes, or ends a line without a line feed",
        ),
        (f'id,subject\n{ID},"a\n', 2, "the quotes that begin here do not end"),
    ],
)
def test_a_syntax_error_has_the_words_of_the_format(text: str, line: int, words: str) -> None:
    """And not those of Python's library, which tell how to open a file in a program."""
    assert read(text) == [(line, f"is not CSV: {words}")]
    assert read(b"id,subject\n" + ID.encode() + b",\xff\n") == [(2, "is not UTF-8")]
    assert read("") == []


@pytest.mark.parametrize("option", ["subject", "=subject", "Betreff=sub"])
def test_an_option_that_names_no_field_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="--column"):
        columns([option])


def test_a_header_may_contain_an_equals_sign() -> None:
    assert columns(["a=b=subject", "c="]) == {"a=b": "subject", "c": ""}

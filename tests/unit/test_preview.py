"""What a message would do, and how it is shown to people."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_activity_log.client import marking, preview
from task_activity_log.client.marking import Piece
from task_activity_log.client.record_id import record_id
from task_activity_log.message import Properties
from task_activity_log.pipeline.request import Rules
from task_activity_log.problem import Problem
from task_activity_log.record import StoredTaskActivityLog

ID = "9652e68c-7b6d-4598-bbbd-4e933126c994"
ROW = StoredTaskActivityLog(
    id=UUID(ID), subject="Before", description="Kept", modified_dateutc=datetime(2026, 1, 1, tzinfo=UTC)
)


def marked(text: str, fields: list[str], content_type: str = "application/json") -> list[tuple[str, str]]:
    pieces = marking.text_pieces(text, content_type, fields)
    assert "".join(piece.text for piece in pieces) == text
    return [(piece.text, piece.mark) for piece in pieces if piece.mark]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"id": "x", "due_date" : "soon", "subject": "due_date"}', [('"due_date" : "soon"', "due_date")]),
        ('{"Due_Date": {"a": [1, "}"]}, "x": 1}', [('"Due_Date": {"a": [1, "}"]}', "due_date")]),
        ('{"due_date":1,"due_date":2}', [('"due_date":1', "due_date"), ('"due_date":2', "due_date")]),
        (' {"a": {"due_date": 1}} ', []),
        ('{"id": 1,}', [("}", "here")]),
        ('{"id": 1 "b": 2}', [('"', "here")]),
        ("[1]", []),
        ("", [("", "here")]),
        ("{", [("", "here")]),
    ],
)
def test_bad_fields_are_marked_in_json(text: str, found: list[tuple[str, str]]) -> None:
    """From the name to the end of the value; a syntax error at its place."""
    assert marked(text, ["due_date"]) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<r><due_date>soon</due_date><b/></r>", [("<due_date>soon</due_date>", "due_date")]),
        ('<a:r xmlns:a="u"><a:due_date x="1">s</a:due_date></a:r>', [('<a:due_date x="1">s</a:due_date>', "due_date")]),
        ("<r><due_date/></r>", [("<due_date/>", "due_date")]),
        ("<r><due_dates>x</due_dates></r>", []),
        ('<?xml version="1.0" encoding="utf-16"?><r><due_date/></r>', [("<due_date/>", "due_date")]),
        ("<r><a></r>", [("", "here")]),
    ],
)
def test_bad_fields_are_marked_in_xml(text: str, found: list[tuple[str, str]]) -> None:
    """The element with its content, in any namespace."""
    assert marked(text, ["due_date"], "text/xml; charset=utf-8") == found


@given(
    st.text() | st.binary().map(lambda body: body.decode(errors="replace")),
    st.sampled_from(["application/json", "text/xml", "", "x"]),
)
def test_marking_never_loses_a_character(text: str, content_type: str) -> None:
    """Whatever the body is."""
    pieces = marking.text_pieces(text, content_type, ["id", "due_date"])
    assert "".join(piece.text for piece in pieces) == text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_indenting_changes_white_space_alone(value: object) -> None:
    """It means the same, and indented again it stays as it is."""
    text = json.dumps(value)
    indented = marking.indented(text)
    assert json.loads(indented) == value
    assert marking.indented(indented) == indented


def test_indenting_keeps_what_json_would_lose() -> None:
    """Members that are there twice, numbers of any length, and escapes."""
    text = '{"a":1.10,"a":12345678901234567890123,"b":"\\u00e9","c":[],"d":{}}'
    assert "".join(marking.indented(text).split()) == text
    assert marking.indented("{not json") == "{not json"


def test_a_message_that_passes_is_shown_with_what_it_would_store() -> None:
    """A replace clears what it does not have; the row's time is set by the database."""
    found = preview.verdict(
        json.dumps({"id": ID, "subject": "After", "sbject": 1}).encode(), Properties(), Rules(), ROW
    )
    changes = {change.field: (change.before, change.after) for change in found.changes if change.differs}
    assert changes == {
        "subject": ("Before", "After"),
        "description": ("Kept", None),
        "modified_dateutc": ("2026-01-01T00:00:00+00:00", "set by the database"),
    }
    assert (found.passes, found.outcome, found.differs) == (True, "updated", True)
    assert found.unknown == [("sbject", None)]
    assert '"modified_dateutc": "set by the database"' in found.answer
    assert json.loads(found.normal) == {"id": ID, "subject": "After"}


def test_a_merge_keeps_what_it_does_not_have() -> None:
    """As the worker does."""
    body = json.dumps({"id": ID, "subject": "After"}).encode()
    found = preview.verdict(body, Properties(headers={"x-update-mode": "merge"}), Rules(), ROW)
    assert {change.field for change in found.changes if change.differs} == {"subject", "modified_dateutc"}
    assert found.mode == "merge"


def test_a_new_record_is_inserted() -> None:
    """There is no row before."""
    body = f"<task_activity_log><id>{ID}</id></task_activity_log>".encode()
    found = preview.verdict(body, Properties(content_type="text/xml"), Rules(), None)
    assert (found.outcome, found.changes[0].before, found.changes[0].after) == ("inserted", None, ID)
    assert "<modified_dateutc>set by the database</modified_dateutc>" in found.answer


def test_a_message_that_is_rejected_is_shown_with_every_bad_field_and_the_row() -> None:
    """And with the problem that its publisher would get."""
    body = json.dumps({"id": ID, "due_date": "soon", "is_closed": "no", "subjct": "x"}).encode()
    found = preview.verdict(body, Properties(), Rules(), ROW)
    assert isinstance(found.found, Problem)
    assert [piece.mark for piece in found.pieces if piece.mark] == ["due_date", "is_closed"]
    assert not any(change.differs for change in found.changes)
    assert json.loads(found.answer)["code"] == "invalid_date"
    assert found.unknown == [("subjct", "subject")]


@pytest.mark.parametrize(
    ("body", "content_type", "found"),
    [
        (f'{{"id": "{ID}"}}', "application/json", True),
        (f'{{"ID": " {{{ID}}} ", "due_date": "soon"}}', "application/json", True),
        (f"<r><id>{ID}</id></r>", "text/xml", True),
        (f'<?xml version="1.0" encoding="utf-16"?><r><id>{ID}</id></r>', "application/xml", True),  # as .NET writes it
        (f"<r><id>{ID}</id></r>", None, True),
        (f"<r><id>{ID}</id></r>", "application/json", True),
        (f'{{"id": "{ID}"}}', "application/xml", True),
        (f'{{"id": "{ID}"}}', "text/plain", True),
        (f'{{"id": "{ID}"}}', "application/json; charset=latin1", True),
        (f'{{"id": "{ID}", "id": "{ID}"}}', "application/json", False),
        ('{"id": "nope", "due_date": "soon"}', "application/json", False),
        ('{"subject": 1}', "application/json", False),
        ("", None, False),
    ],
)
def test_the_id_is_read_also_if_anything_else_is_wrong(body: str, content_type: str | None, found: bool) -> None:
    """So that the row can be shown next to a message that is rejected, and `find` finds the message by the id of its record."""
    assert record_id(body.encode(), content_type) == (UUID(ID) if found else None)


def test_a_difference_shows_lines() -> None:
    """What was taken out and what was put in."""
    assert marking.difference("a\nb\nc", "a\nx\nc") == [
        Piece("a\n"),
        Piece("b\n", "removed"),
        Piece("x\n", "added"),
        Piece("c"),
    ]
    assert marking.difference("a", "a") == [Piece("a")]
    assert [piece.mark for piece in marking.difference("a" * 30_000, "b" * 30_000)] == ["removed", "added"]

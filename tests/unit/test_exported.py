"""Messages exported as lines of JSON can be published again with the same bodies."""

import json
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_activity_log.cli import exported
from task_activity_log.cli.dead_letters.selection import seconds
from task_activity_log.cli.sources import Source, Unreadable, line_of
from task_activity_log.streams import printable


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.text(min_size=1, max_size=60))
def test_any_exported_body_is_published_again_byte_for_byte(body: bytes, message_id: str) -> None:
    """Except for a record, which becomes the same record, perhaps in other bytes."""
    written = exported.line(body, "text/xml", message_id, {"x-version": 7, "x": b"\xff"})
    assert "\n" not in written
    parsed = json.loads(written)
    assert exported.is_message(parsed)
    upsert = exported.upsert(parsed, "unused", "here")
    assert (upsert.content_type, upsert.message_id, dict(upsert.headers)) == ("text/xml", message_id, {"x-version": 7})
    if "record" in parsed:
        assert json.loads(upsert.body) == json.loads(body)
    else:
        assert upsert.body == body


@pytest.mark.parametrize(
    ("body", "member"),
    [
        (b'{"id": "1", "big": 123456789012345678901234567890}', "record"),
        (b'{"id": "1", "id": "2"}', "body"),
        (b'{"id": NaN}', "body"),
        (b'{"subject": "\\ud800"}', "body"),
        (b"[1]", "body"),
        (b"\xff\xfe<\0", "body_base64"),
    ],
)
def test_a_body_that_json_would_change_is_exported_as_text(body: bytes, member: str) -> None:
    """What is wrong with a record must be preserved."""
    assert member in json.loads(exported.line(body, "", None, {}))


def test_a_record_is_not_taken_as_an_exported_message() -> None:
    """Not even if it has members that an exported message has."""
    assert not exported.is_message({"id": str(uuid4()), "body": "text"})
    assert not exported.is_message([])


def test_a_record_has_the_same_message_id_in_the_same_run_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same content on another line has another message_id: the last A in A, B, A must be applied again."""
    file = tmp_path_factory.mktemp("records") / "a.jsonl"
    file.write_text("\ufeff{}\n\n{}\n")
    first, again, other = (
        [upsert.message_id for upsert in Source(str(file), ".jsonl", run).upserts()] for run in ("x", "x", "y")
    )
    assert first == again
    assert len({*first, *other}) == 4


def test_every_element_of_a_list_is_sent_as_it_is_in_the_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Byte for byte. Messages about an element name its position, counted from 1."""
    file = tmp_path_factory.mktemp("records") / "a.json"
    file.write_text('[ {"a" : "]"},\n\t{"b":\n[1]} ]')
    upserts = list(Source(str(file), ".json", "x").upserts())
    assert [upsert.body for upsert in upserts] == [b'{"a" : "]"}', b'{"b":\n[1]}']
    assert [line_of(upsert, "a") for upsert in upserts] == [f"{file}[1]", f"{file}[2]"]


def test_the_error_for_a_line_that_cannot_be_sent_names_file_and_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Such as one with a message_id that is too long for AMQP."""
    file = tmp_path_factory.mktemp("records") / "a.jsonl"
    file.write_text(json.dumps({"content_type": "", "body": "", "message_id": "x" * 300}))
    with pytest.raises(Unreadable, match=r"a\.jsonl:1: message_id, content type or a header does not fit"):
        list(Source(str(file), ".jsonl", "x").upserts())


def test_a_duration_is_a_number_and_a_unit() -> None:
    """The units are s, m, h and d."""
    assert [seconds(text) for text in ("", "30s", "1.5m", "2h", "7d")] == [None, 30, 90, 7200, 604_800]


def test_control_characters_are_printed_as_escapes() -> None:
    """So that a message cannot control the terminal; line feeds stay."""
    assert printable("a\x1b[2J\x07é\n") == "a\\x1b[2J\\x07é\n"

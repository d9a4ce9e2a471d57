"""Messages as lines of JSON: whatever was in a body comes out of the file again."""

import json
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_activity_log.cli import exported
from task_activity_log.cli.letters import seconds
from task_activity_log.cli.sources import Source, Unreadable, line_of
from task_activity_log.cli.terminal import printable


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.text(min_size=1, max_size=60))
def test_any_body_comes_back_byte_for_byte(body: bytes, message_id: str) -> None:
    """But for a record, which comes back as the same record."""
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
def test_a_record_that_would_not_stay_what_it_is_is_kept_as_text(body: bytes, member: str) -> None:
    """What was wrong with it must still be there."""
    assert member in json.loads(exported.line(body, "", None, {}))


def test_a_record_is_no_message() -> None:
    """Members of other names do not make it one."""
    assert not exported.is_message({"id": str(uuid4()), "body": "text"})
    assert not exported.is_message([])


def test_records_have_the_same_message_ids_in_the_same_run_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    """And different ones for the same content on another line: A, B, A is not A, B."""
    file = tmp_path_factory.mktemp("records") / "a.jsonl"
    file.write_text("\ufeff{}\n\n{}\n")
    first, again, other = (
        [upsert.message_id for upsert in Source(str(file), ".jsonl", run).upserts()] for run in ("x", "x", "y")
    )
    assert first == again
    assert len({*first, *other}) == 4


def test_every_element_of_a_list_is_sent_as_it_was_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Byte for byte, and it is named by its place."""
    file = tmp_path_factory.mktemp("records") / "a.json"
    file.write_text('[ {"a" : "]"},\n\t{"b":\n[1]} ]')
    upserts = list(Source(str(file), ".json", "x").upserts())
    assert [upsert.body for upsert in upserts] == [b'{"a" : "]"}', b'{"b":\n[1]}']
    assert [line_of(upsert, "a") for upsert in upserts] == [f"{file}[1]", f"{file}[2]"]


def test_what_cannot_be_sent_is_said_with_its_place(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A message_id that AMQP has no form for, in a file that somebody wrote."""
    file = tmp_path_factory.mktemp("records") / "a.jsonl"
    file.write_text(json.dumps({"content_type": "", "body": "", "message_id": "x" * 300}))
    with pytest.raises(Unreadable, match=r"a\.jsonl:1: message_id, content type or a header does not fit"):
        list(Source(str(file), ".jsonl", "x").upserts())


def test_times_and_texts_of_people() -> None:
    """Units, and control characters spelt out."""
    assert [seconds(text) for text in ("", "30s", "1.5m", "2h", "7d")] == [None, 30, 90, 7200, 604_800]
    assert printable("a\x1b[2J\x07é\n") == "a\\x1b[2J\\x07é\n"

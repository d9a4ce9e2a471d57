"""Messages exported as lines of JSON can be published again with the same bodies."""

import errno
import json
import os
import resource
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_activity_log.cli.dead_letters.listing import export
from task_activity_log.cli.publish import Publication
from task_activity_log.cli.rejected_file import writable
from task_activity_log.cli.sources import Source, Unreadable, line_of
from task_activity_log.cli.times import seconds
from task_activity_log.client import ClientError, Upsert, exported
from task_activity_log.client.dead_letters import DeadLetter
from task_activity_log.message import Properties
from task_activity_log.rabbitmq.headers import encode, encode_header
from task_activity_log.settings import Settings
from task_activity_log.streams import printable

short = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: len(text.encode()) < 200)
ENTRIES = [
    b"\1at\1", b"\1bb\xff", b"\1cB\xff", b"\1ds\xff\xfe", b"\1eu\xff\xfe", b"\1fI\xff\xff\xff\xff",
    b"\1gi\xff\xff\xff\xff", b"\1hl" + b"\xff" * 8, b"\1iT" + (7).to_bytes(8, "big"), b"\1jD\2\0\0\4\xd2",
    b"\1kA\0\0\0\2t\1", b"\1lS\0\0\0\2hi", b"\1mS\0\0\0\2\xff\xfe", b"\1nx\0\0\0\1\0", b"\1oV",
    b"\1pF\0\0\0\0", b"\1qf" + struct.pack(">f", 0.5), b"\1qd" + struct.pack(">d", 1.5), b"\1at\0",
    encode_header(("x-version", 7)),
]  # fmt: skip


@given(
    body=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
    | st.dictionaries(short, st.integers() | st.floats() | short | st.booleans()).map(lambda one: json.dumps(one).encode()),
    message_id=st.text("abc", min_size=1, max_size=60),
    texts=st.lists(st.none() | short, min_size=6, max_size=6),
    numbers=st.tuples(st.none() | st.integers(0, 255), st.none() | st.integers(0, 2**40)),
    table=st.lists(st.sampled_from(ENTRIES), max_size=6).map(b"".join),
)  # fmt: skip
def test_what_was_exported_is_the_same_request_bit_by_bit(
    body: bytes, message_id: str, texts: list[str | None], numbers: tuple[int | None, int | None], table: bytes
) -> None:
    """Body, properties, and the header table with the types of its values."""
    names = ("content_type", "content_encoding", "correlation_id", "type", "app_id", "reply_to")
    original = Properties(
        message_id=message_id,
        table=table,
        delivery_mode=2,
        expiration="60000",
        priority=numbers[0],
        timestamp=numbers[1],
        **dict(zip(names, texts, strict=True)),  # type: ignore[arg-type]
    )
    written = exported.line(body, original, problems=["why"])
    assert len(written.splitlines()) == 1 or "\n" not in written
    parsed = json.loads(written)
    assert exported.is_message(parsed)
    upsert = exported.upsert(parsed, "unused", "here")
    assert upsert.body == body
    assert encode(upsert.properties(None, ""), 0) == encode(original, 0)


def test_an_exported_request_is_answered_to_whoever_publishes_it() -> None:
    """Its answer is recognized by the message_id, so a correlation_id of its own would hide it."""
    original = Properties(message_id="m", correlation_id="c", reply_to="theirs", table=ENTRIES[3])
    upsert = exported.upsert(json.loads(exported.line(b"{}", original)), "unused", "here")
    sent = upsert.properties("mine", "publish")
    assert (sent.reply_to, sent.correlation_id, sent.app_id, sent.table) == ("mine", None, None, ENTRIES[3])


def test_what_is_corrected_is_sent_corrected() -> None:
    """A header that is changed, added or removed, and a record; everything else stays as it was."""
    table = b"".join([encode_header(("x-version", "one")), *ENTRIES[3:5], ENTRIES[8], encode_header(("gone", "x"))])
    parsed = json.loads(exported.line(b'{ "id" : "nope" }', Properties(table=table, message_id="m")))
    assert parsed["record"] == {"id": "nope"}
    parsed["record"]["id"] = "yes"
    parsed["headers"] |= {"x-version": 8, "new": True}
    del parsed["headers"]["gone"]
    upsert = exported.upsert(parsed, "unused", "here")
    assert upsert.body == b'{"id":"yes"}'
    after = [encode_header(("x-version", 8)), *ENTRIES[3:5], ENTRIES[8], encode_header(("new", True))]
    assert upsert.properties(None, "").table == b"".join(after)
    merged = replace(upsert, headers={**upsert.headers, "x-update-mode": "merge"})
    assert merged.properties(None, "").table == b"".join([*after, encode_header(("x-update-mode", "merge"))])


def test_an_exported_request_can_be_given_another_priority() -> None:
    """As any record: `publish --priority`. It keeps its own otherwise."""
    line = {"content_type": "", "body": "", "properties": {"priority": 7, "app_id": "crm"}}
    found = exported.upsert(line, "m", "here")
    assert found.properties("mine", "new").priority == 7
    changed = replace(found, priority=2).properties("mine", "new")
    assert (changed.priority, changed.app_id) == (2, "crm")


def test_the_longest_expiration_is_exported_and_published() -> None:
    """A file that `export` has written is one that `publish` takes."""
    original = Properties(message_id="m", expiration="315360000000")
    upsert = exported.upsert(json.loads(exported.line(b"{}", original)), "unused", "here")
    assert upsert.properties(None, "new").expiration == original.expiration


def test_a_line_that_is_not_exact_is_a_new_request() -> None:
    """As in the file of `publish --rejected`: whoever sends it sets the time and the publisher."""
    properties = Properties(
        content_type="text/xml", message_id="m", app_id="old", timestamp=7, headers={"x-version": 7}
    )
    upsert = exported.upsert(json.loads(exported.line(b"<a/>", properties, exact=False)), "unused", "here")
    sent = upsert.properties(None, "new")
    assert (sent.content_type, sent.message_id, sent.headers, sent.app_id) == ("text/xml", "m", {"x-version": 7}, "new")
    assert sent.timestamp != 7


@pytest.mark.parametrize("priority", [None, 0, 2])
def test_a_line_that_is_not_exact_keeps_the_priority(priority: int | None) -> None:
    """Of the file of `publish --priority 2 --rejected`. With another one it would overtake earlier requests of its record."""
    written = exported.line(b"{}", Properties(message_id="m", priority=priority), exact=False)
    upsert = exported.upsert(json.loads(written), "unused", "here")
    assert (upsert.priority, upsert.properties(None, "new").priority) == (priority, priority)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"properties": {"expiration": "abc"}}, "expiration should be"),
        ({"properties": {"expiration": "315360000001"}}, "expiration should be"),
        ({"properties": {"priority": 256}}, "priority should be"),
        ({"priority": 256}, "priority should be"),
        ({"priority": "2"}, "priority should be"),
        ({"priority": True}, "priority should be"),
        ({"properties": {"user_id": "me"}}, "user_id is not one of"),
        ({"properties": {"reply_to": 7}}, "reply_to should be a string"),
        ({"properties": {"app_id": "x" * 256}}, "app_id should be text of at most 255 bytes"),
        ({"properties": {"type": "é" * 128}}, "type should be text of at most 255 bytes"),
        ({"properties": {"cluster_id": "\ud800"}}, "cluster_id should be text of at most 255 bytes"),
        ({"properties": {"correlation_id": "x" * 256}}, "correlation_id should be text of at most 255 bytes"),
        ({"headers_base64": "?"}, "headers_base64 is not base64"),
        ({"headers": {"a": 1.5}}, "header a should be"),
        ({"headers": {"a": 2**70}}, "does not fit"),
        ({"body": "\ud800"}, "neither text nor base64"),
    ],
)
def test_a_member_that_cannot_be_sent_is_named(members: dict[str, object], words: str) -> None:
    """One such request would end the channel for all others."""
    with pytest.raises(ValueError, match=words):
        exported.upsert({"content_type": "", "body": "", **members}, "m", "here")


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
    assert member in json.loads(exported.line(body, Properties()))


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


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_a_file_that_is_changed_while_its_records_are_sent_is_not_read_to_its_end(tmp_path: Path, ending: str) -> None:
    """Lines that were added later have not been judged."""
    file = tmp_path / f"a{ending}"
    line = f"{uuid4()}\n" if ending == ".csv" else f'{{"id": "{uuid4()}"}}\n'
    file.write_text(("id\n" if ending == ".csv" else "") + line)
    found = Source(str(file), ending, "x").upserts()
    next(found)
    with file.open("a") as opened:
        opened.write(line)
    with pytest.raises(Unreadable, match="was changed while it was read"):
        next(found)


async def test_a_copy_that_cannot_be_written_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part of it would pass for a copy of all, and the next attempt would find a file that exists already."""
    letter = DeadLetter(b"{}", Properties(message_id="m"), cast("Any", None))
    file = tmp_path / "old.jsonl"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ClientError, match="No space left on device; nothing was written"):
            export(file, [letter])
    assert not file.exists()
    export(file, [letter])
    with pytest.raises(ClientError, match="already exists: name another file, or remove it"):
        export(file, [letter])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / "interrupted.jsonl", [letter])
    assert not (tmp_path / "interrupted.jsonl").exists()
    assert len(file.read_text().splitlines()) == 1


def _interrupt(_: int) -> None:
    raise KeyboardInterrupt


def test_the_file_of_rejected_records_has_whole_lines_on_a_full_disk(tmp_path: Path) -> None:
    """So it can be published, and the run can be continued: a file whose first line is cut is treated as somebody else's."""
    rejected = tmp_path / "rejected.jsonl"
    work = Publication(
        Settings(), timeout=1, dry_run=False, wait=True, merge=False, rejected=rejected, run="r", stdin="jsonl"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for most, lines in ((100, 0), (500, 1)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
            work._new = not rejected.exists()  # the run is continued
            for _ in range(lines):
                work._keep(Upsert(b"x" * 200), ["why"])
            with pytest.raises(ClientError, match=r"rejected\.jsonl: File too large"):
                work._keep(Upsert(b"x" * 200), ["why"])
            assert (len(rejected.read_text().splitlines()) if rejected.exists() else 0) == lines
            assert writable(rejected, again=lines > 0) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [upsert.body for upsert in Source(str(rejected), ".jsonl", "r").upserts()] == [b"x" * 200]


def test_a_disk_that_is_full_while_the_records_are_checked_leaves_no_part_of_the_rejected(tmp_path: Path) -> None:
    """Nothing was sent, so the same command is given again: the part would be refused as the file of another run."""
    records, rejected = tmp_path / "records.jsonl", tmp_path / "rejected.jsonl"
    records.write_text(f'{{"id": "none", "subject": "{"x" * 1000}"}}\n' * 5)
    work = Publication(
        Settings(), timeout=1, dry_run=False, wait=True, merge=False, rejected=rejected, run="r", stdin="jsonl"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(ClientError, match=r"rejected\.jsonl: File too large; nothing was sent$"):
            work.carry_out([str(records)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert work._written
    assert not rejected.exists()

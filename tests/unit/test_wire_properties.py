"""Properties that hold for every record and for any bytes."""

import json
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_activity_log import wire
from task_activity_log.message import Delivery
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.request import Request, Rules, decode
from task_activity_log.problem import Code, Rejected
from task_activity_log.record import FIELDS, Applied, Outcome, StoredTaskActivityLog, TaskActivityLog
from task_activity_log.wire import as_json, as_xml
from task_activity_log.wire import fields as wire_fields
from task_activity_log.wire.fields import Kind
from tests.effort import examples
from tests.fakes import delivered
from tests.vectors import load

in_xml = st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0").filter(
    lambda c: c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff")
)
uuids = st.uuids(allow_nil=True)
instants = st.datetimes(timezones=st.just(UTC))
fields = {
    "task_id": uuids,
    "task_activity_id": uuids,
    "user_id": uuids,
    "contact_id": uuids,
    "subject": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
    "description": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
    "due_date": instants,
    "is_closed": st.booleans(),
    "date_closed": instants,
    "reference_back_office": st.text(max_size=10, alphabet=in_xml),
}
records = st.fixed_dictionaries(
    {"id": st.uuids()}, optional={name: st.none() | strategy for name, strategy in fields.items()}
).map(lambda values: TaskActivityLog(**values))


def received(body: bytes, media_type: str) -> Request[Delivery]:
    return decode(delivered(body, content_type=media_type), Rules())


@given(records)
def test_a_request_in_json_comes_back_as_it_was(record: TaskActivityLog) -> None:
    """Every value is the same, and so are the fields that were present."""
    found = received(wire.encode(record, wire.JSON).body, wire.JSON).record
    assert found == record
    assert found.model_fields_set == record.model_fields_set


@given(records)
def test_a_stored_record_in_json_comes_back_as_it_was(record: TaskActivityLog) -> None:
    """Instants have the same microseconds."""
    stored = StoredTaskActivityLog(**record.model_dump(), modified_dateutc=datetime(2026, 1, 1, 0, 0, 0, 1, UTC))
    assert wire.decode_stored(wire.encode(stored, wire.JSON).body, wire.JSON).model_dump() == stored.model_dump()


@given(records, st.lists(in_xml, max_size=20).map("".join))
def test_a_stored_record_in_xml_comes_back_to_the_millisecond(record: TaskActivityLog, text: str) -> None:
    """Texts may have any characters that XML can represent, including CR. Instants are truncated."""
    record = record.model_copy(update={"subject": text, "description": text})
    stored = StoredTaskActivityLog(**record.model_dump(), modified_dateutc=datetime(2026, 1, 1, tzinfo=UTC))
    encoded = wire.encode(stored, wire.XML)
    found = wire.decode_stored(encoded.body, wire.XML)
    assert not encoded.replaced
    assert found.model_dump() == {name: _cut(value) for name, value in stored.model_dump().items()}


@given(records)
def test_a_request_in_xml_comes_back_as_it_was(record: TaskActivityLog) -> None:
    """Every value and the fields that were present are the same, or the record is rejected."""
    try:
        body = wire.encode(record, wire.XML).body
    except Rejected as error:
        assert {refused.code for refused in error.problem.errors} == {Code.INVALID_STRING}
        return
    found = received(body, wire.XML).record
    assert found == record
    assert found.model_fields_set == record.model_fields_set


def _cut(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(microsecond=value.microsecond // 1000 * 1000)
    return value


VECTORS = load()
mutated = st.sampled_from(VECTORS).flatmap(
    lambda vector: st.tuples(
        st.just(vector.content_type),
        st.tuples(st.integers(0, len(vector.body)), st.integers(0, 8), st.binary(max_size=8)).map(
            lambda cut: vector.body[: cut[0]] + cut[2] + vector.body[cut[0] + cut[1] :]
        ),
    )
)
anything = st.tuples(st.none() | st.text(max_size=60), st.binary(max_size=300))


@settings(max_examples=examples(400))
@given(
    mutated | anything, st.none() | st.text(max_size=12), st.dictionaries(st.text(max_size=12), st.none() | st.text())
)
def test_whatever_comes_is_a_request_or_a_listed_problem(
    message: tuple[str | None, bytes], encoding: str | None, headers: dict[str, object]
) -> None:
    """There is no other exception, and a rejected message can be answered."""
    content_type, body = message
    delivery = delivered(body, content_type=content_type, content_encoding=encoding, headers=headers)
    try:
        request = decode(delivery, Rules())
    except Rejected as error:
        assert error.problem.code in Code
        answer = reply.undecoded(delivery, error.problem)
        assert answer.content_type.startswith("application/problem+")
        return
    stored = StoredTaskActivityLog(**request.record.model_dump(), modified_dateutc=datetime(2026, 1, 1, tzinfo=UTC))
    assert reply.stored(request, Applied(Outcome.INSERTED, stored), "emit").content_type == request.media_type


ID = "9652e68c-7b6d-4598-bbbd-4e933126c994"
MIB = 2**20
LARGE = Rules(body_limit=8 * MIB)


def _json(members: str) -> tuple[str, bytes]:
    return wire.JSON, f'{{"id":"{ID}",{members}}}'.encode()


def _xml(children: str, before: str = "") -> tuple[str, bytes]:
    return wire.XML, f"{before}<task_activity_log><id>{ID}</id>{children}</task_activity_log>".encode()


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(lambda: _json('"x":' + "[" * MIB), id="json_depth"),
        pytest.param(lambda: _json('"x":' + "9" * MIB), id="json_number"),
        pytest.param(lambda: _json(f'"subject":"{"x" * MIB}"'), id="json_string"),
        pytest.param(lambda: _json(f'"subject":"{chr(92)}"' * (MIB // 12)), id="json_escapes"),
        pytest.param(lambda: _json(",".join(f'"n{n}":{n}' for n in range(10_000))), id="json_members"),
        pytest.param(lambda: _json(",".join('"subject":1' for n in range(10_000))), id="json_duplicates"),
        pytest.param(lambda: _json('"due_date":"' + "2026-01-11T" * 90_000 + '"'), id="json_date"),
        pytest.param(lambda: _json('"task_id":"' + " " * MIB + '"'), id="json_blanks"),
        pytest.param(lambda: _xml("<a>" * 100_000), id="xml_depth"),
        pytest.param(lambda: _xml(f"<subject>{'x' * MIB}</subject>"), id="xml_string"),
        pytest.param(lambda: _xml("".join(f"<n{n}/>" for n in range(10_000))), id="xml_children"),
        pytest.param(lambda: _xml("<a " + " ".join(f'n{n}="x"' for n in range(10_000)) + "/>"), id="xml_attributes"),
        pytest.param(lambda: _xml("".join(f"<a xmlns:n{n}='u{n}'>" for n in range(10_000))), id="xml_namespaces"),
        pytest.param(lambda: _xml("<subject>" + "<![CDATA[x]]>" * 80_000 + "</subject>"), id="xml_sections"),
        pytest.param(lambda: _xml("<subject>" + "&#13;" * 200_000 + "</subject>"), id="xml_references"),
        pytest.param(lambda: _xml("<!---->" * 140_000), id="xml_comments"),
        pytest.param(
            lambda: _xml(
                "&j;",
                "<!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'>"
                + "".join(f"<!ENTITY {n} '{f'&{chr(ord(n) - 1)};' * 10}'>" for n in "bcdefghij")
                + "]>",
            ),
            id="xml_bomb",
        ),
    ],
)
@pytest.mark.timeout(20)  # a time that grows with the square of the length would exceed this
def test_hostile_bodies_cost_bounded_time_and_memory(hostile: Callable[[], tuple[str, bytes]]) -> None:
    """They use at most thirty times their length in memory (or 8 MiB), and no time that grows with its square."""
    content_type, body = hostile()
    delivery = delivered(body, content_type=content_type)
    tracemalloc.start()
    try:
        decode(delivery, LARGE)
    except Rejected as error:
        json.dumps(reply.undecoded(delivery, error.problem).body.decode())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < max(30 * len(body), 8 * MIB)


@pytest.mark.parametrize("many", ["[]", "{}"])
def test_many_arrays_are_left_to_the_complete_reader_of_json(many: str) -> None:
    """The fast one would use a hundred times the memory of the text, which Python's tools do not see."""
    _, body = _json(f'"x":[{",".join([many] * 1000)}]')
    assert as_json._usual(body.decode(), "utc") is None
    assert received(body, wire.JSON).record.model_fields_set == {"id"}


def test_every_field_is_generated() -> None:
    """If a field is added to the record, it must be added here."""
    assert {"id", *fields} == set(FIELDS)


xml_bodies = st.one_of(
    records.map(lambda record: _as_stored(record, wire.XML)),
    st.sampled_from([vector.body for vector in VECTORS if b"<" in vector.body]),
)
json_bodies = st.one_of(
    records.map(lambda record: wire.encode(record, wire.JSON).body),
    st.sampled_from([vector.body for vector in VECTORS if b"{" in vector.body]),
)
edits = st.lists(
    st.tuples(
        st.integers(0, 2000),
        st.integers(0, 6),
        st.sampled_from(
            [
                *'<>&"\\/:= \r\n',
                "]]>",
                "&#13;",
                "<!--c-->",
                "<a/>",
                "nil",
                "i:",
                "x",
                "\x00",
                "\x0b",
                "�",
                "\ufffe",
                '"subject":"a",',
                "\\u0000",
                "\\ud800",
                "<subject>a</subject>",
                'xmlns:i=""',
                "ID",
                "null,",
                "1e5",
                "/",
            ]
        ),
    ),
    max_size=3,
)


def _as_stored(record: TaskActivityLog, media_type: str) -> bytes:
    stored = StoredTaskActivityLog(**record.model_dump(), modified_dateutc=datetime(2026, 1, 1, tzinfo=UTC))
    return wire.encode(stored, media_type).body


def _edited(body: bytes, changes: list[tuple[int, int, str]]) -> str:
    text = body.decode(errors="replace")
    for at, cut, put in changes:
        text = text[: at % (len(text) + 1)] + put + text[at % (len(text) + 1) + cut :]
    return text


@settings(max_examples=examples(300))
@given(xml_bodies, edits)
def test_the_fast_reader_of_xml_agrees_with_the_complete_one(body: bytes, changes: list[tuple[int, int, str]]) -> None:
    """If it accepts a text at all, it returns the same members."""
    text = _edited(body, changes)
    fast = as_xml._usual(text)
    if fast is not None:
        complete = as_xml._members(text)
        assert fast == {
            name: as_xml._content(child.element, Kind.TEXT, child.siblings) for name, child in complete.items()
        }


@settings(max_examples=examples(300))
@given(json_bodies, edits)
def test_the_fast_reader_of_json_agrees_with_the_complete_one(body: bytes, changes: list[tuple[int, int, str]]) -> None:
    """If it accepts a text at all, it returns the same record with the same fields."""
    text = _edited(body, changes)
    fast = as_json._usual(text, "utc")
    if fast is not None:
        complete = wire_fields.record(TaskActivityLog, as_json._members(text), as_json._readers("utc"))
        assert (fast, fast.model_fields_set) == (complete, complete.model_fields_set)

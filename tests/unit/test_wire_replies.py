"""Replies, problems and request keys (contract, sections 6 and 7), byte by byte.

The identifiers were worked out by hand with sha256sum's arithmetic, not by the code: inboxes and subscribers remember
them, so they never change.
"""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from pydantic import ValidationError

from task_activity_log import wire
from task_activity_log.message import Delivery
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import MESSAGE_ID_MAX, Request, Rules, decode
from task_activity_log.problem import Code, FieldError, Problem, Rejected
from task_activity_log.rabbitmq.exchange import routing_key
from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog, TaskActivityLog
from tests.fakes import delivered

ID = "9652e68c-7b6d-4598-bbbd-4e933126c994"
BODY = f'{{"id":"{ID}"}}'.encode()
XML_BODY = f"<task_activity_log><id>{ID}</id></task_activity_log>".encode()
STORED = StoredTaskActivityLog(id=UUID(ID), modified_dateutc=datetime(2026, 1, 11, 20, 58, 34, 720383, UTC))


def request(delivery: Delivery) -> Request[Delivery]:
    return decode(delivery, Rules())


def rejection(delivery: Delivery) -> Reply:
    """The reply to a message that cannot be decoded."""
    with pytest.raises(Rejected) as caught:
        decode(delivery, Rules())
    return reply.undecoded(delivery, caught.value.problem)


def stored(delivery: Delivery, record: StoredTaskActivityLog = STORED) -> Reply:
    return reply.stored(request(delivery), Applied(Outcome.INSERTED, record), "emit")


# ---- request keys and message ids

HEADERS = {"x-update-mode": "merge", "x-version": "-007"}
KEYED = [
    pytest.param(
        delivered(BODY, message_id="m-1"),
        "a05b9dcf-b8cf-8cd5-5ea6-38fb782abe6c",
        "13ef3415-6839-1085-b107-17cef1af369a",
        "7ec0a68d-7bf1-7aab-f312-f569f09fd65d",
        id="plain",
    ),
    pytest.param(
        delivered(BODY, message_id="é", headers=HEADERS),
        "c825c505-edd6-7c28-11f9-e80cfb02e14d",
        "02bdc09d-7010-5a47-d9bc-9117ff387317",
        "d89ed722-8573-ff73-c76f-23259001dbcd",
        id="mode_and_version",
    ),
]


@pytest.mark.parametrize(("delivery", "key", "when_stored", "when_rejected"), KEYED)
def test_the_key_is_made_of_message_id_mode_version_and_body(
    delivery: Delivery, key: str, when_stored: str, when_rejected: str
) -> None:
    """The reply's message_id is derived from the key and from whether it was stored or rejected."""
    asked = request(delivery)
    assert asked.key == UUID(key)
    assert stored(delivery).message_id == when_stored
    assert reply.rejected(asked, Problem(Code.REFUSED_BY_DATABASE, "d")).message_id == when_rejected
    assert reply.stored(asked, Applied(Outcome.DUPLICATE, None), "emit").message_id == when_rejected


def test_a_message_that_cannot_be_decoded_is_identified_by_message_id_and_body() -> None:
    """Its problem has the same message_id each time."""
    assert rejection(delivered(b"[]", message_id="m-1")).message_id == "5600c37a-8b40-6b4e-cccc-71c1227372c6"


def test_the_header_messageid_stands_in() -> None:
    """Where the property is absent or empty; a byte array is text too."""
    for headers in ({"MessageId": "m-1"}, {"MessageId": b"m-1"}):
        for message_id in (None, ""):
            assert request(delivered(BODY, message_id=message_id, headers=headers)).key == UUID(KEYED[0].values[1])  # type: ignore[arg-type]
    assert request(delivered(BODY, message_id="m-1", headers={"MessageId": "other"})).key == UUID(KEYED[0].values[1])  # type: ignore[arg-type]


def test_a_header_with_a_very_long_id_is_rejected() -> None:
    """A content header with it may be longer than a frame. The property, which counts before it, cannot be so long."""
    longest = "\u00e9" * MESSAGE_ID_MAX
    assert request(delivered(BODY, headers={"MessageId": longest})).key is not None
    too_long = {"MessageId": longest + "x"}
    assert request(delivered(BODY, message_id="m-1", headers=too_long)).key is not None
    assert rejection(delivered(BODY, headers=too_long)).headers["x-error-code"] == Code.INVALID_PROPERTIES


@pytest.mark.parametrize(
    "message_id", [None, "", ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"({ID})", f" {ID} "]
)
def test_without_a_message_id_of_its_own_there_is_no_key(message_id: str | None) -> None:
    """None, or the record's id in any form, which is an entity's name. Each reply then has a message_id of its own."""
    delivery = delivered(BODY, message_id=message_id)
    assert request(delivery).key is None
    assert stored(delivery).message_id != stored(delivery).message_id
    assert UUID(stored(delivery).message_id).version == 4


@pytest.mark.parametrize("headers", [{}, {"MessageId": 7}, {"MessageId": ""}, {"MessageId": None}])
def test_rejections_without_message_id_cannot_be_told_apart(headers: dict[str, object]) -> None:
    """A random one each time."""
    delivery = delivered(b"[]", headers=headers)
    assert rejection(delivery).message_id != rejection(delivery).message_id
    assert rejection(delivery).correlation_id is None


# ---- properties


@pytest.mark.parametrize(
    ("correlation_id", "message_id", "headers", "expected"),
    [
        ("c", "m", {}, "c"),
        (None, "m", {}, "m"),
        ("", "m", {}, "m"),
        (None, None, {"MessageId": "h"}, "h"),
        (None, None, {}, None),
        (None, None, {"MessageId": "x" * 256}, None),
        (None, None, {"MessageId": "é" * 128}, None),
        (None, None, {"MessageId": "x" * 255}, "x" * 255),
        (None, "\ud800", {}, None),
    ],
)
def test_correlation_ids(
    correlation_id: str | None, message_id: str | None, headers: dict[str, object], expected: str | None
) -> None:
    """The request's, else its message_id; a header can hold what the property cannot."""
    delivery = delivered(BODY, correlation_id=correlation_id, message_id=message_id, headers=headers)
    assert stored(delivery).correlation_id == expected
    assert rejection(delivered(b"[]", message_id, correlation_id=correlation_id, headers=headers)).correlation_id == (
        expected
    )


@pytest.mark.parametrize(
    ("content_type", "body", "problem_type"),
    [
        ("application/json", BODY, "application/problem+json"),
        ("Text/JSON; charset=utf-8", BODY, "application/problem+json"),
        (None, BODY, "application/problem+json"),
        ("application/xml", XML_BODY, "application/problem+xml"),
        ("TEXT/XML; charset=utf-8", XML_BODY, "application/problem+xml"),
    ],
)
def test_content_types(content_type: str | None, body: bytes, problem_type: str) -> None:
    """The request's bare media type, or the problem's of the same format."""
    found = stored(delivered(body, content_type=content_type))
    assert found.content_type == (content_type or "application/json").partition(";")[0].lower()
    assert (found.type, found.outcome, found.headers) == (
        "task_activity_log.stored", Outcome.INSERTED, {"x-outcome": "inserted"},
    )  # fmt: skip
    bad = rejection(delivered(b"", content_type=content_type, reply_to="r"))
    assert bad.content_type == problem_type
    assert (bad.type, bad.outcome, bad.reply_to) == ("task_activity_log.rejected", Outcome.REJECTED, "r")
    assert bad.headers == {"x-outcome": "rejected", "x-error-code": "empty_body"}


@pytest.mark.parametrize("outcome", ["inserted", "updated", "duplicate", "stale"])
def test_outcomes_are_said_in_a_header(outcome: str) -> None:
    """And in the routing key."""
    found = reply.stored(request(delivered(BODY)), Applied(Outcome(outcome), STORED), "emit")
    assert found.headers == {"x-outcome": outcome}
    assert routing_key(found) == f"stored.{outcome}"
    assert routing_key(rejection(delivered(b""))) == "rejected"


@pytest.mark.parametrize("content_type", ["text/plain", "application/soap+xml", "xml"])
def test_a_problem_is_in_json_if_the_format_is_not_known(content_type: str) -> None:
    """This holds even if the content type looks like XML."""
    assert rejection(delivered(BODY, content_type=content_type)).content_type == "application/problem+json"


def test_a_problem_has_the_default_format_if_content_type_is_absent() -> None:
    """A setting determines the default; if there is none, the problem is in JSON."""
    delivery, problem = delivered(b"", content_type=None), Problem(Code.EMPTY_BODY, "d")
    assert reply.undecoded(delivery, problem, "application/xml").content_type == "application/problem+xml"
    assert reply.undecoded(delivery, problem, None).content_type == "application/problem+json"


def test_the_reply_to_unreadable_properties_uses_those_that_could_be_read() -> None:
    """It has the message's format and correlation_id. It is in JSON if content_type may be the unreadable one."""
    delivery = delivered(XML_BODY, None, "text/xml", correlation_id="c", reply_to="r", unreadable="type is not UTF-8")
    found = rejection(delivery)
    assert (found.content_type, found.correlation_id, found.reply_to) == ("application/problem+xml", "c", "r")
    assert found.headers["x-error-code"] == "invalid_properties"
    assert b"<detail>Send properties and headers that are valid in AMQP: type is not UTF-8.</detail>" in found.body
    unknown = delivered(XML_BODY, content_type=None, unreadable="content_type is not UTF-8")
    problem = Problem(Code.INVALID_PROPERTIES, "d")
    assert reply.undecoded(unknown, problem, "application/xml").content_type == "application/problem+json"


def test_a_repeat_whose_row_was_deleted_is_answered_with_a_problem() -> None:
    """The problem is in the request's format."""
    found = reply.stored(request(delivered(XML_BODY, "m", "text/xml")), Applied(Outcome.DUPLICATE, None), "emit")
    assert found.headers == {"x-outcome": "rejected", "x-error-code": "record_gone"}
    assert found.content_type == "application/problem+xml"
    assert b"<status>410</status>" in found.body


def test_fields_with_replaced_characters_are_named() -> None:
    """This happens only in XML, because JSON can represent every character."""
    record = STORED.model_copy(update={"subject": "a\x01", "reference_back_office": "\uffff", "description": "\r"})
    assert stored(delivered(XML_BODY, content_type="text/xml"), record).headers == {
        "x-outcome": "inserted",
        "x-replaced-characters": "subject, reference_back_office",
    }
    assert stored(delivered(BODY), record).headers == {"x-outcome": "inserted"}


@pytest.mark.parametrize("point", [*range(1, 9), 0xB, 0xC, *range(0xE, 0x20), 0xFFFE, 0xFFFF])
def test_characters_that_xml_cannot_represent_are_replaced(point: int) -> None:
    """All other characters are written unchanged, except CR, which is a character reference."""
    record = STORED.model_copy(update={"subject": f"\t\n\r\x7f\x85\u2028\ufffd😀{chr(point)}"})
    body = stored(delivered(XML_BODY, content_type="text/xml"), record).body.decode()
    assert "<subject>\t\n&#xD;\x7f\x85\u2028\ufffd😀\ufffd</subject>" in body


@pytest.mark.parametrize(
    ("instant", "in_json", "in_xml"),
    [
        (
            datetime(2026, 1, 11, 20, 58, 34, 720383, UTC),
            "2026-01-11T20:58:34.720383+00:00",
            "2026-01-11T20:58:34.720Z",
        ),
        (datetime(2026, 1, 11, 20, 58, 34, 720000, UTC), "2026-01-11T20:58:34.72+00:00", "2026-01-11T20:58:34.720Z"),
        (datetime(2026, 1, 11, 20, 58, 30, 0, UTC), "2026-01-11T20:58:30+00:00", "2026-01-11T20:58:30.000Z"),
        (datetime(2026, 1, 11, 0, 0, 0, 999, UTC), "2026-01-11T00:00:00.000999+00:00", "2026-01-11T00:00:00.000Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00+00:00", "0001-01-01T00:00:00.000Z"),
        (
            datetime(9999, 12, 31, 23, 59, 59, 999999, UTC),
            "9999-12-31T23:59:59.999999+00:00",
            "9999-12-31T23:59:59.999Z",
        ),
    ],
)
def test_instants(instant: datetime, in_json: str, in_xml: str) -> None:
    """JSON has no trailing zeros. XML has three digits, truncated, so that an instant never moves to the next day."""
    record = STORED.model_copy(update={"due_date": instant})
    assert json.loads(stored(delivered(BODY), record).body)["due_date"] == in_json
    assert f"<due_date>{in_xml}</due_date>" in stored(delivered(XML_BODY, None, "text/xml"), record).body.decode()


def test_an_xml_reply_has_every_value() -> None:
    """Values have the forms that .NET reads: uuids in lower case with hyphens, booleans in lower case."""
    fields = {name: UUID(int=number) for number, name in enumerate(("task_id", "task_activity_id", "user_id"), 10)}
    for closed, text in ((True, "true"), (False, "false")):
        record = STORED.model_copy(update={**fields, "is_closed": closed, "subject": ""})
        body = stored(delivered(XML_BODY, None, "text/xml"), record).body.decode()
        assert f"<is_closed>{text}</is_closed>" in body
        assert "<subject></subject>" in body
        assert "<task_id>00000000-0000-0000-0000-00000000000a</task_id>" in body
        assert wire.decode_stored(body.encode(), "text/xml").model_dump() == record.model_dump() | {
            "modified_dateutc": STORED.modified_dateutc.replace(microsecond=720000)
        }


def test_a_json_reply_is_one_line_for_any_values() -> None:
    """It is UTF-8 without a byte order mark, and escapes only what must be escaped."""
    record = STORED.model_copy(update={"subject": 'é😀"\\\n\r\x01'})
    body = stored(delivered(BODY), record).body
    assert b'"subject":"\xc3\xa9\xf0\x9f\x98\x80\\"\\\\\\n\\r\\u0001"' in body
    assert body.startswith(b'{"id":')
    assert b"\n" not in body


@pytest.mark.parametrize("bad", [{"id": UUID(int=0)}, {"subject": "\0"}, {"description": "\ud800"}])
def test_a_record_made_from_python_values_follows_the_same_rules(bad: dict[str, object]) -> None:
    """A program gets an error when it creates the record, and not only a dead letter."""
    with pytest.raises(ValidationError):
        TaskActivityLog(**{"id": UUID(ID), **bad})
    assert TaskActivityLog(id=UUID(ID), subject="é😀").subject == "é😀"


# ---- problems


def test_a_problem_in_json_has_the_members_of_rfc_9457() -> None:
    """It also has the code, and errors: one for each invalid field."""
    body = rejection(delivered(b'{"id":"x","due_date":"x","is_closed":2}')).body
    assert json.loads(body) == {
        "type": "urn:task-activity-log:problem:invalid_uuid",
        "title": "Invalid uuid",
        "status": 422,
        "detail": "Send id as a uuid such as 9652e68c-7b6d-4598-bbbd-4e933126c994. 2 more fields are invalid too.",
        "code": "invalid_uuid",
        "errors": [
            {
                "name": "id",
                "code": "invalid_uuid",
                "message": "Send id as a uuid such as 9652e68c-7b6d-4598-bbbd-4e933126c994.",
            },
            {
                "name": "due_date",
                "code": "invalid_date",
                "message": "Send due_date as a date such as 2026-01-11T20:58:34.720383Z.",
            },
            {"name": "is_closed", "code": "invalid_boolean", "message": "Send is_closed as true or false."},
        ],
    }


def test_a_problem_in_xml_follows_appendix_b() -> None:
    """It has the namespace, an element for each member, and `i` for each item. Text is escaped."""
    problem = Problem(Code.DUPLICATE_FIELD, "a<b>&\r", (FieldError("id", Code.DUPLICATE_FIELD, "m"),))
    assert reply.undecoded(delivered(b"", content_type="text/xml"), problem).body.decode() == (
        '<problem xmlns="urn:ietf:rfc:7807"><type>urn:task-activity-log:problem:duplicate_field</type>'
        "<title>Duplicate field</title><status>400</status><detail>a&lt;b&gt;&amp;&#xD;</detail>"
        "<code>duplicate_field</code><errors><i><name>id</name><code>duplicate_field</code><message>m</message></i>"
        "</errors></problem>"
    )


def test_the_detail_says_how_many_more_fields_are_invalid() -> None:
    """The sentence is correct for one and for several."""
    details = [
        json.loads(rejection(delivered(body)).body)["detail"]
        for body in (b'{"id":1,"user_id":1}', b'{"user_id":1}', b'{"id":1,"ID":1}')
    ]
    assert details[0].endswith(". 1 more field is invalid too.")
    assert details[1].startswith("Send id as a uuid; it is missing or all zeros. 1 more ")
    assert details[2] == "Send id only once; upper and lower case do not matter."


def test_every_code_has_its_status() -> None:
    """The table is that of section 6."""
    statuses = {
        415: "unsupported_media_type unsupported_charset unsupported_encoding",
        413: "body_too_large",
        400: "invalid_properties empty_body invalid_encoding malformed_json malformed_xml dtd_forbidden not_an_object"
        " wrong_root duplicate_field unsupported_update_mode invalid_version reply_as_request",
        422: "missing_id invalid_uuid invalid_date invalid_boolean invalid_string misrouted",
        409: "refused_by_database",
        410: "record_gone",
        507: "reply_too_large",
        500: "poison_message unreadable_record",
    }
    assert {code.value: code.status for code in Code} == {
        code: status for status, codes in statuses.items() for code in codes.split()
    }

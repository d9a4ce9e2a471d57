"""Members that are not fields are ignored, and named on the reply: at most ten, shortened, and never a value."""

import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from pydantic import ValidationError

from task_activity_log import wire
from task_activity_log.client import Upsert
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.problem import Rejected
from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog, TaskActivityLog
from task_activity_log.testing import FakeWorker

ID = "9652e68c-7b6d-4598-bbbd-4e933126c994"
START = "<task_activity_log xmlns:i='http://www.w3.org/2001/XMLSchema-instance'"


def ignored(body: str, content_type: str = wire.JSON) -> str | None:
    """The header of the reply to a request with this body."""
    request = decode(Delivery(body.encode("utf-8", "surrogatepass"), Properties(content_type=content_type)), Rules())
    stored = StoredTaskActivityLog(id=request.record.id, modified_dateutc=datetime.now(UTC))
    return reply.stored(request, Applied(Outcome.INSERTED, stored), "emit").headers.get("x-ignored")


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ({}, None),
        (
            {"subject": "a", "DUE_DATE": None, "modified_dateutc": "2026-01-01T00:00:00Z", "$id": "1", "$type": "x"},
            None,
        ),
        ({"Modified_DateUtc": "no date"}, None),
        ({"subjct": "secret"}, "subjct"),
        ({"taskId": None, "note": {"subject": "secret"}, "tags": ["secret"]}, "taskId, note, tags"),
        ({"a, b\n": 1, "ü\ud800": 2}, "a??b?, ü?"),
        ({"x" * 70: 1}, "x" * 64),
        ({f"n{number}": number for number in range(20)}, ", ".join(f"n{number}" for number in range(10))),
        ({"tas\u212a_id": "not ASCII, so it is no other form of a field"}, "tas\u212a_id"),
    ],
)
def test_members_of_json_that_are_not_fields_are_named(members: dict[str, object], names: str | None) -> None:
    """Whichever of the two readers decodes them."""
    assert ignored(json.dumps({"id": ID, **members})) == names
    slowly = json.dumps({**members, "ID": ID})  # another case of a name: the complete reader
    assert ignored(slowly) == names


@pytest.mark.parametrize(
    ("children", "names"),
    [
        ("<subject>a</subject><modified_dateutc>x</modified_dateutc>", None),
        ("<Subject>secret</Subject><subjct/>", "Subject, subjct"),
        ('<note xmlns="urn:other">secret</note>', None),
    ],
)
def test_elements_of_xml_that_are_not_fields_are_named(children: str, names: str | None) -> None:
    """Except those of another namespace."""
    assert ignored(f"{START}><id>{ID}</id>{children}</task_activity_log>", wire.XML) == names


def test_elements_in_the_namespace_of_the_root_are_named_without_it() -> None:
    """As DataContractSerializer writes them."""
    assert ignored(f"{START} xmlns='urn:mine'><id>{ID}</id><subjct/></task_activity_log>", wire.XML) == "subjct"


def test_a_problem_has_no_such_header() -> None:
    """It says what to correct."""
    with pytest.raises(Rejected) as rejected:
        decode(Delivery(b'{"id": "nope", "subjct": 1}', Properties(content_type=wire.JSON)), Rules())
    delivery = Delivery(b"", Properties())
    assert "x-ignored" not in reply.undecoded(delivery, rejected.value.problem).headers


async def test_publishers_and_subscribers_read_the_names() -> None:
    """As `Reply.ignored`."""
    worker = FakeWorker()
    misspelled = Upsert(json.dumps({"id": str(uuid4()), "taskId": 1, "note": 2}).encode())
    async with worker.client() as client:
        assert (await client.upsert(misspelled)).ignored == ("taskId", "note")
        await client.send_many([Upsert(misspelled.body)])
    async with worker.subscribe(most=1) as replies:
        assert [one.ignored async for one in replies] == [("taskId", "note")]


def test_a_record_of_python_has_fields_only() -> None:
    """A misspelled name is an error when the record is made."""
    with pytest.raises(ValidationError, match="subjct"):
        TaskActivityLog(id=uuid4(), subjct="x")  # type: ignore[call-arg]  # that is the point

"""Real .NET serializers, with all their usual settings, write requests and read replies without losing a field.

Needs Mono: `make test` leaves these tests out, `make test-dotnet` runs them.
"""

import asyncio
import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import aio_pika
import pytest

from task_activity_log.message import Delivery
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.problem import Code, FieldError, Problem, Rejected
from task_activity_log.record import FIELDS, Applied, Outcome, StoredTaskActivityLog
from task_activity_log.wire import JSON, XML, Nulls
from tests.acceptance.test_process import running
from tests.dotnet import mono
from tests.dotnet.readers import READERS, UNFIT, Reader
from tests.dotnet.values import (
    EMPTY,
    FULL,
    ID,
    KINDS,
    MAX_TICKS,
    NOT_IN_XML,
    OFFSETS,
    TEXTS,
    TICKS,
    ZERO,
    Kind,
    Net,
    from_net,
    to_net,
)
from tests.dotnet.writers import REFUSED, WRITERS, Writer
from tests.fakes import delivered

pytestmark = pytest.mark.dotnet

ZONES = ("Europe/Brussels", "America/New_York", "UTC")

Case = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class DotNet:
    """The .NET serializers, running in a time zone."""

    program: mono.Program

    @property
    def zone(self) -> ZoneInfo:
        """The time zone that they run in."""
        return ZoneInfo(self.program.zone)

    def write(self, setting: str, values: dict[str, Any]) -> Delivery | str:
        """A request as the serializer setting writes it, or the exception that it throws."""
        (answer,) = self.program.ask([{"write": setting, "values": to_net(values)}])
        if "error" in answer:
            return str(answer["error"])
        return delivered(base64.b64decode(answer["body"]), content_type=answer["content_type"])

    def read(self, setting: str, body: bytes) -> dict[str, Any] | str:
        """The values that the serializer setting reads from a reply, or the exception that it throws."""
        (answer,) = self.program.ask([{"read": setting, "body": base64.b64encode(body).decode()}])
        if "error" in answer:
            return str(answer["error"])
        return {name: _ours(name, value) for name, value in answer["values"].items()}


def _ours(name: str, value: object) -> object:
    """A value that C# has read, in Python. An Unspecified date is `default(DateTime)`, as replies have offsets."""
    if value is None or isinstance(value, bool):
        return value
    text = str(value)
    if name == "id" or name.endswith("_id"):
        return UUID(text)
    if "date" not in name:
        return text
    return None if text == "0 Unspecified" else from_net(text)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, DotNet]]:
    """The compiled program, running once in each time zone."""
    try:
        path = mono.compile_all(tmp_path_factory.mktemp("dotnet"))
    except mono.MonoError as error:
        pytest.fail(str(error), pytrace=False)
    programs = {zone: mono.Program(path, zone) for zone in ZONES}
    yield {zone: DotNet(program) for zone, program in programs.items()}
    for program in programs.values():
        program.close()


@pytest.fixture(params=ZONES)
def dotnet(programs: dict[str, DotNet], request: pytest.FixtureRequest) -> DotNet:
    """.NET in each of the time zones."""
    return programs[request.param]


@pytest.fixture
def in_brussels(programs: dict[str, DotNet]) -> DotNet:
    """.NET in the time zone of Brussels."""
    return programs["Europe/Brussels"]


def test_every_setting_has_an_expectation(in_brussels: DotNet) -> None:
    """The tests below cover each writer and each reader of the C# program."""
    (settings,) = in_brussels.program.ask([{"list": True}])
    assert set(settings["write"]) == WRITERS.keys() | REFUSED.keys()
    assert set(settings["read"]) == READERS.keys() | UNFIT


# ---- requests


def dates(writer: Writer, zone: str) -> Iterator[Case]:
    """Records with dates of every kind that the writer's class can hold."""
    kinds = OFFSETS if writer.offsets else KINDS
    for name, ticks in TICKS.items():
        extreme = name in ("min", "max")
        if extreme and writer.moves_extremes and zone != "UTC":
            continue  # .NET throws or clamps before it writes
        for kind in kinds:
            if extreme and kind and isinstance(kind, int):
                continue  # no such DateTimeOffset
            if (name, kind, zone) == ("min", "Local", "America/New_York"):
                continue  # local mean time: its offset is in minutes in .NET and in seconds in zoneinfo
            yield f"{name}, {kind}", {"id": ID, "due_date": Net(ticks, kind), "date_closed": Net(ticks, kind)}


def whole_records(writer: Writer) -> Iterator[Case]:
    """Records with every field, with nulls only, and with every string."""
    kind: Kind | int = 0 if writer.offsets else "Utc"
    full = {name: Net(value.ticks, kind) if isinstance(value, Net) else value for name, value in FULL.items()}
    yield "full", full
    yield "nulls", EMPTY
    for name, text in TEXTS.items():
        yield name, {**full, "subject": text, "description": text, "reference_back_office": text}
    if writer.checks is None:
        for name, text in NOT_IN_XML.items():
            yield name, {**full, "subject": text}


@pytest.mark.parametrize("setting", WRITERS)
def test_every_field_of_a_request_is_decoded(dotnet: DotNet, setting: str) -> None:
    """Unusual dates, strings and nulls are decoded as each serializer setting writes them, in three time zones."""
    writer = WRITERS[setting]
    zone = dotnet.program.zone
    wrong = {}
    for name, values in [*whole_records(writer), *dates(writer, zone)]:
        delivery = dotnet.write(setting, {**EMPTY, **values})
        assert isinstance(delivery, Delivery), (name, delivery)
        record = decode(delivery, Rules()).record
        found = (record.model_dump(), set(record.model_fields_set))
        expected = (writer.expected({**EMPTY, **values}, dotnet.zone), writer.fields_set({**EMPTY, **values}))
        if found != expected:
            wrong[name] = (delivery, expected, found)
    assert not wrong


@pytest.mark.parametrize("setting", WRITERS)
def test_a_modification_date_in_a_request_is_ignored(in_brussels: DotNet, setting: str) -> None:
    """A stored record can be sent back as it is, including its modified_dateutc."""
    kind: Kind | int = 0 if WRITERS[setting].offsets else "Unspecified"
    delivery = in_brussels.write(setting, {"id": ID, "modified_dateutc": Net(TICKS["7 digits"], kind)})
    assert isinstance(delivery, Delivery), delivery
    assert b"odified" in delivery.body.replace(b"\0", b"")
    record = decode(delivery, Rules()).record
    assert record.id == ID
    assert "modified_dateutc" not in record.model_fields_set


@pytest.mark.parametrize("setting", [*WRITERS, *REFUSED])
def test_a_default_guid_as_id_is_refused(in_brussels: DotNet, setting: str) -> None:
    """A publisher who forgets to set the id gets the problem missing_id, with every serializer."""
    delivery = in_brussels.write(setting, {"id": ZERO})
    assert isinstance(delivery, Delivery), delivery
    with pytest.raises(Rejected) as rejected:
        decode(delivery, Rules())
    assert rejected.value.problem.code is Code.MISSING_ID


@pytest.mark.parametrize("text", NOT_IN_XML)
@pytest.mark.parametrize("setting", [setting for setting, writer in WRITERS.items() if writer.checks is not None])
def test_a_character_that_xml_cannot_hold_is_never_replaced_silently(
    in_brussels: DotNet, setting: str, text: str
) -> None:
    """Either .NET throws before anything is sent, or it writes a reference that is rejected as `malformed_xml`."""
    delivery = in_brussels.write(setting, {**FULL, "subject": NOT_IN_XML[text], **_fitting(WRITERS[setting])})
    if isinstance(delivery, str):
        assert WRITERS[setting].checks, delivery
        assert "is an invalid character" in delivery
        return
    assert not WRITERS[setting].checks
    assert re.search(rb"&#x(B|1|FFF[EF]);", delivery.body.replace(b"\0", b""))
    with pytest.raises(Rejected) as rejected:
        decode(delivery, Rules())
    assert rejected.value.problem.code is Code.MALFORMED_XML


def _fitting(writer: Writer) -> dict[str, Any]:
    """Dates that the writer's class can hold."""
    return {"due_date": None, "date_closed": None} if writer.offsets else {}


@pytest.mark.parametrize("setting", REFUSED)
def test_an_unusable_date_is_rejected_and_not_lost(in_brussels: DotNet, setting: str) -> None:
    """Serializers that write unusable dates get a problem; their records without dates are accepted."""
    kind: Kind | int = "Utc" if "javascript" in setting else 0
    delivery = in_brussels.write(setting, {"id": ID, "due_date": Net(TICKS["7 digits"], kind)})
    assert isinstance(delivery, Delivery), delivery
    with pytest.raises(Rejected) as rejected:
        decode(delivery, Rules())
    assert rejected.value.problem.code == REFUSED[setting]
    dateless = in_brussels.write(setting, {"id": ID, "subject": "s"})
    assert isinstance(dateless, Delivery), dateless
    assert decode(dateless, Rules()).record.subject == "s"


# ---- replies

MODIFIED = datetime(2026, 1, 11, 20, 58, 34, 720383, UTC)
STORED: dict[str, Any] = {
    **FULL,
    "due_date": datetime(2026, 7, 1, 23, 59, 59, 999999, UTC),
    "date_closed": datetime(1980, 1, 1, tzinfo=UTC),
    "modified_dateutc": MODIFIED,
}
NULLS: dict[str, Any] = {**dict.fromkeys(STORED), "id": ID, "modified_dateutc": MODIFIED}
EXTREMES = {
    "min": {**STORED, "due_date": datetime.min.replace(tzinfo=UTC)},
    "max": {**STORED, "due_date": datetime.max.replace(tzinfo=UTC)},
}


def answer(values: dict[str, Any], media_type: str, nulls: Nulls = "emit") -> bytes:
    """The body of the reply to a request in this format, with this stored record."""
    body = b'{"id":"%b"}' if media_type == JSON else b"<task_activity_log><id>%b</id></task_activity_log>"
    request = decode(delivered(body % str(ID).encode(), content_type=media_type), Rules())
    applied = Applied(Outcome.UPDATED, StoredTaskActivityLog(**values))
    return reply.stored(request, applied, nulls).body


def stored_records(reader: Reader, zone: str) -> Iterator[Case]:
    """Stored records with all fields, nulls, extreme dates, and every string that the reader does not change."""
    yield "full", STORED
    if not reader.never_null:
        yield (
            "nulls",
            {
                **NULLS,
                **({"subject": "", "description": "", "reference_back_office": ""} if reader.empties_nulls else {}),
            },
        )
    if zone == "UTC" or not reader.moves_extremes:
        yield from EXTREMES.items()
    for name, text in {**TEXTS, **({} if reader.xml else NOT_IN_XML)}.items():
        if (text.strip(" \t\r\n") or not text or not reader.drops_blanks) and not (
            reader.guesses_dates and "date" in name
        ):
            yield name, {**STORED, "subject": text, "description": text, "reference_back_office": text}


def precise(values: dict[str, Any], *, xml: bool) -> dict[str, Any]:
    """Values with the precision of a reply: dates in XML have milliseconds."""
    if not xml:
        return values
    return {
        name: value.replace(microsecond=value.microsecond // 1000 * 1000) if isinstance(value, datetime) else value
        for name, value in values.items()
    }


@pytest.mark.parametrize("setting", READERS)
def test_every_field_of_a_reply_is_read_back(dotnet: DotNet, setting: str) -> None:
    """Each serializer setting reads unusual dates, strings and nulls from replies, in three time zones."""
    reader = READERS[setting]
    wrong = {}
    for name, values in stored_records(reader, dotnet.program.zone):
        for nulls in ("emit", "omit"):
            body = answer(values, XML if reader.xml else JSON, nulls)
            found = dotnet.read(setting, body)
            if found != precise(values, xml=reader.xml):
                wrong[name, nulls] = (body, found)
    assert not wrong


@pytest.mark.parametrize("setting", [name for name, reader in READERS.items() if reader.never_null])
def test_a_class_without_nulls_can_read_replies_that_omit_nulls(in_brussels: DotNet, setting: str) -> None:
    """A class without nullable members throws on nulls, so JSON has the setting `nulls: omit`; XML has no such setting."""
    reader = READERS[setting]
    emitted = in_brussels.read(setting, answer(NULLS, XML if reader.xml else JSON, "emit"))
    defaults = {
        **dict.fromkeys(("task_id", "task_activity_id", "user_id", "contact_id"), ZERO),
        "is_closed": False,
    }
    assert isinstance(emitted, str) is not reader.skips_nulls
    if not reader.xml:
        assert in_brussels.read(setting, answer(NULLS, JSON, "omit")) == {**NULLS, **defaults}


@pytest.mark.parametrize("content_type", [JSON, XML])
def test_a_problem_is_read_back(in_brussels: DotNet, content_type: str) -> None:
    """The class in docs/examples reads all members of a problem and the errors of all fields, in both formats."""
    problem = Problem(
        Code.INVALID_UUID,
        "Send <id> & a date, é.",
        (FieldError("id", Code.INVALID_UUID, "one"), FieldError("due_date", Code.INVALID_DATE, "two")),
    )
    rejected = reply.undecoded(delivered(b"", content_type=content_type), problem)
    question = {"problem": rejected.content_type, "body": base64.b64encode(rejected.body).decode()}
    assert in_brussels.program.ask([question]) == [
        {
            "type": "urn:task-activity-log:problem:invalid_uuid",
            "title": "Invalid uuid",
            "status": 422,
            "detail": problem.detail,
            "code": "invalid_uuid",
            "errors": [["id", "invalid_uuid", "one"], ["due_date", "invalid_date", "two"]],
        }
    ]


# ---- what .NET does to replies, as docs/examples warns


def test_data_contracts_lose_fields_that_are_not_in_name_order(in_brussels: DotNet) -> None:
    """Replies are in ordinal name order because data contracts silently lose fields in any other order."""
    body = answer(STORED, XML)
    children = re.findall(rb"<\w+(?:/>|>[^<]*</\w+>)", body)
    assert len(children) == len(STORED)
    shuffled = body.replace(b"".join(children), b"".join(sorted(children, reverse=True)))
    for found in (in_brussels.read("data contract", shuffled), in_brussels.read("data contract ordered", body)):
        assert isinstance(found, dict)
        assert found["subject"] is None or found["id"] == ZERO


def test_a_data_contract_cannot_read_an_offset(in_brussels: DotNet) -> None:
    """DataContractSerializer expects two elements for a DateTimeOffset member, so it throws and loses nothing silently."""
    assert "Encountered 'Text'" in str(in_brussels.read("data contract offsets", answer(STORED, XML)))


@pytest.mark.parametrize("setting", [name for name, reader in READERS.items() if reader.drops_blanks])
def test_xml_serializer_reads_white_space_as_an_empty_string(in_brussels: DotNet, setting: str) -> None:
    """XmlSerializer does so on a stream or a TextReader, but not on an XmlReader."""
    body = answer({**STORED, "subject": " \r "}, XML)
    assert b"<subject> &#xD; </subject>" in body
    found = in_brussels.read(setting, body)
    assert isinstance(found, dict)
    assert found["subject"] == ""


def test_local_dates_cannot_hold_the_last_hour(in_brussels: DotNet) -> None:
    """East of Greenwich, Newtonsoft.Json clamps a DateTime near MaxValue in local time; a DateTimeOffset keeps it."""
    body = answer(EXTREMES["max"], JSON)
    found = in_brussels.read("newtonsoft", body)
    assert isinstance(found, dict)
    assert found["due_date"] == Net(MAX_TICKS, "Utc").instant(ZoneInfo("UTC")) - timedelta(hours=1)
    exact = in_brussels.read("newtonsoft offsets", body)
    assert isinstance(exact, dict)
    assert exact["due_date"] == datetime.max.replace(tzinfo=UTC)


def test_jobject_rewrites_strings_that_look_like_dates(in_brussels: DotNet) -> None:
    """JObject.Parse converts any string that looks like a date; the typed reader does not."""
    found = in_brussels.read("newtonsoft jobject", answer({**STORED, "subject": "2026-01-11T20:58:34Z"}, JSON))
    assert isinstance(found, dict)
    assert found["subject"] == "01/11/2026 20:58:34"


# ---- through the worker


async def test_every_field_survives_the_running_worker(in_brussels: DotNet, amqp_url: str, database_url: str) -> None:
    """A worker stores and answers the request of each serializer setting, and C# reads every field from the reply."""
    requests: dict[str, tuple[str, dict[str, Any]]] = {}
    async with running({"AMQP_URL": amqp_url, "DATABASE_URL": database_url}) as worker:
        await worker.ready()
        connection = await aio_pika.connect(amqp_url)
        async with connection:
            channel = await connection.channel(on_return_raises=True)
            exchange = await channel.get_exchange("task_activity_log")
            queue = await channel.declare_queue(exclusive=True)
            for setting, writer in WRITERS.items():
                case, values = next(whole_records(writer))
                assert case == "full"
                identifier, message_id = uuid4(), str(uuid4())
                requests[message_id] = (setting, {**values, "id": identifier})
                delivery = in_brussels.write(setting, requests[message_id][1])
                assert isinstance(delivery, Delivery), delivery
                message = aio_pika.Message(
                    delivery.body,
                    content_type=delivery.properties.content_type,
                    message_id=message_id,
                    reply_to=queue.name,
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                )
                await exchange.publish(message, "upsert", mandatory=True)
            async with asyncio.timeout(30), queue.iterator(no_ack=True) as replies:
                async for stored in replies:
                    setting, values = requests.pop(stored.correlation_id or "")
                    assert stored.headers["x-outcome"] == "inserted"
                    xml = (stored.content_type or "").endswith("xml")
                    found = in_brussels.read("data contract" if xml else "newtonsoft", stored.body)
                    assert isinstance(found, dict), (setting, found)
                    assert abs(found.pop("modified_dateutc") - datetime.now(UTC)) < timedelta(minutes=1)
                    expected = WRITERS[setting].expected(values, in_brussels.zone)
                    assert found == precise(expected, xml=xml), setting
                    assert found.keys() == set(FIELDS)
                    if not requests:
                        break
        assert await worker.end() == 0

"""Dead letters of all kinds, as workers would have kept them in the last hours: for `make console` and its tests."""

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.problem import POISON, Problem, Refused, Rejected
from task_activity_log.rabbitmq.dead_letters import copied
from task_activity_log.rabbitmq.headers import encode_header, received
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.outgoing import Outgoing
from task_activity_log.rabbitmq.publisher import Publisher

_NAMES = UUID("6f1c8e0e-3a5b-4f8b-9d57-0d7f3f6f9b11")
_SUBJECTS = (
    "Call back",
    "Send the offer",
    "Visit the site",
    "Renew the contract",
    "Check the invoice",
    "Rückruf",
    "Rappeler le client",
)
_HEADER_MAX = 100_000
ONE_WRONG = 17
"""Which of the dates of crm-brussels no release and no setting accepts."""
CHANGED_SINCE = 31
"""Which of them is about a row that was changed after it was rejected."""
HOSTILE = '<script>alert("seen")</script> \u001b[31mred\u001b[0m \u202egnihton\u202c'
"""What must be shown as the text that it is."""


@dataclass(frozen=True)
class Sample:
    """Some messages with one fault, of one publisher, rejected at some hours."""

    count: int
    publisher: str
    fault: str
    first_hour: float
    last_hour: float
    """Both before now."""


SAMPLES: Sequence[Sample] = (
    Sample(40, "crm-brussels", "date", 3.0, 0.1),
    Sample(70, "importer", "no id", 6.5, 6.0),
    Sample(43, "field-app", "uuid", 8.0, 0.2),
    Sample(36, "crm-brussels", "refused", 2.0, 1.0),
    Sample(30, "legacy-erp", "syntax", 7.0, 0.5),
    Sample(24, "legacy-erp", "wrong root", 5.0, 3.0),
    Sample(18, "field-app", "boolean", 4.0, 0.3),
    Sample(14, "crm-antwerp", "two dates", 2.5, 0.4),
    Sample(12, "importer", "media type", 6.4, 6.1),
    Sample(8, "crm-antwerp", "version", 1.5, 0.2),
    Sample(3, "unknown-script", "hostile", 0.5, 0.1),
    Sample(2, "crm-antwerp", "poison", 0.6, 0.5),
)
"""300 of them."""


def letters(now: datetime, samples: Sequence[Sample] = SAMPLES) -> list[tuple[bytes, Properties]]:
    """The dead letters, in the order in which they were rejected."""
    chance = random.Random(7)  # noqa: S311 - the same each time
    found = [one for sample in samples for one in _kept(sample, now, chance)]
    return [(body, properties) for _, body, properties in sorted(found, key=lambda one: one[0])]


def rows(now: datetime) -> str:
    """SQL that inserts the rows of some of their records, as they were stored some days ago; one was changed since."""
    sample = SAMPLES[0]
    values = []
    for number in range(1, sample.count, 2):
        record = uuid5(_NAMES, f"record {sample.publisher} {sample.fault} {number}")
        changed = now - timedelta(days=3) if number != CHANGED_SINCE else now
        values.append(
            f"('{record}', 'Call back ({number + 1})', '2026-11-30T09:00:00Z', false, '{changed.isoformat()}')"
        )
    insert = "INSERT INTO task_activity_log (id, subject, due_date, is_closed, modified_dateutc) VALUES "
    return "; ".join(  # the trigger would set the time of the change to the present
        (
            "ALTER TABLE task_activity_log DISABLE TRIGGER ALL",
            insert + ", ".join(values),
            "ALTER TABLE task_activity_log ENABLE TRIGGER ALL",
        )
    )


async def publish(broker: str, queue: str, messages: Sequence[tuple[bytes, Properties]]) -> None:
    """Put dead letters into their queue, and return when the broker has confirmed them."""
    publisher = Publisher(LinkOptions(broker), purpose="samples")
    running = asyncio.create_task(publisher.run())
    try:
        await publisher.wait_connected()
        await publisher.publish([Outgoing("", queue, properties, body) for body, properties in messages])
    finally:
        running.cancel()


def _kept(sample: Sample, now: datetime, chance: random.Random) -> Iterator[tuple[datetime, bytes, Properties]]:
    for number in range(sample.count):
        share = number / max(1, sample.count - 1)
        hours = sample.first_hour + (sample.last_hour - sample.first_hour) * share + chance.uniform(-0.02, 0.02)
        taken = now - timedelta(hours=max(0.02, hours))
        name = f"{sample.publisher} {sample.fault} {number}"
        body, content_type, headers = _message(sample.fault, name, number, chance)
        properties = Properties(
            content_type=content_type,
            table=b"".join(map(encode_header, headers.items())),
            delivery_mode=2,
            message_id=str(uuid5(_NAMES, f"message {name}")),
            app_id=sample.publisher,
            timestamp=int(taken.timestamp()) - 1,
        )
        yield taken, body, copied(properties, _problem(sample.fault, body, properties), _HEADER_MAX, taken)


def _problem(fault: str, body: bytes, properties: Properties) -> Problem:
    """Why a worker rejects it, or has rejected it."""
    if fault == "poison":
        return POISON
    if fault == "refused":
        return Refused("23514").problem
    rules = Rules(naive_dates="reject" if fault == "date" else "utc")
    try:
        decode(Delivery(body, received(properties)), rules)
    except Rejected as rejected:
        return rejected.problem
    raise AssertionError(fault)


def _message(fault: str, name: str, number: int, chance: random.Random) -> tuple[bytes, str, dict[str, object]]:
    day = f"{number % 28 + 1:02}"
    record: dict[str, object] = {
        "id": str(uuid5(_NAMES, f"record {name}")),
        "task_id": str(uuid5(_NAMES, f"task {number % 7}")),
        "user_id": str(uuid5(_NAMES, f"user {number % 3}")),
        "subject": f"{chance.choice(_SUBJECTS)} ({number + 1})",
        "due_date": f"2026-12-{day}T09:00:00Z",
        "is_closed": False,
        "reference_back_office": f"BO-{number:05}",
    }
    record |= _values(fault, day, number)
    if fault == "no id":
        del record["id"]
    text = json.dumps(record, ensure_ascii=False)
    if fault == "media type":
        return text.encode(), "text/plain", {}
    if fault == "syntax":  # a comma is missing
        return json.dumps(record, indent=2).replace(",\n", "\n", 1).encode(), "application/json", {}
    if fault == "wrong root":
        return f"<TaskActivityLog><id>{record['id']}</id></TaskActivityLog>".encode(), "application/xml", {}
    return text.encode(), "application/json", {"x-version": f"v{number}"} if fault == "version" else {}


def _values(fault: str, day: str, number: int) -> dict[str, object]:
    """What is wrong with the fields."""
    # All but one are dates without an offset, which workers have refused until their setting was changed.
    date = "31/12/2026 17:00" if number == ONE_WRONG else f"2026-12-{day}T09:00:00"
    values: dict[str, dict[str, object]] = {
        "date": {"due_date": date},
        "two dates": {"due_date": f"{day}.12.2026", "date_closed": "yesterday"},
        "uuid": {"task_id": f"T-{number:06}"},
        "boolean": {"is_closed": "no"},
        "refused": {"subject": "x" * 300},
        "hostile": {"subject": HOSTILE, "due_date": "<b>soon</b>"},
    }
    return values.get(fault, {})

"""Compares decoding and encoding with bare pydantic: `make bench-wire`.

Decoding a body to a record checks charset, syntax, duplicate members and fields. Encoding writes a stored record. The
table also shows what a whole request needs (headers, request key). Bare pydantic is `model_validate_json` and
`model_dump_json` of a plain model with the same twelve fields. The tasks take turns in one run. The result is the
fastest of many rounds, because on a shared machine the slower ones measure other processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel

from task_activity_log import wire
from task_activity_log.message import Delivery, Properties
from task_activity_log.pipeline import reply, request
from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog

ROUNDS = 60
CALLS = 500

JSON = b"""{
  "id": "9652e68c-7b6d-4598-bbbd-4e933126c994",
  "task_id": "ec77bdfe-882b-4254-84a2-979f5c2b20a9",
  "task_activity_id": "881ec938-4044-4cfa-82f5-b684d9383c0d",
  "user_id": "e11ce129-09c6-48a2-aa5f-d2473d0e2298",
  "contact_id": "f4f88089-0053-4b7f-b228-7feb728fc541",
  "subject": "sample string 6",
  "description": "sample string 7",
  "due_date": "2026-01-11T20:58:34.7203833+00:00",
  "is_closed": true,
  "date_closed": "2026-01-11T20:58:34.7203833+00:00",
  "reference_back_office": "sample string 11",
  "modified_dateutc": "2026-01-11T20:58:34.7203833+00:00"
}"""


class Plain(BaseModel):
    """The same record, with pydantic's own rules for uuids and dates."""

    id: UUID
    task_id: UUID | None = None
    task_activity_id: UUID | None = None
    user_id: UUID | None = None
    contact_id: UUID | None = None
    subject: str | None = None
    description: str | None = None
    due_date: datetime | None = None
    is_closed: bool | None = None
    date_closed: datetime | None = None
    reference_back_office: str | None = None
    modified_dateutc: datetime | None = None


def sent_as(body: bytes, content_type: str) -> Delivery:
    """A typical delivery of a body."""
    return Delivery(
        body,
        Properties(
            content_type=content_type,
            correlation_id="4d0c9b0e-7ad5-4a39-8d5c-5c3c0a2a77d1",
            message_id="0b0a0a5e-3d5c-4f0a-9c83-3f8f6e7f4a10",
        ),
    )


def record_of(sent: Delivery) -> object:
    """Decode the body of a delivery (charset, syntax, duplicate members, fields), without headers and request key."""
    media = wire.media_type(sent.properties.content_type)
    return wire.decode(wire.text(sent.body, media), media.name)


def best(tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The microseconds a call that each task takes: the fastest of all rounds. The tasks take turns."""
    fastest = dict.fromkeys(tasks, float("inf"))
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            started = time.perf_counter()
            for _ in range(CALLS):
                task()
            fastest[name] = min(fastest[name], (time.perf_counter() - started) / CALLS * 1e6)
    return fastest


def main() -> None:
    """Measure all tasks, and print a line for each and a comparison with pydantic."""
    rules = request.Rules()
    stored = wire.decode_stored(JSON, wire.JSON)
    xml = wire.encode(stored, wire.XML).body.replace(b"><", b">\n  <").replace(b".720Z", b".7203833Z")
    plain = Plain.model_validate_json(JSON)
    sent = {
        "JSON": sent_as(JSON, "application/json"),
        "JSON, names in other case": sent_as(JSON.replace(b'"subject"', b'"Subject"'), "application/json"),
        "XML": sent_as(xml, "application/xml"),
    }
    row = dict(stored)
    requests = {name: request.decode(delivery, rules) for name, delivery in sent.items()}
    applied = Applied(Outcome.INSERTED, stored)
    tasks: dict[str, Callable[[], object]] = {
        "pydantic reads": lambda: Plain.model_validate_json(JSON),
        "pydantic writes": plain.model_dump_json,
        **{f"{name}: bytes to record": lambda each=each: record_of(each) for name, each in sent.items()},  # type: ignore[misc]  # a default binds it
        **{f"{name}: decode": lambda each=each: request.decode(each, rules) for name, each in sent.items()},  # type: ignore[misc]  # a default binds it
        "JSON: encode": lambda: wire.encode(stored, wire.JSON),
        "XML: encode": lambda: wire.encode(stored, wire.XML),
        "JSON: reply": lambda: reply.stored(requests["JSON"], applied, "emit"),
        "XML: reply": lambda: reply.stored(requests["XML"], applied, "emit"),
        "record from a row": lambda: StoredTaskActivityLog.from_row(row),
    }
    took = best(tasks)
    for name, microseconds in took.items():
        print(f"{name:35} {microseconds:6.2f} µs")
    bare = took["pydantic reads"] + took["pydantic writes"]
    json = took["JSON: bytes to record"] + took["JSON: encode"]
    xml_both = took["XML: bytes to record"] + took["XML: encode"]
    whole = took["JSON: decode"] + took["JSON: reply"]
    print(f"\nJSON, bytes to record and back: {json:.1f} µs, {json / bare:.2f} × bare pydantic ({bare:.1f} µs)")
    print(f"XML, bytes to record and back: {xml_both:.1f} µs, {xml_both / json:.2f} × JSON")
    print(f"JSON, with everything else that a message needs (headers, request key, reply): {whole:.1f} µs")


if __name__ == "__main__":
    main()

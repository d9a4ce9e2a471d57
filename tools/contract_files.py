"""Writes the files that `task-activity-log contract` prints; with --check it compares instead.

They describe the wire contract for machines, and are generated from the code that implements it. `contract_templates/`
has what changes only with the contract; `@name` stands for what comes from the code: fields, forms of values, codes,
names of queues. The examples are written by the worker's own encoders.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any, Final

from task_activity_log import __version__, wire
from task_activity_log.cli import CONTRACT_FILES
from task_activity_log.message import APP_ID, PERSISTENT, REJECTED, STORED, Delivery
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.request import Request, Rules, UpdateMode
from task_activity_log.problem import Code, Problem
from task_activity_log.rabbitmq.exchange import routing_key
from task_activity_log.rabbitmq.topology import REQUEST_KEY, Topology
from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog, TaskActivityLog
from task_activity_log.wire import as_json, as_xml, fields, problems, values
from task_activity_log.wire.fields import Kind
from tools.generated import write_or_check

FOLDER: Final = Path(__file__).resolve().parents[1] / "src" / "task_activity_log" / "cli" / "contract"


def main() -> int:
    """Rewrite the files, or check them."""
    return write_or_check({FOLDER / file: describe(name) for name, file in CONTRACT_FILES.items()})


def describe(name: str) -> str:
    """One of the descriptions in `CONTRACT_FILES`, for the default settings. It ends with a newline."""
    file = CONTRACT_FILES[name]
    if file.endswith(".xsd"):
        return _fill(file, _forms() | _elements()).replace("(?:", "(")  # XML Schema has no non-capturing groups
    facts = {"schemas": _schemas("#/$defs/")}
    if name == "asyncapi":
        facts = _messages() | {"schemas": _schemas("#/components/schemas/")}
    return json.dumps(json.loads(_fill(file, facts)), indent=2, ensure_ascii=False) + "\n"


class _Template(Template):
    delimiter = "@"


def _fill(file: str, facts: Mapping[str, Any]) -> str:
    """A template with its facts filled in. In JSON, strings are without quotes: the template has them."""
    if not file.endswith(".xsd"):
        facts = {
            name: json.dumps(fact)[1:-1] if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()
        }
    return _Template(_text(file)).substitute(facts)


def _text(file: str) -> str:
    return (Path(__file__).parent / "contract_templates" / file).read_text(encoding="utf-8")


# ---- the forms of values, as patterns that Python, ECMAScript and XML Schema all understand

_DIGIT = "[0-9A-Fa-f]"
_HYPHENATED = "-".join(f"{_DIGIT}{{{digits}}}" for digits in (8, 4, 4, 4, 12))
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP = "(?:0[48]|[2468][048]|[13579][26])"
_DAY = (  # only days that exist: the decoder rejects others when it makes a date
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{{2}}{_LEAP}|{_LEAP}00)-02-29)"
)
# A pattern cannot express a range: of the instants with 14 digits before 1970 and 15 after it, only .NET's first and last.
_COUNT = "(?:[0-9]{1,14}|-[0-9]{1,13}|-62135596800000|253402300799999)"


def _forms() -> dict[str, Any]:
    return {
        "uuid": rf"{_DIGIT}{{32}}|{_HYPHENATED}|\{{{_HYPHENATED}\}}|\({_HYPHENATED}\)",
        "stored_uuid": _HYPHENATED.replace("A-F", ""),
        "instant": values.INSTANT.pattern.replace(values.DAY, _DAY),
        "milliseconds": values.MILLISECONDS.pattern.replace(values.COUNT, _COUNT),
        "day": _DAY,
        "time": "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]",
    }


# ---- fields and codes

_TYPES = {Kind.UUID: "uuid", Kind.TEXT: "string", Kind.INSTANT: "instant", Kind.BOOLEAN: "boolean"}
_FIELDS = {name: _TYPES[kind] for name, kind in fields.KINDS.items()}
_STORED = {name: _TYPES[kind] for name, kind in fields.STORED_KINDS.items()}
_STATUSES = sorted({code.status for code in Code})


def _required(record: type[TaskActivityLog]) -> list[str]:
    return [name for name, field in record.model_fields.items() if field.is_required()]


_NEEDED, _STORED_NEEDED = _required(TaskActivityLog), _required(StoredTaskActivityLog)


def _schemas(at: str) -> Any:
    """The types in JSON Schema, for a document that defines them at this JSON pointer."""
    asked = {name: "id" if name in _NEEDED else _FIELDS.get(name, "unread") for name in _STORED}
    stored = {name: f"{'present' if name in _STORED_NEEDED else 'stored'}_{kind}" for name, kind in _STORED.items()}
    facts = {
        "at": at,
        "max_depth": as_json.MAX_DEPTH,
        "fields": list(_STORED),
        "in_any_case": f"^(?:{'|'.join(_in_any_case(name) for name in _STORED)})$",
        "required": _NEEDED,
        "request_properties": {name: {"$ref": at + kind} for name, kind in asked.items()},
        "stored_required": _STORED_NEEDED,
        "stored_properties": {name: {"$ref": at + kind} for name, kind in stored.items()},
        "field_codes": [Code.DUPLICATE_FIELD, Code.MISSING_ID, *(kind.code for kind in Kind)],
        "problems_by_status": [
            {"properties": {"status": {"const": status}, "code": {"enum": [c for c in Code if c.status == status]}}}
            for status in _STATUSES
        ],
    }
    return json.loads(_fill("schemas.json", _forms() | facts))


def _in_any_case(name: str) -> str:
    return "".join(f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in name)


def _elements() -> dict[str, str]:
    asked = [
        _element(name, "id" if name in _NEEDED else _FIELDS.get(name, "anyType"), name in _NEEDED, ' minOccurs="0"')
        for name in _STORED
    ]
    stored = [_element(name, kind, name in _STORED_NEEDED) for name, kind in sorted(_STORED.items())]
    return {
        "root": as_xml.ROOT,
        "request_elements": "\n        ".join(asked),
        "reply_elements": "\n        ".join(stored),
        "problem_namespace": problems.NAMESPACE,
        "statuses": "\n      ".join(f'<xs:enumeration value="{status}"/>' for status in _STATUSES),
        "codes": "\n      ".join(f'<xs:enumeration value="{code}"/>' for code in Code),
    }


def _element(name: str, kind: str, needed: bool, may_lack: str = "") -> str:
    builtin = "xs:" if kind in {"string", "boolean", "anyType"} else ""
    return (
        f'<xs:element name="{name}" type="{builtin}{kind}"' + ("" if needed else f'{may_lack} nillable="true"') + "/>"
    )


# ---- messages, and the exchanges and queues they go to


def _messages() -> dict[str, Any]:
    topology = Topology()
    facts = asdict(topology) | asdict(Rules())
    exchanges = replace(topology, partitions=1).exchanges()
    for name in ("requests_exchange", "replies_exchange", "partitions_exchange"):
        facts[f"{name}_type"] = exchanges[facts[name]]
    for media_type, format_ in ((wire.JSON, "json"), (wire.XML, "xml")):
        request, stored, rejected = _conversation(media_type)
        facts |= {
            format_: media_type,
            f"{format_}_types": [name for name in wire.MEDIA_TYPES if wire.is_xml(name) == wire.is_xml(media_type)],
            f"problem_{format_}": rejected.content_type,
            f"request_{format_}_payload": _payload(request, media_type),
            f"stored_{format_}_example": {"headers": stored.headers, "payload": _payload(stored.body, media_type)},
            f"rejected_{format_}_example": {
                "headers": rejected.headers,
                "payload": _payload(rejected.body, media_type),
            },
            "routing_keys": [routing_key(replace(stored, outcome=outcome)) for outcome in Outcome],
        }
    return facts | {
        "version": __version__,
        "request_key": REQUEST_KEY,
        "queue_arguments": topology.queues(),
        "queue_bindings": [
            {"queue": queue, "exchange": exchange, "routing_key": key} for queue, exchange, key in topology.bindings()
        ],
        "update_modes": list(UpdateMode),
        "stored_outcomes": [outcome for outcome in Outcome if outcome is not Outcome.REJECTED],
        "rejected": Outcome.REJECTED,
        "stored_type": STORED,
        "rejected_type": REJECTED,
        "app_id": APP_ID,
        "delivery_mode": PERSISTENT,
        "codes": list(Code),
        "problems": [
            {"code": code, "status": code.status, "type": Problem(code, "").type, "title": Problem(code, "").title}
            for code in Code
        ],
    }


def _conversation(media_type: str) -> tuple[bytes, reply.Reply, reply.Reply]:
    """The body of a request, the reply once it is stored, and the reply if it had an invalid date."""
    sample = wire.decode(_text("sample.json"), wire.JSON)
    request = Request(Delivery(b""), sample, media_type, UpdateMode.REPLACE, None, None)
    stored = StoredTaskActivityLog(
        **dict(sample), modified_dateutc=datetime(2026, 1, 11, 20, 58, 34, 750633, tzinfo=UTC)
    )
    problem = fields.problem([fields.bad("due_date", Code.INVALID_DATE)])
    return (
        wire.encode(sample, media_type).body,
        reply.stored(request, Applied(Outcome.INSERTED, stored), "emit"),
        reply.rejected(request, problem),
    )


def _payload(body: bytes, media_type: str) -> Any:
    return body.decode() if wire.is_xml(media_type) else json.loads(body)


if __name__ == "__main__":
    sys.exit(main())

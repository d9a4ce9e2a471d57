"""`task-activity-log contract`: the wire contract for machines, generated from the code that decodes and answers.

What only a new contract would change stands in `templates/`, with `@name` where the code has the say: fields, forms of
values, codes, names of queues. The examples come out of the worker's own encoders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import resources
from string import Template
from typing import Any, Final, cast

from task_activity_log import __version__, reply, wire
from task_activity_log.broker.properties import Properties
from task_activity_log.broker.replies import APP_ID, PERSISTENT, routing_key
from task_activity_log.broker.topology import REQUEST_KEY, Topology
from task_activity_log.problem import Code, Problem
from task_activity_log.record import STORED_FIELDS, Applied, Outcome, StoredTaskActivityLog, TaskActivityLog
from task_activity_log.request import Delivery, Request, Rules, UpdateMode
from task_activity_log.wire import as_json, as_xml, fields, problems, values

FILES: Final = {
    "asyncapi": "asyncapi.json",
    "json-schema": "schema.json",
    "xsd": "request.xsd",
    "xsd-reply": "reply.xsd",
    "xsd-problem": "problem.xsd",
}
"""Each description and its file in docs/contract."""


def describe(name: str) -> str:
    """One of the descriptions in `FILES`, for the default settings, as text that ends with a line end."""
    file = FILES[name]
    if file.endswith(".xsd"):
        return _fill(file, _forms() | _elements()).replace("(?:", "(")  # XML Schema has this kind of group alone
    facts = _forms() | _properties() | _messages()
    at = "#/components/schemas/" if name == "asyncapi" else "#/$defs/"
    schemas = json.loads(_fill("schemas.json", facts | {"at": at}))
    document = json.loads(_fill(file, facts | {"schemas": schemas}))
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


class _Template(Template):
    delimiter = "@"


def _fill(file: str, facts: Mapping[str, Any]) -> str:
    """A template with its facts: in JSON strings as they stand between quotes and all others as they are."""
    template = _Template(resources.files(__package__).joinpath("templates", file).read_text(encoding="utf-8"))
    if file.endswith(".xsd"):
        return template.substitute(facts)
    written = {name: json.dumps(fact) for name, fact in facts.items()}
    return template.substitute({name: text[1:-1] if text[0] == '"' else text for name, text in written.items()})


# ---- fields

_KINDS = {
    Code.INVALID_UUID: "uuid",
    Code.INVALID_STRING: "string",
    Code.INVALID_DATE: "instant",
    Code.INVALID_BOOLEAN: "boolean",
}
_FIELDS = {name: _KINDS[code] for name, code in fields.KINDS.items()}
_STORED = {name: _FIELDS.get(name, "instant") for name in STORED_FIELDS}


def _needed(record: type[TaskActivityLog]) -> list[str]:
    return [name for name, field in record.model_fields.items() if field.is_required()]


def _properties() -> dict[str, Any]:
    """The members of a request and of a reply, by the names of their types in schemas.json."""
    request, stored = _needed(TaskActivityLog), _needed(StoredTaskActivityLog)
    return {
        "required": request,
        "stored_required": stored,
        "fields": [*_STORED],
        "request_kinds": {name: "id" if name in request else _FIELDS.get(name, "unread") for name in _STORED},
        "stored_kinds": {
            name: f"stored_{kind}" if name in stored else f"stored_{kind}_or_null" for name, kind in _STORED.items()
        },
    }

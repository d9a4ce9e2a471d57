"""The 113 request bodies of the contract with their expected outcomes, made from what .NET serializers write and read."""

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from task_activity_log.record import TaskActivityLog

_FILE = Path(__file__).parent / "unit" / "vectors.jsonl"


@dataclass(frozen=True)
class Vector:
    """One body, and what is expected of it."""

    id: str
    content_type: str | None
    body: bytes
    code: str | None
    """The error code; None if the body is accepted."""
    fields: dict[str, Any]
    """The expected fields of an accepted record; instants are texts."""

    def holds(self, record: TaskActivityLog) -> bool:
        """Whether a record has all expected values."""
        return all(_shown(getattr(record, name)) == value for name, value in self.fields.items())


def _shown(value: object) -> object:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
    return value if value is None or isinstance(value, bool) else str(value)


def load() -> list[Vector]:
    """All vectors."""
    lines = (json.loads(line) for line in _FILE.read_text(encoding="utf-8").splitlines())
    return [
        Vector(
            line["id"],
            line["content_type"],
            base64.b64decode(line["body_base64"]),
            line["expect"].get("code"),
            line["expect"].get("fields", {}),
        )
        for line in lines
    ]

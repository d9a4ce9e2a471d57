"""Decoding any bytes gives a request or a problem with a known code, and every request can be answered.

The fast reader of JSON must agree with the complete one, and the reply must contain what was asked for.

    python -m tests.fuzz.wire json -runs=1000000
    python -m tests.fuzz.wire xml -runs=1000000

It needs atheris, which is not in the lock file because it does not support every Python version that the product does.
The first byte of an input selects the content type, and the rest is the body. The contract's vectors are the seeds.
"""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # only `make fuzz` installs it

with atheris.instrument_imports(include=["task_activity_log"]):
    from task_activity_log import wire
    from task_activity_log.message import Delivery, Properties
    from task_activity_log.pipeline import reply
    from task_activity_log.pipeline.request import Rules, decode
    from task_activity_log.problem import Code, Problem, Rejected
    from task_activity_log.record import Applied, Outcome, StoredTaskActivityLog, TaskActivityLog
    from task_activity_log.wire import as_json, as_xml, fields

from tests.vectors import load

_CONTENT_TYPES = {
    "json": ("application/json", "text/json; charset=utf-16", 'application/json; charset="us-ascii"', None),
    "xml": ("application/xml", "text/xml; charset=utf-16be", "application/xml; charset=utf-8", "text/xml"),
}
_RULES = Rules()
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def read_whole(sent: Delivery) -> tuple[TaskActivityLog, set[str]] | Problem:
    """What the full readers, which implement every rule, decode from it."""
    try:
        media = wire.media_type(sent.properties.content_type)
        text = wire.text(sent.body, media)
        if wire.is_xml(media.name):
            record = fields.record(TaskActivityLog, as_xml._members(text), as_xml._read)
        else:
            record = fields.record(TaskActivityLog, as_json._members(text), as_json._read)
    except Rejected as error:
        return error.problem
    return record, record.model_fields_set


def main() -> None:
    """Fuzz the format that the first argument names."""
    chosen = sys.argv.pop(1)
    content_types = _CONTENT_TYPES[chosen]

    def one(data: bytes) -> None:
        content_type = content_types[data[0] % len(content_types)] if data else None
        sent = Delivery(data[1:], Properties(content_type=content_type, message_id="m"))
        try:
            request = decode(sent, _RULES)
        except Rejected as error:
            assert error.problem.code in Code
            assert read_whole(sent) == error.problem
            reply.undecoded(sent, error.problem)
            return
        assert read_whole(sent) == (request.record, request.record.model_fields_set)
        stored = StoredTaskActivityLog(**request.record.model_dump(), modified_dateutc=_NOW)
        answer = reply.stored(request, Applied(Outcome.INSERTED, stored), "emit")
        again = wire.decode_stored(answer.body, answer.content_type)
        for name, value in again:
            asked = getattr(stored, name)
            if wire.is_xml(request.media_type) and isinstance(asked, datetime):
                asked = asked.replace(microsecond=asked.microsecond // 1000 * 1000)
            assert value == asked or name in answer.headers.get("x-replaced-characters", "")

    with tempfile.TemporaryDirectory() as corpus:
        for vector in load():
            if (vector.content_type or "json").partition(";")[0].lower().endswith(chosen):
                Path(corpus, vector.id).write_bytes(b"\0" + vector.body)
        atheris.Setup([*sys.argv, corpus, "-max_len=2048"], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

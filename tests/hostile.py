"""Bodies and properties that cost a reader as much as they can, each within the limits of the contract."""

from uuid import uuid4

import aio_pika

LIMIT = 256 * 1024
"""WORKER_BODY_LIMIT_BYTES, as it is by default."""
_SERIALIZATION = "http://schemas.microsoft.com/2003/10/Serialization/"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"


def header_array() -> aio_pika.Message:
    """A header that is an array of 120,000 values of one byte each, with a body that is rejected: it is copied."""
    return _message(b"{}", headers={"x-array": [None] * 120_000})


def many_headers() -> aio_pika.Message:
    """Some 15,000 headers, with a body that is rejected: they are copied."""
    return _message(b"{}", headers={f"{number:05}": True for number in range(15_000)})


def references() -> aio_pika.Message:
    """XML with ten fields, each of which refers to what some 65,000 children must be searched for."""
    fields = ("task_id", "task_activity_id", "user_id", "contact_id", "subject", "description", "due_date", "is_closed")
    referring = "".join(
        f'<{name} z:Ref="{number}" i:nil="true"/>'
        for number, name in enumerate((*fields, "date_closed", "reference_back_office"), 1)
    )
    start = f'<task_activity_log xmlns:i="{_INSTANCE}" xmlns:z="{_SERIALIZATION}"><id>{uuid4()}</id>{referring}'
    end = "</task_activity_log>"
    children = "<x/>" * ((LIMIT - len(start) - len(end)) // 4)
    return _message(f"{start}{children}{end}".encode(), content_type="application/xml")


def arrays() -> aio_pika.Message:
    """JSON with a member that is ignored, an array of some 87,000 empty arrays."""
    start, end = f'{{"id":"{uuid4()}","x":[0', "]}"
    return _message(f"{start}{',[]' * ((LIMIT - len(start) - len(end)) // 3)}{end}".encode())


def text(length: int) -> aio_pika.Message:
    """A record of one long text."""
    return _message(f'{{"id":"{uuid4()}","subject":"{"a" * length}"}}'.encode())


def escapes() -> aio_pika.Message:
    """XML with a text of which every character must be escaped in the reply, too."""
    start = f'<task_activity_log xmlns:i="{_INSTANCE}"><id>{uuid4()}</id><subject>'
    end = "</subject></task_activity_log>"
    text = "&lt;" * ((LIMIT - len(start) - len(end)) // 4)
    return _message(f"{start}{text}{end}".encode(), content_type="application/xml")


def _message(body: bytes, **properties: object) -> aio_pika.Message:
    return aio_pika.Message(body, message_id=str(uuid4()), **properties)  # type: ignore[arg-type]

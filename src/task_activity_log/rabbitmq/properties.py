"""The AMQP properties of a reply (contract, section 6)."""

from __future__ import annotations

import time
from collections.abc import Iterable

from task_activity_log.message import APP_ID, PERSISTENT, TRACE_PARENT, Properties
from task_activity_log.pipeline.reply import Reply
from task_activity_log.rabbitmq.headers import Template, Templated


def properties_of(reply: Reply) -> Properties:
    """The properties that a reply is published with."""
    return Properties(
        content_type=reply.content_type,
        headers=reply.headers,
        delivery_mode=PERSISTENT,
        correlation_id=reply.correlation_id,
        message_id=reply.message_id,
        timestamp=int(time.time()),
        type=reply.type,
        app_id=APP_ID,
    )


def properties_of_all(replies: Iterable[Reply]) -> list[Properties | Templated]:
    """The properties of each reply of a batch. Most replies differ from others only in their ids, and share a template."""
    found: list[Properties | Templated] = []
    templates: dict[object, Template] = {}
    for reply in replies:
        if reply.correlation_id is None or TRACE_PARENT in reply.headers:
            found.append(properties_of(reply))
            continue
        shared = (reply.content_type, reply.type, *reply.headers.items())
        template = templates.get(shared)
        if template is None:
            template = templates[shared] = Template(properties_of(reply))
        found.append(Templated(template, reply.correlation_id, reply.message_id))
    return found

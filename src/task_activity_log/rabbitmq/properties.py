"""The AMQP properties of a reply (contract, section 6)."""

from __future__ import annotations

import time

from task_activity_log.message import APP_ID, PERSISTENT, Properties
from task_activity_log.pipeline.reply import Reply


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

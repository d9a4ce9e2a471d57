"""Which replies a subscriber has not seen yet: repeats, and states of a record that are older than the last one, are not new."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from task_activity_log import wire
from task_activity_log.client.messages import Received, StoredReply


class News:
    """Recognizes what was processed before, by message_id and by record. Remembers the latest `most` of each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: OrderedDict[str | None, None] = OrderedDict()
        self._newest: OrderedDict[UUID, _State] = OrderedDict()

    def is_news(self, reply: Received) -> bool:
        """Whether it is new. Without a readable record, only its message_id counts."""
        if reply.message_id in self._seen:
            return False
        if not isinstance(reply, StoredReply):
            return True
        last = self._newest.get(reply.record.id)
        return last is None or _State.of(reply).may_follow(last)

    def remember(self, reply: Received) -> None:
        """Remember one that was new. Not before it is processed: otherwise its next delivery would not be new."""
        if isinstance(reply, StoredReply):
            state, last = _State.of(reply), self._newest.get(reply.record.id)
            self._remember(self._newest, reply.record.id, state if last is None else state.after(last))
        if reply.message_id is not None:
            self._remember(self._seen, reply.message_id, None)

    def _remember(self, known: OrderedDict[Any, Any], key: object, value: object) -> None:
        known[key] = value
        known.move_to_end(key)
        if len(known) > self._most:
            known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _State:
    """Which state of a record a reply has. In XML its time is cut to milliseconds, so states of one millisecond look alike."""

    modified: datetime
    cut: bool
    """Whether `modified` has lost its microseconds."""
    content: int
    """The hash of the record."""

    @classmethod
    def of(cls, reply: StoredReply) -> Self:
        """The state that a reply has."""
        record = reply.record
        return cls(record.modified_dateutc, wire.is_xml(wire.media_type(reply.content_type).name), hash(record))

    def may_follow(self, last: Self) -> bool:
        """Whether it is newer than the last state that was yielded, or may be: the newest state must not be skipped."""
        if not (self.cut or last.cut):
            return self.modified > last.modified
        mine, yielded = _milliseconds(self.modified), _milliseconds(last.modified)
        return mine > yielded or (mine == yielded and self.content != last.content)

    def after(self, last: Self) -> Self:
        """This state, with the latest time that is known of the two."""
        if self.modified >= last.modified:
            return self
        return replace(self, modified=last.modified, cut=last.cut)


def _milliseconds(instant: datetime) -> datetime:
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)

"""What belongs to a message or a record: dead letters, replies that wait for their subscriber, and rows of the journal."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol
from uuid import UUID

from task_activity_log.client.dead_letters import DeadLetter, borrow_dead_letters
from task_activity_log.client.messages import Received, StoredReply, received_reply
from task_activity_log.client.record_id import record_id
from task_activity_log.problem import Failed, NotMigrated, Unavailable
from task_activity_log.rabbitmq.link import LinkOptions

ANSWERS_MAX = 50
"""How many answers are shown. A record can have many more."""

UNREAD_JOURNAL = "this role may not read the journal: it needs SELECT on task_activity_log_journal"
HIDDEN_ANSWERS = "the journal has no answer that this role may see (row security)"
"""Why the journal says nothing although it may have answers."""

_NOT_PERMITTED = "42501"


def uuid_of(name: str) -> UUID | None:
    """The id of a record; None if this is the name of a message only."""
    try:
        return UUID(name)
    except ValueError:
        return None


def is_letter_of(letter: DeadLetter, name: str, record: UUID | None) -> bool:
    """Whether a dead letter has this message_id or correlation_id, or is about this record."""
    return name in (letter.name, letter.properties.correlation_id) or (
        record is not None and record_id(letter.body, letter.properties.content_type) == record
    )


def names_of_replies(name: str, letters: Iterable[DeadLetter], answers: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """What a reply to this message can have as its message_id or correlation_id.

    A reply to a message with a correlation_id has nothing of the message_id: its dead letter or the journal must tell.
    """
    correlated = (letter.properties.correlation_id for letter in letters if letter.name == name)
    return frozenset((name, *filter(None, correlated), *(str(answer["reply_id"]) for answer in answers)))


def is_reply_of(reply: Received, names: Container[str | None], record: UUID | None) -> bool:
    """Whether a reply has one of these names (see `names_of_replies`), or is about this record."""
    return (
        reply.message_id in names
        or reply.correlation_id in names
        or (isinstance(reply, StoredReply) and reply.record.id == record)
    )


@dataclass(frozen=True, slots=True)
class Waiting:
    """The replies that wait in a queue, as far as they are seen."""

    replies: list[Received]
    others: int
    """How many others consume the queue: what they have is not seen."""
    newer: int
    """How many are not seen because they are too many to look at: the newest."""


async def waiting_replies(
    broker: str | LinkOptions,
    queue: str,
    wanted: Callable[[Received], bool],
    *,
    most: float = inf,
) -> Waiting:
    """The wanted ones of the replies that wait in a queue, which keeps them all. If more than `most` wait, none is looked at.

    Raises:
        ClientError: as `borrow_dead_letters`.
    """
    async with borrow_dead_letters(broker, queue, most) as loan:
        every = (received_reply(letter.delivery) async for letter in loan)
        return Waiting([reply async for reply in every if wanted(reply)], loan.others, loan.newer)


class Journal(Protocol):
    """Where the workers record how they have answered each message."""

    async def answers(self, name: str, record: UUID | None, most: int, /) -> Sequence[Mapping[str, Any]]:
        """The newest answers to a message_id, a correlation_id or about a record, the oldest first."""

    async def may_hide_answers(self) -> bool:
        """Whether there may be answers that this role does not see."""


async def journal_answers(journal: Journal, name: str, record: UUID | None) -> tuple[Sequence[Mapping[str, Any]], str]:
    """What the journal has, and why it says nothing if it cannot be read or may hide its answers; empty otherwise.

    Raises:
        Unavailable: the database cannot be used.
    """
    try:
        answers = await journal.answers(name, record, ANSWERS_MAX)
        return answers, HIDDEN_ANSWERS if not answers and await journal.may_hide_answers() else ""
    except NotMigrated:
        return [], "there is no journal: run task-activity-log migrate, and set WORKER_JOURNAL for the workers"
    except Failed as failed:
        if failed.lost_connection:
            raise
        if failed.sqlstate != _NOT_PERMITTED:
            return [], f"the journal cannot be read: {failed.reason}"
        return [], UNREAD_JOURNAL
    except Unavailable as refused:  # its connection works
        return [], f"the journal cannot be read: {refused.reason}"

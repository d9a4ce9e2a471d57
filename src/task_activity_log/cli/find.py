"""`task-activity-log find`: what became of a message or a record, as far as the database and the queues show it."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from task_activity_log.cli.exit_codes import DONE, FAILED
from task_activity_log.cli.terminal import say
from task_activity_log.client import ClientError, Received, StoredReply
from task_activity_log.client.dead_letters import DeadLetter, borrow_dead_letters
from task_activity_log.client.messages import received_reply
from task_activity_log.client.record_id import record_id
from task_activity_log.problem import Unavailable
from task_activity_log.record import StoredTaskActivityLog
from task_activity_log.settings import Settings
from task_activity_log.streams import one_line
from task_activity_log.wiring import link_of, survey_of


@dataclass
class Found:
    """What there is of a message or a record."""

    letters: list[DeadLetter] = field(default_factory=list)
    replies: list[Received] = field(default_factory=list)
    """Those that wait in the replies queue."""
    rows: list[StoredTaskActivityLog] = field(default_factory=list)


def find(settings: Settings, name: str) -> int:
    """Look for a message_id, a correlation_id or a record's id; print what is found, and return the exit code."""
    found = asyncio.run(_look(settings, name))
    lines = list(_lines(found))
    for line in lines:
        print(one_line(line))
    if lines:
        return DONE
    say(
        f"{name}: no row, no dead letter and no waiting reply. It may wait in the requests queue, or have been answered before"
    )
    return FAILED


async def _look(settings: Settings, name: str) -> Found:
    found = Found()
    identifier = _uuid(name)
    for queue in (settings.dead_letters_queue, settings.replies_queue):
        async with borrow_dead_letters(link_of(settings), queue) as loan:
            letters = [letter async for letter in loan]
            if loan.others:
                say(f"{queue} has other consumers ({loan.others}): what they have is not seen here")
        if queue == settings.replies_queue:
            replies = [received_reply(letter.delivery) for letter in letters]
            found.replies += [reply for reply in replies if _is_reply_of(reply, name, identifier)]
        else:
            found.letters += [letter for letter in letters if _is_letter_of(letter, name, identifier)]
    ids = {identifier, *(record_id(letter.body, letter.properties.content_type) for letter in found.letters)}
    ids |= {reply.record.id for reply in found.replies if isinstance(reply, StoredReply)}
    found.rows = await _rows(settings, sorted(one for one in ids if one is not None))
    return found


async def _rows(settings: Settings, ids: Sequence[UUID]) -> list[StoredTaskActivityLog]:
    survey = survey_of(settings)
    try:
        return await survey.records(ids) if ids else []
    except Unavailable as error:
        raise ClientError(f"the database cannot be used: {error.reason}") from None
    finally:
        await survey.close()


def _lines(found: Found) -> Iterator[str]:
    for row in found.rows:
        yield f"row {row.id}: modified {row.modified_dateutc.isoformat()}, subject: {row.subject or '-'}"
    for letter in found.letters:
        since = letter.since.isoformat() if letter.since else "at an unknown time"
        yield f"dead letter {letter.name}: {letter.code} since {since}, from {letter.publisher}: {letter.detail}"
    for reply in found.replies:
        published = reply.published.isoformat() if reply.published else "at an unknown time"
        answers = f", answers message {reply.correlation_id}" if reply.correlation_id else ""
        yield f"waiting reply {reply.message_id}: {reply.outcome} {reply.code or ''}, published {published}{answers}"


def _is_letter_of(letter: DeadLetter, name: str, identifier: UUID | None) -> bool:
    return name in (letter.name, letter.properties.correlation_id) or (
        identifier is not None and record_id(letter.body, letter.properties.content_type) == identifier
    )


def _is_reply_of(reply: Received, name: str, identifier: UUID | None) -> bool:
    return name in (reply.message_id, reply.correlation_id) or (
        isinstance(reply, StoredReply) and reply.record.id == identifier
    )


def _uuid(name: str) -> UUID | None:
    try:
        return UUID(name)
    except ValueError:
        return None

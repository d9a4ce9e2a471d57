"""`task-activity-log find`: what became of a message or a record, as far as the database and the queues show it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from task_activity_log.cli.exit_codes import DONE, FAILED
from task_activity_log.cli.terminal import say, say_unseen
from task_activity_log.client import Received, StoredReply
from task_activity_log.client.dead_letters import DeadLetter, borrow_dead_letters
from task_activity_log.client.finding import (
    ANSWERS_MAX,
    HIDDEN_ANSWERS,
    UNREAD_JOURNAL,
    is_letter_of,
    is_reply_of,
    journal_answers,
    names_of_replies,
    uuid_of,
    waiting_replies,
)
from task_activity_log.client.record_id import record_id
from task_activity_log.problem import Unavailable
from task_activity_log.record import StoredTaskActivityLog
from task_activity_log.settings import Settings
from task_activity_log.streams import one_line
from task_activity_log.wiring import link_of, survey_of

if TYPE_CHECKING:
    from task_activity_log.postgresql.survey import Survey  # asyncpg is loaded when it is needed

_VALUE_MAX = 200
"""How many characters of a value are printed."""
_NOT_IN_JOURNAL = "the journal has no answer: too old, or not kept (WORKER_JOURNAL)"
_NO_RECORD = "what was rejected as invalid has no record in the journal: look for its message_id"


@dataclass
class Found:
    """What there is of a message or a record."""

    letters: list[DeadLetter] = field(default_factory=list)
    replies: list[Received] = field(default_factory=list)
    """Those that wait in the replies queue."""
    rows: list[StoredTaskActivityLog] = field(default_factory=list)
    unreadable: set[UUID] = field(default_factory=set)
    """The ids of rows with a value that a reply cannot contain."""
    rows_may_be_hidden: bool = False
    """Whether there may be a row that this role does not see. Not asked if there is one that it sees."""
    answers: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """What the journal has, the oldest first."""
    no_journal: str = ""
    """Why the journal says nothing; empty if it was read, and hides nothing."""
    unknown: str = ""
    """What is not known because the database cannot be asked, and why; empty if everything was read."""


def find(settings: Settings, name: str) -> int:
    """Look for a message_id, a correlation_id or a record's id; print what is found, and return the exit code."""
    found = asyncio.run(_look(settings, name))
    lines = list(_lines(found))
    for line in lines:
        print(line)
    if found.unknown:
        say(found.unknown)
        if not lines:
            say(f"{name}: no dead letter and no waiting reply has this id")
        return FAILED
    if lines:
        if found.no_journal.startswith(("the journal cannot be read", UNREAD_JOURNAL, HIDDEN_ANSWERS)):
            say(found.no_journal)
        if found.rows_may_be_hidden:
            say("there may be a row that this role may not see (row security, or a view)")
        return DONE
    row = "row that this role may see" if found.rows_may_be_hidden else "row"
    hint = "" if uuid_of(name) else ": give the whole id"
    say(f"{name}: no {row}, no dead letter and no waiting reply has this id{hint}")
    say(f"requests that still wait are not seen; {found.no_journal or _NOT_IN_JOURNAL}")
    if not found.no_journal and uuid_of(name):
        say(_NO_RECORD)
    return FAILED


async def _look(settings: Settings, name: str) -> Found:
    found, identifier, link = Found(), uuid_of(name), link_of(settings)
    survey = survey_of(settings)
    try:
        await _look_in_journal(found, survey, name, identifier)
        async with borrow_dead_letters(link, settings.dead_letters_queue) as loan:
            found.letters = [letter async for letter in loan if is_letter_of(letter, name, identifier)]
        names = names_of_replies(name, found.letters, found.answers)
        waiting = await waiting_replies(
            link, settings.replies_queue, lambda reply: is_reply_of(reply, names, identifier)
        )
        found.replies = waiting.replies
        for queue, seen in ((settings.dead_letters_queue, loan), (settings.replies_queue, waiting)):
            say_unseen(queue, others=seen.others, newer=seen.newer)
        if not found.unknown:
            await _look_in_table(found, survey, identifier)
    finally:
        await survey.close()
    return found


async def _look_in_journal(found: Found, survey: Survey, name: str, identifier: UUID | None) -> None:
    try:
        await survey.open()  # otherwise both the journal and the table would be waited for, each for the whole timeout
        found.answers, found.no_journal = await journal_answers(survey, name, identifier)
    except Unavailable as error:
        found.unknown = f"row and journal are not known: the database cannot be used: {error.reason}"


async def _look_in_table(found: Found, survey: Survey, identifier: UUID | None) -> None:
    try:
        ids = sorted(_records(found, identifier))
        found.rows = await survey.records(ids)
        found.unreadable = await survey.exist(ids) - {row.id for row in found.rows}
        found.rows_may_be_hidden = not found.rows and await survey.may_hide_rows()
    except Unavailable as error:
        found.unknown = f"the row is not known: {error.reason}"


def _records(found: Found, identifier: UUID | None) -> set[UUID]:
    """The ids of all records that it can be about."""
    ids = {identifier, *(record_id(letter.body, letter.properties.content_type) for letter in found.letters)}
    ids |= {reply.record.id for reply in found.replies if isinstance(reply, StoredReply)}
    ids |= {answer["record_id"] for answer in found.answers}
    return {one for one in ids if one is not None}


def _lines(found: Found) -> Iterator[str]:
    for row in found.rows:
        yield f"row {row.id}: modified {row.modified_dateutc.isoformat()}"
        values = row.model_dump(mode="json", exclude={"id", "modified_dateutc"}, exclude_none=True)
        yield from (
            f"  {name}: {_short(one_line(value if isinstance(value, str) else json.dumps(value)))}"
            for name, value in values.items()
        )
    yield from map(one_line, _other_lines(found))


def _short(text: str) -> str:
    return text if len(text) <= _VALUE_MAX else f"{text[:_VALUE_MAX]}… ({len(text):,} characters)"


def _other_lines(found: Found) -> Iterator[str]:
    """What there is besides rows that can be read."""
    for identifier in sorted(found.unreadable):
        yield f"row {identifier}: it has a value that a reply cannot contain, such as a date outside the years 1 to 9999"
    for letter in found.letters:
        since = letter.since.isoformat() if letter.since else "at an unknown time"
        yield f"dead letter {letter.name}: {letter.code} since {since}, from {letter.publisher}: {letter.detail}"
    if len(found.answers) == ANSWERS_MAX:
        yield f"the {ANSWERS_MAX} newest answers follow; there may be more"
    for answer in found.answers:
        yield _answer(answer)
    for reply in found.replies:
        published = reply.published.isoformat() if reply.published else "at an unknown time"
        answers = f", correlation_id {reply.correlation_id}" if reply.correlation_id else ""
        outcome = f"{reply.outcome} {reply.code}" if reply.code else reply.outcome
        yield f"waiting reply {reply.message_id}: {outcome}, published {published}{answers}"


def _answer(answer: Mapping[str, Any]) -> str:
    """A row of the journal."""
    outcome = str(answer["outcome"]) + (f" ({answer['code']})" if answer["code"] else "")  # others may have written it
    of = {
        "message": answer["message_id"],
        "correlation_id": answer["correlation_id"],
        "record": answer["record_id"],
        "from": answer["publisher"],
    }
    known = "".join(f", {name} {value}" for name, value in of.items() if value is not None)
    at = answer["answered_at"]
    return f"answered {at.isoformat() if at else 'at an unknown time'}: {outcome}{known}, reply {answer['reply_id']}"

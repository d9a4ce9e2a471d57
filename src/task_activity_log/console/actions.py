"""What users have dead letters do: replay and discard, one or many, with progress, a stop, and what became of each."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_urlsafe
from typing import Any, Final
from uuid import UUID

import structlog

from task_activity_log.aio import end
from task_activity_log.client import ClientError, Received, StoredReply, UnreadableReply
from task_activity_log.client.dead_letters import DeadLetter, Loan
from task_activity_log.client.exported import stamped
from task_activity_log.client.letters import Letter
from task_activity_log.client.looks import Look, Looks
from task_activity_log.client.replaying import replay as replay_letters
from task_activity_log.client.replays import Replay, StillDue, present, sort_out
from task_activity_log.console.users import User
from task_activity_log.console.words import capitalized
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Unavailable
from task_activity_log.record import UNKNOWN_INSTANT
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, sending_of

log = structlog.get_logger(__name__)

LONGEST_SECONDS: Final = 20 * 60.0
"""A replay has its dead letters on loan: it must end before the broker's consumer timeout, which is half an hour."""
_REMEMBERED = 200
_WAIT_SECONDS = 5.0
_STOP_SECONDS = 10.0
"""How long actions may take to end. Kubernetes kills the process 30 seconds after it was told to end."""


@dataclass
class Action:
    """Something that a user has done."""

    kind: str
    """`replay` or `discard`."""
    user: str
    why: str
    entries: Sequence[Replay]
    rate: float = 100.0
    over_newer: bool = False
    edited: bool = False
    id: str = field(default_factory=lambda: token_urlsafe(6))
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    runs: bool = True
    stopping: bool = False
    problem: str = ""
    """Why it ended early, in a sentence; empty if it did not."""
    lost: bool = False
    """Whether it failed in the middle: some of those that are `waiting` may be sent or removed."""
    by_correlation: dict[str, list[Replay]] = field(default_factory=dict)
    """Those that were sent and whose outcome is not known; several can have the same correlation_id."""

    @property
    def counts(self) -> Counter[str]:
        """How many dead letters are in each state."""
        return Counter(entry.state for entry in self.entries)

    @property
    def answers(self) -> Counter[str]:
        """How many of those that were sent have each outcome; an empty one for those that are not known yet."""
        return Counter(entry.answer for entry in self.entries if entry.state == "sent")

    def unanswered(self) -> list[Replay]:
        """Those that were sent and whose outcome is not known."""
        return [entry for entry in self.entries if entry.state == "sent" and not entry.answer]


SENT = "sent to its subscribers"
"""The result of a row that was sent again."""


@dataclass
class Sending:
    """A message or a row that a user has sent, as the list of actions shows it."""

    kind: str
    """`message`, or `row`: to its subscribers again."""
    user: str
    why: str
    name: str
    """The message_id, or the id of the record."""
    result: str = "not known yet"
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Actions:
    """Carries out actions in the background, and remembers the latest."""

    def __init__(self, settings: Settings, looks: Looks, store: Store | None) -> None:
        self._settings, self._looks, self._store = settings, looks, store
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.all: OrderedDict[str, Action] = OrderedDict()
        self.sendings: deque[Sending] = deque(maxlen=_REMEMBERED)

    def last_sent(self, record: UUID) -> Sending | None:
        """The last time that the row of this record was sent to its subscribers again, as far as it is remembered."""
        wanted = "row", str(record), SENT
        return next((each for each in reversed(self.sendings) if (each.kind, each.name, each.result) == wanted), None)

    def begin(self, kind: str, user: User, why: str, entries: Sequence[Replay], **options: Any) -> Action:
        """Begin to replay or discard dead letters, the oldest first.

        The `options` are `rate`, `edited`, and `over_newer`: also where a newer request may have changed the row.
        """
        action = Action(kind, user.name, why, entries, **options)
        self.all[action.id] = action
        if len(self.all) > _REMEMBERED:
            self.all.popitem(last=False)
        log.info("console_action_begun", action=action.id, kind=kind, user=user.name, why=why, count=len(entries))
        self._tasks[action.id] = task = asyncio.create_task(self._run(action))
        task.add_done_callback(lambda _: self._tasks.pop(action.id, None))
        return action

    def heard(self, reply: Received) -> None:
        """Note a reply, if it answers a dead letter that was replayed, and it is known which one.

        Publishers can give many requests one correlation_id: then a record tells them apart, and a problem nothing.
        """
        for action in reversed(self.all.values()):
            if entries := action.by_correlation.get(reply.correlation_id or ""):
                record = reply.record.id if isinstance(reply, StoredReply) else None
                found = [entry for entry in entries if record in (None, entry.record)]
                if len(found) == 1 and not isinstance(reply, UnreadableReply):
                    found[0].answer, found[0].code = reply.outcome, reply.code or ""
                    entries.remove(found[0])
                return

    def running(self) -> list[Action]:
        """Those that have dead letters on loan, so that nobody else sees these in the queue."""
        return [action for action in self.all.values() if action.runs]

    def latest(self) -> list[Action | Sending]:
        """Everything that is remembered, the latest first."""
        return sorted([*self.all.values(), *self.sendings], key=lambda each: each.at, reverse=True)

    async def wait(self, action: Action) -> None:
        """Return when an action has ended, or after some seconds."""
        if (task := self._tasks.get(action.id)) is not None:
            await asyncio.wait([task], timeout=_WAIT_SECONDS)

    async def stop(self) -> None:
        """Stop all actions, and return when they have ended. One that waits for the broker for long is cancelled.

        What it has sent and not removed is then in both queues, as after a lost connection.
        """
        for action in self.all.values():
            action.stopping = True
        if tasks := list(self._tasks.values()):
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)
            await end(*tasks)

    async def search(self, action: Action, look: Look) -> None:
        """Find out what became of those whose reply went to somebody else: dead letters again, or rows written since."""
        again = {(each.name, each.raw.replays): each.code for each in look.letters if each.raw.replays}
        for entry in action.unanswered():
            if code := again.get((entry.letter.name, entry.letter.replays + 1)):
                entry.answer, entry.code = "rejected", code
        silent = {entry.record: entry for entry in action.unanswered() if entry.record}
        if not silent or self._store is None:
            return
        with suppress(Unavailable):  # then it stays unknown, and the page says so
            for record, at in (await self._store.modified(sorted(silent))).items():
                if action.at <= at != UNKNOWN_INSTANT:
                    silent[record].answer = "stored"

    async def _run(self, action: Action) -> None:
        try:
            async with self._looks.on_loan([entry.letter for entry in action.entries]) as (loan, letters):
                found = present(action.entries, letters)
                if action.kind == "replay":
                    await self._replay(action, loan, found)
                else:
                    await loan.remove([entry.letter for entry in found])
                    for entry in found:
                        entry.state = "discarded"
        except ClientError as error:
            action.lost = True
            action.problem = f"{capitalized(str(error))}."
        except Unavailable as error:
            action.problem = f"Nothing was sent, because it is not known whether rows have changed: {error.reason}."
        except asyncio.CancelledError:
            action.problem = (
                "It was stopped while it waited for the broker. Some that were sent may still be in the queue."
            )
            raise
        except Exception as error:  # a defect must not leave a page that says it is under way
            action.lost = True
            action.problem = f"The console failed ({type(error).__name__}). What was not sent is in the queue."
            raise
        finally:
            action.runs, counts = False, action.counts
            if action.stopping and not action.problem and counts["waiting"]:
                action.problem = "It was stopped. What was not sent is in the queue."
            log.info(
                "console_action_ended", action=action.id, kind=action.kind, user=action.user, why=action.why,
                count=len(action.entries), sent=counts["sent"], discarded=counts["discarded"], kept=counts["kept"],
                gone=counts["gone"], problem=action.problem,
            )  # fmt: skip

    async def _replay(self, action: Action, loan: Loan, found: Sequence[Replay]) -> None:
        changed = self._store.modified if self._store and not action.over_newer else None
        await sort_out(found, changed)
        entries = {id(entry.letter): entry for entry in found if entry.state == "waiting"}
        for entry in entries.values():
            entry.request = stamped(entry.request, action.user)
            properties = entry.request.properties
            if correlation := properties.correlation_id or properties.message_id:
                action.by_correlation.setdefault(correlation, []).append(entry)

        def replayed(letter: DeadLetter) -> None:
            entries[id(letter)].state = "sent"

        if entries:
            await replay_letters(
                loan, [(entry.letter, entry.request) for entry in entries.values()], link_of(self._settings),
                rate=action.rate, still_due=StillDue(entries.values(), changed), on_replayed=replayed,
                go_on=lambda: not action.stopping, **sending_of(self._settings),
            )  # fmt: skip


def unchanged(letter: Letter) -> Replay:
    """The replay of a dead letter as it was."""
    return Replay(letter.raw, letter.raw, letter.found)

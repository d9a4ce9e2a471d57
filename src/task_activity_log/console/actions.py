"""What users have dead letters do: replay and discard, one or many, with progress, a stop, and what became of each."""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from secrets import token_urlsafe
from typing import Final, Literal
from uuid import UUID

import structlog

from task_activity_log.client import ClientError, Reply
from task_activity_log.client.dead_letters import DeadLetter, Loan, judged, may_be_newer
from task_activity_log.client.dead_letters import replay as replay_letters
from task_activity_log.client.exported import plain_headers, table_with
from task_activity_log.console.access import User
from task_activity_log.console.letters import REPLAY_COUNT, REPLAYED_BY, Letter, id_of
from task_activity_log.console.looks import Look, Looks
from task_activity_log.console.rows import Rows, RowsUnknown
from task_activity_log.message import VERSION
from task_activity_log.problem import Problem
from task_activity_log.rabbitmq.headers import received
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, partitioned_of, partitions_exchange_of, rules_of

log = structlog.get_logger(__name__)

LONGEST_SECONDS: Final = 20 * 60.0
"""A replay has its dead letters on loan: it must end before the broker's consumer timeout, which is half an hour."""
_REMEMBERED = 200
_WAIT_SECONDS = 5.0
_NAME_LENGTH = 128
_WHY_LENGTH = 500

Kind = Literal["replay", "discard"]
State = Literal["waiting", "sent", "kept", "gone", "discarded"]


@dataclass(slots=True)
class Entry:
    """One dead letter of an action, and what has become of it."""

    letter: Letter
    request: DeadLetter
    """What is sent: the dead letter as it was, or corrected."""
    state: State = "waiting"
    why: str = ""
    """Why it was kept."""
    answer: str = ""
    """The outcome of its reply, once it is known."""
    code: str = ""
    """The code with which it was rejected again."""
    record: UUID | None = None


@dataclass
class Action:
    """Something that a user has done."""

    kind: Kind
    user: str
    why: str
    entries: Sequence[Entry]
    rate: float = 100.0
    over_newer: bool = False
    edited: bool = False
    id: str = field(default_factory=lambda: token_urlsafe(6))
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    stopping: bool = False
    problem: str = ""
    """Why it ended early, in a sentence; empty if it did not."""
    by_correlation: dict[str, Entry] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is, in words."""
        count = len(self.entries)
        letters = "1 dead letter" if count == 1 else f"{count:,} dead letters"
        return f"{'Edit and replay' if self.edited else self.kind.capitalize()} {letters}"

    @property
    def counts(self) -> Counter[str]:
        """How many dead letters are in each state."""
        return Counter(entry.state for entry in self.entries)

    @property
    def answers(self) -> Counter[str]:
        """How many of those that were sent have each outcome; an empty one for those that are not known yet."""
        return Counter(entry.answer for entry in self.entries if entry.state == "sent")

    @property
    def done(self) -> int:
        """How many are not waiting any more."""
        return sum(entry.state != "waiting" for entry in self.entries)

    @property
    def runs(self) -> bool:
        """Whether it is under way."""
        return self.ended is None

    def stop(self) -> None:
        """Send no more. What was not sent stays in the queue."""
        self.stopping = True

    def heard(self, reply: Reply) -> bool:
        """Note a reply, if it answers one of these."""
        entry = self.by_correlation.pop(reply.correlation_id or "", None)
        if entry is None:
            return False
        entry.answer, entry.code = reply.outcome, reply.code or ""
        return True

    def seen(self, look: Look) -> None:
        """Note which of these are dead letters again: a look tells it also where the reply went to somebody else."""
        again = {(letter.name, letter.replays): letter.code for letter in look.letters if letter.replays}
        for entry in self.entries:
            if entry.state == "sent" and not entry.answer:
                code = again.get((entry.letter.name, entry.letter.replays + 1))
                if code is not None:
                    entry.answer, entry.code = "rejected", code


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay would do, without doing it."""

    passing: Sequence[Letter]
    rejected: Mapping[str, int]
    """How many would be rejected again, by code."""
    newer: Sequence[Letter]
    """Those whose row may have been changed by a newer request."""
    rows_unknown: str
    """Why rows were not compared; empty if they were."""


async def plan(letters: Iterable[Letter], rows: Rows, *, over_newer: bool = False) -> Plan:
    """Find out what a replay would do. Nothing is sent, and the queue is not asked."""
    passing, rejected = list[Letter](), Counter[str]()
    for letter in letters:
        if isinstance(letter.found, Problem):
            rejected[letter.found.code] += 1
        else:
            passing.append(letter)
    try:
        changed = {} if over_newer else await rows.modified([each.record_id for each in passing if each.record_id])
        unknown = ""
    except RowsUnknown as error:
        changed, unknown = {}, str(error)
    newer = [letter for letter in passing if _why_newer(letter.raw, letter.record_id, changed)]
    kept = {id(letter) for letter in newer}
    return Plan([each for each in passing if id(each) not in kept], rejected, newer, unknown)


def _why_newer(request: DeadLetter, record: UUID | None, changed: Mapping[UUID, datetime]) -> str | None:
    """Why its row may be newer than a request; None if it is not, or if versions decide."""
    at = changed.get(record) if record else None
    return may_be_newer(request, at) if at and VERSION not in request.headers else None


class Actions:
    """Carries out actions in the background, and remembers the latest."""

    def __init__(self, settings: Settings, looks: Looks, rows: Rows) -> None:
        """Do nothing yet."""
        self._settings = settings
        self._looks = looks
        self._rows = rows
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._all: OrderedDict[str, Action] = OrderedDict()

    def __iter__(self) -> Iterator[Action]:
        """The latest first."""
        return reversed(self._all.values())

    def get(self, action_id: str) -> Action | None:
        """An action that is remembered."""
        return self._all.get(action_id)

    def begin(
        self,
        kind: Kind,
        user: User,
        why: str,
        letters: Sequence[Letter],
        *,
        edited: DeadLetter | None = None,
        rate: float = 100.0,
        over_newer: bool = False,
    ) -> Action:
        """Begin to replay or discard dead letters, in the order of the queue. With `edited`, one is replayed as it says."""
        entries = [Entry(letter, edited or letter.raw) for letter in letters]
        why = " ".join(why.split())[:_WHY_LENGTH]
        action = Action(kind, user.name, why, entries, rate, over_newer, edited is not None)
        self._all[action.id] = action
        while len(self._all) > _REMEMBERED:
            self._all.popitem(last=False)
        log.info("console_action_begun", action=action.id, kind=kind, user=user.name, why=why, count=len(entries))
        self._tasks[action.id] = task = asyncio.create_task(self._run(action))
        task.add_done_callback(lambda _: self._tasks.pop(action.id, None))
        return action

    def heard(self, reply: Reply) -> None:
        """Note a reply."""
        for action in reversed(self._all.values()):
            if action.heard(reply):
                return

    async def wait(self, action_id: str) -> None:
        """Return when an action has ended, or after some seconds."""
        if (task := self._tasks.get(action_id)) is not None:
            await asyncio.wait([task], timeout=_WAIT_SECONDS)

    async def stop(self) -> None:
        """Stop all actions, and return when they have ended."""
        for action in self._all.values():
            action.stop()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def written(self, action: Action) -> None:
        """Note of those whose reply is not known that their row was written since. Raises `RowsUnknown`."""
        silent = {
            entry.record: entry
            for entry in action.entries
            if entry.state == "sent" and not entry.answer and entry.record
        }
        changed = await self._rows.modified(silent) if silent else {}
        for record, at in changed.items():
            if at >= action.at:
                silent[record].answer = "stored"

    async def _run(self, action: Action) -> None:
        try:
            ids = [entry.letter.id for entry in action.entries]
            async with self._looks.on_loan(ids) as (loan, raws):
                present = _matched(action.entries, raws)
                if action.kind == "discard":
                    await loan.remove(present.values())
                    for entry_id in present:
                        action.entries[entry_id].state = "discarded"
                else:
                    await self._replay(action, loan, present)
        except ClientError as error:
            action.problem = f"{str(error)[:1].upper()}{str(error)[1:]}."
        except RowsUnknown as error:
            action.problem = f"Nothing was sent, because it is not known whether rows have changed: {error}."
        except Exception as error:  # a defect must not leave a page that says it is under way
            action.problem = f"The console failed ({type(error).__name__}). What was not sent is in the queue."
            raise
        finally:
            action.ended = time.monotonic()
            if action.stopping and not action.problem and action.counts["waiting"]:
                action.problem = "It was stopped. What was not sent is in the queue."
            counts = action.counts
            log.info(
                "console_action_ended",
                action=action.id,
                kind=action.kind,
                user=action.user,
                why=action.why,
                count=len(action.entries),
                sent=counts["sent"],
                discarded=counts["discarded"],
                kept=counts["kept"],
                gone=counts["gone"],
                problem=action.problem,
            )

    async def _replay(self, action: Action, loan: Loan, present: Mapping[int, DeadLetter]) -> None:
        rules = rules_of(self._settings)
        found = {number: judged(action.entries[number].request, rules) for number in present}
        ids = [record.id for record in found.values() if not isinstance(record, Problem)]
        changed = {} if action.over_newer or not self._rows.configured else await self._rows.modified(ids)
        chosen: list[tuple[DeadLetter, DeadLetter]] = []
        entries: dict[int, Entry] = {}
        for number, raw in present.items():
            entry, record = action.entries[number], found[number]
            if isinstance(record, Problem):
                entry.state, entry.why = "kept", f"it would be rejected again: {record.code}: {record.detail}"
            elif newer := _why_newer(entry.request, record.id, changed):
                entry.state, entry.why = "kept", newer
            else:
                entry.record = record.id
                request = stamped(entry.request, action.user, entry.letter.replays + 1)
                correlation = request.properties.correlation_id or request.properties.message_id
                if correlation:
                    action.by_correlation[correlation] = entry
                chosen.append((raw, request))
                entries[id(raw)] = entry

        def replayed(raw: DeadLetter) -> None:
            entries[id(raw)].state = "sent"

        if chosen:
            await replay_letters(
                loan,
                chosen,
                link_of(self._settings),
                exchange=self._settings.requests_exchange,
                partitioned=partitioned_of(self._settings),
                partitions_exchange=partitions_exchange_of(self._settings),
                rate=action.rate,
                on_replayed=replayed,
                go_on=lambda: not action.stopping,
            )


def stamped(request: DeadLetter, user: str, count: int) -> DeadLetter:
    """The request with who replays it, and how often that was done."""
    properties = request.restored(None)
    headers = plain_headers(received(properties))
    headers |= {REPLAYED_BY: user[:_NAME_LENGTH], REPLAY_COUNT: count}
    return replace(request, corrected=replace(properties, table=table_with(properties.table, headers)))


def _matched(entries: Sequence[Entry], raws: Iterable[DeadLetter]) -> dict[int, DeadLetter]:
    """Each dead letter on loan by the number of its entry, in the order of the queue. The entries of others are gone."""
    waiting: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        waiting.setdefault(entry.letter.id, []).append(number)
    found = {waiting[id_of(raw.key)].pop(0): raw for raw in raws}
    for number, entry in enumerate(entries):
        if number not in found:
            entry.state, entry.why = (
                "gone",
                "it was not in the queue any more: somebody else has replayed, discarded or taken it",
            )
    return found

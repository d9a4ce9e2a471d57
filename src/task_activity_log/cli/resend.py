"""`task-activity-log resend`: publish records as they are now, for subscribers that have missed some."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from task_activity_log import wire
from task_activity_log.cli.exit_codes import DONE, FAILED, SOME_REJECTED, WRONG_USE
from task_activity_log.cli.terminal import agreed, counted, progress, say
from task_activity_log.client import ClientError
from task_activity_log.client.connections import options
from task_activity_log.client.snapshots import Interrupted, Sent, Target, resend
from task_activity_log.postgresql.survey import FIRST, Survey
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.inspection import queue_is_missing
from task_activity_log.record import StoredTaskActivityLog
from task_activity_log.settings import Settings
from task_activity_log.streams import shell_command
from task_activity_log.wiring import link_of, survey_of

_SHORT_SECONDS = 10.0
"""A run that takes less does not say beforehand how long it takes."""


@dataclass
class Resending:
    """One run, with the options of the command line."""

    settings: Settings
    since: datetime | None
    """None: all records. Those of a table of one's own that have no time of their last change are counted, and not sent."""
    ids: Sequence[UUID]
    """Only these records; empty: all that were changed since."""
    after: UUID | None
    queue: str | None
    xml: bool
    rate: float
    dry_run: bool
    yes: bool
    _sent: Sent = field(default_factory=Sent, init=False)
    _unreadable: int = field(default=0, init=False)
    _absent: int = field(default=0, init=False)
    """How many of the ids have no row."""

    def carry_out(self) -> int:
        """Send, and return the exit code."""
        try:
            return asyncio.run(self._carry_out())
        except Unavailable as error:
            raise ClientError(self.explained(f"the database cannot be used: {error.reason}")) from None

    def explained(self, why: str) -> str:
        """Why the run ended, and how to continue it. If nothing was sent, the same command sends it later."""
        if not (self._sent.count or self._sent.unanswered):
            return why
        return f"{why}; to continue: {self._command(self._sent.after or self.after)}"

    def interrupted(self) -> str:
        """The line for Ctrl-C and signals."""
        nothing = not (self._sent.count or self._sent.unanswered)
        return self.explained("interrupted; nothing was sent" if nothing else "interrupted")

    def _command(self, after: UUID | None) -> str:
        """The whole command that continues this run, also when some time has passed."""
        changed = ("--all",) if self.since is None else ("--changed-since", self.since.isoformat())
        since = () if self.ids else changed
        chosen = (option for one in self.ids for option in ("--id", str(one)))
        queue = ("--queue", self.queue) if self.queue else ()
        rate = ("--rate", f"{self.rate:g}", *(("--xml",) if self.xml else ()), "--yes")
        behind = ("--after", str(after)) if after else ()
        return shell_command(("task-activity-log", "resend", *since, *chosen, *queue, *rate, *behind))

    async def _carry_out(self) -> int:
        survey = survey_of(self.settings)
        try:
            after = self.after or FIRST
            ids = await self._present(survey)
            total = len(ids) if self.ids else await survey.count(self.since, after)
            if not self.ids and await survey.may_hide_rows():
                say("there may be records that this role may not see (row security, or a view): they are not sent")
            where = f"queue {self.queue}" if self.queue else f"the subscribers of {self.settings.replies_exchange}"
            if self.dry_run or not total:
                return await self._rehearse(survey, ids, total, where)
            if not self.yes and not self._may_send(total, where):
                return FAILED if sys.stdin.isatty() else WRONG_USE
            with progress(total) as bar:
                await self._send(survey, ids, after, bar.update)
        finally:
            await survey.close()
        return self._report(total if self.ids else None)

    async def _rehearse(self, survey: Survey, ids: list[UUID], total: int, where: str) -> int:
        """Say what would be sent, and return the exit code. Only records that were chosen by id are read."""
        if total and await self._queue_is_missing():
            say(f"queue {self.queue} does not exist: {counted(total, 'record')} could not be sent; nothing was sent")
            return FAILED
        async for page in _each(ids):
            self._unreadable += len(page) - len(await survey.records(page))
        total -= self._unreadable
        if self._unreadable:
            say(f"{counted(self._unreadable, 'record')} would not be sent: with values that a reply cannot contain")
        if total or self.dry_run:
            say(f"{counted(total, 'record')} would be sent to {where}{self._time_needed(total)}; nothing was sent")
        else:
            say("there are no records to send; nothing was sent")
        if not (self._absent or self._unreadable):
            return DONE
        return SOME_REJECTED if total else FAILED

    def _time_needed(self, total: int) -> str:
        """How long `rate` makes this many take; empty if it is short."""
        seconds = total / self.rate
        if seconds < _SHORT_SECONDS:
            return ""
        return f", which takes {timedelta(seconds=math.ceil(seconds))} or more with --rate {self.rate:g}"

    async def _queue_is_missing(self) -> bool:
        """Whether the queue that was named does not exist. Raises `ClientError` if the broker cannot be asked."""
        if self.queue is None:
            return False
        try:
            return await queue_is_missing(options(link_of(self.settings)), self.queue)
        except Unavailable as error:
            raise ClientError(f"cannot find out whether queue {self.queue} exists: {error.reason}") from None

    async def _present(self, survey: Survey) -> list[UUID]:
        """Those of the ids that have a row, in order, without those that were sent before. Prints a line for each other."""
        ids = sorted({one for one in self.ids if self.after is None or one > self.after})
        present = await survey.exist(ids) if ids else set()
        absent = [one for one in ids if one not in present]
        where = " that this role may see" if absent and await survey.may_hide_rows() else ""
        for one in absent:
            say(f"{one}: no such record{where}")
        self._absent = len(absent)
        return sorted(present)

    def _may_send(self, total: int, where: str) -> bool:
        what = f"{counted(total, 'record')} to {where}{self._time_needed(total)}"
        if not sys.stdin.isatty():
            say(f"this would send {what}: confirm with --yes, as there is no terminal to ask on")
            return False
        if agreed(f"Send {what}?"):
            return True
        say("nothing was sent")
        return False

    async def _send(self, survey: Survey, ids: list[UUID], after: UUID, on_sent: Callable[[int], None]) -> None:
        target = Target(
            self.settings.replies_exchange, self.queue, wire.XML if self.xml else wire.JSON, self.settings.nulls
        )
        try:
            await resend(
                link_of(self.settings),
                self._pages(survey, ids, after),
                target,
                rate=self.rate,
                sent=self._sent,
                on_sent=on_sent,
                on_waiting=lambda why: say(f"waiting: {why}"),
            )
        except Interrupted as error:
            raise ClientError(self.explained(str(error))) from error

    async def _pages(
        self, survey: Survey, ids: list[UUID], after: UUID
    ) -> AsyncIterator[Sequence[StoredTaskActivityLog]]:
        async for page in _each(ids) if self.ids else survey.changed(self.since, after):
            records = await survey.records(page)
            await survey.confirm()
            self._unreadable += len(page) - len(records)
            yield records

    def _report(self, asked: int | None) -> int:
        say(f"{counted(self._sent.count, 'record')} sent")
        if self._sent.too_large:
            are = "is" if self._sent.too_large == 1 else "are"
            say(f"{self._sent.too_large:,} {are} longer than the broker takes (max_message_size): not sent")
        if self._unreadable:
            were, have = ("was", "has") if self._unreadable == 1 else ("were", "have")
            say(
                f"{self._unreadable:,} {were} deleted meanwhile, or {have} values that a reply cannot contain: not sent"
            )
        if asked is not None and not self._sent.count:
            return FAILED
        return SOME_REJECTED if self._sent.too_large or self._unreadable or self._absent else DONE


async def _each(ids: list[UUID]) -> AsyncIterator[list[UUID]]:
    for start in range(0, len(ids), 500):
        yield ids[start : start + 500]

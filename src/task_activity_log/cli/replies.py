"""`task-activity-log replies`: print the worker's replies as they come."""

import asyncio
import json
import sys
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from task_activity_log.cli.exit_codes import DONE
from task_activity_log.cli.terminal import print_json, say, say_unseen
from task_activity_log.client import Received, RejectedReply, StoredReply, UnreadableReply, exported, subscribe
from task_activity_log.client.finding import waiting_replies
from task_activity_log.record import Outcome
from task_activity_log.settings import Settings
from task_activity_log.streams import has_colours, one_line, trusted
from task_activity_log.wiring import link_of

_COLOURS = {"inserted": "32", "updated": "36", "rejected": "31", "duplicate": "2", "stale": "33", "snapshot": "34"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which replies to show: those that match every criterion that was given."""

    ids: frozenset[UUID] = frozenset()
    outcomes: frozenset[Outcome] = frozenset()
    codes: frozenset[str] = frozenset()

    def routing_keys(self) -> Sequence[str]:
        """Bindings that deliver at least the replies that are wanted."""
        if self.codes:
            return ("rejected",)
        if not self.outcomes:
            return ("#",)
        return [one.value if one is Outcome.REJECTED else f"stored.{one.value}" for one in sorted(self.outcomes)]

    def __contains__(self, reply: Received) -> bool:
        return (
            (not self.codes or reply.code in self.codes)
            and (not self.outcomes or reply.outcome in self.outcomes)
            and (not self.ids or (isinstance(reply, StoredReply) and reply.record.id in self.ids))
        )


async def follow(
    settings: Settings,
    wanted: Wanted,
    *,
    take: bool,
    as_json: bool,
    count: int,
    seconds: float | None,
    since: datetime | None,
) -> int:
    """Print replies until there were `count` of them (0: until interrupted), or until `seconds` have passed.

    With `since`, print first those in the replies queue that were published since then.
    """
    replies = subscribe(
        link_of(settings),
        queue=settings.replies_queue if take else None,
        exchange=settings.replies_exchange,
        routing_keys=() if take else wanted.routing_keys(),
        everything=True,
        on_outage=lambda reason: say(f"waiting for the broker: {reason}"),
        most=count if take and count else None,
        on_connected=lambda: say(f"{'taking' if take else 'following'} replies; press Ctrl-C to stop"),
    )
    shown = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as limit, replies:
            # What is published from now on is in both queues.
            waiting = [] if since is None else await _waiting(settings, since)
            if seconds is not None:
                limit.reschedule(asyncio.get_running_loop().time() + seconds)
            async for reply in _chained(waiting, replies):
                if reply not in wanted:
                    continue
                if as_json:
                    print_json(_json(reply))
                else:
                    print(_line(reply), file=trusted(sys.stdout))
                sys.stdout.flush()
                shown += 1
                if shown == count and not take:  # a taken reply is acknowledged when the loop asks for the next
                    break
    return DONE


async def _waiting(settings: Settings, since: datetime) -> list[Received]:
    """The replies in the shared queue that were published since then. They stay there."""
    whole = since.replace(microsecond=0)  # as the time of a reply
    waiting = await waiting_replies(
        link_of(settings),
        settings.replies_queue,
        lambda reply: reply.published is None or reply.published >= whole,
    )
    say_unseen(settings.replies_queue, others=waiting.others, newer=waiting.newer)
    return waiting.replies


async def _chained(waiting: Sequence[Received], following: AsyncIterable[Received]) -> AsyncIterator[Received]:
    """Those that are waiting, then those that follow and were not among them."""
    seen = {(reply.message_id, reply.published) for reply in waiting if reply.message_id is not None}
    for reply in waiting:
        yield reply
    async for reply in following:
        # A reply that is published again, such as a snapshot, has the same message_id and another time.
        if (reply.message_id, reply.published) not in seen:
            yield reply


def _json(reply: Received) -> str:
    match reply:
        case StoredReply(record):
            content: dict[str, Any] = {"record": record.model_dump(mode="json")}
        case RejectedReply(problem):
            errors = [asdict(bad) for bad in problem.errors]
            content = {"problem": {"code": problem.code, "detail": problem.detail, "errors": errors}}
        case UnreadableReply():
            content = {"body": reply.body.decode(errors="replace")}
    members = {
        "published": reply.published and reply.published.isoformat(),
        "outcome": reply.outcome,
        "message_id": reply.message_id,
        "correlation_id": reply.correlation_id,
    }
    return json.dumps({**members, **content}, ensure_ascii=False)


def _line(reply: Received) -> str:
    """When it was published, outcome, and the record's id and subject; for a problem, the request's message_id and reasons.

    It is escaped, and on a terminal the outcome is coloured.
    """
    match reply:
        case StoredReply(record):
            named, told = str(record.id), record.subject or ""
        case RejectedReply(problem):
            named, told = _message(reply), "; ".join(exported.reasons(problem))
        case UnreadableReply(error):
            named, told = _message(reply), str(error)
    time = "-"  # such as of a reply that no worker has published
    if published := reply.published:
        # A publisher can send the end of the year 9999, which is later elsewhere; TZ can be a day or more from UTC.
        with suppress(OverflowError, ValueError):
            published = published.astimezone()
        time = f"{published:%Y-%m-%d %H:%M:%S%z}"
    outcome, named, told = map(one_line, (reply.outcome, named, told))
    if not sys.stdout.isatty():
        return f"{time}\t{outcome}\t{named}\t{told}"
    shown = f"{outcome:9}"
    if has_colours(sys.stdout):
        shown = f"\033[{_COLOURS.get(outcome, '0')}m{shown}\033[0m"
    return f"{time:24}  {shown}  {named:36}  {told}"


def _message(reply: Received) -> str:
    """Which request it answers, marked as such, because the other lines have the id of a record there."""
    return f"message {reply.correlation_id}" if reply.correlation_id else "-"

"""`task-activity-log replies`: print the worker's replies as they come."""

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from task_activity_log.cli.exit_codes import DONE
from task_activity_log.cli.terminal import print_json, say
from task_activity_log.client import Received, RejectedReply, StoredReply, UnreadableReply, subscribe
from task_activity_log.record import Outcome
from task_activity_log.settings import Settings
from task_activity_log.streams import has_colours, one_line, trusted
from task_activity_log.wiring import link_of

_COLOURS = {"inserted": "32", "updated": "36", "rejected": "31", "duplicate": "2", "stale": "33"}


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
    settings: Settings, wanted: Wanted, *, take: bool, as_json: bool, count: int, seconds: float | None
) -> int:
    """Print replies until there were `count` of them (0: until interrupted), or until `seconds` have passed."""
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
        async with asyncio.timeout(seconds), replies:
            async for reply in replies:
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


def _json(reply: Received) -> str:
    match reply:
        case StoredReply(record):
            content: dict[str, Any] = {"record": record.model_dump(mode="json")}
        case RejectedReply(problem):
            errors = [asdict(bad) for bad in problem.errors]
            content = {"problem": {"code": problem.code, "detail": problem.detail, "errors": errors}}
        case UnreadableReply():
            content = {"body": reply.body.decode(errors="replace")}
    members = {"outcome": reply.outcome, "message_id": reply.message_id, "correlation_id": reply.correlation_id}
    return json.dumps({**members, **content}, ensure_ascii=False)


def _line(reply: Received) -> str:
    """Time of receipt, outcome, and the record's id and subject; for a problem, the request's message_id and the reason.

    It is escaped, and on a terminal the outcome is coloured.
    """
    match reply:
        case StoredReply(record):
            named, told = str(record.id), record.subject or ""
        case RejectedReply(error) | UnreadableReply(error):
            named, told = reply.correlation_id or "-", str(error)
    time, outcome, named, told = f"{datetime.now().astimezone():%H:%M:%S}", *map(one_line, (reply.outcome, named, told))
    if not sys.stdout.isatty():
        return f"{time}\t{outcome}\t{named}\t{told}"
    shown = f"{outcome:9}"
    if has_colours(sys.stdout):
        shown = f"\033[{_COLOURS.get(outcome, '0')}m{shown}\033[0m"
    return f"{time}  {shown}  {named:36}  {told}"

"""`task-activity-log replies`: print the worker's replies as they come."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from task_activity_log.cli.exit_codes import DONE, guarded
from task_activity_log.cli.terminal import printable, say
from task_activity_log.client import ClientError, Reply, subscribe
from task_activity_log.record import Outcome
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of

_COLOURS = {"inserted": "32", "updated": "36", "rejected": "31", "duplicate": "2", "stale": "33"}
_WIDTH = 9  # of the longest outcome


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

    def __contains__(self, reply: Reply) -> bool:
        return (
            (not self.codes or reply.code in self.codes)
            and (not self.outcomes or reply.outcome in self.outcomes)
            and (not self.ids or _id(reply) in self.ids)
        )


def follow(settings: Settings, wanted: Wanted, *, take: bool, as_json: bool, count: int, seconds: float | None) -> int:
    """Print replies until there were `count` of them (0: until interrupted), or until `seconds` have passed."""
    return guarded(
        lambda: asyncio.run(_follow(settings, wanted, take=take, as_json=as_json, count=count, seconds=seconds))
    )


async def _follow(
    settings: Settings, wanted: Wanted, *, take: bool, as_json: bool, count: int, seconds: float | None
) -> int:
    replies = subscribe(
        link_of(settings),
        queue=settings.replies_queue,
        exchange=settings.replies_exchange,
        routing_keys=() if take else wanted.routing_keys(),
        everything=True,
        on_outage=lambda reason: say(f"waiting for the broker: {reason}"),
        most=count if take and count else None,
        on_connected=lambda: say(f"{'taking' if take else 'following'} replies; press Ctrl-C to stop"),
    )
    shown = 0
    try:
        async with asyncio.timeout(seconds), aclosing(replies):
            async for reply in replies:
                if reply not in wanted:
                    continue
                print(_json(reply) if as_json else _line(reply), flush=True)
                shown += 1
                if shown == count and not take:  # a taken reply is acknowledged when the loop asks for the next
                    break
    except TimeoutError:
        pass
    return DONE


def _id(reply: Reply) -> UUID | None:
    try:
        return None if reply.rejected else reply.record.id
    except ClientError:
        return None


def _json(reply: Reply) -> str:
    content: dict[str, Any]
    try:
        if reply.rejected:
            problem = reply.problem
            errors = [{"name": bad.name, "code": bad.code, "message": bad.message} for bad in problem.errors]
            content = {"problem": {"code": problem.code, "detail": problem.detail, "errors": errors}}
        else:
            content = {"record": reply.record.model_dump(mode="json")}
    except ClientError:
        content = {"body": reply.body.decode(errors="replace")}
    members = {"outcome": reply.outcome, "message_id": reply.message_id, "correlation_id": reply.correlation_id}
    return json.dumps({**members, **content}, ensure_ascii=False)


def _line(reply: Reply) -> str:
    """Time of receipt, outcome, and the record's id and subject; for a problem, the request's message_id and the reason."""
    try:
        if reply.rejected:
            named, told = reply.correlation_id or "-", f"{reply.code}: {reply.problem.detail}"
        else:
            named, told = str(reply.record.id), reply.record.subject or ""
    except ClientError as error:
        named, told = reply.correlation_id or "-", str(error)
    cells = [f"{datetime.now().astimezone():%H:%M:%S}", reply.outcome, named, " ".join(printable(told).split())]
    if not sys.stdout.isatty():
        return "\t".join(cells)
    time, outcome, named, told = cells
    return f"{time}  \033[{_COLOURS.get(outcome, '0')}m{outcome:{_WIDTH}}\033[0m  {named:36}  {told}"

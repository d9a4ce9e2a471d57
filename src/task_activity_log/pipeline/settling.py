"""The settlement of a request: its reply, and its problem if it is rejected."""

from __future__ import annotations

from task_activity_log import wire
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.ports import D, Settlement
from task_activity_log.pipeline.request import Request
from task_activity_log.problem import UNREADABLE, Failed, Problem, Refused
from task_activity_log.record import Applied, Outcome


def stored(request: Request[D], applied: Applied, nulls: wire.Nulls) -> Settlement[D]:
    """For a request that the store has applied."""
    if applied.outcome is Outcome.REJECTED:
        return rejected(request, UNREADABLE)
    answer = reply.stored(request, applied, nulls)
    protected = request.key is not None or request.version is not None
    return Settlement(request.delivery, answer, record=request.record.id, protected=protected)


def rejected(request: Request[D], problem: Problem) -> Settlement[D]:
    """For a request that is answered with a problem and dead-lettered."""
    return Settlement(request.delivery, reply.rejected(request, problem), problem, asked=request.record.id)


def at_fault(request: Request[D], cause: Refused | Failed) -> Settlement[D]:
    """A request that the database refuses although it takes others.

    Raises:
        Failed: `cause`, if no row can be at fault: it is tried again until it passes.
    """
    if isinstance(cause, Failed) and cause.nobodys:
        raise cause
    return rejected(request, Refused(cause.sqlstate).problem)

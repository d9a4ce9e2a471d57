"""Whether queues have a leader and a majority. Without both, a queue takes nothing and delivers nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from task_activity_log.cli.check.finding import Finding

_ELECT = "nothing gets in or out: docs/runbook.md (TaskActivityLogNotConsuming) says what to do"
_START = "nothing gets in or out: start the nodes of the other members"
_NOT_RUNNING = ("crashed", "down", "stopped")


def judge_members(
    what: str, details: Mapping[str, Any], status: Sequence[Mapping[str, Any]] | None, *, patient: bool = True
) -> Iterator[Finding]:
    """One queue.

    Args:
        what: the queue.
        details: what the management API says of it.
        status: the state of each member of a quorum queue; None if it is not shown, as before RabbitMQ 4.0. Then all that
            shows that a queue has never had a leader is a number of messages that stays null.
        patient: whether the queue had enough time to report this number.
    """
    members, online = details.get("members") or [], details.get("online") or []
    if details.get("type") != "quorum":
        if details.get("state") in _NOT_RUNNING:
            yield Finding("broken", what, f"is {details['state']}", "start its node")
    elif 0 < 2 * len(online) <= len(members):
        yield Finding("broken", what, f"has no majority: {len(online)} of {len(members)} members are online", _START)
    elif _has_no_leader(details, status):
        yield Finding("broken", what, "has no leader", _ELECT)
    elif status is None and details.get("messages") is None:
        yield Finding("broken" if patient else "unknown", what, "has not had a leader yet", _ELECT)
    elif len(online) < len(members):
        advice = "start the nodes of the others: without a majority nothing gets in or out"
        yield Finding("warning", what, f"{len(online)} of {len(members)} members are online", advice)


def _has_no_leader(details: Mapping[str, Any], status: Sequence[Mapping[str, Any]] | None) -> bool:
    if status is not None:
        return not any(member.get("Raft State") == "leader" for member in status)
    return details.get("leader") not in (details.get("online") or [])

"""The worker that runs with the same settings on this host or in this pod, if there is one, as its /status shows it."""

from collections.abc import Iterator, Mapping
from typing import Any

from task_activity_log.cli.check.finding import Finding
from task_activity_log.settings import Settings
from task_activity_log.telemetry.asking import ANSWER_SECONDS, NoWorker, Silent, status_of

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask what listens everywhere


def findings(settings: Settings) -> list[Finding]:
    """Ask HTTP_HOST and HTTP_PORT, and judge the answer; empty if nothing listens there, or another program."""
    if not settings.http_port:
        return []  # the worker has chosen a free one
    host = _LOOPBACK.get(settings.http_host, settings.http_host)
    at = f"{f'[{host}]' if ':' in host else host}:{settings.http_port}"
    what = f"worker at {at}"
    try:
        return list(judge_status(what, status_of(f"http://{at}")))
    except Silent:
        advice = "if that is the worker, its process is stopped or has no CPU time: look at it, and restart it"
        return [
            Finding("warning", what, f"accepts connections and does not answer within {ANSWER_SECONDS:g} s", advice)
        ]
    except (
        NoWorker,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ):  # another program, or a worker of another release
        return []


def judge_status(what: str, status: Mapping[str, Any]) -> Iterator[Finding]:
    """What the /status of one worker shows."""
    reasons = status["not_ready"]
    if reasons:
        advice = "docs/runbook.md lists the reasons"
        yield Finding("warning", what, f"is not ready: {'; '.join(reasons)}", advice)
    else:
        yield Finding("fine", what, f"release {status['version']}, ready")
    parked = status.get("parked") or {}
    if parked.get("messages"):
        found = f"requests waiting for rows: {parked['messages']}, the oldest for {parked['oldest_seconds']:.0f} s"
        yield Finding("warning", what, found, "docs/runbook.md (TaskActivityLogParked) says what to do")
    for failing in status.get("failing_addresses") or []:
        found = f"replies waiting: {failing['waiting']}, the oldest for {failing['oldest_seconds']:.0f} s"
        if failing["reason"] is not None:
            found += f": {failing['reason']}"
        advice = "have the publisher read its queue; after WORKER_REPLY_GIVE_UP_SECONDS a reply is given up"
        yield Finding("warning", f"reply_to {failing['reply_to']}", found, advice)

"""The worker that runs with the same settings on this host or in this pod, if there is one, as its /status shows it."""

from collections.abc import Iterator, Mapping
from typing import Any

from task_activity_log.cli.check.finding import Finding
from task_activity_log.settings import Settings
from task_activity_log.telemetry.asking import ANSWER_SECONDS, NoWorker, Silent, status_of
from task_activity_log.telemetry.logs import address

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask what listens everywhere


def findings(settings: Settings) -> list[Finding]:
    """Ask HTTP_HOST and HTTP_PORT, and judge the answer; empty if nothing listens there, or another program."""
    if not settings.http_port:
        return []  # the worker has chosen a free one
    host = _LOOPBACK.get(settings.http_host, settings.http_host)
    at = f"{f'[{host}]' if ':' in host else host}:{settings.http_port}"
    what = f"worker at {at}"
    try:
        return list(judge_status(what, status_of(f"http://{at}"), settings))
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


def judge_status(what: str, status: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    """What the /status of one worker shows, and whether it has these settings."""
    yield from _others(what, status, settings)
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


def _others(what: str, status: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    """What it uses that is not what these settings name: then `check` has looked at other things than it uses."""
    its = {name: status["connections"][name]["address"] for name in ("intake", "database")}
    pairs = {"queue": (status["settings"]["requests_queue"], settings.requests_queue)}
    if settings.amqp_url:
        pairs["broker"] = (its["intake"], address(settings.required_amqp_url))
    if settings.database_url:
        pairs["database"] = (its["database"], settings.database_target.addresses)
    for name, (used, here) in pairs.items():
        if used != here:
            advice = "give `check` the worker's settings, or HTTP_PORT of the worker that has these"
            yield Finding("warning", what, f"uses another {name}: {used}, and here it is {here}", advice)

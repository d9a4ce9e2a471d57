"""The worker that runs with the same settings on this host or in this pod, if there is one, as its /status shows it."""

import json
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any

from task_activity_log.cli.check.finding import Finding
from task_activity_log.settings import Settings

_SECONDS = 5
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask what listens everywhere


def findings(settings: Settings) -> list[Finding]:
    """Ask HTTP_HOST and HTTP_PORT, and judge the answer; empty if no worker answers there."""
    host = _LOOPBACK.get(settings.http_host, settings.http_host)
    status = _status(host, settings.http_port)
    try:
        return [] if status is None else list(judge_status(f"worker at {host}:{settings.http_port}", status))
    except (AttributeError, KeyError, TypeError, ValueError):  # another program, or a worker of another release
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


def _status(host: str, port: int) -> Mapping[str, Any] | None:
    if not port:
        return None  # the worker has chosen a free one
    connection = HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request("GET", "/status")
        status = json.loads(connection.getresponse().read())
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        connection.close()
    # Another program may listen there, such as RabbitMQ's or a proxy's own pages.
    is_worker = isinstance(status, dict) and {"version", "not_ready", "not_alive", "in_hand"} <= status.keys()
    return status if is_worker else None

"""Asks workers what `health` answers: /status and /metrics. Blocks, so call it in a thread."""

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from task_activity_log import http_get

ANSWER_SECONDS = 3.0
"""How long an answer is waited for."""
_BYTES_MAX = 4 * 2**20
_STATUS = {"version", "started", "not_ready", "not_alive", "in_hand"}

Counts: TypeAlias = Mapping[str | float, float]
"""How many messages were answered since the worker started: by outcome, and of at most this many seconds of age."""


class NoWorker(Exception):
    """There is no answer, or not that of a worker; the text says why."""


class Silent(NoWorker):
    """Something listens there and does not answer in time, such as a worker that was stopped by SIGSTOP."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker as it was found: what /status and /metrics say, or why there is no answer."""

    address: str
    status: Mapping[str, Any] = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)
    in_hand: float = 0.0
    error: str = ""

    @property
    def reasons(self) -> list[str]:
        """Why it takes no messages, in its own words; empty if it takes some."""
        return [self.error] if self.error else list(map(str, self.status.get("not_ready", ())))

    @property
    def consumes(self) -> bool:
        """Whether it takes messages."""
        return bool(self.status.get("consuming")) and not self.reasons

    @property
    def holds(self) -> list[Mapping[str, Any]]:
        """What it waits out: `place`, `reason`, `seconds`."""
        return list(self.status.get("holds") or ())

    @property
    def partitions(self) -> list[int]:
        """The partitions that it consumes."""
        return list((self.status.get("partitions") or {}).get("active", ()))


def ask(url: str) -> Worker:
    """What the worker answers whose HTTP port has this URL."""
    address = urlsplit(url).netloc
    try:
        status = status_of(url)
        counts, in_hand = figures(_get(f"{url.rstrip('/')}/metrics").decode())
    except (NoWorker, ValueError) as error:
        return Worker(
            address, error=str(error) if isinstance(error, NoWorker) else "what answers there is not a worker"
        )
    return Worker(address, status, counts, in_hand)


def status_of(url: str) -> Mapping[str, Any]:
    """The /status of a worker. Raises `NoWorker`; another program may listen there, such as RabbitMQ or a proxy."""
    try:
        status = json.loads(_get(f"{url.rstrip('/')}/status"))
    except (ValueError, RecursionError):
        status = None
    if not isinstance(status, dict) or not status.keys() >= _STATUS:
        raise NoWorker("what answers there is not a worker")
    return status


def figures(exposition: str) -> tuple[Counts, float]:
    """What a text of /metrics says was answered, and how many messages are in hand. Raises `ValueError` if it is not one."""
    counts: dict[str | float, float] = {}
    in_hand = 0.0
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "task_activity_log_messages_total":
                counts[sample.labels["outcome"]] = sample.value
            elif sample.name == "task_activity_log_age_seconds_bucket":
                counts[float(sample.labels["le"])] = sample.value
            elif sample.name == "task_activity_log_in_hand":
                in_hand = sample.value
    return counts, in_hand


def urls_of(url: str) -> list[str]:
    """A URL for each address of its host, as a headless Service in Kubernetes has one for each worker."""
    parts = urlsplit(url)
    port = parts.port or 80
    if parts.scheme == "https":
        return [url]  # a certificate is for a name
    found: list[str] = []
    with suppress(OSError):
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)]
    # A name of this machine has two addresses, and a worker listens on one of them or on both: it is one worker.
    if all(ip_address(address.partition("%")[0]).is_loopback for address in found):
        return [url]
    hosts = (f"[{address}]" if ":" in address else address for address in dict.fromkeys(found))
    return [parts._replace(netloc=f"{host}:{port}").geturl() for host in hosts]


def _get(url: str) -> bytes:
    try:
        status, content = http_get.get(url, seconds=ANSWER_SECONDS, bytes_max=_BYTES_MAX)
    except (OSError, HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        # A process that is stopped still has its connections accepted by the kernel, until its backlog is full.
        kind = Silent if isinstance(error, TimeoutError) else NoWorker
        raise kind(f"no answer ({why.lower()})") from None
    if status != HTTPStatus.OK:
        raise NoWorker("what answers there is not a worker")
    return content

"""The management API of RabbitMQ, read only."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from task_activity_log import http_get
from task_activity_log.hosts import Hosts
from task_activity_log.rabbitmq.version import number
from task_activity_log.tls import Tls

RETURNS_UNLIMITED = 1_000_000
"""The delivery limit of queues that people look into. Without a limit RabbitMQ 4 deletes a message after 20 returns. -1
means unlimited there, but 3.10 deletes the message at its first return."""
_LIMITED_SINCE, _DEFAULT_LIMIT = (4, 0), 20
"""From this version on, quorum queues have a delivery limit of their own: this one."""
_SECONDS = 10.0
_BYTES_MAX = 128 * 2**20
"""Some tens of thousands of queues."""


class ManagementError(Exception):
    """The API gave no usable answer; the text is one line without secrets."""


class _Silent(ManagementError):
    """One node does not answer; another one may."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue: its messages and consumers, and how many messages a second arrive and are settled; None if not known."""

    messages: int | None
    consumers: int | None
    arriving: float
    settled: float


@dataclass(frozen=True, slots=True)
class DeliveryLimit:
    """How often a message of a queue may be delivered."""

    limit: int
    policy: str = ""
    """The policy that sets it, if one does."""
    is_default: bool = False
    """Whether it is that of the broker. Otherwise, without a policy, it is the queue's own argument."""

    @property
    def remedy(self) -> str:
        """How more deliveries are permitted. A policy cannot raise the limit that a queue was declared with."""
        if self.policy:
            return f"remove delivery-limit from the policy that applies to it ({self.policy}), or set it to {RETURNS_UNLIMITED}"
        if self.is_default:
            return f"set a policy with delivery-limit {RETURNS_UNLIMITED} for it"
        return f"shovel its messages to a queue with x-delivery-limit {RETURNS_UNLIMITED}"


def delivery_limit(details: Mapping[str, Any], version: str) -> DeliveryLimit | None:
    """The limit that a queue's argument or its policies set, as the API shows the queue, or the default of this version.

    RabbitMQ applies the smaller one. None if there is no limit.
    """
    own = (details.get("arguments") or {}).get("x-delivery-limit")
    of_policy = (details.get("effective_policy_definition") or {}).get("delivery-limit")
    names = ", ".join(str(details[kind]) for kind in ("policy", "operator_policy") if details.get(kind))
    found = [DeliveryLimit(limit, name) for limit, name in ((own, ""), (of_policy, names)) if isinstance(limit, int)]
    has_default = details.get("type") == "quorum" and number(version) >= _LIMITED_SINCE
    default = DeliveryLimit(_DEFAULT_LIMIT, is_default=True) if has_default else None
    return min(found, key=lambda each: each.limit, default=default)


class Management:
    """The management API at a URL, whose hosts are tried in turn."""

    def __init__(self, url: str, tls: Tls | None, seconds: float = _SECONDS) -> None:
        """Ask nothing yet. Each host has `seconds` for a connection, and as many for an answer."""
        self._hosts = Hosts(url)
        self._tls = tls
        self._seconds = seconds

    def get(self, *path: str) -> Any:
        """The answer to a path below `/api`, or `ManagementError`; None if what is asked about does not exist."""
        failure = ManagementError("no host is named")
        for url in self._hosts:
            try:
                found = self._get(url, path)
            except _Silent as error:
                failure = error
                self._hosts.leave(url)
            else:
                self._hosts.stay(url)
                return found
        raise failure

    def one(self, *path: str) -> Mapping[str, Any]:
        """What is at a path below `/api`; empty if it does not exist. Raises `ManagementError`."""
        found = self.get(*path)
        if not isinstance(found, dict | None):
            raise _not_ours()
        return found or {}

    def rows(self, *path: str) -> Sequence[Mapping[str, Any]]:
        """The list at a path below `/api`; empty if it does not exist. Raises `ManagementError`."""
        found = self.get(*path)
        if not isinstance(found, list | None) or not all(isinstance(each, dict) for each in found or ()):
            raise _not_ours()
        return found or []

    def queues(self, vhost: str) -> dict[str, QueueStats]:
        """The queues of a virtual host. The figures are some seconds old. Raises `ManagementError`."""
        found = self.get("queues", vhost)
        if not isinstance(found, list):
            raise ManagementError("shows no queues of this virtual host")
        return {queue["name"]: _stats(queue) for queue in found}

    def _get(self, url: str, path: Sequence[str]) -> Any:
        parts = urlsplit(url)
        where = f"{parts.path.rstrip('/')}/api/" + "/".join(quote(part, safe="") for part in path)
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        asked = urlunsplit((parts.scheme, parts.netloc, where, "", ""))
        context = self._tls.context() if self._tls and parts.scheme == "https" else None
        try:
            status, text = http_get.get(
                asked, seconds=self._seconds, bytes_max=_BYTES_MAX, headers=headers, context=context
            )
        except (OSError, HTTPException) as error:
            late = "timed out" if isinstance(error, TimeoutError) else None
            raise _Silent(f"no answer ({getattr(error, 'strerror', None) or late or type(error).__name__})") from None
        if status == HTTPStatus.UNAUTHORIZED:
            raise ManagementError("this user has no access")
        if status not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
            raise ManagementError(f"answered with {status}")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # any server answers with 404: only that of the API is in JSON
            raise _not_ours() from None
        return found if status == HTTPStatus.OK else None


def _not_ours() -> ManagementError:
    """Another program has answered."""
    return ManagementError("this is not the management API of RabbitMQ")


def _stats(queue: Mapping[str, Any]) -> QueueStats:
    stats = queue.get("message_stats") or {}  # a queue that was never used has none
    arriving, settled = ((stats.get(f"{name}_details") or {}).get("rate", 0.0) for name in ("publish", "ack"))
    return QueueStats(queue.get("messages"), queue.get("consumers"), arriving, settled)

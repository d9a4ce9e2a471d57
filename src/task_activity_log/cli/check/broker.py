"""RabbitMQ, as AMQP and the management API show it."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

from task_activity_log.aio import in_thread
from task_activity_log.cli.check.finding import Finding
from task_activity_log.cli.check.limits import Limits, judge_kept, judge_length, judge_requests, wrong_type
from task_activity_log.cli.check.members import judge_members
from task_activity_log.cli.check.partitions import (
    has_another_number,
    has_only_an_exchange,
    judge_consumers,
    judge_number,
    judge_slots,
)
from task_activity_log.cli.check.permissions import lacking
from task_activity_log.cli.terminal import counted
from task_activity_log.hosts import vhost as vhost_of
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.inspection import BrokerState, Hidden, Queue, inspect_broker
from task_activity_log.rabbitmq.link import is_certificate_checked
from task_activity_log.rabbitmq.management import Management, ManagementError
from task_activity_log.rabbitmq.repartition import look_up
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.rabbitmq.version import number
from task_activity_log.settings import Settings
from task_activity_log.telemetry.logs import address, is_local
from task_activity_log.wiring import link_of, management_of, topology_of

_OLDEST = (3, 10)
_STATUS_FROM = (4, 0)
"""From this version on, the management API shows the state of each member of a quorum queue."""
_COUNTED_WITHIN_SECONDS = 12.0
"""A queue that was declared just now is shown with its number of messages after this time."""
_WORKERS_CONNECTION = "task-activity-log-worker intake"
_HELD = "workers hold, and settle nothing"
_FULL = "publishers are refused"
_NO_PARTITION_HANDLING_FROM = (4, 3)
_LARGEST_FROM_4, _LARGEST_BEFORE = 16 * 2**20, 128 * 2**20
"""The default of the broker's `max_message_size`. The value in force is not shown."""
_REPLY_FACTOR = 15
"""How many times longer than the body limit a reply can be: a record has three texts of any length, which merges can fill one
by one, and in XML `&` takes five bytes."""


async def findings(settings: Settings, *, patient: bool, as_worker: bool = True) -> list[Finding]:
    """Connect, ask, and judge what the broker answers.

    If `patient`, wait for the figures of new queues. `as_worker`: whether the user is that of the workers.
    """
    url = settings.required_amqp_url
    where = address(url)
    topology = topology_of(settings)
    of_partitions: list[Finding] = []
    count = topology.partitions
    try:
        sight = await inspect_broker(link_of(settings), topology)
        if has_another_number(sight.queues, topology) or has_only_an_exchange(sight, topology):
            partitions = await look_up(link_of(settings), topology)
            of_partitions = [judge_number(partitions, topology)]
            count = count or partitions.count or 0
    except Unavailable as error:
        advice = "check that it is running and that AMQP_URL is correct"
        if error.reason.startswith("the broker "):  # it has answered
            advice = "correct AMQP_URL, or the user and the permissions in RabbitMQ"
        if "CERTIFICATE_VERIFY_FAILED" in error.reason:
            advice = (
                "name the authority that signed the broker's certificate in WORKER_AMQP_CA_FILE, unless the system trusts it;"
                " the certificate must be for the host in AMQP_URL, and still be valid"
            )
        elif url.startswith("amqps:"):
            advice += "; a broker that requires client certificates resets connections without one that it trusts"
        return [Finding("broken", "broker", f"{where}: {error.reason}", advice)]
    shown = [*_judge_sight(sight, settings, where, as_worker=as_worker), *of_partitions]
    management = management_of(settings)
    if management is None:
        advice = (
            "set MANAGEMENT_URL to check them: the URL of the management API, with user and password (docs/settings.md)"
        )
        return [*shown, Finding("unknown", "limits and permissions", "not visible over AMQP", advice)]
    return shown + await in_thread(
        lambda: list(_judge_management(management, sight, settings, count, patient=patient, as_worker=as_worker))
    )


def _judge_sight(sight: BrokerState, settings: Settings, where: str, *, as_worker: bool) -> Iterator[Finding]:
    """What AMQP shows."""
    advice = "use RabbitMQ 3.10 or newer" if number(sight.version) < _OLDEST else ""
    yield Finding("broken" if advice else "fine", "broker", f"RabbitMQ {sight.version} at {where}", advice)
    yield from judge_link(settings.required_amqp_url, has_files=settings.amqp_tls is not None)
    yield from judge_sizes(sight.version, settings)
    topology = topology_of(settings)
    for exchange in topology.exchanges():
        exists, what = sight.exchanges[exchange], f"exchange {exchange}"
        if isinstance(exists, Hidden):
            yield _hidden(what, as_worker=as_worker)
        else:
            yield Finding("fine", what, "exists") if exists else _missing(what, settings)
    for name in topology.queues():
        queue, what = sight.queues[name], f"queue {name}"
        if queue is None or isinstance(queue, Hidden):
            yield _missing(what, settings) if queue is None else _hidden(what, as_worker=as_worker)
            continue
        if name not in topology.partition_queues:
            yield judge_waiting(name, queue, settings)
        if name == settings.requests_queue and queue.consumers > 1 and not topology.is_single_active:
            advice = "updates may be reordered: send x-version, run one worker, or see docs/scaling.md"
            yield Finding("warning", "order per record", f"{queue.consumers} consumers", advice)
    yield from judge_consumers(sight.queues, topology)
    if settings.management_url is None and sight.requests_type not in ("quorum", None):
        yield wrong_type(f"queue {settings.requests_queue}", sight.requests_type)


def judge_link(url: str, *, has_files: bool) -> Iterator[Finding]:
    """Whether others can read what is sent, or pretend to be the broker. `has_files`: TLS has files of its own settings."""
    if is_local(url):
        return
    if not url.startswith("amqps:"):
        yield Finding("warning", "broker link", "not encrypted", "use amqps:// in AMQP_URL")
    elif not has_files and not is_certificate_checked(url):
        found = "encrypted, but the broker's certificate is not checked"
        advice = "remove no_verify_ssl from AMQP_URL; WORKER_AMQP_CA_FILE names the authority of a private certificate"
        yield Finding("warning", "broker link", found, advice)


def judge_waiting(name: str, queue: Queue, settings: Settings) -> Finding:
    """How much waits in a queue. Requests that wait need a worker; replies and dead letters may wait."""
    found = f"{queue.messages} waiting, {counted(queue.consumers, 'consumer')}"
    if name == settings.requests_queue and queue.messages and not queue.consumers:
        return Finding(
            "warning", f"queue {name}", found, "no worker consumes it: start one, or see its /readyz and its log"
        )
    return Finding("fine", f"queue {name}", found)


def judge_sizes(version: str, settings: Settings) -> Iterator[Finding]:
    """Whether all replies that the body limit allows fit the broker's default limit."""
    largest = _LARGEST_FROM_4 if number(version) >= _STATUS_FROM else _LARGEST_BEFORE
    if settings.body_limit_bytes * _REPLY_FACTOR > largest:
        found = f"a reply can be longer than {largest // 2**20} MiB, the default of the broker's max_message_size"
        advice = (
            f"lower WORKER_BODY_LIMIT_BYTES to {largest // _REPLY_FACTOR}, or raise max_message_size; a reply that does not"
            " fit becomes the problem reply_too_large"
        )
        yield Finding("warning", "message size", found, advice)


def _hidden(what: str, *, as_worker: bool) -> Finding:
    advice = "grant the user one of configure, write and read on it: a worker has to ask whether it exists"
    if not as_worker:
        advice = "to show it, grant the user one of configure, write and read on it"
    return Finding("broken" if as_worker else "unknown", what, "the user has no permission on it", advice)


def _judge_management(
    management: Management,
    sight: BrokerState,
    settings: Settings,
    partitions: int,
    *,
    patient: bool,
    as_worker: bool,
) -> Iterator[Finding]:
    """What only the management API shows. `partitions`: their number by the settings, or else on the broker."""
    topology = topology_of(settings)
    vhost = vhost_of(settings.required_amqp_url)
    try:
        shown = set[Finding]()
        for name, (details, members) in _queues(management, vhost, sight, topology, patient=patient).items():
            for finding in _judge_queue(name, details, members, sight.version, settings, patient=patient):
                if finding not in shown:  # the same may be true of all partitions
                    shown.add(finding)
                    yield finding
        yield from _judge_bindings(management, vhost, sight, settings, partitions)
        yield from judge_workers(management.rows("vhosts", vhost, "connections"))
        yield from judge_nodes(management.rows("nodes"), sight.version)
    except ManagementError as error:
        advice = "check address and password in MANAGEMENT_URL; its user needs the tag monitoring and access to the virtual host"
        yield Finding("unknown", "management", str(error), advice)
        return
    yield _judge_permissions(management, vhost, topology, sight.version, settings, as_worker=as_worker)


_Members = list[dict[str, Any]]


def _judge_queue(
    name: str,
    details: Mapping[str, Any],
    members: _Members | None,
    version: str,
    settings: Settings,
    *,
    patient: bool,
) -> Iterator[Finding]:
    """Its members and its limits; of a partition only what is not fine."""
    topology = topology_of(settings)
    what = f"queue {name}"
    yield from judge_members(what, details, members, patient=patient)
    judge = judge_requests if name in topology.request_queues else judge_kept
    limits = Limits(details, version)
    yield from judge_length(what, details, limits, _FULL if name in topology.request_queues else _HELD)
    for finding in judge(what, limits, settings):
        if finding.verdict != "fine" or name not in topology.partition_queues:
            yield finding


def _queues(
    management: Management, vhost: str, sight: BrokerState, topology: Topology, *, patient: bool
) -> dict[str, tuple[Mapping[str, Any], _Members | None]]:
    """What the API says of each queue that exists, and of its members. Its figures are up to five seconds old."""
    until = time.monotonic() + (_COUNTED_WITHIN_SECONDS if patient else 0)
    while True:
        found = {}
        for name in topology.queues():
            if sight.queues.get(name) is not None:
                details = management.one("queues", vhost, name)
                found[name] = details, _members(management, vhost, name, details, sight.version)
        complete = all(
            members or not details or details.get("messages") is not None for details, members in found.values()
        )
        if complete or time.monotonic() >= until:
            return found
        time.sleep(0.5)


def _members(
    management: Management, vhost: str, name: str, details: Mapping[str, Any], version: str
) -> _Members | None:
    if details.get("type") != "quorum" or number(version) < _STATUS_FROM:
        return None
    try:
        status = management.get("queues", "quorum", vhost, name, "status")
    except ManagementError:  # the user may see the queue all the same
        return None
    return status if isinstance(status, list) else None


def _judge_bindings(
    management: Management, vhost: str, sight: BrokerState, settings: Settings, partitions: int
) -> Iterator[Finding]:
    topology = topology_of(settings)
    by_record = topology.partitions_exchange
    if partitions and sight.exchanges.get(by_record):
        bindings = management.rows("exchanges", vhost, by_record, "bindings", "source")
        yield from judge_slots(bindings, replace(topology, partitions=partitions))
    for queue, exchange, key in topology.bindings():
        if exchange == by_record or sight.queues.get(queue) is None or not sight.exchanges.get(exchange):
            continue
        found = management.rows("bindings", vhost, "e", exchange, "q", queue)
        if not any(binding.get("routing_key") == key for binding in found):
            yield _missing(f"binding {exchange} → {queue}", settings, f"bind it with the key {key}")


def judge_workers(connections: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Which workers are connected, by release, as their connections for requests show it."""
    found: Counter[str] = Counter()
    for each in connections:
        properties = each.get("client_properties") or {}
        if properties.get("connection_name") == _WORKERS_CONNECTION:
            found[str(properties.get("release") or "unknown")] += 1
    if found:
        releases = ", ".join(f"{count} of release {release}" for release, count in sorted(found.items()))
        yield Finding("fine", "workers", f"{found.total()} connected: {releases}")
    else:
        yield Finding("fine", "workers", "none is connected")


def judge_nodes(nodes: Sequence[Mapping[str, Any]], version: str) -> Iterator[Finding]:
    """The nodes of the cluster, as the management API shows them."""
    for node in nodes:
        what = f"node {node.get('name')}"
        alarms = [word for key, word in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")) if node.get(key)]
        if alarms:
            short = " and ".join(alarms)
            advice = f"free some {short}: until then nothing is answered"
            yield Finding("broken", what, f"is short of {short} and blocks publishers", advice)
        if node.get("partitions"):
            advice = "heal the partition, then restart the nodes of one side (rabbitmq.com/docs/partitions)"
            yield Finding("broken", what, f"is cut off from {', '.join(node['partitions'])}", advice)
        if node.get("running") is False:
            yield Finding("warning", what, "is not running", "start it")
    if len(nodes) > 1 and number(version) < _NO_PARTITION_HANDLING_FROM:
        advice = (
            "set cluster_partition_handling = pause_minority: with ignore, the default, the smaller side is of no use"
        )
        yield Finding("unknown", "partition handling", "not shown by the broker", advice)


def _missing(what: str, settings: Settings, remedy: str = "create it") -> Finding:
    if settings.topology == "declare":
        return Finding("fine", what, "does not exist yet; the worker declares it when it starts")
    return Finding("broken", what, "does not exist", f"{remedy}, or set WORKER_TOPOLOGY=declare")


def _judge_permissions(
    management: Management, vhost: str, topology: Topology, version: str, settings: Settings, *, as_worker: bool
) -> Finding:
    """Whether the user of AMQP_URL has what is needed."""
    user = unquote(urlsplit(settings.required_amqp_url).username or "guest")
    what = f"user {user}"
    try:
        granted = management.one("permissions", vhost, user)
    except ManagementError:
        advice = "only the MANAGEMENT_URL of an administrator shows them; docs/operations.md lists the ones needed"
        return Finding("unknown", what, "its permissions are not shown", advice)
    missing = list(lacking(granted, topology, version, declare=settings.topology == "declare"))
    if missing and not as_worker:
        advice = "docs/console.md lists what the console needs; for the workers' user, run check with their AMQP_URL"
        return Finding("unknown", what, "has fewer permissions than a worker needs", advice)
    if missing:
        advice = "docs/operations.md lists the permissions of a worker"
        return Finding("broken", what, f"lacks {', '.join(missing)}", advice)
    return Finding("fine", what, "has the permissions that it needs")

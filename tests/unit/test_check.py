"""The rules of `check` about queues and permissions, and its table."""

import socket
from typing import Any

import pytest

from task_activity_log import libpq
from task_activity_log.cli.check import table
from task_activity_log.cli.check.broker import judge_link as judge_broker_link
from task_activity_log.cli.check.broker import judge_nodes, judge_sizes, judge_waiting, judge_workers
from task_activity_log.cli.check.database import judge_link
from task_activity_log.cli.check.finding import Finding
from task_activity_log.cli.check.limits import Limits, judge_kept, judge_length, judge_requests
from task_activity_log.cli.check.members import judge_members
from task_activity_log.cli.check.partitions import has_another_number, has_only_an_exchange, judge_number
from task_activity_log.cli.check.permissions import allows, lacking, needed
from task_activity_log.cli.check.worker import findings, judge_status
from task_activity_log.partitions import queue_of
from task_activity_log.rabbitmq.inspection import BrokerState, Hidden, Queue
from task_activity_log.rabbitmq.repartition import Partition, Partitions
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import Settings, load
from task_activity_log.telemetry import asking
from task_activity_log.telemetry.health import Health, HealthServer
from tests.terminals import HOSTILE, controls

URLS = {"AMQP_URL": "amqp://guest:guest@broker/", "DATABASE_URL": "postgresql://me:secret@database/app"}
GOOD: dict[str, Any] = {
    "x-delivery-limit": 20,
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": "task_activity_log.dead-letters",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


def settings(**variables: str) -> Settings:
    return load({**URLS, **variables})


def judged(
    arguments: dict[str, Any], policy: dict[str, Any] | None = None, version: str = "3.13.1", kind: str = "quorum"
) -> dict[str, str]:
    """The verdict on each finding about the requests queue, without those that are fine or unknown."""
    details = {"type": kind, "arguments": arguments, "effective_policy_definition": policy or {}}
    rows = judge_requests("queue", Limits(details, version), settings())
    return {row.found: row.verdict for row in rows if row.verdict not in ("fine", "unknown")}


@pytest.mark.parametrize(
    ("changes", "policy", "expected"),
    [
        ({}, {}, {}),
        ({"x-delivery-limit": None}, {}, {"has no delivery limit": "broken"}),
        ({"x-delivery-limit": None}, {"delivery-limit": 20}, {}),
        ({}, {"delivery-limit": 5}, {"delivery limit 5": "warning"}),
        ({"x-dead-letter-exchange": None}, {}, {"does not dead-letter": "broken"}),
        ({"x-dead-letter-routing-key": "x"}, {}, {"dead-letters to default/x": "warning"}),
        ({"x-dead-letter-strategy": "at-most-once"}, {}, {"dead-letters each message at most once": "warning"}),
        ({"x-overflow": None}, {}, {"dead-letters each message at most once": "warning"}),
        ({}, {"message-ttl": 1000}, {"requests expire": "warning"}),
        ({"x-overflow": None}, {"max-length": 9}, {"drops requests when it is full": "broken"}),
        ({}, {"max-length": 9}, {}),
        ({}, {"max-length": 9, "overflow": "drop-head"}, {"drops requests when it is full": "broken"}),
        ({"x-overflow": None}, {"max-length-bytes": 0}, {"drops requests when it is full": "broken"}),
        ({}, {"dead-letter-exchange": "", "dead-letter-routing-key": "x"}, {}),
        ({}, {"expires": 1000}, {"is deleted when nobody uses it": "broken"}),
        ({}, {"consumer-timeout": 600_000}, {"600 s": "broken"}),
        ({}, {"consumer-timeout": 700_000}, {}),
        ({"x-consumer-timeout": 500_000}, {"consumer-timeout": 700_000}, {"500 s": "broken"}),
        ({}, {"delayed-retry-type": "all"}, {"a policy with delayed-retry-type applies to the queue": "warning"}),
        ({}, {"delayed-retry-type": "disabled"}, {}),
    ],
)
def test_limits_that_matter(changes: dict[str, Any], policy: dict[str, Any], expected: dict[str, str]) -> None:
    """Arguments and policies are judged together; of two numbers, the stricter one counts."""
    arguments = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    found = judged(arguments, policy)
    assert {name: verdict for name, verdict in found.items() if name in expected or not expected} == expected


@pytest.mark.parametrize(("version", "verdict"), [("3.13.7", "broken"), ("4.0.5", None), ("4.3.0", None)])
def test_without_an_argument_the_limit_is_that_of_the_version(version: str, verdict: str | None) -> None:
    """RabbitMQ 4 limits deliveries to 20 by default, 3 does not; -1 means no limit on both."""
    without = {name: value for name, value in GOOD.items() if name != "x-delivery-limit"}
    assert judged(without, version=version).get("has no delivery limit") == verdict
    assert judged({**GOOD, "x-delivery-limit": -1}, version=version) == {"has no delivery limit": "broken"}


@pytest.mark.parametrize(("kind", "found"), [("classic", "is a classic queue"), ("stream", "is a stream")])
def test_a_queue_of_another_type_is_broken(kind: str, found: str) -> None:
    """A classic queue counts no deliveries, and a stream keeps what was acknowledged."""
    assert judged(GOOD, kind=kind) == {found: "broken"}


@pytest.mark.parametrize(("hold", "park", "longest"), [("500", "600", "PARK"), ("600", "500", "HOLD")])
def test_the_consumer_timeout_must_be_longer_than_both_limits(hold: str, park: str, longest: str) -> None:
    """The advice names the one that is longer."""
    limits = Limits({"type": "quorum", "arguments": {**GOOD, "x-consumer-timeout": 550_000}}, "4.3.6")
    rows = judge_requests("queue", limits, settings(WORKER_HOLD_LIMIT_SECONDS=hold, WORKER_PARK_LIMIT_SECONDS=park))
    [timeout] = [row for row in rows if row.what == "consumer timeout"]
    assert (timeout.verdict, timeout.found) == ("broken", "550 s")
    assert timeout.advice.endswith(f"WORKER_{longest}_LIMIT_SECONDS is 600")


@pytest.mark.parametrize(
    ("version", "waiting", "found"),
    [
        ("4.0.5", {"messages_ready_normal": 3, "messages_ready_high": 0}, None),
        ("4.0.5", {"messages_ready_normal": 0, "messages_ready_high": 3}, None),
        ("4.0.5", {"messages_ready_normal": 2, "messages_ready_high": 3}, "requests of 2 priorities are waiting"),
        ("4.3.6", {"messages_by_priority": {"4": 5}}, None),
        ("4.3.6", {"messages_by_priority": {"4": 5, "0": 1, "9": 0, "31": 2}}, "requests of 3 priorities are waiting"),
    ],
)
def test_priorities_reorder_what_is_waiting(version: str, waiting: dict[str, Any], found: str | None) -> None:
    """As the management API of each version shows them."""
    rows = judge_requests("queue", Limits({"type": "quorum", "arguments": GOOD, **waiting}, version), settings())
    assert [row.found for row in rows if row.what == "order per record"] == ([found] if found else [])


ONE: dict[str, Any] = {"type": "quorum", "leader": "a", "members": ["a"], "online": ["a"], "messages": 0}
THREE: dict[str, Any] = {**ONE, "members": ["a", "b", "c"], "online": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("details", "states", "expected"),
    [
        (ONE, None, None),
        (THREE, ["leader", "follower", "follower"], None),
        ({**ONE, "leader": None}, None, ("broken", "has no leader")),
        ({**ONE, "online": []}, None, ("broken", "has no leader")),
        ({**ONE, "messages": None}, None, ("broken", "has not had a leader yet")),
        ({**ONE, "messages": None}, ["leader"], None),  # declared less than five seconds ago
        (ONE, ["follower"], ("broken", "has no leader")),
        (ONE, ["noproc"], ("broken", "has no leader")),
        ({**THREE, "online": ["b", "c"]}, None, ("broken", "has no leader")),
        ({**THREE, "online": ["a"]}, ["leader"], ("broken", "has no majority: 1 of 3 members are online")),
        (
            {**THREE, "members": ["a", "b"], "online": ["a"]},
            None,
            ("broken", "has no majority: 1 of 2 members are online"),
        ),
        ({**THREE, "online": ["a", "c"]}, ["leader", "follower"], ("warning", "2 of 3 members are online")),
        ({"type": "classic", "state": "running"}, None, None),
        ({"type": "classic", "state": "down"}, None, ("broken", "is down")),
    ],
)
def test_a_queue_needs_a_leader_and_a_majority(
    details: dict[str, Any], states: list[str] | None, expected: tuple[str, str] | None
) -> None:
    """As the management API shows them; the state of each member is shown since RabbitMQ 4.0."""
    status = None if states is None else [{"Raft State": state} for state in states]
    rows = [(row.verdict, row.found) for row in judge_members("queue", details, status)]
    assert rows == ([expected] if expected else [])


def test_a_queue_declared_without_the_single_active_consumer_of_the_settings_is_broken() -> None:
    """The arguments of an existing queue do not change with the setting."""
    rows = judge_requests(
        "queue",
        Limits({"type": "quorum", "arguments": GOOD}, "4.0.5"),
        settings(WORKER_SINGLE_ACTIVE_CONSUMER="true"),
    )
    assert [row.verdict for row in rows if row.what == "order per record"] == ["broken"]


@pytest.mark.parametrize(
    ("kind", "arguments", "version", "expected"),
    [
        ("quorum", {"x-delivery-limit": 1_000_000}, "4.0.5", []),
        ("quorum", {}, "4.0.5", ["delivery limit 20"]),
        ("quorum", {}, "3.12.1", []),
        ("quorum", {"x-delivery-limit": -1}, "3.10.8", ["delivery limit -1"]),
        ("quorum", {"x-delivery-limit": -1}, "4.0.5", []),
        ("classic", {}, "4.0.5", ["is a classic queue"]),
        ("stream", {}, "4.0.5", ["is a stream"]),
        (
            "quorum",
            {"x-delivery-limit": 1_000_000, "x-delayed-retry-type": "all"},
            "4.3.6",
            ["delays what is returned"],
        ),
    ],
)
def test_kept_messages_must_survive_being_inspected(
    kind: str, arguments: dict[str, Any], version: str, expected: list[str]
) -> None:
    """RabbitMQ 4 deletes a dead letter that was listed 21 times."""
    rows = judge_kept("queue", Limits({"type": kind, "arguments": arguments}, version), settings())
    assert [row.found for row in rows] == expected


@pytest.mark.parametrize(
    ("arguments", "policy", "advice"),
    [
        ({"x-delivery-limit": 1_000_000}, 5, "remove delivery-limit from the policy that applies to it (all, ours), or"),
        ({"x-delivery-limit": 5}, 1_000_000, "shovel its messages to a queue with x-delivery-limit 1000000"),
        ({}, None, "set a policy with delivery-limit 1000000"),
        ({}, 20, "remove delivery-limit from the policy that applies to it (all, ours), or set it to 1000000"),
    ],
)  # fmt: skip
def test_how_a_queue_that_is_inspected_gets_a_higher_limit(
    arguments: dict[str, Any], policy: int | None, advice: str
) -> None:
    """Of an argument and a policy the smaller one counts, so a policy cannot raise what a queue was declared with."""
    details = {"type": "quorum", "arguments": arguments, "policy": "all", "operator_policy": "ours"}
    if policy is not None:
        details["effective_policy_definition"] = {"delivery-limit": policy}
    [found] = judge_kept("queue", Limits(details, "4.0.5"), settings())
    assert (found.verdict, advice in found.advice) == ("warning", True)


@pytest.mark.parametrize(
    ("queue", "policy", "expected"),
    [
        ("dead-letters", {"max-length": 5}, [("warning", "loses the oldest dead letters when it is full")]),
        (
            "dead-letters",
            {"max-length-bytes": 5, "overflow": "drop-head"},
            [("warning", "loses the oldest dead letters when it is full")],
        ),
        ("dead-letters", {"max-length": 5, "overflow": "reject-publish"}, []),
        ("dead-letters", {"message-ttl": 5}, [("warning", "dead letters expire")]),
        ("dead-letters", {"expires": 5}, [("broken", "is deleted when nobody uses it")]),
        ("replies", {"expires": 5}, [("broken", "is deleted when nobody uses it")]),
        ("replies", {"max-length": 5, "message-ttl": 5}, []),
    ],
)
def test_policies_by_which_dead_letters_are_lost(
    queue: str, policy: dict[str, int], expected: list[tuple[str, str]]
) -> None:
    """Replies may be limited: the runbook says how."""
    details = {"type": "quorum", "arguments": {"x-delivery-limit": 1_000_000}, "effective_policy_definition": policy}
    found = judge_kept(f"queue task_activity_log.{queue}", Limits(details, "4.3.6"), settings())
    assert [(one.verdict, one.found) for one in found] == expected


REMOTE_DATABASE, REMOTE_BROKER = "postgresql://u@db/d?", "amqps://u@mq/?"


@pytest.mark.parametrize(
    ("url", "encrypted", "has_files", "found"),
    [
        ("postgresql://u@localhost/d", False, False, []),
        ("postgresql://u@127.0.0.1/d", True, False, []),
        (REMOTE_DATABASE, False, False, ["not encrypted"]),
        *(
            (f"{REMOTE_DATABASE}{options}", True, False, ["encrypted, but the server's certificate is not checked"])
            for options in ("", "sslmode=allow", "sslmode=prefer", "sslmode=require")
        ),
        (
            f"{REMOTE_DATABASE}sslmode=prefer&sslrootcert=/a",
            True,
            False,
            ["encrypted, but with sslmode=prefer a connection without TLS is accepted as well"],
        ),
        *(
            (f"{REMOTE_DATABASE}{options}", True, False, [])
            for options in ("sslmode=verify-ca", "sslmode=verify-full", "sslrootcert=system", "sslmode=require&sslrootcert=/a")
        ),
        (REMOTE_DATABASE, True, True, []),
        ("amqp://u@localhost/", False, False, []),
        ("amqps://u@127.0.0.1/?no_verify_ssl=1", True, False, []),
        ("amqp://u@mq/", False, False, ["not encrypted"]),
        ("amqp://u@localhost,mq/", False, False, ["not encrypted"]),
        *(
            (f"{REMOTE_BROKER}{options}", True, False, ["encrypted, but the broker's certificate is not checked"])
            for options in ("no_verify_ssl=1", "heartbeat=5&no_verify_ssl=true", "no_verify_ssl=")
        ),
        *((f"{REMOTE_BROKER}{options}", True, False, []) for options in ("", "no_verify_ssl=0", "cafile=/a")),
        (f"{REMOTE_BROKER}no_verify_ssl=1", True, True, []),
    ],
)  # fmt: skip
def test_a_connection_that_others_can_read_or_answer_is_a_warning(
    url: str, encrypted: bool, has_files: bool, found: list[str]
) -> None:
    """A certificate that nobody checks may be anybody's. What does not leave the machine is fine."""
    if url.startswith("amqp"):
        rows = judge_broker_link(url, has_files=has_files)
    else:
        rows = judge_link(libpq.read(url, {"HOME": "/nonexistent"}), encrypted=encrypted, has_files=has_files)
    assert [(row.verdict, row.found) for row in rows] == [("warning", text) for text in found]


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [("", False), ("^$", False), (".*", True), (r"^task_activity_log\.", True), ("other", False), ("(", True)],
)
def test_permissions_are_read_as_rabbitmq_reads_them(pattern: str, allowed: bool) -> None:
    """A pattern may match anywhere; an empty one allows nothing; one that only Erlang understands is trusted."""
    assert allows(pattern, "task_activity_log.replies") is allowed


def test_a_worker_that_owns_nothing_needs_three_permissions() -> None:
    """A worker that declares needs the permission to configure as well."""
    assert len(needed(Topology(), declare=False)) == 3
    assert ("configure", "task_activity_log.upsert") in needed(Topology(), declare=True)


@pytest.mark.parametrize(("version", "missing"), [("4.0.5", []), ("4.3.6", ["any permission on task_activity_log"])])
def test_asking_whether_something_exists_needs_a_permission_on_it(version: str, missing: list[str]) -> None:
    """Since RabbitMQ 4.3, for a worker that only checks its topology."""
    granted = {"write": r"^(task_activity_log\..+|amq\.default)$", "read": "upsert"}
    assert list(lacking(granted, Topology(), version, declare=False)) == missing


def test_a_queue_that_is_new_has_no_figures_yet() -> None:
    """Before RabbitMQ 4.0 this looks the same as a queue that never had a leader."""
    assert [row.verdict for row in judge_members("queue", {**ONE, "messages": None}, None, patient=False)] == [
        "unknown"
    ]


def nodes(*nodes: dict[str, Any], version: str = "4.0.5") -> list[tuple[str, str, str]]:
    """What is found in a cluster of these nodes, each up and without an alarm unless it says otherwise."""
    up = {"running": True, "partitions": [], "mem_alarm": False, "disk_free_alarm": False}
    return [(row.verdict, row.what, row.found) for row in judge_nodes([{**up, **node} for node in nodes], version)]


def test_nodes_that_are_not_well_are_named() -> None:
    """Cut off from others, not running, or short of something."""
    assert nodes({"name": "a"}) == []
    assert nodes({"name": "a", "mem_alarm": True, "disk_free_alarm": True}) == [
        ("broken", "node a", "is short of memory and disk space and blocks publishers")
    ]
    assert nodes({"name": "a", "partitions": ["b", "c"]}) == [("broken", "node a", "is cut off from b, c")]
    assert nodes({"name": "a", "running": False}) == [("warning", "node a", "is not running")]


@pytest.mark.parametrize(("version", "count"), [("3.10.8", 1), ("4.2.1", 1), ("4.3.0", 0)])
def test_partition_handling_is_pointed_out_where_there_is_such_a_setting(version: str, count: int) -> None:
    """In clusters. RabbitMQ does not show the value."""
    found = nodes({"name": "a"}, {"name": "b"}, version=version)
    assert found == [("unknown", "partition handling", "not shown by the broker")] * count


@pytest.mark.parametrize(
    ("version", "limit", "count"),
    [("4.3.6", 1_118_481, 0), ("4.3.6", 1_118_482, 1), ("3.13.7", 1_118_482, 0), ("3.13.7", 8_947_849, 1)],
)
def test_a_reply_can_be_fifteen_times_as_long_as_a_body(version: str, limit: int, count: int) -> None:
    """Three merges can fill three texts with `&`, which takes five bytes in XML: that must fit the broker's limit."""
    found = list(judge_sizes(version, settings(WORKER_BODY_LIMIT_BYTES=str(limit))))
    assert [(row.verdict, row.what) for row in found] == [("warning", "message size")] * count


def test_what_a_worker_says_of_itself_is_shown() -> None:
    """Why it is not ready, and what waits."""
    failing = {"reply_to": "a", "waiting": 3, "oldest_seconds": 12.3, "reason": "nacked"}
    status = {
        "version": "1",
        "not_ready": ["holding: timeout"],
        "parked": {"messages": 2, "records": 1, "oldest_seconds": 61.2, "some": []},
        "failing_addresses": [failing, {**failing, "reply_to": "b", "waiting": 1, "reason": None}],
        "connections": {"intake": {"address": "broker/"}, "database": {"address": "database:5432/app"}},
        "settings": {"requests_queue": settings().requests_queue},
    }
    assert [(row.verdict, row.what, row.found) for row in judge_status("worker", status, settings())] == [
        ("warning", "worker", "is not ready: holding: timeout"),
        ("warning", "worker", "requests waiting for rows: 2, the oldest for 61 s"),
        ("warning", "reply_to a", "replies waiting: 3, the oldest for 12 s: nacked"),
        ("warning", "reply_to b", "replies waiting: 1, the oldest for 12 s"),
    ]


def test_the_table_has_advice_and_a_summary() -> None:
    """Verdict, subject and finding in columns, the advice below them."""
    rows = [Finding("fine", "broker", "RabbitMQ 4"), Finding("broken", "schema", "not migrated yet", "migrate")]
    assert list(table(rows)) == [
        "fine     broker  RabbitMQ 4",
        "broken   schema  not migrated yet",
        "                 → migrate",
        "1 broken",
    ]
    assert list(table(rows[:1]))[-1] == "all fine"


@pytest.mark.parametrize(
    ("name", "messages", "consumers", "verdict"),
    [
        ("task_activity_log.upsert", 2, 0, "warning"),
        ("task_activity_log.upsert", 2, 1, "fine"),
        ("task_activity_log.upsert", 0, 0, "fine"),  # before the first start
        ("task_activity_log.replies", 2, 0, "fine"),
    ],
)
def test_requests_that_wait_need_a_worker(name: str, messages: int, consumers: int, verdict: str) -> None:
    """Without one nothing is stored, although broker and database are fine."""
    found = judge_waiting(name, Queue(messages, consumers), settings())
    assert (found.verdict, "start one" in found.advice) == (verdict, verdict == "warning")


def test_no_stranger_writes_lines_of_the_table() -> None:
    """A `reply_to`, for example, is a publisher's text: its escapes do not reach the terminal, nor do its line breaks."""
    rows = [Finding("warning", f"reply_to a\nfine b{HOSTILE}", f"c\nfine d{HOSTILE}", f"e\nfine f{HOSTILE}")]
    lines = list(table(rows))
    assert len(lines) == 3
    assert [controls(line) for line in lines] == [[]] * 3


@pytest.mark.parametrize("status", [{"version": 1}, {"not_ready": [None]}, {"parked": 7}, {"failing_addresses": [{}]}])
def test_another_program_at_the_port_of_a_worker_is_ignored(status: dict[str, Any]) -> None:
    """Or a worker of another release: what it shows is not understood."""
    shown = {"version": "1", "not_ready": [], "not_alive": [], "in_hand": {}, **status}
    if "version" in status:
        del shown["not_alive"]
    served = Health(ready=list, alive=list, status=lambda: shown, metrics=bytes)
    server = HealthServer(served, "127.0.0.1", 0)
    try:
        assert findings(settings(HTTP_HOST="127.0.0.1", HTTP_PORT=str(server.port))) == []
    finally:
        server.close()


def test_a_worker_that_is_stopped_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel accepts its connections, and nobody answers. Where nothing listens, there is nothing to say."""
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [found] = findings(settings(HTTP_HOST="127.0.0.1", HTTP_PORT=str(port)))
    assert (found.verdict, found.what) == ("warning", f"worker at 127.0.0.1:{port}")
    assert found.found == "accepts connections and does not answer within 3 s"
    assert findings(settings(HTTP_HOST="127.0.0.1", HTTP_PORT=str(port))) == []


def test_a_worker_with_partitions_needs_more_permissions() -> None:
    """To consume them, to count the workers, and to forward what was not sent by record."""
    topology = Topology(partitions=2)
    granted = {"read": r"^task_activity_log\.upsert$", "write": r"^(task_activity_log\.replies|amq\.default)$"}
    assert list(lacking(granted, Topology(), "3.10.8", declare=False)) == []
    assert list(lacking(granted, topology, "3.10.8", declare=False)) == [
        "read on task_activity_log.upsert.0",
        "read on task_activity_log.upsert.1",
        "read on task_activity_log.workers",
        "read on task_activity_log.workers.short",
        "write on task_activity_log.by-record",
    ]


@pytest.mark.parametrize(
    ("partitions", "existing", "expected"),
    [(0, 0, False), (0, 4, True), (4, 0, False), (4, 4, False), (4, 2, True), (4, 8, True)],
)
def test_another_number_of_partitions_is_noticed(partitions: int, existing: int, expected: bool) -> None:
    """None at all is not another number: a worker declares them."""
    topology = Topology(partitions=partitions)
    names = (queue_of(topology.requests_queue, number) for number in range(partitions + 1))
    queues = {name: Queue(0, 0) if number < existing else None for number, name in enumerate(names)}
    assert has_another_number(queues, topology) == expected


TWO_QUEUES = {number: Partition(queue_of(Topology().requests_queue, number), 0, 0) for number in range(2)}


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (Partitions({}, True), "exchange task_activity_log.by-record exists, but no queue of a partition"),
        (Partitions(TWO_QUEUES, False), "the broker has 2, but exchange task_activity_log.by-record is missing"),
        (Partitions({1: TWO_QUEUES[1]}, True), "some of the queues are missing"),
    ],
)
def test_an_interrupted_change_is_broken_although_the_worker_has_no_partitions(there: Partitions, found: str) -> None:
    """The advice names both ways: to finish it, and to go back."""
    finding = judge_number(there, Topology())
    assert (finding.verdict, finding.what, finding.found) == ("broken", "partitions", found)
    assert "task-activity-log partitions --to with the number (0: none)" in finding.advice


def test_an_exchange_alone_is_noticed() -> None:
    """A worker with partitions declares the queues when it starts."""
    exchanges: dict[str, bool | Hidden] = {Topology().partitions_exchange: True}
    sight = BrokerState("3.10.8", exchanges, {}, None)
    assert has_only_an_exchange(sight, Topology())
    assert not has_only_an_exchange(sight, Topology(partitions=2))
    exchanges[Topology().partitions_exchange] = False
    assert not has_only_an_exchange(sight, Topology())


@pytest.mark.parametrize(
    ("policy", "details", "found"),
    [
        ({"max-length": 5, "overflow": "reject-publish"}, {"messages": 5}, "is full: 5 of 5 messages"),
        ({"max-length": 5, "overflow": "reject-publish"}, {"messages": 4}, None),
        ({"max-length": 5}, {"messages": 5}, None),
        ({"max-length": 5, "overflow": "drop-head"}, {"messages": 5}, None),
        ({"max-length-bytes": 100, "overflow": "reject-publish"}, {"message_bytes": 100}, "is full: 100 of 100 bytes"),
        ({"max-length": 5, "overflow": "reject-publish"}, {"messages": None}, None),
        ({}, {"messages": 5}, None),
    ],
)
def test_a_full_queue_that_refuses_is_broken(
    policy: dict[str, Any], details: dict[str, Any], found: str | None
) -> None:
    """Workers hold while the replies queue is full. One that drops its oldest messages refuses nothing."""
    details = {"type": "quorum", "arguments": {}, "effective_policy_definition": policy, **details}
    shown = [one.found for one in judge_length("queue", details, Limits(details, "3.13.1"), "workers hold")]
    assert shown == ([found] if found else [])


def test_the_workers_are_counted_by_release() -> None:
    """By their connections for requests; those of older releases do not say theirs."""
    name = {"connection_name": "task-activity-log-worker intake"}
    connections: list[dict[str, Any]] = [
        {"client_properties": {**name, "release": "1.2"}},
        {"client_properties": {**name, "release": "1.2"}},
        {"client_properties": name},
        {"client_properties": {"connection_name": "task-activity-log-worker replies", "release": "1.2"}},
        {"client_properties": None},
    ]
    [finding] = judge_workers(connections)
    assert (finding.verdict, finding.found) == ("fine", "3 connected: 2 of release 1.2, 1 of release unknown")
    assert [each.found for each in judge_workers([])] == ["none is connected"]


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("AMQP_URL", "amqp://user:secret@other:5672/vhost", "uses another broker: h/, and here it is other:5672/vhost"),
        ("DATABASE_URL", "postgresql://other/app", "uses another database: h:5432/d, and here it is other:5432/app"),
        ("WORKER_REQUESTS_QUEUE", "mine", "uses another queue: theirs, and here it is mine"),
    ],
)
def test_a_worker_that_uses_something_else_is_pointed_out(variable: str, value: str, found: str) -> None:
    """What `check` says of broker and database is not about that worker then. Passwords are not shown."""
    status = {
        "version": "1",
        "not_ready": [],
        "connections": {"intake": {"address": "h/"}, "database": {"address": "h:5432/d"}},
        "settings": {"requests_queue": "theirs"},
    }
    its = {"AMQP_URL": "amqp://u:p@h/", "DATABASE_URL": "postgresql://h/d", "WORKER_REQUESTS_QUEUE": "theirs"}
    assert [row.verdict for row in judge_status("worker", status, settings(**its))] == ["fine"]
    rows = list(judge_status("worker", status, settings(**{**its, variable: value})))
    assert [(row.verdict, row.found) for row in rows] == [("warning", found), ("fine", "release 1, ready")]

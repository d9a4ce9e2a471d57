"""The rules of `check` about queues and permissions, and its table."""

from typing import Any

import pytest

from task_activity_log.cli.check import Finding, table
from task_activity_log.cli.check_broker import _allows, _judge_kept, _judge_requests, _Limits, needed
from task_activity_log.rabbitmq.topology import Topology
from task_activity_log.settings import Settings, load

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
    """The verdict on each thing that was found of the requests queue, but for what is fine or unknown."""
    details = {"type": kind, "arguments": arguments, "effective_policy_definition": policy or {}}
    rows = _judge_requests("queue", _Limits(details, version), settings())
    return {found: verdict for verdict, _, found, _ in rows if verdict not in ("fine", "unknown")}


@pytest.mark.parametrize(
    ("changes", "policy", "expected"),
    [
        ({}, {}, {}),
        ({"x-delivery-limit": None}, {}, {"has no delivery limit": "broken"}),
        ({"x-delivery-limit": None}, {"delivery-limit": 20}, {}),
        ({}, {"delivery-limit": 5}, {"delivery limit 5": "warning"}),
        ({"x-dead-letter-exchange": None}, {}, {"does not dead-letter": "broken"}),
        ({"x-dead-letter-routing-key": "x"}, {}, {"dead-letters to default/x": "warning"}),
        ({"x-dead-letter-strategy": "at-most-once"}, {}, {"dead-letters at most once": "warning"}),
        ({"x-overflow": None}, {}, {"dead-letters at most once": "warning"}),
        ({}, {"message-ttl": 1000}, {"requests expire": "warning"}),
        ({"x-overflow": None}, {"max-length": 9}, {"drops requests when it is full": "broken"}),
        ({}, {"max-length": 9}, {}),
        ({}, {"consumer-timeout": 600_000}, {"600 s": "broken"}),
        ({}, {"consumer-timeout": 700_000}, {}),
    ],
)
def test_limits_that_matter(changes: dict[str, Any], policy: dict[str, Any], expected: dict[str, str]) -> None:
    """Arguments and policies together are judged, the stricter number of both."""
    arguments = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    found = judged(arguments, policy)
    assert {name: verdict for name, verdict in found.items() if name in expected or not expected} == expected


@pytest.mark.parametrize(("version", "verdict"), [("3.13.7", "broken"), ("4.0.5", None), ("4.3.0", None)])
def test_without_an_argument_the_limit_is_the_versions_own(version: str, verdict: str | None) -> None:
    """RabbitMQ 4 limits deliveries to 20 by itself, 3 does not; -1 is no limit on either."""
    without = {name: value for name, value in GOOD.items() if name != "x-delivery-limit"}
    assert judged(without, version=version).get("has no delivery limit") == verdict
    assert judged({**GOOD, "x-delivery-limit": -1}, version=version) == {"has no delivery limit": "broken"}


def test_a_classic_queue_is_broken() -> None:
    """It counts no deliveries."""
    assert judged(GOOD, kind="classic") == {"is a classic queue": "broken"}


def test_a_single_active_consumer_that_the_queue_does_not_have_is_broken() -> None:
    """Arguments of a queue that is there do not change with the setting."""
    rows = _judge_requests(
        "queue",
        _Limits({"type": "quorum", "arguments": GOOD}, "4.0.5"),
        settings(WORKER_SINGLE_ACTIVE_CONSUMER="true"),
    )
    assert [verdict for verdict, what, _, _ in rows if what == "order per record"] == ["broken"]


@pytest.mark.parametrize(
    ("kind", "arguments", "version", "expected"),
    [
        ("quorum", {"x-delivery-limit": 1_000_000}, "4.0.5", []),
        ("quorum", {}, "4.0.5", ["delivery limit 20"]),
        ("quorum", {}, "3.12.1", []),
        ("classic", {}, "4.0.5", ["is a classic queue"]),
    ],
)
def test_kept_messages_must_survive_being_looked_at(
    kind: str, arguments: dict[str, Any], version: str, expected: list[str]
) -> None:
    """RabbitMQ 4 deletes a dead letter that was listed 21 times."""
    rows = _judge_kept("queue", _Limits({"type": kind, "arguments": arguments}, version), settings())
    assert [found for _, _, found, _ in rows] == expected


@pytest.mark.parametrize(
    ("pattern", "allows"),
    [("", False), ("^$", False), (".*", True), (r"^task_activity_log\.", True), ("other", False), ("(", True)],
)
def test_permissions_are_read_as_rabbitmq_reads_them(pattern: str, allows: bool) -> None:
    """A pattern is searched for anywhere; an empty one allows nothing; one that only Erlang understands is trusted."""
    assert _allows(pattern, "task_activity_log.replies") is allows


def test_a_worker_that_owns_nothing_needs_three_permissions() -> None:
    """One that declares needs the right to configure, too."""
    assert len(needed(Topology(), declare=False)) == 3
    assert ("configure", "task_activity_log.upsert") in needed(Topology(), declare=True)


def test_the_table_says_what_to_do_and_sums_up() -> None:
    """Verdict, subject and find in columns, the advice below."""
    rows = [Finding("fine", "broker", "RabbitMQ 4"), Finding("broken", "schema", "not migrated yet", "migrate")]
    assert list(table(rows)) == [
        "fine     broker  RabbitMQ 4",
        "broken   schema  not migrated yet",
        "                 → migrate",
        "1 broken",
    ]
    assert list(table(rows[:1]))[-1] == "all fine"

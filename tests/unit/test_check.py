"""The rules by which `check` judges queues and permissions, and the table that it prints."""

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
    """The verdict on each finding about the requests queue, except those that are fine or unknown."""
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
def test_limits_are_judged_from_arguments_and_policies(
    changes: dict[str, Any], policy: dict[str, Any], expected: dict[str, str]
) -> None:
    """`check` judges arguments and policies together; of two numbers, the stricter one counts."""
    arguments = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    found = judged(arguments, policy)
    assert {name: verdict for name, verdict in found.items() if name in expected or not expected} == expected


@pytest.mark.parametrize(("version", "verdict"), [("3.13.7", "broken"), ("4.0.5", None), ("4.3.0", None)])
def test_without_an_argument_the_delivery_limit_depends_on_the_version(version: str, verdict: str | None) -> None:
    """RabbitMQ 4 has a default delivery limit of 20, RabbitMQ 3 has none, and -1 means no limit on both."""
    without = {name: value for name, value in GOOD.items() if name != "x-delivery-limit"}
    assert judged(without, version=version).get("has no delivery limit") == verdict
    assert judged({**GOOD, "x-delivery-limit": -1}, version=version) == {"has no delivery limit": "broken"}


def test_a_classic_queue_is_broken() -> None:
    """A classic queue is reported as broken, because it does not count deliveries."""
    assert judged(GOOD, kind="classic") == {"is a classic queue": "broken"}


def test_a_queue_without_the_configured_single_active_consumer_is_broken() -> None:
    """The arguments of an existing queue do not change with the setting, so `check` must report the difference."""
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
def test_a_queue_whose_messages_do_not_survive_being_listed_is_reported(
    kind: str, arguments: dict[str, Any], version: str, expected: list[str]
) -> None:
    """With its default delivery limit, RabbitMQ 4 deletes a dead letter after it has been listed 21 times."""
    rows = _judge_kept("queue", _Limits({"type": kind, "arguments": arguments}, version), settings())
    assert [found for _, _, found, _ in rows] == expected


@pytest.mark.parametrize(
    ("pattern", "allows"),
    [("", False), ("^$", False), (".*", True), (r"^task_activity_log\.", True), ("other", False), ("(", True)],
)
def test_permissions_are_read_as_rabbitmq_reads_them(pattern: str, allows: bool) -> None:
    """A pattern matches anywhere in a name, an empty one allows nothing, and one that only Erlang reads is trusted."""
    assert _allows(pattern, "task_activity_log.replies") is allows


def test_a_worker_that_only_checks_its_topology_needs_three_permissions() -> None:
    """A worker that declares its topology also needs permission to configure."""
    assert len(needed(Topology(), declare=False)) == 3
    assert ("configure", "task_activity_log.upsert") in needed(Topology(), declare=True)


def test_the_table_gives_advice_and_a_summary() -> None:
    """The table has columns for verdict, subject and finding, the advice below a finding, and a summary at the end."""
    rows = [Finding("fine", "broker", "RabbitMQ 4"), Finding("broken", "schema", "not migrated yet", "migrate")]
    assert list(table(rows)) == [
        "fine     broker  RabbitMQ 4",
        "broken   schema  not migrated yet",
        "                 → migrate",
        "1 broken",
    ]
    assert list(table(rows[:1]))[-1] == "all fine"

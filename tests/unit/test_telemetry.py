"""Counting, telling and hiding."""

import json

import pytest
import structlog

from task_activity_log.message import Delivery
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.ports import Answer
from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.problem import Code, Problem
from task_activity_log.record import Applied, Outcome
from task_activity_log.telemetry import logs
from task_activity_log.telemetry.metrics import HoldSeconds, Metrics
from task_activity_log.telemetry.watch import Watch
from tests.fakes import delivered, upsert


def answered(delivery: Delivery, problem: Problem | None = None) -> Answer[Delivery]:
    """An answer to a delivery: rejected with a problem, or else that its record is gone."""
    if problem is not None:
        return Answer(delivery, reply.rejected(delivery, problem), problem)
    return Answer(delivery, reply.stored(decode(delivery, Rules()), Applied(Outcome.DUPLICATE, None), "emit"))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock that holds are measured by; a test moves it."""
    time = [1000.0]
    monkeypatch.setattr("task_activity_log.telemetry.metrics.time.monotonic", lambda: time[0])
    return time


def totals(holds: HoldSeconds) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["place"], sample.labels["reason"]): sample.value
        for family in holds.collect()
        for sample in family.samples
    }


def test_hold_seconds_count_while_the_hold_goes_on(now: list[float]) -> None:
    """An outage shows at once, not when it is over; its reasons are kept apart, up to the first colon."""
    holds = HoldSeconds()
    holds.held("store", "connection lost")
    now[0] += 5
    assert totals(holds) == {("store", "connection lost"): 5}
    holds.held("store", "disk full: of somebody's data")
    now[0] += 2
    holds.released("store")
    now[0] += 100
    assert totals(holds) == {("store", "connection lost"): 5, ("store", "disk full"): 2}


def test_the_reasons_of_holds_are_bounded() -> None:
    """A broker with ever new words must not fill Prometheus."""
    holds = HoldSeconds()
    for number in range(1000):
        holds.held("reply", f"reason {number}")
    assert len(totals(holds)) == 51
    assert ("reply", "other") in totals(holds)


def test_rejections_are_counted_by_the_code_that_was_answered() -> None:
    """Also `record_gone`, which is an answer and no dead letter."""
    metrics = Metrics()
    bad = Problem(Code.MISSING_ID, "Send an id.")
    metrics.answered([answered(upsert()), answered(upsert(), bad), answered(upsert(), bad)])
    assert value(metrics, "task_activity_log_rejected_total", code="missing_id") == 2
    assert value(metrics, "task_activity_log_rejected_total", code="record_gone") == 1
    assert value(metrics, "task_activity_log_messages_total", outcome="rejected") == 3


@pytest.mark.parametrize(("timestamp", "at_most"), [(1_700_000_000, None), (1_700_000_000_000, None), (None, 0)])
def test_age_is_measured_from_seconds_and_milliseconds(timestamp: int | None, at_most: float | None) -> None:
    """Java publishers send milliseconds; without a timestamp there is no age."""
    metrics = Metrics()
    delivery = delivered(b'{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994"}', message_id="m", timestamp=timestamp)
    metrics.answered([answered(delivery)])
    count, total = (value(metrics, f"task_activity_log_age_seconds_{part}") for part in ("count", "sum"))
    assert count == (0 if at_most == 0 else 1)
    if at_most is None:
        assert total is not None
        assert 50_000_000 < total < 1_700_000_000


def test_a_batch_is_one_event_and_a_message_another_at_debug() -> None:
    """The ids of a message and of its reply are bound; nothing of its body is."""
    delivery = upsert(subject="a secret subject")
    with structlog.testing.capture_logs() as events:
        Watch(Metrics()).answered([answered(delivery)])
    message, batch = events
    assert batch == {"event": "batch", "log_level": "info", "size": 1, "rejected": 1}
    assert (message["event"], message["log_level"]) == ("message", "debug")
    assert message["message_id"] == delivery.properties.message_id
    assert message["code"] == "record_gone"
    assert "a secret subject" not in str(events)


def test_a_hold_is_told_once_for_each_reason() -> None:
    """Every try of a long outage would flood the log."""
    watch = Watch(Metrics())
    with structlog.testing.capture_logs() as events:
        for reason in ("connection lost", "connection lost", "disk full (53100)"):
            watch.held("store", reason)
        watch.released("store", 3.14159)
        watch.held("store", "connection lost")
    assert [(event["event"], event.get("reason")) for event in events] == [
        ("holding", "connection lost"),
        ("holding", "disk full (53100)"),
        ("hold_over", None),
        ("holding", "connection lost"),
    ]


@pytest.mark.parametrize(
    ("url", "secret", "shown"),
    [
        ("amqp://me:hunter2hunter2@broker:5672/v", "hunter2hunter2", "broker:5672/v"),
        ("amqp://me:hunter%232hunter@broker/v", "hunter#2hunter", "broker/v"),
        ("postgresql://me@h1,h2:5433/app?password=hunter2hunter2", "hunter2hunter2", "h1,h2:5433/app"),
        ("postgresql://me@h/app?sslpassword=hunter2hunter2", "hunter2hunter2", "h/app"),
        ("postgresql://me:hunter#2hunter@h/app", "hunter#2hunter", "***"),
        ("postgresql://me:hunter/2hunter@h/app", "hunter/2hunter", "***"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, secret: str, shown: str) -> None:
    """Not even where a password was not encoded and reaches over the parts of the URL."""
    assert logs.address(url) == shown
    assert secret in logs.secrets_in(url)
    assert secret not in logs.Redaction(logs.secrets_in(url)).text(f"cannot do it with '{secret}'")


def test_what_a_driver_says_is_told_without_secrets() -> None:
    """URLs lose their user part, known secrets are replaced; ordinary words that hold one are left."""
    redaction = logs.Redaction({"postgres", "abc"})
    event = redaction(None, "info", {"event": "e", "count": 1, "reason": "amqp://a:b@c, postgres, postgresql, abc"})
    assert event == {"event": "e", "count": 1, "reason": "amqp://***@c, ***, postgresql, abc"}


def test_a_crash_is_told_without_its_text() -> None:
    """The text of an error may quote a message; its kind and its place do not."""
    payload = "pay" + "load"
    try:
        try:
            int(payload)
        except ValueError as error:
            raise ExceptionGroup(payload, [RuntimeError(payload)]) from error
    except ExceptionGroup as group:
        told = logs.whereabouts(group)
    assert [kind for kind in ("ValueError", "ExceptionGroup", "RuntimeError") if kind in told.splitlines()]
    assert "int(payload)" in told
    assert payload not in told.replace("payload)", "").replace("(payload", "")


def test_json_is_one_event_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is in it, line breaks too."""
    try:
        logs.configure("json", "info", {"hunter2hunter2"})
        structlog.get_logger("test").info("batch", reason="two\nlines of hunter2hunter2")
    finally:
        structlog.reset_defaults()
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["reason"] == "two\nlines of ***"

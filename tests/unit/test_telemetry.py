"""Metrics, log events, and the redaction of secrets."""

import json

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from task_activity_log import libpq
from task_activity_log.message import Delivery
from task_activity_log.pipeline import reply
from task_activity_log.pipeline.ports import Settlement
from task_activity_log.pipeline.request import Rules, decode
from task_activity_log.problem import Code, Problem, Unavailable
from task_activity_log.record import Applied, Outcome
from task_activity_log.telemetry import logs
from task_activity_log.telemetry.metrics import Metrics
from task_activity_log.telemetry.watch import Watch
from tests.fakes import delivered, upsert


def answered(delivery: Delivery, problem: Problem | None = None) -> Settlement[Delivery]:
    """The settlement of a delivery: rejected with this problem, or `record_gone`."""
    if problem is not None:
        return Settlement(delivery, reply.undecoded(delivery, problem), problem)
    return Settlement(delivery, reply.stored(decode(delivery, Rules()), Applied(Outcome.DUPLICATE, None), "emit"))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock for holds. A test can advance it."""
    time = [1000.0]
    monkeypatch.setattr("task_activity_log.telemetry.metrics.time.monotonic", lambda: time[0])
    return time


def totals(metrics: Metrics) -> dict[tuple[str, str], float]:
    """The seconds in holds, as a scrape shows them, by place and reason."""
    return {
        (sample.labels["place"], sample.labels["reason"]): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
        if sample.name == "task_activity_log_hold_seconds_total"
    }


def test_hold_seconds_count_while_the_hold_goes_on(now: list[float]) -> None:
    """An outage is visible at once and not only when it is over. Each label has its own total."""
    metrics = Metrics()
    metrics.held("store", "connection lost")
    now[0] += 5
    assert totals(metrics) == {("store", "connection lost"): 5}
    metrics.held("store", "disk full")
    now[0] += 2
    metrics.released("store")
    now[0] += 100
    assert totals(metrics) == {("store", "connection lost"): 5, ("store", "disk full"): 2}


def test_the_labels_of_holds_are_bounded() -> None:
    """A driver whose texts vary must not fill Prometheus with labels."""
    metrics = Metrics()
    for number in range(1000):
        metrics.held("reply", f"{number} {'x' * 100}")
    assert len(totals(metrics)) == 51
    assert ("reply", "other") in totals(metrics)
    assert max(len(label) for _, label in totals(metrics)) == 60


def test_the_detail_of_an_outage_is_logged_but_is_no_label() -> None:
    """The log has the whole reason; the metric has only the label."""
    metrics = Metrics()
    with structlog.testing.capture_logs() as events:
        Watch(metrics).held("reply", Unavailable("replies returned", "no queue takes what x is sent"))
    assert [event["reason"] for event in events] == ["replies returned: no queue takes what x is sent"]
    assert value(metrics, "task_activity_log_hold_seconds_total", place="reply", reason="replies returned") is not None


def test_rejections_are_counted_by_the_code_that_was_answered() -> None:
    """This includes `record_gone`, although such a message is not dead-lettered."""
    metrics = Metrics()
    bad = Problem(Code.MISSING_ID, "Send an id.")
    metrics.answered([answered(upsert()), answered(upsert(), bad), answered(upsert(), bad)])
    assert value(metrics, "task_activity_log_rejected_total", code="missing_id") == 2
    assert value(metrics, "task_activity_log_rejected_total", code="record_gone") == 1
    assert value(metrics, "task_activity_log_messages_total", outcome="rejected") == 3


def ages(monkeypatch: pytest.MonkeyPatch, timestamp: int | None) -> tuple[float | None, float | None]:
    """How many ages are measured, and their sum, for a message with this timestamp at 1,700,000,060."""
    monkeypatch.setattr("task_activity_log.telemetry.metrics.time.time", lambda: 1_700_000_060.0)
    metrics = Metrics()
    delivery = delivered(b'{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994"}', message_id="m", timestamp=timestamp)
    metrics.answered([answered(delivery)])
    return value(metrics, "task_activity_log_age_seconds_count"), value(metrics, "task_activity_log_age_seconds_sum")


@pytest.mark.parametrize(
    ("timestamp", "age"), [(1_700_000_000, 60), (1_700_000_000_500, 59.5), (1_700_000_100, 0), (0, 1_700_000_060)]
)
def test_the_age_of_a_message_is_measured_from_its_timestamp(
    monkeypatch: pytest.MonkeyPatch, timestamp: int, age: float
) -> None:
    """Timestamps are in seconds, or in milliseconds from Java publishers. One in the future counts as now."""
    assert ages(monkeypatch, timestamp) == (1, age)


def test_a_message_without_a_timestamp_has_no_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not counted with an age of zero."""
    assert ages(monkeypatch, None) == (0, 0)


def test_a_batch_is_one_event_and_a_message_another_at_debug() -> None:
    """The ids of a message and of its reply are logged, but nothing of its body."""
    delivery = upsert(subject="a secret subject")
    with structlog.testing.capture_logs() as events:
        Watch(Metrics()).answered([answered(delivery)])
    message, batch = events
    assert batch == {"event": "batch", "log_level": "info", "size": 1, "rejected": 1}
    assert (message["event"], message["log_level"]) == ("message", "debug")
    assert message["message_id"] == delivery.properties.message_id
    assert message["code"] == "record_gone"
    assert "a secret subject" not in str(events)


def test_a_hold_is_logged_once_for_each_reason() -> None:
    """An event for each attempt of a long outage would flood the log."""
    watch = Watch(Metrics())
    with structlog.testing.capture_logs() as events:
        for reason in ("connection lost", "connection lost", "disk full (53100)"):
            watch.held("store", Unavailable(reason))
        watch.released("store", 3.14159)
        watch.held("store", Unavailable("connection lost"))
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
    """This holds even if a password is not encoded and extends over several parts of the URL."""
    assert logs.address(url) == shown
    assert secret in logs.secrets_in(url)
    assert secret not in logs.Redaction(logs.secrets_in(url)).text(f"cannot do it with '{secret}'")


def test_a_drivers_message_is_logged_without_secrets() -> None:
    """URLs lose their user part, and known secrets are replaced. Ordinary words that contain a secret are not changed."""
    redaction = logs.Redaction({"postgres1", "abc"})
    event = redaction(None, "info", {"event": "e", "count": 1, "reason": "amqp://a:b@c, postgres1, postgres15, abc"})
    assert event == {"event": "e", "count": 1, "reason": "amqp://***@c, ***, postgres15, abc"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("intake", "intake"),
        ("connection refused", "connection refused"),
        ("no queue takes what intake is sent", "no queue takes what intake is sent"),
        ("user app:intake@broker", "user app:***@broker"),
        ("cannot read 'intake'", "cannot read '***'"),
        ("amqp://app:intake@broker/", "amqp://***@broker/"),
        ("host=db password=intake port=1", "host=db password=*** port=1"),
        ("host=db sslpassword='connection refused' port=1", "host=db sslpassword=*** port=1"),
    ],
)
def test_a_password_of_ordinary_words_is_replaced_only_where_it_is_quoted(text: str, shown: str) -> None:
    """`link="***"` would tell that the password is the name of a link, and `***` for a known outage which words it has."""
    redaction = logs.Redaction({"intake", "connection refused"})
    assert redaction(None, "info", {"event": text}) == {"event": shown}


def test_a_name_is_shown_even_if_it_is_the_password_too() -> None:
    """`user "***"` would tell that the password is the user's name."""
    assert logs.secrets_in("postgresql://worker1:worker1@db/app") == set()
    assert logs.secrets_in("postgresql://h/app1234?user=me&password=app1234") == set()
    assert libpq.read("host=primary1 user=me password=primary1", {}).secrets == set()
    assert logs.secrets_in("postgresql://worker1:worker2@db/app") == {"worker2"}


def test_a_label_has_no_secrets() -> None:
    """Some have a driver's words."""
    metrics = Metrics(logs.Redaction({"hunter2hunter2"}).text)
    metrics.held("store", "cannot use hunter2hunter2")
    assert 'reason="cannot use ***"' in metrics.exposition().decode()


def test_a_crash_is_logged_without_the_text_of_the_error() -> None:
    """The text of an error may quote a message; its type and where it was raised do not."""
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


def test_a_password_that_was_changed_is_not_shown_either() -> None:
    """Nor is the one before."""
    redaction = logs.Redaction({"hunter2hunter2"})
    redaction.learn({"hunter3hunter3", "hunter3"})
    assert redaction.text("hunter2hunter2 hunter3hunter3 hunter3") == "*** *** ***"


def test_json_is_one_event_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """This holds for any values, even with line breaks."""
    try:
        logs.configure("json", "info", logs.Redaction({"hunter2hunter2"}))
        structlog.get_logger("test").info("batch", reason="two\nlines of hunter2hunter2")
    finally:
        structlog.reset_defaults()
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["reason"] == "two\nlines of ***"

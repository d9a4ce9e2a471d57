"""The figures of the console's first page, and what it says of them."""

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.responses import StreamingResponse

from task_activity_log.console.rendering import live, templates
from task_activity_log.console.sampling import Sampler
from task_activity_log.console.words import advice, digits, short, span
from task_activity_log.rabbitmq.inspection import Queue
from task_activity_log.rabbitmq.link import LinkOptions
from task_activity_log.rabbitmq.management import Management, ManagementError
from task_activity_log.telemetry.asking import Worker, figures
from task_activity_log.telemetry.history import Depth, History
from task_activity_log.telemetry.metrics import Metrics
from tests import virtual_time

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
CONSUMING: dict[str, Any] = {"consuming": True, "not_ready": [], "holds": []}


def worker(
    inserted: float = 0, address: str = "a", ages: dict[str | float, float] | None = None, **status: Any
) -> Worker:
    counts: dict[str | float, float] = {"inserted": inserted}
    counts.update(ages or {})
    return Worker(address, CONSUMING | status, counts)


def test_the_figures_are_read_from_what_a_worker_exposes() -> None:
    """From the real text of /metrics."""
    metrics = Metrics()
    metrics.counters["task_activity_log_messages_total"].labels("updated").inc(7)
    metrics.gauge("task_activity_log_in_hand", lambda: 3)
    counts, in_hand = figures(metrics.exposition().decode())
    assert (counts["updated"], counts["rejected"], in_hand) == (7, 0, 3)
    assert float("inf") in counts


def test_a_rate_is_that_of_the_last_half_minute() -> None:
    """What was before does not count."""
    history = History()
    for second in range(0, 100, 2):
        history.add(second, [worker(inserted=10 * max(0, second - 50))], {})
    assert history.rates()["inserted"] == pytest.approx(10.0)


def test_a_worker_that_starts_again_counts_from_zero() -> None:
    """Its counter goes back; the rate does not become negative, and what it has counted since is there."""
    history = History()
    for second, count in enumerate([100, 110, 4, 14]):
        history.add(second, [worker(count)], {})
    assert history.rates()["inserted"] == pytest.approx((10 + 4 + 10) / 3)


def test_a_worker_that_comes_later_or_goes_away_is_no_burst() -> None:
    """What it has counted before it was first seen is not of this time."""
    history = History()
    history.add(0, [worker(0)], {})
    history.add(1, [worker(10), worker(5000, "b")], {})
    history.add(2, [worker(20), worker(5010, "b")], {})
    history.add(3, [worker(30)], {})
    assert history.rates()["inserted"] == pytest.approx(40 / 3)


def test_two_workers_are_added_up() -> None:
    """A rate is that of all."""
    history = History()
    history.add(0, [worker(0), worker(0, "b")], {})
    history.add(10, [worker(10), worker(30, "b")], {})
    assert history.rates()["inserted"] == pytest.approx(4.0)


def test_the_age_is_interpolated_in_its_bucket() -> None:
    """As Prometheus does; the last bucket has no end, so its beginning counts."""
    history = History()
    inf = float("inf")
    history.add(0, [worker(ages={0.1: 0, 0.5: 0, inf: 0})], {})
    assert history.age(0.5) is None
    history.add(10, [worker(ages={0.1: 0, 0.5: 10, inf: 10})], {})
    assert history.age(0.5) == pytest.approx(0.3)
    history.add(20, [worker(ages={0.1: 0, 0.5: 10, inf: 1000})], {})
    assert history.age(0.95) == pytest.approx(0.5)


def test_only_an_hour_is_kept() -> None:
    """A console that runs for a month does not grow."""
    history = History()
    for second in range(0, 8000, 4):
        history.add(second, [worker(second)], {"q": Depth(second, 1)})
    assert len(history.samples) == 901
    assert history.seconds == 3600
    assert len(history.rate_series(60)["inserted"]) == 60
    assert history.rate_series(60)["inserted"][0] == pytest.approx(1.0)
    assert history.depth_series("q", 60)[-1] == 7996


@pytest.mark.parametrize(
    ("before", "now", "seconds"), [(1000, 400, 20 / 3), (400, 400, None), (400, 500, None), (400, 0, 0)]
)
def test_the_time_to_empty_is_that_of_the_present_rate(before: int, now: int, seconds: float | None) -> None:
    """A queue that does not shrink has none."""
    history = History()
    history.add(0, [], {"q": Depth(before, 1)})
    history.add(10, [], {"q": Depth(now, 1)})
    assert history.seconds_to_empty("q") == (None if seconds is None else pytest.approx(seconds))


SHOW: Any = templates.get_template("macros.html").module


def said(history: History, newest: datetime | None = None) -> tuple[str, str]:
    found = re.search(r'class="sentence (\w+)">(.*)</h1>', SHOW.sentence(history, ["requests"], "dead", newest, NOW))
    assert found is not None
    return found[2], found[1]


def sampled(
    workers: list[Worker], requests: int | None = 0, dead: int | None = 0, error: str = "", consumers: int | None = 1
) -> History:
    history = History()
    history.add(0, workers, {} if error else {"requests": Depth(requests, consumers), "dead": Depth(dead, 0)}, error)
    return history


def test_the_sentence_says_how_it_is() -> None:
    """In plain words, with the most urgent tone."""
    two = [worker(), worker(address="b")]
    assert said(sampled(two)) == ("Two workers consume. Nothing waits. No dead letters.", "good")
    assert said(sampled(two, dead=3), NOW - timedelta(minutes=4)) == (
        "Two workers consume. Nothing waits. 3 dead letters, the newest 4 minutes old.",
        "attention",
    )
    assert said(sampled(two, dead=1), NOW - timedelta(hours=1)) == (
        "Two workers consume. Nothing waits. 1 dead letter, 1 hour old.",
        "attention",
    )
    assert said(sampled([worker()], requests=1))[0].startswith("One worker consumes. 1 request waits.")


def test_the_sentence_says_what_is_wrong() -> None:
    """And is urgent then."""
    away = Worker("c", error="no answer (connection refused)")
    idle = worker(address="d", consuming=False, not_ready=["no publisher connection"])
    assert said(sampled([])) == ("No worker is known. Nothing waits. No dead letters.", "bad")
    assert said(sampled([away], consumers=0)) == (
        "No workers consume. One does not answer. Nothing waits. No dead letters.",
        "bad",
    )
    assert said(sampled([worker(), away, idle])) == (
        "One worker consumes. One does not answer. One is not ready. Nothing waits. No dead letters.",
        "attention",
    )
    held = worker(not_ready=["holding: x"], holds=[{"place": "store", "reason": "disk full", "seconds": 130}])
    assert "Held for 2 minutes: disk full. Nothing waits." in said(sampled([held]))[0]
    held = replace(held, in_hand=300)
    assert "Held for 2 minutes: disk full. 300 requests wait." in said(sampled([held]))[0], "a worker has them in hand"
    assert "305 requests wait." in said(sampled([held], requests=5))[0]
    history = sampled([held], requests=300)
    history.add(10, [held], {"requests": Depth(0, 1), "dead": Depth(0, 0)})
    assert "300 requests wait. No dead letters." in said(history)[0], "a worker has taken them, and none is answered"
    history = sampled([worker()], requests=300)
    history.add(10, [worker()], {"requests": Depth(100, 1), "dead": Depth(0, 0)})
    assert "100 requests wait, for about 5 seconds." in said(history)[0]
    busy = replace(worker(), in_hand=300)
    assert "Nothing waits." in said(sampled([busy]))[0], "they are being stored"
    assert said(sampled([worker()], error="closed")) == (
        "One worker consumes. The broker does not answer: closed. The dead letters are not known.",
        "bad",
    )


def test_the_sentence_names_consumers_that_the_console_does_not_know() -> None:
    """It does not say that no workers consume, if CONSOLE_WORKERS names others or they do not answer over HTTP."""
    away, silent = Worker("c", error="no answer (connection refused)"), Worker("d", error="no answer (timeout)")
    assert said(sampled([away])) == (
        "No worker that CONSOLE_WORKERS names answers, but the requests queue has 1 consumer. Nothing waits. No dead letters.",
        "attention",
    )
    assert "the requests queue has 12 consumers." in said(sampled([away, silent], consumers=12))[0]
    assert said(sampled([away], consumers=None))[0].startswith("No workers consume. One does not answer.")
    held = worker(not_ready=["holding: x"], holds=[{"place": "store", "reason": "disk full", "seconds": 130}])
    assert said(sampled([away, held]))[1] == "bad", "the consumer is the worker that waits"
    assert "consumer" not in said(sampled([away], error="closed"))[0]
    parts = History()
    parts.add(0, [away], {"q.0": Depth(0, 1), "q.1": Depth(0, 1), "dead": Depth(0, 5)})
    assert "the requests queues have 2 consumers." in SHOW.sentence(parts, ["q.0", "q.1", "q.2"], "dead", None, NOW)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (-3, "0 seconds"),
        (1, "1 second"),
        (59, "59 seconds"),
        (240, "4 minutes"),
        (7200, "2 hours"),
        (86_400, "1 day"),
    ],
)
def test_a_time_is_said_in_its_largest_unit(seconds: float, text: str) -> None:
    """As people do."""
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0345, "34.5 ms"), (0.9997, "1,000 ms"), (2.1, "2.1 s"), (240, "4 min"), (7200, "2 h")],
)
def test_a_duration_in_a_table_is_short(seconds: float | None, text: str) -> None:
    """With three figures at most."""
    assert short(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0"), (0.5, "0.5"), (10.52, "10.5"), (999.7, "1,000"), (10_000.0, "10,000"), (12_345.6, "12,346")],
)
def test_a_rate_has_no_exponent(rate: float, text: str) -> None:
    """A worker answers more than 10,000 a second, which three digits would show as `1e+04`."""
    assert digits(rate) == text
    assert ">20,000/s<" in SHOW.chart({"inserted": [0.0, 12_345.6]}, "x")


def test_charts_have_shapes_and_no_styles() -> None:
    """The Content-Security-Policy allows none; a name in a label is escaped."""
    drawn = SHOW.chart({"inserted": [0.0, 3.0], "rejected": [1.0, 0.0], "stale": [0.0, 0.0]}, '<b>"')
    assert [bar.partition('"')[0] for bar in drawn.split('<rect class="')[1:]] == ["o-rejected", "o-inserted"]
    assert "style=" not in drawn
    assert "<b>" not in drawn
    assert ">5/s<" in drawn, "the scale ends at a round number"
    assert "style=" not in SHOW.spark([], "x") + SHOW.bar(2.0, "x")
    assert 'width="100.0"' in SHOW.bar(2.0, "x")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("not migrated yet (42P01)", "task-activity-log migrate"),
        ("connect timeout (10.0.0.7:5432)", "can be reached"),
        ("timeout", "another session has locked a whole table"),
        ("column id is text, not uuid", "Change it back"),
        ("replies unconfirmed", "no majority"),
        ("a reason of a later release", ""),
    ],
)
def test_a_hold_is_shown_with_what_the_runbook_says_to_do(reason: str, said: str) -> None:
    """The most specific row of its table."""
    assert said in advice(reason)
    assert bool(advice(reason)) == bool(said)


def test_the_management_api_adds_how_much_arrives_and_is_settled() -> None:
    """To what AMQP counts, which is newer; or alone, where the user may not ask about a queue."""

    class Api(Management):
        def get(self, *path: str) -> Any:
            assert path == ("queues", "/")
            rates = {"publish_details": {"rate": 20.5}, "ack_details": {"rate": 3.0}}
            return [
                {"name": "requests", "messages": 5, "consumers": 1, "message_stats": rates},
                {"name": "dead", "messages": 7, "consumers": 0},
            ]

    stats = Api("http://127.0.0.1:1", None).queues("/")
    sampler = Sampler([], LinkOptions("amqp://127.0.0.1:1"), ["requests", "dead"], None)
    sampler._stats = stats
    sampler._on_counted({"requests": Queue(6, 2)}, "")
    assert sampler._depth("requests") == Depth(6, 2, 20.5, 3.0)
    assert sampler._depth("dead") == Depth(7, 0, 0.0, 0.0)
    assert sampler._depth("another") is None


async def test_a_broker_that_was_not_asked_yet_is_not_said_to_be_silent() -> None:
    """The first page may be shown before the first answer."""
    sampler = Sampler([], LinkOptions("amqp://127.0.0.1:1"), ["requests"], None)
    sampling = asyncio.create_task(sampler._sample())
    await sampler.next()
    sampling.cancel()
    assert (sampler.history.broker_error, sampler.history.queues) == ("", {})


def test_an_answer_that_is_no_list_of_queues_is_an_error() -> None:
    """Such as that of a virtual host that does not exist."""

    class Api(Management):
        def get(self, *_: str) -> Any:
            return None

    with pytest.raises(ManagementError, match="no queues of this virtual host"):
        Api("http://127.0.0.1:1", None).queues("/")


def test_a_page_that_is_followed_asks_again_after_some_minutes_who_looks() -> None:
    """Its stream ends, and the browser opens another one, which somebody who was removed does not get."""

    async def main() -> None:
        time = asyncio.get_running_loop().time
        answer = live(lambda: "as it is", asyncio.Event().wait, lambda: time() > 3600)
        assert isinstance(answer, StreamingResponse)
        parts = [str(part) async for part in answer.body_iterator]
        assert parts[:2] == ["retry: 1000\n\n", 'data: "as it is"\n\n']
        assert 300 <= time() <= 315

    virtual_time.run(main())

"""The traces of a worker with stand-ins around it, and that there are none if they are off."""

import asyncio
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from task_activity_log.message import Delivery
from task_activity_log.pipeline.reply import undecoded
from task_activity_log.pipeline.request import Rules
from task_activity_log.pipeline.worker import Worker
from task_activity_log.problem import Code, Problem
from task_activity_log.telemetry import tracing
from task_activity_log.telemetry.spans import Tracing, make_provider
from tests.fakes import FakeDeadLetters, FakeIntake, FakeReplies, FakeStore, FakeWatch, delivered, upsert

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Traced:
    """A worker whose spans are recorded."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider: TracerProvider = make_provider({})
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider, "requests", "replies")
        self.intake, self.store, self.replies, self.watch = FakeIntake(), FakeStore(), FakeReplies([]), FakeWatch([])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        worker: Worker[Delivery] = Worker(
            intake=self.tracing.intake(self.intake),
            store=self.tracing.store(self.store),
            dead_letters=FakeDeadLetters([]),
            replies=self.tracing.replies(self.replies),
            watch=self.watch,
            rules=Rules(),
            batch_max=500,
        )
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.drain()
            self.intake.waiting.close()
            await asyncio.wait_for(running, 5)

    async def work(self, *deliveries: Delivery) -> None:
        self.intake.put(*deliveries)
        async with self.running():
            await self.watch.settled(len(deliveries))

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


def with_parent(delivery: Delivery, parent: str = PARENT) -> Delivery:
    delivery.properties.headers = {"traceparent": parent, "tracestate": "vendor=1"}
    return delivery


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.span_id, "016x")


async def test_a_trace_goes_from_the_publisher_through_the_worker_to_the_reply() -> None:
    """The message's span is a child of the publisher's. The reply has its context, with the vendor's state."""
    traced = Traced()
    await traced.work(with_parent(upsert(message_id="m-1")))
    [span] = traced.spans("process requests")
    assert span.parent is not None
    assert (format(span.parent.trace_id, "032x"), span.parent.span_id) == (TRACE, 0xB7AD6B7169203331)
    assert span.kind is SpanKind.CONSUMER
    assert dict(span.attributes or {}) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "requests",
        "messaging.message.id": "m-1",
        "messaging.message.body.size": 46,
        "task_activity_log.outcome": "inserted",
    }
    [reply] = traced.replies.published
    assert reply.headers["traceparent"] == f"00-{TRACE}-{id_of(span)}-01"
    assert reply.headers["tracestate"] == "vendor=1"


@pytest.mark.parametrize("parent", [1, "x" * 513, None], ids=["number", "too_long", "absent"])
def test_a_state_without_a_parent_is_not_copied(parent: object) -> None:
    """W3C: without a valid parent, the state is ignored."""
    delivery = upsert()
    delivery.properties.headers = {"tracestate": "vendor=1"} | ({} if parent is None else {"traceparent": parent})
    assert set(undecoded(delivery, Problem(Code.EMPTY_BODY, "")).headers) == {"x-outcome", "x-error-code"}


async def test_the_spans_are_those_in_the_documentation() -> None:
    """The table in docs/telemetry.md has their names and kinds, and no others."""
    table = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text(encoding="utf-8").partition("| span |")[2]
    rows = re.findall(r"^\| `(.+?)` \| (consumer|client|producer) \|", table, re.MULTILINE)
    traced = Traced()
    await traced.work(upsert())
    spans = {(span.name, span.kind.name.lower()) for span in traced.exporter.get_finished_spans()}
    assert {(re.sub(r"\{(\w+) \w+\}", r"\1", name), kind) for name, kind in rows} == spans


async def test_batches_link_to_every_one_of_their_messages() -> None:
    """There are more links than the 128 that OpenTelemetry keeps by default. Database and replies have their own spans."""
    traced = Traced()
    await traced.work(*(upsert() for _ in range(300)))
    messages = {id_of(span) for span in traced.spans("process requests")}
    assert len(messages) == 300
    for name, kind in (("INSERT task_activity_log", SpanKind.CLIENT), ("send replies", SpanKind.PRODUCER)):
        [span] = traced.spans(name)
        assert span.kind is kind
        assert span.parent is None
        assert {format(link.context.span_id, "016x") for link in span.links} == messages


async def test_spans_have_the_errors() -> None:
    """The span of a rejected message has the error code, that of a refused wave the SQLSTATE."""
    traced = Traced()
    traced.store.refuses = {"bad"}
    await traced.work(delivered(b"{"), upsert(subject="bad"))
    assert errors(traced.spans("process requests")) == ["malformed_json", "refused_by_database"]
    assert errors(traced.spans("INSERT task_activity_log")) == ["23514"]


def errors(spans: Sequence[ReadableSpan]) -> list[str]:
    assert all(span.status.status_code is StatusCode.ERROR for span in spans)
    return sorted(str((span.attributes or {})["error.type"]) for span in spans)


async def test_a_message_that_its_publisher_does_not_sample_is_not_recorded() -> None:
    """The reply has its context nevertheless. A batch of such messages has no span."""
    traced = Traced()
    await traced.work(with_parent(upsert(), PARENT[:-2] + "00"))
    assert not traced.exporter.get_finished_spans()
    assert traced.replies.published[0].headers["traceparent"].startswith(f"00-{TRACE}-")


@pytest.mark.parametrize("parent", ["", "garbage", f"00-{'0' * 32}-b7ad6b7169203331-01", "x" * 10_000, 7])
async def test_an_invalid_context_starts_a_new_trace(parent: object) -> None:
    """Publishers may send anything in the header."""
    traced = Traced()
    delivery = upsert()
    delivery.properties.headers = {"traceparent": parent}
    await traced.work(delivery)
    [span] = traced.spans("process requests")
    assert span.parent is None


async def test_requeuing_ends_the_spans() -> None:
    """A span is not kept for ever if its message never gets a reply."""
    traced = Traced()
    traced.intake.put(upsert(), upsert())
    intake = traced.tracing.intake(traced.intake)
    await intake.take(10)
    await intake.requeue()
    assert [dict(span.attributes or {})["task_activity_log.outcome"] for span in traced.spans("process requests")] == [
        "given_back",
        "given_back",
    ]
    assert not traced.tracing._open


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "worker"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_are_off_unless_configured(environment: dict[str, str]) -> None:
    """The URL of a receiver turns them on; OpenTelemetry's own switches turn them off."""
    assert tracing.from_environment(environment, "q", "x") is None


def test_traces_that_are_off_are_not_even_imported() -> None:
    """Without traces the worker starts faster and uses less memory."""
    program = (
        "import sys; from task_activity_log import service; from task_activity_log.telemetry import tracing;"
        " assert tracing.from_environment({}, 'q', 'x') is None;"
        " sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0  # noqa: S603 - our own program


def test_a_receiver_that_does_not_respond_delays_nothing_and_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traces are dropped, and the worker does not wait for them when it stops."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with structlog.testing.capture_logs() as events:
        traces = tracing.from_environment(os.environ, "q", "x")
        assert traces is not None
        traces.begin(upsert())
        traces.end_all()
        started = time.monotonic()
        traces.close()
        assert time.monotonic() - started < 8
        for _ in range(3):
            logging.getLogger("opentelemetry.exporter").warning("nobody there")
        for thread in threading.enumerate():
            if thread.name.startswith(("traces", "Otel")):
                thread.join(60)  # a thread that still runs would disturb later tests
    assert [event["event"] for event in events].count("traces_not_exported") == 1


def test_a_bad_header_of_a_message_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry would quote it, and the event would say that traces are not exported."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    delivery = upsert()
    delivery.properties.headers = {"traceparent": PARENT, "tracestate": "Secret=a\x01b,c=d,c=e"}
    with structlog.testing.capture_logs() as events:
        traces = tracing.from_environment(os.environ, "q", "x")
        assert traces is not None
        traces.begin(delivery)
        assert [event["event"] for event in events] == ["tracing"]
        traces.end_all()
        traces.close()
        for thread in threading.enumerate():
            if thread.name.startswith(("traces", "Otel")):
                thread.join(60)  # a thread that still runs would disturb later tests


def test_without_the_packages_the_worker_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """If traces are configured, one line of the log says what to install."""
    monkeypatch.delitem(sys.modules, "task_activity_log.telemetry.spans")  # so that it is imported again
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with structlog.testing.capture_logs() as events:
        asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
        assert tracing.from_environment(asked, "q", "x") is None
    [event] = events
    assert event["event"] == "tracing_unavailable"
    assert "[otel]" in event["advice"]

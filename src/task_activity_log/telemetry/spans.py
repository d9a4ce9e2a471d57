"""Traces with OpenTelemetry. The only module that imports it; `tracing` imports this one if traces are configured.

The worker's intake, store and replies are wrapped, so that the worker knows nothing of traces and pays nothing for them
while they are off. The intake starts and ends a span for each message; store and replies make one for each batch.

The span of a message is identified by its `traceparent`, which the delivery carries from then on, and later its reply.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from task_activity_log import __version__
from task_activity_log.message import ERROR_CODE, TRACE_PARENT, Delivery
from task_activity_log.pipeline.ports import PATIENT, Intake, Patience, Replies, Settlement, Store
from task_activity_log.pipeline.reply import Reply
from task_activity_log.pipeline.request import Request, message_id
from task_activity_log.problem import Refused, Unavailable
from task_activity_log.record import Applied

log = structlog.get_logger(__name__)

_LINKS_MAX = 5_000
"""OpenTelemetry's default is 128 links per span, but a batch has more messages."""
_COMPLAIN_EVERY_SECONDS = 60.0
_CLOSE_SECONDS = 2.0

D = TypeVar("D", bound=Delivery)


def make_exporter(environment: Mapping[str, str]) -> TracerProvider:
    """A provider whose spans are exported as OpenTelemetry's environment variables say."""
    complaints = logging.getLogger("opentelemetry")
    complaints.handlers, complaints.propagate = [_Complaints()], False
    logging.getLogger("opentelemetry.trace").setLevel(logging.CRITICAL)  # it quotes the headers of messages
    provider = make_provider(environment)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def make_provider(environment: Mapping[str, str]) -> TracerProvider:
    """A provider whose spans are not exported yet."""
    ours = Resource.create({"service.name": "task-activity-log-worker", "service.version": __version__})
    limits = SpanLimits() if "OTEL_SPAN_LINK_COUNT_LIMIT" in environment else SpanLimits(max_links=_LINKS_MAX)
    resource = ours.merge(OTELResourceDetector().detect())  # last, so that the environment takes precedence
    return TracerProvider(resource=resource, span_limits=limits, shutdown_on_exit=False)


class _Complaints(logging.Handler):
    """Passes OpenTelemetry's log on to ours, at most one event a minute."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _COMPLAIN_EVERY_SECONDS
            log.warning("traces_not_exported", reason=record.getMessage()[:200])


class Tracing:
    """Makes the spans of one worker."""

    def __init__(self, provider: TracerProvider, requests_queue: str, replies_exchange: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("task_activity_log", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._queue = requests_queue
        self.exchange = replies_exchange
        self._open: dict[object, Span] = {}  # by traceparent

    def intake(self, intake: Intake[D]) -> Intake[D]:
        """The intake, with a span for each message."""
        return _TracedIntake(intake, self)

    def store(self, store: Store) -> Store:
        """The store, with a span for each wave."""
        return _TracedStore(store, self)

    def replies(self, replies: Replies[D]) -> Replies[D]:
        """The replies, with a span for each batch."""
        return _TracedReplies(replies, self)

    def close(self) -> None:
        """Export the remaining spans. Blocks for at most two seconds, in case the receiver does not respond."""
        last = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        last.start()
        last.join(_CLOSE_SECONDS)

    def begin(self, delivery: Delivery) -> None:
        """Start the span of a message that was taken."""
        sent = {name: value for name, value in delivery.properties.headers.items() if isinstance(value, str)}
        optional = {
            "messaging.message.id": message_id(delivery),
            "messaging.message.conversation_id": delivery.properties.correlation_id,
        }
        attributes = _messaging("process", self._queue) | {"messaging.message.body.size": len(delivery.body)}
        attributes.update((name, value) for name, value in optional.items() if value is not None)
        span = self._tracer.start_span(
            f"process {self._queue}", self._propagator.extract(sent), SpanKind.CONSUMER, attributes
        )
        context: dict[str, str] = {}
        self._propagator.inject(context, set_span_in_context(span))
        delivery.properties.headers = {**delivery.properties.headers, **context}
        self._open[delivery.properties.headers.get(TRACE_PARENT)] = span

    def answered(self, reply: Reply) -> None:
        """Record the outcome of a message on its span."""
        if (span := self._open.get(reply.headers.get(TRACE_PARENT))) is not None:
            span.set_attribute("task_activity_log.outcome", reply.outcome.value)
            if (code := reply.headers.get(ERROR_CODE)) is not None:
                span.set_attribute("error.type", code)
                span.set_status(StatusCode.ERROR)

    def end(self, deliveries: Sequence[Delivery]) -> None:
        """End the spans of messages that are settled."""
        for delivery in deliveries:
            if (span := self._open.pop(delivery.properties.headers.get(TRACE_PARENT), None)) is not None:
                span.end()

    def end_all(self) -> None:
        """End all spans, because all unsettled messages were requeued."""
        for span in self._open.values():
            span.set_attribute("task_activity_log.outcome", "given_back")
            span.end()
        self._open.clear()

    @contextmanager
    def batch(
        self, name: str, kind: SpanKind, messages: Sequence[Mapping[str, object]], attributes: Mapping[str, str | int]
    ) -> Iterator[None]:
        """A span around the work on a batch, if any of its messages is recorded. `messages` are their headers."""
        spans = [self._open.get(headers.get(TRACE_PARENT)) for headers in messages]
        links = [Link(span.get_span_context()) for span in spans if span is not None and span.is_recording()]
        if not links:
            yield
            return
        span = self._tracer.start_span(name, Context(), kind, attributes, links)
        try:
            yield
        except (Refused, Unavailable) as error:
            span.set_attribute("error.type", error.sqlstate if isinstance(error, Refused) else error.label)
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            span.end()


def _messaging(operation: str, destination: str) -> dict[str, str | int]:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": destination,
    }


class _TracedIntake(Generic[D]):
    def __init__(self, intake: Intake[D], tracing: Tracing) -> None:
        self._intake = intake
        self._tracing = tracing
        self.prove, self.pause, self.resume = intake.prove, intake.pause, intake.resume
        self.coming, self.holds_up = intake.coming, intake.holds_up

    @property
    def in_hand(self) -> int:
        return self._intake.in_hand

    def has(self, delivery: D) -> bool:
        return self._intake.has(delivery)

    async def take(self, most: int) -> list[D] | None:
        deliveries = await self._intake.take(most)
        for delivery in deliveries or ():
            self._tracing.begin(delivery)
        return deliveries

    def set_apart(self, suspects: Sequence[D]) -> bool:
        return self._intake.set_apart(suspects)

    async def renew(self) -> None:
        await self._intake.renew()
        self._tracing.end_all()

    async def synchronize(self) -> None:
        await self._intake.synchronize()

    async def acknowledge(self, deliveries: Sequence[D]) -> None:
        await self._intake.acknowledge(deliveries)
        self._tracing.end(deliveries)

    async def requeue(self) -> int:
        count = await self._intake.requeue()
        self._tracing.end_all()
        return count


class _TracedStore:
    def __init__(self, store: Store, tracing: Tracing) -> None:
        self._store = store
        self._tracing = tracing
        self.probe, self.read, self.locked, self.close = store.probe, store.read, store.locked, store.close
        self.try_own_rows, self.time_own_rows = store.try_own_rows, store.time_own_rows
        self.marked, self.mark, self.unmark = store.marked, store.mark, store.unmark
        self.survives = store.survives

    async def apply(self, wave: Sequence[Request[Delivery]], patience: Patience = PATIENT) -> list[Applied]:
        headers = [request.delivery.properties.headers for request in wave]
        attributes: dict[str, str | int] = {
            "db.system.name": "postgresql",
            "db.operation.name": "INSERT",
            "db.collection.name": "task_activity_log",
            "db.operation.batch.size": len(wave),
        }
        with self._tracing.batch("INSERT task_activity_log", SpanKind.CLIENT, headers, attributes):
            return await self._store.apply(wave, patience)


class _TracedReplies(Generic[D]):
    def __init__(self, replies: Replies[D], tracing: Tracing) -> None:
        self._replies = replies
        self._tracing = tracing

    async def publish(self, settlements: Sequence[Settlement[D]]) -> list[bool]:
        for each in settlements:
            self._tracing.answered(each.reply)
        exchange, headers = self._tracing.exchange, [each.reply.headers for each in settlements]
        attributes = _messaging("send", exchange) | {"messaging.batch.message_count": len(settlements)}
        with self._tracing.batch(f"send {exchange}", SpanKind.PRODUCER, headers, attributes):
            return await self._replies.publish(settlements)

    async def settled(self) -> list[Settlement[D]]:
        return await self._replies.settled()

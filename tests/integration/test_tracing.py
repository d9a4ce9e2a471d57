"""A trace goes through real services to a real OTLP receiver over HTTP."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from uuid import uuid4

import aio_pika
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from task_activity_log.telemetry import tracing
from tests.serving import serving


class Receiver:
    """Collects the spans that it receives."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self.resources: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({item.key: item.value.string_value for item in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans |= {span.name: span for span in scope.spans}


@contextmanager
def receiving() -> Iterator[tuple[Receiver, str]]:
    """A receiver of traces and its URL."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            receiver.headers.append(dict(self.headers))
            receiver.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield receiver, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


async def test_a_trace_connects_publisher_worker_database_and_reply(
    amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver gets the spans of publisher, worker, database and replies, linked correctly."""
    with receiving() as (receiver, url):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
        traces = tracing.from_environment(environment, "task_activity_log.upsert", "task_activity_log.replies")
        publishers = TracerProvider(shutdown_on_exit=False)
        publishers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
        async with serving(amqp_url, database_url, traces=traces):
            context: dict[str, str] = {}
            with publishers.get_tracer("publisher").start_as_current_span("send upsert", kind=SpanKind.PRODUCER):
                TraceContextTextMapPropagator().inject(context)
            headers = await exchanged(amqp_url, context)
        await asyncio.to_thread(publishers.shutdown)
    sent, processed = receiver.spans["send upsert"], receiver.spans["process task_activity_log.upsert"]
    assert processed.trace_id == sent.trace_id
    assert processed.parent_span_id == sent.span_id
    assert str(headers["traceparent"]).startswith(f"00-{sent.trace_id.hex()}-{processed.span_id.hex()}-")
    for name in ("INSERT task_activity_log", "send task_activity_log.replies"):
        [link] = receiver.spans[name].links
        assert link.span_id == processed.span_id
        assert processed.start_time_unix_nano <= receiver.spans[name].start_time_unix_nano
        assert receiver.spans[name].end_time_unix_nano <= processed.end_time_unix_nano
    [worker] = [found for found in receiver.resources if found["service.name"] == "task-activity-log-worker"]
    assert worker["deployment.environment.name"] == "test"
    assert receiver.headers[0]["authorization"] == "Bearer hunter2"


async def exchanged(amqp_url: str, context: dict[str, str]) -> dict[str, object]:
    """Publish an upsert with these headers; return the headers of its reply."""
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("task_activity_log")
        message = aio_pika.Message(json.dumps({"id": str(uuid4())}).encode(), headers=dict(context))
        await exchange.publish(message, "upsert")
        queue = await channel.get_queue("task_activity_log.replies")
        async with queue.iterator(no_ack=True, timeout=20) as replies:
            return dict((await anext(replies)).headers)

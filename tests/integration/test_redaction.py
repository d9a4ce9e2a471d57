"""Planted secrets and payloads are searched for in everything that a worker shows."""

import asyncio
import json
import secrets
import urllib.error
import urllib.request
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import aio_pika
import asyncpg
import pytest
import structlog
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sandbox import PostgreSQL, RabbitMQ
from task_activity_log.telemetry import logs
from task_activity_log.telemetry.spans import Tracing, make_provider
from tests.serving import serving

PAYLOAD = "planted-payload-5d1e"


def with_login(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"))


async def test_no_secret_and_no_payload_is_shown(
    rabbitmq: RabbitMQ, postgresql: PostgreSQL, amqp_url: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither passwords of URLs nor texts of messages are in logs, pages, spans or problems."""
    user, password = f"u{secrets.token_hex(4)}", f"planted/{secrets.token_hex(8)}"
    await asyncio.to_thread(postgresql.execute, f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'")
    vhost = urlsplit(amqp_url).path[1:]
    rabbitmq.api("PUT", f"/users/{user}", {"password": password, "tags": ""})
    rabbitmq.api("PUT", f"/permissions/{vhost}/{user}", {"configure": ".*", "write": ".*", "read": ".*"})
    exporter = InMemorySpanExporter()
    provider = make_provider({})
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    urls = with_login(amqp_url, user, password), with_login(database_url, user, password)
    logs.configure("json", "debug", logs.Redaction(found for url in urls for found in logs.secrets_in(url)))
    structlog.configure(cache_logger_on_first_use=False)  # a cached logger would keep writing to this test's stderr
    try:
        async with serving(*urls, traces=Tracing(provider, "requests", "replies")) as service:
            replies = await exchange(amqp_url, [bad(), bad(b"{"), bad(b"<" + PAYLOAD.encode())])
            # a trigger refuses the row, and quotes it in its error message, as triggers do
            await refuse(database_url)
            replies += await exchange(
                amqp_url, [bad(json.dumps({"id": "9652e68c-7b6d-4598-bbbd-4e933126c994", "subject": PAYLOAD}).encode())]
            )
            # the role loses its login while the worker runs
            await asyncio.to_thread(postgresql.execute, f"ALTER ROLE {user} NOLOGIN")
            pages = [await page(service.http_port, path) for path in ("metrics", "status", "readyz", "livez", "x")]
    finally:
        structlog.reset_defaults()
        rabbitmq.api("DELETE", f"/users/{user}")
    spans = "".join(span.to_json() for span in exporter.get_finished_spans())
    told = capsys.readouterr()
    codes = [json.loads(reply)["code"] for reply in replies]
    assert codes == ["invalid_uuid", "malformed_json", "malformed_json", "refused_by_database"]
    assert '"event": "message"' in told.err
    assert told.out == ""
    for shown in (told.err, spans, *pages, *(reply.decode() for reply in replies)):
        assert shown
        for planted in (PAYLOAD, password, quote(password, safe=""), unquote(password)):
            assert planted not in shown


def bad(body: bytes | None = None) -> aio_pika.Message:
    record = {"id": PAYLOAD, "due_date": PAYLOAD, PAYLOAD: PAYLOAD}
    return aio_pika.Message(body or json.dumps(record).encode(), headers={"x-planted": PAYLOAD, PAYLOAD: "x"})


async def exchange(amqp_url: str, messages: list[aio_pika.Message]) -> list[bytes]:
    """Publish one message after the other; return the bodies of the replies."""
    bodies = []
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("task_activity_log.replies")
        async with queue.iterator(no_ack=True, timeout=20) as replies:
            for message in messages:
                await channel.default_exchange.publish(message, "task_activity_log.upsert")
                bodies.append((await anext(replies)).body)
    return bodies


async def refuse(database_url: str) -> None:

    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'not this: %', NEW.subject; END $$;"
            "CREATE TRIGGER refuse BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    finally:
        await connection.close()


async def page(port: int, path: str) -> str:
    def get() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.read().decode()

    return await asyncio.to_thread(get)

"""Passwords that change while a worker runs: the files of the URLs are read again for each connection."""

import asyncio
import secrets
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from sandbox import PostgreSQL, RabbitMQ
from sandbox.proxy import Proxy
from task_activity_log.service import Service
from task_activity_log.settings import load
from tests.faults.conversation import conversing, until


def with_login(url: str, user: str, password: str) -> str:
    """The URL with another login."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"))


async def test_passwords_may_change(
    rabbitmq: RabbitMQ, postgresql: PostgreSQL, amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    """Of the broker and of the database. A file that is not there for a while is waited for, and named."""
    user, vhost = f"u{secrets.token_hex(4)}", urlsplit(amqp_url).path[1:]
    amqp, database = tmp_path / "amqp", tmp_path / "database"

    async def rotate(verb: str) -> None:
        password = secrets.token_hex(8)
        await asyncio.to_thread(postgresql.execute, f"{verb} ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'")
        await asyncio.to_thread(rabbitmq.api, "PUT", f"/users/{user}", {"password": password, "tags": ""})
        amqp.write_text(with_login(to_broker.url, user, password))
        database.write_text(with_login(to_database.url, user, password))

    async with Proxy.to(amqp_url) as to_broker, Proxy.to(database_url) as to_database, conversing(amqp_url) as talk:
        await rotate("CREATE")
        rabbitmq.api("PUT", f"/permissions/{vhost}/{user}", {"configure": ".*", "write": ".*", "read": ".*"})
        files = {"AMQP_URL_FILE": str(amqp), "DATABASE_URL_FILE": str(database)}
        service = Service(load({**files, "HTTP_HOST": "127.0.0.1", "HTTP_PORT": "0"}))
        running = asyncio.create_task(service.run())
        try:
            await service.wait_consuming()
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
            database.rename(tmp_path / "away")
            to_database.cut()
            await talk.send()
            missing = "a URL cannot be read: DATABASE_URL_FILE: cannot be read (No such file or directory)"
            await until(lambda: service.status.hold_reason == missing)
            await rotate("ALTER")
            assert await talk.outcomes(1) == ["inserted"]
            await rotate("ALTER")
            to_broker.cut()
            to_database.cut()
            await talk.send()
            assert await talk.outcomes(1) in (["inserted"], ["duplicate"])
        finally:
            service.drain()
            await running
            await asyncio.to_thread(postgresql.execute, f"DROP ROLE {user}")
            rabbitmq.api("DELETE", f"/users/{user}")


@pytest.mark.parametrize("content", ["", "http://secret", "amqp://broker:99999/"])
async def test_a_broken_file_of_the_broker_is_waited_for(
    amqp_url: str, database_url: str, tmp_path: Path, content: str
) -> None:
    """Once the worker runs. At the start it is refused."""
    file = tmp_path / "amqp"
    async with Proxy.to(amqp_url) as proxy, conversing(amqp_url) as talk:
        file.write_text(proxy.url)
        settings = load(
            {"AMQP_URL_FILE": str(file), "DATABASE_URL": database_url, "HTTP_HOST": "127.0.0.1", "HTTP_PORT": "0"}
        )
        service = Service(settings)
        running = asyncio.create_task(service.run())
        try:
            await service.wait_consuming()
            file.write_text(content)
            proxy.cut()
            await until(lambda: service.status.not_ready() != [])
            file.write_text(proxy.url)
            await talk.send()
            assert await talk.outcomes(1) == ["inserted"]
        finally:
            service.drain()
            await running

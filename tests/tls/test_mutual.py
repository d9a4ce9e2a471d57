"""Mutual TLS to a real RabbitMQ and a real PostgreSQL, with a private certificate authority.

Needs the binaries of RabbitMQ and PostgreSQL, because it starts both with certificates: `make test` leaves these tests
out, `make test-tls` runs them.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import aio_pika
import asyncpg
import pytest

from sandbox import PostgreSQL, RabbitMQ, close, in_background, postgresql, rabbitmq
from sandbox.service import ServerTls
from task_activity_log.cli.check import findings
from task_activity_log.postgresql import migrations
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.problem import Unavailable
from task_activity_log.settings import load
from task_activity_log.tls import Tls
from tests.serving import serving
from tests.tls.authority import Authority

pytestmark = pytest.mark.tls


@dataclass
class Secured:
    """Both services, and the directory with the certificates: trusted ones, and ones of another authority."""

    broker: RabbitMQ
    database: PostgreSQL
    files: Path

    def settings(self, *, files: str = "ours", ca: str = "ours", certificate: bool = True) -> dict[str, str]:
        """The environment variables of a worker that uses these files."""
        own = {f"WORKER_{service}_CA_FILE": str(self.files / f"{ca}-ca.pem") for service in ("AMQP", "DATABASE")}
        if certificate:
            for service in ("AMQP", "DATABASE"):
                own[f"WORKER_{service}_CERTIFICATE_FILE"] = str(self.files / f"{files}.pem")
                own[f"WORKER_{service}_KEY_FILE"] = str(self.files / f"{files}-key.pem")
        return own

    @property
    def database_url(self) -> str:
        """The DSN with the host name that is in the server's certificate."""
        return self.database.url.replace("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    binaries = rabbitmq.find_binaries(), postgresql.find_binaries()
    for found in binaries:
        if isinstance(found, str):
            pytest.fail(f"{found}: install it (Debian and Ubuntu: rabbitmq-server, postgresql)", pytrace=False)
    files = tmp_path_factory.mktemp("tls")
    ours, strange = Authority("ours"), Authority("a stranger's")
    certificate, key = ours.issue("localhost")
    tls = ServerTls(ours.certificate, certificate, key)
    for name, authority in (("ours", ours), ("strange", strange)):
        (files / f"{name}-ca.pem").write_text(authority.certificate)
        for suffix, text in zip(("", "-key"), authority.issue("worker"), strict=True):
            (files / f"{name}{suffix}.pem").write_text(text)
    broker = in_background(lambda: rabbitmq.from_binaries(Path(binaries[0]), durable=False, tls=tls))
    database = in_background(lambda: postgresql.from_binaries(Path(binaries[1]), durable=False, tls=tls))
    yield Secured(broker.result(), database.result(), files)
    close(broker.result(), database.result())


async def test_a_worker_with_certificates_works_over_encrypted_connections_only(secured: Secured) -> None:
    """From migration to reply every connection is encrypted, and `check` finds nothing broken."""
    variables = secured.settings()
    urls = {"AMQP_URL": secured.broker.tls_url, "DATABASE_URL": secured.database_url}
    settings = load({**urls, **variables})
    await asyncio.to_thread(migrations.migrate, Connector(secured.database_url, tls=settings.database_tls))
    found = await findings(settings)
    assert [one for one in found if one.verdict == "broken"] == []
    tls = Tls(*(secured.files / name for name in ("ours-ca.pem", "ours.pem", "ours-key.pem")))
    async with serving(urls["AMQP_URL"], urls["DATABASE_URL"], traces=None, consuming=True, **variables):
        async with await aio_pika.connect(secured.broker.tls_url, ssl_context=tls.context()) as connection:
            channel = await connection.channel()
            message = aio_pika.Message(json.dumps({"id": str(uuid4())}).encode())
            await channel.default_exchange.publish(message, "task_activity_log.upsert")
            replies = await channel.get_queue("task_activity_log.replies")
            async with replies.iterator(no_ack=True, timeout=20) as coming:
                assert (await anext(coming)).headers["x-outcome"] == "inserted"
        database = await asyncpg.connect(secured.database_url, ssl=tls.context())
        others = await database.fetch(
            "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            " WHERE application_name = 'task-activity-log-worker'"
        )
        await database.close()
        assert {row["ssl"] for row in others} == {True}


_TURNED_AWAY = "reset|alert|closed"
"""With TLS 1.3 the server refuses a client after the client's handshake: it gets an alert, or the connection ends."""


@pytest.mark.parametrize(
    ("files", "broker_says", "advice", "database_says"),
    [
        ({"certificate": False}, _TURNED_AWAY, "requires client certificates", "access refused"),
        (
            {"files": "strange"},
            _TURNED_AWAY,
            "requires client certificates",
            "TLS failed: database|connection lost",
        ),
        ({"ca": "strange"}, "certificate verify failed", "WORKER_AMQP_CA_FILE", "certificate not accepted"),
    ],
)
async def test_no_connection_is_made_without_trust_on_both_sides(
    secured: Secured, files: dict[str, str], broker_says: str, advice: str, database_says: str
) -> None:
    """The servers refuse a worker without a trusted certificate, and the worker refuses servers without one."""
    urls = {"AMQP_URL": secured.broker.tls_url, "DATABASE_URL": secured.database_url}
    found = await findings(load({**urls, **secured.settings(**files)}))  # type: ignore[arg-type]  # as it is called
    broken = {one.what: one.found for one in found if one.verdict == "broken"}
    assert set(broken) == {"broker", "database"}
    assert re.search(broker_says, broken["broker"])
    assert [advice in one.advice for one in found if one.what == "broker"] == [True]
    assert re.search(database_says, broken["database"])


async def test_a_server_whose_certificate_has_another_name_is_refused(secured: Secured) -> None:
    """The worker does not connect to 127.0.0.1 if the certificate is for localhost."""
    urls = {"AMQP_URL": secured.broker.tls_url, "DATABASE_URL": secured.database_url}
    by_number = {
        name: urlunsplit(urlsplit(url)._replace(netloc=urlsplit(url).netloc.replace("localhost", "127.0.0.1")))
        for name, url in urls.items()
    }
    found = await findings(load({**by_number, **secured.settings()}))
    assert {one.what for one in found if one.verdict == "broken"} == {"broker", "database"}


def _with(secured: Secured, host: str, options: str) -> str:
    """The database's URL with another host, these options, and our client certificate."""
    own = f"sslcert={secured.files}/ours.pem&sslkey={secured.files}/ours-key.pem"
    return f"{secured.database.url.replace('127.0.0.1', host)}?{own}&{options}"


@pytest.mark.parametrize(
    ("host", "options", "trusted"),
    [
        ("localhost", "sslmode=verify-full", "ours"),
        ("localhost", "sslrootcert=system", "ours"),
        ("localhost", "sslmode=verify-ca", "ours"),
        ("localhost", "sslmode=verify-full&hostaddr=127.0.0.1", "ours"),
        ("localhost", "sslmode=verify-full&sslrootcert={files}/ours-ca.pem", "strange"),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert={files}/ours-ca.pem", "strange"),
        ("127.0.0.1", "sslmode=require", "strange"),
        ("127.0.0.1", "sslmode=require&sslsni=0", "strange"),
        ("127.0.0.1", "sslmode=prefer", "strange"),
        ("127.0.0.1", "sslmode=prefer&sslrootcert={files}/ours-ca.pem", "strange"),
        ("127.0.0.1", "sslmode=require&ssl_min_protocol_version=TLSv1.3", "strange"),
    ],
)
async def test_sslmode_of_the_url(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, host: str, options: str, trusted: str
) -> None:
    """verify-full uses the system's authorities, which SSL_CERT_FILE replaces, and the name, not the address."""
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.files / f"{trusted}-ca.pem"))
    connector = Connector(
        _with(secured, host, options.format(files=secured.files)), environment={"HOME": str(secured.files)}
    )
    connection = await connector.connect(command_timeout=10)
    assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await connection.close()


@pytest.mark.parametrize(
    ("host", "options", "label", "said"),
    [
        (
            "localhost",
            "sslmode=verify-full",
            "certificate not accepted",
            "self-signed certificate in certificate chain",
        ),
        ("localhost", "sslrootcert=system", "certificate not accepted", "self-signed certificate in certificate chain"),
        ("localhost", "sslmode=verify-ca", "certificate not accepted", "self-signed certificate in certificate chain"),
        (
            "127.0.0.1",
            "sslmode=verify-full&sslrootcert={files}/ours-ca.pem",
            "certificate not accepted",
            "IP address mis",
        ),
        (
            "localhost",
            "sslmode=require&sslrootcert={files}/strange-ca.pem",
            "certificate not accepted",
            "self-signed certificate in certificate chain",
        ),
        ("localhost", "sslmode=require&sslcertmode=disable", "access refused (28000)", "valid client certificate"),
    ],
)
async def test_what_a_certificate_lacks_is_named(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, host: str, options: str, label: str, said: str
) -> None:
    """The reason has the cause, the database and the server."""
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.files / "strange-ca.pem"))
    connector = Connector(
        _with(secured, host, options.format(files=secured.files)), environment={"HOME": str(secured.files)}
    )
    with pytest.raises(Unavailable) as caught:
        await connector.connect(command_timeout=10)
    assert caught.value.label == label
    assert said in caught.value.reason
    assert f"database task_activity_log at {host}:" in caught.value.reason


async def test_with_prefer_a_certificate_that_is_not_accepted_is_as_no_tls(secured: Secured) -> None:
    """As with libpq: the connection is tried without TLS. If that fails too, both reasons are given."""
    url = _with(secured, "localhost", f"sslmode=prefer&sslrootcert={secured.files}/strange-ca.pem")
    connection = await Connector(url).connect(command_timeout=10)
    assert not await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await connection.close()
    refused = Connector(url.replace("/task_activity_log?", "/no_such_database?"))
    with pytest.raises(Unavailable, match=r"^certificate not accepted: .*; without TLS: no such database \(3D000\)"):
        await refused.connect(command_timeout=10)

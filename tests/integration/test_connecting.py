"""Connecting: each way to name the database works, and an outage names the database, the server and the true cause."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import pytest

from sandbox.service import free_port
from task_activity_log.postgresql import connecting
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.postgresql.connection import ServerConnection
from task_activity_log.postgresql.store import Store
from task_activity_log.problem import Unavailable
from tests.asking import Connection, ask
from tests.commands import command


@asynccontextmanager
async def connected(text: str, **environment: str) -> AsyncIterator[ServerConnection]:
    """A connection as the worker opens it."""
    connector = Connector(text, connect_timeout=5, environment={"HOME": "/nonexistent", **environment})
    connection = await connector.connect(command_timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


async def failure(text: str, *, connect_timeout: float = 5, **environment: str) -> Unavailable:
    """Why connecting fails."""
    connector = Connector(text, connect_timeout=connect_timeout, environment={"HOME": "/nonexistent", **environment})
    with pytest.raises(Unavailable) as caught:
        await connector.connect(command_timeout=10)
    assert caught.value.__context__ is None  # the driver's error may quote a secret
    return caught.value


def changed(url: str, **parts: str) -> str:
    """The URL with other parts: `path`, `query` or `netloc`."""
    return urlunsplit(urlsplit(url)._replace(**parts))


def login_of(url: str) -> str:
    """User and password of a URL."""
    return urlsplit(url).netloc.rpartition("@")[0]


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server that is no PostgreSQL: it answers each connection with this. Yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        writer.close()

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = loop.create_task(asyncio.start_server(serve, sock=listener))
        yield listener.getsockname()[1]
        serving.result().close()


async def test_every_form_connects(database_url: str, tmp_path: Path) -> None:
    """A URL, options in place of its parts, pairs, variables, a service, and a password file."""
    parts = urlsplit(database_url)
    name, login, secret = parts.path[1:], str(parts.username), str(parts.password)
    port = str(parts.port)
    (tmp_path / ".pg_service.conf").write_text(f"[mine]\nhost=127.0.0.1\nport={port}\ndbname={name}\nuser={login}\n")
    (tmp_path / ".pgpass").write_text(f"127.0.0.1:{port}:{name}:{login}:{secret}\n")
    (tmp_path / ".pgpass").chmod(0o600)
    home = {"HOME": str(tmp_path)}
    variables = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGDATABASE": name, "PGUSER": login, "PGPASSWORD": secret}
    every: list[tuple[str, dict[str, str]]] = [
        (database_url, {}),
        (f"postgresql://{login_of(database_url)}@/{name}?host=127.0.0.1&port={port}", {}),
        (f"postgresql://{login_of(database_url)}@127.0.0.1:{port}/?dbname={name}", {}),
        (f"postgresql://127.0.0.1:{port}/{name}?user={login}&password={secret}", {}),
        (f"host=127.0.0.1 port={port} dbname={name} user={login} password='{secret}'", {}),
        (f"postgresql://{login_of(database_url)}@no.such.host.invalid/{name}?hostaddr=127.0.0.1&port={port}", {}),
        ("postgresql://?service=mine", home),
        (f"postgresql://{login}@127.0.0.1:{port}/{name}", home),
        (f"postgresql://{login}@127.0.0.1:{port}/{name}?passfile={tmp_path}/.pgpass", {}),
        ("postgresql://", variables),
        (
            database_url
            + "?connect_timeout=5&channel_binding=prefer&keepalives=1&keepalives_idle=30&gssencmode=disable"
            "&fallback_application_name=x&sslcompression=0&sslmode=prefer&load_balance_hosts=random",
            {},
        ),
    ]
    for text, environment in every:
        async with connected(text, **environment) as connection:
            assert await connection.fetchval("SELECT current_database()") == name


async def test_options_reach_the_server_and_the_socket(database_url: str) -> None:
    """`options` and the server's own settings; and keepalives, which libpq has on unless they are switched off."""
    query = "?options=-c%20lock_timeout%3D7s%20-c%20geqo%3Doff&statement_timeout=9s&keepalives_idle=33"
    async with connected(changed(database_url, query=query[1:])) as connection:
        for name, value in (("lock_timeout", "7s"), ("geqo", "off"), ("statement_timeout", "9s")):
            assert await connection.fetchval(f"SHOW {name}") == value
        assert connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 33
    async with connected(changed(database_url, query="keepalives=0")) as connection:
        assert not connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("", "task-activity-log-worker"),
        ("fallback_application_name=x", "x"),
        ("fallback_application_name=x&application_name=mine", "mine"),
    ],
)
async def test_the_connection_has_an_application_name(database_url: str, query: str, name: str) -> None:
    """pg_stat_activity shows the name of the program, unless the connection string has another one."""
    async with connected(changed(database_url, query=query)) as connection:
        assert await connection.fetchval("SHOW application_name") == name


class TestCauses:
    """The reason has the label, the database, the server, and what is known. It never has the password."""

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"path": "/nowhere"}, 'no such database (3D000): database nowhere at {host}: database "no'),
            ({"netloc": "u:secret@127.0.0.1:1"}, "connection refused: database {name} at 127.0.0.1:1"),
            ({"netloc": "u:secret@no-such-host.invalid"}, "no such host: database {name} at no-such-host.invalid:5432: "),
            ({"netloc": "u:secret@{host}"}, "wrong password (28P01): database {name} at {host}: password authentication"),
            (
                {"netloc": "u@{host}"},
                'wrong password (28P01): database {name} at {host}: password authentication failed for user "u"; no pass',
            ),
            ({"query": "sslmode=require"}, "no TLS: database {name} at {host}: the server does not offer it"),
            ({"query": "sslmode=verify-full"}, "no TLS: database {name} at {host}: the server does not offer it"),
            (
                {"query": "options=-c%20fooo%3Dbar"},
                'option refused (42704): database {name} at {host}: unrecognized configuration parameter "fooo"',
            ),
            (
                {"query": "statement_timeout=abc"},
                'option refused (22023): database {name} at {host}: invalid value for parameter "statement_timeout"',
            ),
            ({"netloc": "u:secret@", "query": "host=/nonexistent"}, "no socket: database {name} at /nonexistent:5432: /none"),
            (
                {"netloc": "somebody:se/cret@127.0.0.1:1"},
                "the database URL cannot be used: has an @ in the name of the database; encode these characters",
            ),
        ],
    )  # fmt: skip
    async def test_one_server(self, database_url: str, change: dict[str, str], expected: str) -> None:
        """Each cause has its own words."""
        host, name = urlsplit(database_url).netloc.rpartition("@")[2], urlsplit(database_url).path[1:]
        url = changed(database_url, **{part: text.replace("{host}", host) for part, text in change.items()})
        found = await failure(url)
        assert found.reason.startswith(expected.format(host=host, name=name))
        assert found.reason.startswith(found.label)
        assert "secret" not in found.reason

    async def test_a_server_that_does_not_answer(self) -> None:
        """Connecting ends after the timeout of the settings, or that of the connection string."""
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            where = f"127.0.0.1:{deaf.getsockname()[1]}"
            url = f"postgresql://u:secret@{where}/d"
            found = await failure(url, connect_timeout=0.1)
            assert found.reason == f"connect timeout: database d at {where}: no answer within 0.1 s"
            found = await failure(f"{url}?connect_timeout=1", connect_timeout=60)
            assert found.reason == f"connect timeout: database d at {where}: no answer within 1 s"

    @pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\0\0\x09\x01", b""])
    async def test_another_program_listens_there(self, answer: bytes) -> None:
        """As with a wrong port."""
        with answering(answer) as port:
            for mode in ("disable", "prefer"):
                found = await failure(f"postgresql://u:secret@127.0.0.1:{port}/d?sslmode={mode}")
                assert found.label in ("not PostgreSQL", "connection lost")
                assert f"database d at 127.0.0.1:{port}" in found.reason

    async def test_a_server_that_quotes_the_password_or_controls_the_terminal(self) -> None:
        """Its text is shown in one printable line, or not at all."""
        for said, shown in (("you said secret", ""), ("a\x1b[2Jb\nc", ": a [2Jb c")):
            fields = b"SFATAL\0VFATAL\0C28P01\0M" + said.encode() + b"\0\0"
            with answering(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields) as port:
                found = await failure(f"postgresql://u:secret@127.0.0.1:{port}/d?sslmode=disable")
                assert found.reason == f"wrong password (28P01): database d at 127.0.0.1:{port}{shown}"

    async def test_several_servers(self, database_url: str) -> None:
        """Each is named with its own cause."""
        host = urlsplit(database_url).netloc.rpartition("@")[2]
        found = await failure(f"postgresql://u:secret@127.0.0.1:1,no-such-host.invalid,{host}/d")
        assert found.label == "no host can be used"
        for cause in (
            "127.0.0.1:1: connection refused",
            "invalid:5432: no such host",
            f"{host}: wrong password (28P01)",
        ):
            assert cause in found.reason
        found = await failure("postgresql://u:secret@127.0.0.1:1,127.0.0.1:2/d")
        assert found.reason == (
            "connection refused: database d at 127.0.0.1:1: connection refused; 127.0.0.1:2: connection refused"
        )


async def test_each_host_has_its_own_timeout(database_url: str) -> None:
    """If the first ones do not answer, or refuse, the next one is used, in each form."""
    parts = urlsplit(database_url)
    login, _, host = parts.netloc.rpartition("@")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        ports = f"{deaf.getsockname()[1]},{free_port()},{parts.port}"
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports.split(","))
        for url in (
            f"postgresql://{login}@{hosts}{parts.path}",
            f"postgresql://{login}@{parts.path}?host=127.0.0.1,127.0.0.1,127.0.0.1&port={ports}",
            f"postgresql://{login}@127.0.0.1,127.0.0.1,127.0.0.1{parts.path}?port={ports}",
        ):
            async with connected(url) as connection:
                assert connection.place == host


def name_two_addresses(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Have the name db.test mean these addresses; 127.0.0.2 and 127.0.0.1 if none are given."""
    system = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host not in ("db.test", b"db.test"):
            return system(host, port, *arguments, **options)
        found = addresses or ("127.0.0.2", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (one, int(port))) for one in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


async def test_each_address_of_a_name_is_tried(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its own timeout. The reason names the address."""
    parts = urlsplit(database_url)
    name_two_addresses(monkeypatch)
    netloc = f"{login_of(database_url)}@db.test:{parts.port}"
    with socket.create_server(("127.0.0.2", parts.port or 0)):  # it accepts connections and never answers
        async with connected(changed(database_url, netloc=netloc, query="connect_timeout=3")) as connection:
            assert connection.place == f"db.test:{parts.port} (127.0.0.1)"


@pytest.mark.parametrize("first", ["127.0.0.1", "127.0.0.2"])
async def test_an_address_that_nobody_answers_does_not_hide_why_another_one_refuses(
    monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """In either order: names often have an IPv6 address too that is not reachable. The same cause is named once."""
    name_two_addresses(monkeypatch, first, "127.0.0.2" if first == "127.0.0.1" else "127.0.0.1")
    fields = b"SFATAL\0VFATAL\0C28P01\0Mno\0\0"
    with answering(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields) as port:
        reason = (await failure(f"postgresql://u:secret@db.test:{port}/d?sslmode=disable")).reason
        assert f"db.test:{port} (127.0.0.1): wrong password (28P01)" in reason
        assert f"db.test:{port} (127.0.0.2): connection refused" in reason
    assert (await failure(f"postgresql://u@db.test:{port}/d")).reason.count("connection refused") == 1


async def test_an_old_primary_behind_a_name_does_not_hide_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both accept writes. The address of the old one comes first, and a later timeline was seen before."""
    name_two_addresses(monkeypatch)

    async def opened(_: object, __: object, address: str, place: str, **___: object) -> Mock:
        timeline = 1 if address == "127.0.0.2" else 2
        return Mock(place=place, writable=True, cluster=7, timeline=timeline, close=AsyncMock())

    monkeypatch.setattr(connecting._Opener, "_open", opened)
    connector = Connector("postgresql://u@db.test/d")
    assert (await connector.connect(command_timeout=1)).timeline == 1
    connector._timelines[7] = 2
    assert (await connector.connect(command_timeout=1)).timeline == 2


async def test_a_way_to_log_in_that_needs_a_package_is_named() -> None:
    """GSSAPI: the server is PostgreSQL, and the driver lacks what it needs."""

    async def ask_for_kerberos(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(b"R" + (8).to_bytes(4, "big") + (7).to_bytes(4, "big"))
        writer.close()

    server = await asyncio.start_server(ask_for_kerberos, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert (await failure(f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable")).label == "login not supported"
    server.close()


async def test_a_missing_line_of_pg_hba_is_tried_without_tls_and_then_named() -> None:
    """28000 is an answer about the kind of connection; 28P01, a wrong password, is not, and is asked once."""
    codes: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        fields = b"SFATAL\0VFATAL\0C" + codes.pop() + b"\0Mno\0\0"
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for code, times in ((b"28000", 2), (b"28P01", 1)):
        codes[:] = [code] * 3
        await failure(f"postgresql://u:secret@127.0.0.1:{port}/d?sslmode=allow")
        assert len(codes) == 3 - times
    server.close()


async def test_a_pooler_that_ends_the_connection_after_the_login_says_why() -> None:
    """Such as pgbouncer while it is paused (query_wait_timeout): the login itself is its own."""

    def message(kind: bytes, content: bytes) -> bytes:
        return kind + (len(content) + 4).to_bytes(4, "big") + content

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(message(b"R", bytes(4)) + message(b"S", b"server_version\0" + b"17.0\0") + message(b"Z", b"I"))
        await reader.read(1024)
        writer.write(message(b"E", b"SFATAL\0VFATAL\0C08P01\0Mquery_wait_timeout\0\0"))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reason = (await failure(f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable")).reason
    assert reason == f"login refused (08P01): database d at 127.0.0.1:{port}: query_wait_timeout"
    server.close()


async def test_a_server_that_ends_the_connection_within_a_statement_is_postgresql(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver says of itself that it is in the wrong state. The login has succeeded."""

    async def ended(_: object) -> None:
        raise asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")

    monkeypatch.setattr(ServerConnection, "remember_settings", ended)
    assert (await failure(database_url)).reason.endswith("the server closed it during the login: is it PostgreSQL?")
    assert (await failure(database_url)).label == "connection lost"


async def test_a_link_local_address_keeps_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the system cannot connect."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", address) for address in (("fe80::1", 1, 0, 2), ("::1", 1, 0, 0))
    ]
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", AsyncMock(return_value=found))
    used: list[str] = []

    async def opened(_: object, __: object, address: str, *___: object, **____: object) -> None:
        used.append(address)
        raise OSError

    monkeypatch.setattr(connecting._Opener, "_log_in", opened)
    await failure("postgresql://u@db.test/d?sslmode=disable")
    assert used == ["fe80::1%2", "::1"]


@pytest.mark.parametrize("name", ["migrate", "check"])
@pytest.mark.parametrize("option", ["sslmode=bogus", "foo=bar", "channel_binding=require"])
async def test_a_command_ends_at_once_if_it_can_never_connect(amqp_url: str, name: str, option: str) -> None:
    """With exit code 2 and one line, which names the option."""
    said = await command(name, AMQP_URL=amqp_url, DATABASE_URL=f"postgresql://u:secret@127.0.0.1:1/d?{option}")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert option.partition("=")[0] in said.err
    assert "secret" not in said.err


async def test_a_command_names_the_server_and_the_cause(database_url: str) -> None:
    """In one line."""
    url = changed(database_url, netloc=urlsplit(database_url).netloc, path="/" + quote("no such"))
    said = await command("migrate", DATABASE_URL=url)
    host = urlsplit(database_url).netloc.rpartition("@")[2]
    assert said.code == 1
    assert said.err.startswith(
        f"task-activity-log: not migrated: no such database (3D000): database no such at {host}: "
    )
    assert said.err.count("\n") == 1


async def test_a_statement_names_the_server_too(database_url: str, database: Connection) -> None:
    """An outage that begins later, such as a full disk, has the database and the server as well."""
    await database.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '53100'; END $$;"
        "CREATE TRIGGER fail BEFORE INSERT ON task_activity_log FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    store = Store(database_url)
    with pytest.raises(Unavailable) as caught:
        await store.apply([ask()])
    await store.close()
    parts = urlsplit(database_url)
    assert caught.value.reason == f"disk full (53100): database {parts.path[1:]} at 127.0.0.1:{parts.port}"
    assert caught.value.label == "disk full (53100)"

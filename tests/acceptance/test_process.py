"""The whole program as its users run it: the command, its HTTP port, its queues and its signals."""

import asyncio
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

SAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "samples"
COMMAND = str(Path(sys.executable).parent / "task-activity-log")
SAMPLE_ID = "9652e68c-7b6d-4598-bbbd-4e933126c994"


class Process:
    """A running `task-activity-log run`, and the events in its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, object]] = []
        self.port = 0

    async def event(self, name: str) -> dict[str, object]:
        """Read the log until the event `name`, and return it."""
        assert self._process.stderr is not None
        async with asyncio.timeout(30):
            while line := await self._process.stderr.readline():
                event: dict[str, object] = json.loads(line)
                self.events.append(event)
                if event["event"] == name:
                    return event
        raise AssertionError(f"ended without {name}: {self.events}")

    async def get(self, path: str) -> tuple[int, str]:
        """The status and text of a page of the worker's HTTP port."""
        return await asyncio.to_thread(fetch, f"http://127.0.0.1:{self.port}{path}")

    async def ready(self) -> None:
        """Wait until it consumes: the intake's connection is the last one to be opened."""
        while (await self.event("broker_connected"))["link"] != "intake":
            pass

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self._process.send_signal(number)
        async with asyncio.timeout(15):
            assert self._process.stderr is not None
            self.events += [json.loads(line) for line in (await self._process.stderr.read()).splitlines()]
            return await self._process.wait()


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own port
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "SSL_CERT_FILE")}
    return {**kept, "HTTP_HOST": "127.0.0.1", "HTTP_PORT": "0", "LOG_FORMAT": "json", **variables}


@asynccontextmanager
async def running(variables: Mapping[str, str]) -> AsyncIterator[Process]:
    child = await asyncio.create_subprocess_exec(
        COMMAND, "run", env=environment(**variables), stderr=asyncio.subprocess.PIPE
    )
    process = Process(child)
    try:
        process.port = int(str((await process.event("started"))["http_port"]))
        yield process
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def command(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run a command; return its exit code, standard output and standard error."""
    child = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        env=environment(**variables),
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await child.communicate()
    return child.returncode or 0, out.decode(), err.decode()


async def test_records_are_stored_and_answered_from_migration_to_shutdown(
    amqp_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    """Migrate, run, publish both samples and a bad record, and stop: replies, pages, metrics and row are right."""
    code, out, err = await command("migrate", DATABASE_URL=empty_database_url)
    assert (code, err) == (0, ""), err
    bad = tmp_path / "bad.json"
    bad.write_text('{"id": "not a uuid", "due_date": "tomorrow"}')
    async with running({"AMQP_URL": amqp_url, "DATABASE_URL": empty_database_url}) as process:
        await process.ready()
        assert await process.get("/readyz") == (200, "ok\n")
        samples = (str(SAMPLES / "record.json"), str(SAMPLES / "record.xml"))
        code, out, err = await command("publish", "--send-invalid", *samples, str(bad), AMQP_URL=amqp_url)
        assert code == 3, err
        stored, updated, problem = sorted(out.splitlines(), key=lambda line: ("problem" in line, line[0] == "<"))
        assert json.loads(stored)["id"] == SAMPLE_ID
        assert json.loads(stored)["modified_dateutc"] is not None
        assert f"<id>{SAMPLE_ID}</id>" in updated
        assert [error["code"] for error in json.loads(problem)["errors"]] == ["invalid_uuid", "invalid_date"]
        assert await process.get("/livez") == (200, "ok\n")
        status, metrics = await process.get("/metrics")
        assert status == 200
        assert 'task_activity_log_messages_total{outcome="inserted"} 1.0' in metrics
        assert 'task_activity_log_rejected_total{code="invalid_uuid"} 1.0' in metrics
        assert json.loads((await process.get("/status"))[1])["consuming"] is True
        assert await process.end() == 0
    connection = await asyncpg.connect(empty_database_url)
    assert await connection.fetchval("SELECT count(*) FROM task_activity_log") == 1
    await connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_idle_worker_with_0(amqp_url: str, database_url: str, number: signal.Signals) -> None:
    """An idle worker that gets SIGTERM or SIGINT drains, logs that, and exits with 0."""
    async with running({"AMQP_URL": amqp_url, "DATABASE_URL": database_url}) as process:
        await process.ready()
        assert await process.end(number) == 0
        assert [event["event"] for event in process.events][-3:] == ["draining", "drained", "stopped"]


@pytest.mark.parametrize("missing", ["AMQP_URL", "DATABASE_URL"])
async def test_an_unreachable_service_is_waited_for(amqp_url: str, database_url: str, missing: str) -> None:
    """The worker logs the reason without credentials, is alive but not ready, and SIGTERM still ends it with 0."""
    nobody = {"AMQP_URL": "amqp://guest:secret@127.0.0.1:1/", "DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/x"}
    urls = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url}
    async with running({**urls, missing: nobody[missing]}) as process:
        event = await process.event("broker_unavailable" if missing == "AMQP_URL" else "holding")
        assert event["reason"]
        assert (await process.get("/readyz"))[0] == 503
        assert (await process.get("/livez"))[0] == 200
        assert await process.end() == 0
        assert "secret" not in json.dumps(process.events)


async def test_a_database_that_is_not_migrated_is_waited_for(amqp_url: str, empty_database_url: str) -> None:
    """The worker says that its schema is missing, and starts to consume when it exists."""
    async with running({"AMQP_URL": amqp_url, "DATABASE_URL": empty_database_url}) as process:
        assert "not migrated" in str((await process.event("holding"))["reason"])
        await command("migrate", DATABASE_URL=empty_database_url)
        await process.ready()
        assert await process.end() == 0


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({}, "AMQP_URL is not set"),
        ({"AMQP_URL": "localhost", "DATABASE_URL": "postgresql://x"}, "AMQP_URL: should begin with amqp://"),
        ({"AMQP_URL": "amqp://x", "DATABASE_URL": "postgresql://x", "WORKER_X": "1"}, "WORKER_X is not a setting"),
        ({"AMQP_URL": "amqp://x", "DATABASE_URL": "postgresql://x?foo=secret"}, "DATABASE_URL: unknown option foo"),
        ({"AMQP_URL": "amqp://x", "DATABASE_URL": "postgresql://x?sslmode=bogus"}, "DATABASE_URL: sslmode should have"),
    ],
)
async def test_a_wrong_setting_is_one_line_and_exit_code_2(variables: dict[str, str], line: str) -> None:
    """A wrong setting is reported before the worker connects to anything."""
    code, out, err = await command("run", **variables)
    assert (code, out) == (2, "")
    assert f"task-activity-log: {line}" in err
    assert "Traceback" not in err


async def test_a_taken_port_is_one_line_and_exit_code_2(amqp_url: str, database_url: str) -> None:
    """The error names the setting of the port."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    code, _, err = await command("run", AMQP_URL=amqp_url, DATABASE_URL=database_url, HTTP_PORT=str(port))
    server.close()
    assert code == 2
    assert f"HTTP_PORT={port}" in err
    assert "Traceback" not in err


async def test_an_address_of_another_machine_is_one_line_and_exit_code_2(amqp_url: str, database_url: str) -> None:
    """The error says which setting to change: another port would not help."""
    code, _, err = await command("run", AMQP_URL=amqp_url, DATABASE_URL=database_url, HTTP_HOST="192.0.2.1")
    assert code == 2
    assert err.startswith("task-activity-log: cannot listen on HTTP_HOST=192.0.2.1 ")
    assert err.endswith("; set HTTP_HOST to a name or an address of this machine\n")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.json", None, "missing.json: No such file or directory"),
        ("bad.json", b'{"id":\n nope}', "bad.json:2:2: is not JSON"),
        ("bad.jsonl", f'{{"id": "{SAMPLE_ID}"}}\n\n {{]\n'.encode(), "bad.jsonl:3:3: is not JSON"),
        ("latin1.json", b'{"id": 1,\n"subject": "\xc3\xa9 \xe9"}', "latin1.json:2:15: is not UTF-8"),
        ("records.txt", b"id", "records.txt: the name does not end in .json, .jsonl, .ndjson, .xml or .csv"),
        ("records.csv", b"Nummer\n1\n", "records.csv:1: has no column id"),
    ],
)
async def test_an_unreadable_file_is_one_line_and_nothing_is_sent(
    amqp_url: str, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    """`publish` reports file, line and reason, and exits with 1."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = await command("publish", str(tmp_path / name), AMQP_URL=amqp_url)
    assert (code, out) == (1, "")
    assert reason in err
    assert err.count("\n") == 1
    assert "nothing was sent from it" in err


async def test_a_file_of_xml_that_is_not_well_formed_is_an_invalid_record(amqp_url: str, tmp_path: Path) -> None:
    """It has one record, so it is reported like any other that is known to be invalid, with its line."""
    (tmp_path / "bad.xml").write_bytes(b"<a>\n<b></a>")
    code, out, err = await command("publish", str(tmp_path / "bad.xml"), AMQP_URL=amqp_url)
    assert (code, out) == (3, "")
    assert "bad.xml:2:8: not sent: malformed_xml" in err


async def test_publishing_before_a_worker_has_declared_the_exchange_says_so(amqp_url: str, tmp_path: Path) -> None:
    """Without the exchange, `publish` fails with one line that mentions the worker."""
    (tmp_path / "a.json").write_text(f'{{"id": "{SAMPLE_ID}"}}')
    code, _, err = await command("publish", str(tmp_path / "a.json"), AMQP_URL=amqp_url)
    assert code == 1
    assert err.count("\n") == 1
    assert "worker" in err


async def test_publishing_to_an_unreachable_broker_says_so(tmp_path: Path) -> None:
    """The error has the host and the reason, but not the password."""
    (tmp_path / "a.json").write_text(f'{{"id": "{SAMPLE_ID}"}}')
    code, _, err = await command("publish", str(tmp_path / "a.json"), AMQP_URL="amqp://u:secret@127.0.0.1:1/")
    assert code == 1
    assert err.count("\n") == 1
    assert "127.0.0.1:1" in err
    assert "secret" not in err

"""Health and metrics over HTTP."""

import asyncio
import http.client
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from task_activity_log.telemetry.health import Health, HealthServer
from task_activity_log.telemetry.logs import Redaction


@contextmanager
def serving(*, ready: list[str] | None = None, alive: list[str] | None = None) -> Iterator[tuple[Health, str]]:
    health = Health(
        ready=lambda: ready or [], alive=lambda: alive or [], status=lambda: {"a": 1}, metrics=lambda: b"m 1\n"
    )
    server = HealthServer(health, "127.0.0.1", 0)
    try:
        yield health, f"http://127.0.0.1:{server.port}"
    finally:
        server.close()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - our own port
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("path", "text"), [("/livez", "ok\n"), ("/readyz?verbose", "ok\n"), ("/metrics", "m 1\n"), ("/status", '{"a": 1}')]
)
def test_a_healthy_worker_answers_200(path: str, text: str) -> None:
    """Each page has its content."""
    with serving() as (_, url):
        assert get(url + path) == (200, text)


def test_head_is_get_without_a_body() -> None:
    """Load balancers and `curl -I` ask so."""
    with serving(ready=["not consuming"]) as (_, url):
        for path, status in (("/livez", 200), ("/readyz", 503), ("/metrics", 200), ("/secrets", 404)):
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
            connection.request("HEAD", path)
            response = connection.getresponse()
            expected = len(get(url + path)[1])
            assert (response.status, response.read(), response.headers["Content-Length"]) == (
                status,
                b"",
                str(expected),
            )
            connection.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_only_get_and_head_are_allowed(method: str) -> None:
    """Others are 405 with the methods that are allowed, in plain text. A path that does not exist is 404 for all."""
    with serving() as (_, url):
        for path, status, allow in (("/metrics", 405, "GET, HEAD"), ("/secrets", 404, None)):
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
            connection.request(method, path)
            response = connection.getresponse()
            assert (response.status, response.headers["Allow"], response.headers.get_content_type()) == (
                status,
                allow,
                "text/plain",
            )
            assert response.read().startswith(b"the ")
            connection.close()


def test_reasons_are_503_each_on_a_line() -> None:
    """A worker that is not ready can still be alive."""
    with serving(ready=["holding: database down", "not consuming"]) as (_, url):
        assert get(f"{url}/readyz") == (503, "holding: database down\nnot consuming\n")
        assert get(f"{url}/livez")[0] == 200


def test_an_unknown_path_is_404() -> None:
    """The response names the paths that exist."""
    with serving() as (_, url):
        assert get(f"{url}/secrets") == (404, "the paths are /livez, /readyz, /metrics and /status\n")


def test_a_worker_whose_event_loop_is_blocked_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The response is 503 with the reason, and it is served while the loop is blocked."""
    monkeypatch.setattr("task_activity_log.telemetry.health._STUCK_SECONDS", 0.05)
    with serving() as (health, url):

        async def block() -> None:
            beating = asyncio.create_task(health.beat())
            await asyncio.sleep(0)
            deadline = time.monotonic() + 5
            while get(f"{url}/livez")[0] == 200:  # blocks the loop, on purpose
                assert time.monotonic() < deadline
            assert "the event loop has been blocked for" in get(f"{url}/readyz")[1]
            beating.cancel()

        asyncio.run(block())


def test_a_drivers_message_is_shown_without_secrets() -> None:
    """This holds for each page that shows reasons."""
    health = Health(
        ready=lambda: ["holding: hunter2hunter2 is wrong"],
        alive=list,
        status=lambda: {"holds": ["amqp://a:b@c"]},
        metrics=bytes,
        redact=Redaction({"hunter2hunter2"}).text,
    )
    pages = [health.answer(path)[2] for path in ("/readyz", "/status")]
    assert pages == [b"holding: *** is wrong\n", b'{"holds": ["amqp://***@c"]}']


def test_a_password_that_is_an_ordinary_word_changes_no_page() -> None:
    """Names of members, and label values, could be the same word: `outcome="***"` would tell the password."""
    health = Health(
        ready=lambda: ["holding: the database is rejected"],
        alive=list,
        status=lambda: {"rejected": {"place": "rejected"}},
        metrics=lambda: b'm{outcome="rejected"} 1\n',
        redact=Redaction({"rejected"}).text,
    )
    pages = [health.answer(path)[2] for path in ("/readyz", "/status", "/metrics")]
    assert pages == [
        b"holding: the database is rejected\n",
        b'{"rejected": {"place": "rejected"}}',
        b'm{outcome="rejected"} 1\n',
    ]


def test_slow_clients_do_not_keep_a_probe_waiting() -> None:
    """There are twice as many as are served at once, each with half a request: the oldest are cut off."""
    with serving() as (_, url), ExitStack() as stack:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(32):
            client = stack.enter_context(socket.create_connection(address, timeout=5))
            client.sendall(b"GET /livez HT")
        started = time.monotonic()
        assert get(f"{url}/livez") == (200, "ok\n")
        assert time.monotonic() - started < 3


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit applies to the whole request and not to each read."""
    monkeypatch.setattr("task_activity_log.telemetry.health._CLIENT_SECONDS", 0.2)
    with serving() as (_, url):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=0.05) as client:
            deadline = time.monotonic() + 10
            with suppress(ConnectionError):
                while True:
                    assert time.monotonic() < deadline, "it was never cut off"
                    client.sendall(b"G")
                    with suppress(TimeoutError):
                        if client.recv(1) == b"":
                            break


@pytest.mark.parametrize("request_", [b"GET /" + b"a" * 1_000_000, b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 200_000])
def test_a_huge_request_is_not_read_to_its_end(request_: bytes) -> None:
    """At most sixteen kilobytes of it are read."""
    with serving() as (_, url):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=5) as client:
            with suppress(ConnectionError):  # it may close before all is sent
                client.sendall(request_ + b"\r\n\r\n")
                while client.recv(65536):
                    pass
        assert get(f"{url}/livez")[0] == 200


def test_a_taken_port_is_an_oserror() -> None:
    """The command `run` prints it as one line."""
    with serving() as (_, url), pytest.raises(OSError, match="in use"):
        HealthServer(
            Health(ready=list, alive=list, status=dict, metrics=bytes), "127.0.0.1", int(url.rpartition(":")[2])
        )

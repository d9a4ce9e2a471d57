import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from task_activity_log.telemetry.health import Health, HealthServer


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
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("path", "text"), [("/livez", "ok\n"), ("/readyz?verbose", "ok\n"), ("/metrics", "m 1\n"), ("/status", '{"a": 1}')]
)
def test_a_well_worker_answers_200(path: str, text: str) -> None:
    """Each page has its content."""
    with serving() as (_, url):
        assert get(url + path) == (200, text)


def test_reasons_are_503_each_on_a_line() -> None:
    """Unready is not dead."""
    with serving(ready=["holding: database down", "not consuming"]) as (_, url):
        assert get(f"{url}/readyz") == (503, "holding: database down\nnot consuming\n")
        assert get(f"{url}/livez")[0] == 200


def test_an_unknown_path_is_404() -> None:
    """It says which there are."""
    with serving() as (_, url):
        assert get(f"{url}/secrets")[0] == 404


def test_a_loop_that_does_not_move_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop has beaten once and then stands still: 503 with the reason, served while it stands."""
    monkeypatch.setattr("task_activity_log.telemetry.health._STUCK_SECONDS", 0.05)
    with serving() as (health, url):

        async def stand_still() -> None:
            beating = asyncio.create_task(health.beat())
            await asyncio.sleep(0)
            deadline = time.monotonic() + 5
            while get(f"{url}/livez")[0] == 200:  # blocks the loop, on purpose
                assert time.monotonic() < deadline
            assert "has not moved" in get(f"{url}/readyz")[1]
            beating.cancel()

        asyncio.run(stand_still())


def test_a_taken_port_is_an_oserror() -> None:
    """The command turns it into one line."""
    with serving() as (_, url), pytest.raises(OSError, match="in use"):
        HealthServer(
            Health(ready=list, alive=list, status=dict, metrics=bytes), "127.0.0.1", int(url.rpartition(":")[2])
        )

"""Answers that are late, endless, or none of HTTP's."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from threading import Event, Thread

import pytest

from task_activity_log.http_get import TooLong, get

_HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def serving(first: bytes, again: bytes = b"", pause: float = 0.0) -> Iterator[str]:
    """The URL of a server that sends `first`, and then `again` after each pause until it is closed."""
    ended = Event()

    def serve(listening: socket.socket) -> None:
        connected, _ = listening.accept()
        with connected, suppress(OSError):
            connected.recv(1000)
            connected.sendall(first)
            while again and not ended.wait(pause):
                connected.sendall(again)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=serve, args=(listening,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/x?y=z"
        finally:
            ended.set()
            thread.join()


def test_an_answer() -> None:
    with serving(_HEAD + b"Content-Length: 2\r\n\r\nok") as url:
        assert get(url, seconds=30, bytes_max=2) == (200, b"ok")


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        _HEAD,
        _HEAD + b"\r\n",
        _HEAD + b"Content-Length: 100000\r\n\r\n",
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["nothing", "no headers", "until the end", "with a length", "in chunks"],
)
@pytest.mark.parametrize("more", [b"", b"1"], ids=["silent", "a byte now and then"])
def test_an_answer_that_is_not_whole_in_time_is_given_up(begun: bytes, more: bytes) -> None:
    """Each byte is in time, and the answer is not: without a limit for the whole, nothing would end it."""
    with serving(begun, more or b" ", 0.01 if more else 3600) as url, pytest.raises(TimeoutError):
        get(url, seconds=0.3, bytes_max=10**6)


def test_an_answer_without_an_end_is_not_kept_in_memory() -> None:
    with serving(_HEAD + b"\r\n", b"x" * 1000) as url, pytest.raises(TooLong):
        get(url, seconds=30, bytes_max=10_000)


@pytest.mark.parametrize("said", [b"", b"AMQP\0\0\x09\x01", b"\xff" * 100])
def test_what_is_not_http(said: bytes) -> None:
    with serving(said) as url, pytest.raises((OSError, HTTPException)):
        get(url, seconds=30, bytes_max=10)

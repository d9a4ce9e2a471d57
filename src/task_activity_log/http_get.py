"""One answer over HTTP, as a whole within a time and a size. It blocks, so call it in a thread (`aio.in_thread`)."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import SHUT_RDWR, socket
from threading import Event, Timer
from urllib.parse import urlsplit


class TooLong(HTTPException):
    """The answer is larger than what is asked about can be."""


def get(
    url: str,
    *,
    seconds: float,
    bytes_max: int,
    headers: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """Status and content of what is at a URL. No proxy is used and no redirect is followed: they would learn a password.

    Connecting may take `seconds`, and then the whole answer may: a server that sends a byte now and then is as silent.

    Raises:
        TimeoutError: the answer is not there in time.
        OSError: there is no connection, or it is lost.
        http.client.HTTPException: what answers does not speak HTTP; `TooLong`: the answer has more than `bytes_max` bytes.
    """
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    if parts.scheme == "http":
        connection = HTTPConnection(host, parts.port, timeout=seconds)
    else:
        connection = HTTPSConnection(host, parts.port, timeout=seconds, context=context)
    try:
        connection.connect()
        with _within(seconds, connection.sock):
            connection.request(
                "GET", f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}", headers=headers or {}
            )
            answer = connection.getresponse()
            content = answer.read(bytes_max + 1)
    finally:
        connection.close()
    if len(content) > bytes_max:
        raise TooLong
    return answer.status, content


@contextmanager
def _within(seconds: float, connected: socket) -> Iterator[None]:
    """Shut the socket down after this time, which ends each wait for it; `TimeoutError` then."""
    late = Event()

    def shut_down() -> None:
        late.set()
        with suppress(OSError):
            connected.shutdown(SHUT_RDWR)

    timer = Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, HTTPException):
        if late.is_set():
            raise TimeoutError("timed out") from None
        raise
    finally:
        timer.cancel()
    if late.is_set():  # what was cut off looks whole if its length was not announced
        raise TimeoutError("timed out")

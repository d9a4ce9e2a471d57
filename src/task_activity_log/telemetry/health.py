"""Health and metrics over HTTP, served by a separate thread: it responds even if the event loop is blocked."""

import asyncio
import io
import json
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_STUCK_SECONDS = 10.0
_BEAT_SECONDS = 1.0
_CLIENT_SECONDS = 5
_CLIENTS = 16
"""Number of clients served at once. One more cuts off the oldest, so that slow clients cannot keep a probe waiting."""
_REQUEST_BYTES = 16 * 1024
"""Maximum length of a request line and its headers together."""
_HEAD_END = re.compile(rb"\n\r?\n")
_PLAIN = "text/plain; charset=utf-8"


@dataclass(kw_only=True)
class Health:
    """Answers the HTTP server's requests. `ready` and `alive` return reasons; an empty list means yes."""

    ready: Callable[[], list[str]]
    alive: Callable[[], list[str]]
    status: Callable[[], Mapping[str, object]]
    metrics: Callable[[], bytes]
    redact: Callable[[str], str] = str
    """Removes secrets from reasons and from the values of the status, and changes no names. `Metrics` removes them from
    its labels."""
    last_beat: float = field(default_factory=time.monotonic)

    async def beat(self) -> None:
        """Show that the event loop runs, until cancelled."""
        while True:
            self.last_beat = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """The HTTP status, content type and body for a path."""
        status, content_type, text = self._page(path)
        return status, content_type, text.encode()

    def _page(self, path: str) -> tuple[int, str, str]:
        stuck = time.monotonic() - self.last_beat
        frozen = [f"the event loop has been blocked for {stuck:.0f} s"] if stuck > _STUCK_SECONDS else []
        match path.partition("?")[0]:
            case "/livez":
                return self._verdict(frozen + self.alive())
            case "/readyz":
                return self._verdict(frozen + self.ready())
            case "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", self.metrics().decode()
            case "/status":
                return 200, "application/json", json.dumps(self._redacted(self.status()), default=str)
            case _:
                return 404, _PLAIN, "the paths are /livez, /readyz, /metrics and /status\n"

    def _verdict(self, reasons: list[str]) -> tuple[int, str, str]:
        text = "".join(f"{self.redact(reason)}\n" for reason in reasons) or "ok\n"
        return 503 if reasons else 200, _PLAIN, text

    def _redacted(self, value: object) -> object:
        """A JSON value without secrets in its texts. The names of members stay."""
        match value:
            case str():
                return self.redact(value)
            case Mapping():
                return {name: self._redacted(member) for name, member in value.items()}
            case list() | tuple():
                return [self._redacted(each) for each in value]
            case _:
                return value


class _Handler(BaseHTTPRequestHandler):
    server: "HealthServer"
    server_version = "task-activity-log-worker"
    sys_version = ""
    error_content_type = _PLAIN
    error_message_format = "%(message)s\n"

    def setup(self) -> None:
        super().setup()
        # The socket's timeout applies to each read, so a client could send a byte now and then. All is read here instead.
        deadline, head, more = time.monotonic() + _CLIENT_SECONDS, b"", b" "
        while more and len(head) < _REQUEST_BYTES and not _HEAD_END.search(head):
            self.connection.settimeout(max(0, deadline - time.monotonic()))
            more = self.connection.recv(_REQUEST_BYTES - len(head))
            head += more
        self.rfile = io.BytesIO(head)

    def do_GET(self) -> None:
        self._send(*self.server.health.answer(self.path))

    def do_HEAD(self) -> None:
        # Load balancers and `curl -I` ask so.
        self.do_GET()

    def _refuse(self) -> None:
        status, content_type, body = self.server.health.answer(self.path)
        if status == HTTPStatus.NOT_FOUND:
            self._send(status, content_type, body)
        else:
            self._send(HTTPStatus.METHOD_NOT_ALLOWED, _PLAIN, b"the methods are GET and HEAD\n", Allow="GET, HEAD")

    # The standard library looks these names up.
    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_CONNECT = do_TRACE = _refuse  # noqa: N815

    def _send(self, status: int, content_type: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: probes are frequent and mean nothing."""


class HealthServer(ThreadingHTTPServer):
    """Serves `Health` until closed."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, health: Health, host: str, port: int) -> None:
        """Bind and start serving.

        Raises:
            OSError: the address is in use or not available.
        """
        self.health = health
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._slots = threading.BoundedSemaphore(_CLIENTS)
        self._clients: dict[socket.socket, None] = {}  # those being served, the oldest first
        super().__init__((host, port), _Handler)
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, name="health", daemon=True).start()

    def server_bind(self) -> None:
        """Bind. HTTPServer would look up its own name in the DNS, which can take long if there is no DNS."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client in a thread of its own; first cut off the oldest one if there are too many."""
        if not self._slots.acquire(blocking=False):
            with suppress(OSError, RuntimeError, StopIteration):  # one ends just now
                next(iter(self._clients)).shutdown(socket.SHUT_RDWR)
            self._slots.acquire()
        self._clients[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client, and make room for another one."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._clients.pop(request, None)
            self._slots.release()

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that disconnect early."""

    def close(self) -> None:
        """Stop serving and close the port."""
        self.shutdown()
        self.server_close()

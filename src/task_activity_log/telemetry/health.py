"""Health and metrics over HTTP, served by a separate thread: it responds even if the event loop is blocked."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

_STUCK_SECONDS = 10.0
_BEAT_SECONDS = 1.0
_CLIENT_SECONDS = 5
_CLIENTS = 16
"""Number of clients served at once. One more cuts off the oldest, so that slow clients cannot keep a probe waiting."""
_REQUEST_BYTES = 16 * 1024
"""Maximum length of a request line and its headers together."""


class Health:
    """Answers the HTTP server's requests. `ready` and `alive` return reasons; an empty list means yes."""

    def __init__(
        self,
        *,
        ready: Callable[[], list[str]],
        alive: Callable[[], list[str]],
        status: Callable[[], Mapping[str, object]],
        metrics: Callable[[], bytes],
        redact: Callable[[str], str] = str,
    ) -> None:
        """Take the functions that answer. `redact` removes secrets; each text passes through it last."""
        self._redact = redact
        self._ready = ready
        self._alive = alive
        self._status = status
        self._metrics = metrics
        self._beat = time.monotonic()

    async def beat(self) -> None:
        """Show that the event loop runs, until cancelled."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """The HTTP status, content type and body for a path."""
        status, content_type, text = self._page(path)
        return status, content_type, self._redact(text).encode()

    def _page(self, path: str) -> tuple[int, str, str]:
        stuck = time.monotonic() - self._beat
        frozen = [f"the event loop has been blocked for {stuck:.0f} s"] if stuck > _STUCK_SECONDS else []
        match path.partition("?")[0]:
            case "/livez":
                return _verdict(frozen + self._alive())
            case "/readyz":
                return _verdict(frozen + self._ready())
            case "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", self._metrics().decode()
            case "/status":
                return 200, "application/json", json.dumps(self._status(), default=str)
            case _:
                return 404, "text/plain; charset=utf-8", "the paths are /livez, /readyz, /metrics and /status\n"


def _verdict(reasons: list[str]) -> tuple[int, str, str]:
    text = "".join(f"{reason}\n" for reason in reasons) or "ok\n"
    return 503 if reasons else 200, "text/plain; charset=utf-8", text


class _Bounded:
    """Reads the lines of a request up to the limit, and then reports the end of the file."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._left = _REQUEST_BYTES
        self.close = file.close

    def readline(self, size: int) -> bytes:
        line = self._file.readline(min(size, self._left))
        self._left -= len(line)
        return line


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_SECONDS
    server_version = "task-activity-log-worker"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile = cast("io.BufferedIOBase", _Bounded(self.rfile))

    def do_GET(self) -> None:
        status, content_type, body = self.server.health.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: probes are frequent and mean nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, health: Health, host: str, port: int) -> None:
        self.health = health
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._slots = threading.BoundedSemaphore(_CLIENTS)
        self._since: dict[socket.socket, float] = {}  # the clients being served, the oldest first
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind() looks up its own name in the DNS, which can take long if there is no DNS.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self._cut_off(next(iter(self._since), None))
            self._slots.acquire()
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._since.pop(request, None)
            self._slots.release()

    def service_actions(self) -> None:
        # Called twice a second. The handler's timeout applies to each read, so a client could send a byte now and then.
        late = time.monotonic() - _CLIENT_SECONDS
        for request, since in list(self._since.items()):
            if since < late:
                self._cut_off(request)

    def _cut_off(self, request: socket.socket | None) -> None:
        with suppress(OSError):
            if request is not None:
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that disconnect early."""


class HealthServer:
    """Serves `Health` until closed."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        """Bind and start serving.

        Raises:
            OSError: the address is in use or not available.
        """
        self._server = _Server(health, host, port)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and close the port."""
        self._server.shutdown()
        self._server.server_close()

"""Health and metrics over HTTP, from a thread of its own: it answers even when the event loop does not move."""

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
"""How many are served at once. For one more the oldest is cut off: who dawdles must not keep a probe from its answer."""
_REQUEST_BYTES = 16 * 1024
"""What is read of a request line and its headers together."""


class Health:
    """What the HTTP server asks; every answer is (well, why)."""

    def __init__(
        self,
        *,
        ready: Callable[[], list[str]],
        alive: Callable[[], list[str]],
        status: Callable[[], Mapping[str, object]],
        metrics: Callable[[], bytes],
        redact: Callable[[str], str] = str,
    ) -> None:
        """Take what answers; `redact` is the last to see each text, and takes secrets out."""
        self._redact = redact
        self._ready = ready
        self._alive = alive
        self._status = status
        self._metrics = metrics
        self._beat = time.monotonic()

    async def beat(self) -> None:
        """Show that the loop moves, until cancelled."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for a path."""
        status, content_type, text = self._page(path)
        return status, content_type, self._redact(text).encode()

    def _page(self, path: str) -> tuple[int, str, str]:
        stuck = time.monotonic() - self._beat
        frozen = [f"the event loop has not moved for {stuck:.0f} s"] if stuck > _STUCK_SECONDS else []
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
                return 404, "text/plain; charset=utf-8", "there are /livez, /readyz, /metrics and /status\n"


def _verdict(reasons: list[str]) -> tuple[int, str, str]:
    text = "".join(f"{reason}\n" for reason in reasons) or "ok\n"
    return 503 if reasons else 200, "text/plain; charset=utf-8", text


class _Bounded:
    """Lines of a request, and no more than the limit allows: after that it is over."""

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
        """Probes are no events."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, health: Health, host: str, port: int) -> None:
        self.health = health
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._slots = threading.BoundedSemaphore(_CLIENTS)
        self._since: dict[socket.socket, float] = {}  # each client that is served, the oldest first
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: it looks its own name up in the DNS, which can take long where there is none.
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
        # Twice a second. The handler's own timeout is for each read: a client could send a byte now and then.
        late = time.monotonic() - _CLIENT_SECONDS
        for request, since in list(self._since.items()):
            if since < late:
                self._cut_off(request)

    def _cut_off(self, request: socket.socket | None) -> None:
        with suppress(OSError):
            if request is not None:
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """A client that goes away in the middle is its own affair."""


class HealthServer:
    """Serves `Health` until closed."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        """Bind and begin to serve.

        Raises:
            OSError: the address is taken or not ours.
        """
        self._server = _Server(health, host, port)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

"""Health and metrics over HTTP, from a thread of its own: it answers even when the event loop does not move."""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_STUCK_SECONDS = 10.0
_BEAT_SECONDS = 1.0
_CLIENT_SECONDS = 5
_CLIENTS = 16
"""How many are served at once. More wait in the socket's queue: probes are few, and a flood must not grow threads."""


class Health:
    """What the HTTP server asks; every answer is (well, why)."""

    def __init__(
        self,
        *,
        ready: Callable[[], list[str]],
        alive: Callable[[], list[str]],
        status: Callable[[], Mapping[str, object]],
        metrics: Callable[[], bytes],
    ) -> None:
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
        stuck = time.monotonic() - self._beat
        frozen = [f"the event loop has not moved for {stuck:.0f} s"] if stuck > _STUCK_SECONDS else []
        match path.partition("?")[0]:
            case "/livez":
                return _verdict(frozen + self._alive())
            case "/readyz":
                return _verdict(frozen + self._ready())
            case "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", self._metrics()
            case "/status":
                return 200, "application/json", json.dumps(self._status(), default=str).encode()
            case _:
                return 404, "text/plain; charset=utf-8", b"there are /livez, /readyz, /metrics and /status\n"


def _verdict(reasons: list[str]) -> tuple[int, str, bytes]:
    text = "".join(f"{reason}\n" for reason in reasons) or "ok\n"
    return 503 if reasons else 200, "text/plain; charset=utf-8", text.encode()


class HealthServer:
    """Serves `Health` until closed."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        """Bind and begin to serve.

        Raises:
            OSError: the address is taken or not ours.
        """
        slots = threading.BoundedSemaphore(_CLIENTS)

        class Handler(BaseHTTPRequestHandler):
            timeout = _CLIENT_SECONDS
            server_version = "task-activity-log-worker"
            sys_version = ""

            def do_GET(self) -> None:
                status, content_type, body = health.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Probes are no events."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def server_bind(self) -> None:
                # Not HTTPServer's: it looks its own name up in the DNS, which can take long where there is none.
                socketserver.TCPServer.server_bind(self)

            def process_request(self, request: Any, client_address: Any) -> None:
                slots.acquire()
                super().process_request(request, client_address)

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    slots.release()

            def handle_error(self, *_: Any) -> None:
                """A client that goes away in the middle is its own affair."""

        self._server = Server((host, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

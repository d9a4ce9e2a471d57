"""The management API, and what only looks like it."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from task_activity_log.rabbitmq.management import Management, ManagementError


@contextmanager
def answering(status: int, text: bytes) -> Iterator[Management]:
    """The API at a server that always gives this answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            """Nothing is printed."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Management(f"http://127.0.0.1:{server.server_port}", None)
        finally:
            server.shutdown()
            thread.join()


def test_a_queue_that_does_not_exist_has_no_answer() -> None:
    """This is how RabbitMQ answers."""
    with answering(404, b'{"error":"Object Not Found","reason":"Not Found"}') as management:
        assert management.get("queues", "/", "q") is None


@pytest.mark.parametrize("status", [200, 404])
def test_another_server_is_not_believed(status: int) -> None:
    """Otherwise `check` would say that queues and permissions are missing, because MANAGEMENT_URL names another port."""
    with answering(status, b"the paths are /livez and /readyz") as management:
        with pytest.raises(ManagementError, match="this is not the management API of RabbitMQ"):
            management.get("queues", "/", "q")


@pytest.mark.parametrize("text", [b"[1]", b'"text"', b"7", b'{"a": 1}', b"[{}]", b"null", b"[]"])
def test_json_of_another_program_is_not_believed(text: bytes) -> None:
    """One that should have been a queue, and one that should have been a list. What is empty does not exist."""
    with answering(200, text) as management:
        for ask, right in ((management.one, b"{"), (management.rows, b"[{")):
            if text.startswith(right) or text == b"null" or (text, right) == (b"[]", b"[{"):
                ask("nodes")
                continue
            with pytest.raises(ManagementError, match="this is not the management API of RabbitMQ"):
                ask("nodes")


def test_deeply_nested_json_is_another_programs() -> None:
    """Python's parser gives up before its end."""
    with answering(200, b"[" * 100_000) as management:
        with pytest.raises(ManagementError, match="this is not the management API of RabbitMQ"):
            management.get("nodes")

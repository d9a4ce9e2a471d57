"""The web console: its routes, the parts that its pages share, and running it."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from task_activity_log.client import ClientError
from task_activity_log.console import forms, pages
from task_activity_log.console.access import Denied
from task_activity_log.console.parts import Console
from task_activity_log.console.rendering import render
from task_activity_log.console.sampling import Finding
from task_activity_log.console.settings import ConsoleSettings
from task_activity_log.settings import Settings

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SHUTDOWN_SECONDS = 5


def routes() -> list[Route | Mount]:
    """Every path of the console."""
    return [
        Route("/healthz", _healthy),
        Route("/", pages.now),
        Route("/dead-letters", pages.dead_letters),
        Route("/dead-letters/{name:path}", pages.dead_letter),
        Route("/download", pages.download),
        Route("/edit", pages.edit),
        Route("/bulk", pages.bulk),
        Route("/actions", pages.actions),
        Route("/actions/{id}", pages.action),
        Route("/try", pages.try_),
        Route("/contract", pages.contract),
        Route("/contract/{file}", pages.contract_file),
        Route("/replies", pages.replies),
        Route("/live/now", pages.live_now),
        Route("/live/replies", pages.live_replies),
        Route("/live/actions/{id}", pages.live_action),
        Route("/dead-letters", forms.look_again, methods=["POST"]),
        Route("/replay", forms.replay, methods=["POST"]),
        Route("/discard", forms.discard, methods=["POST"]),
        Route("/edit", forms.edit, methods=["POST"]),
        Route("/bulk", forms.bulk, methods=["POST"]),
        Route("/actions/{id}/stop", forms.stop, methods=["POST"]),
        Route("/try", forms.try_, methods=["POST"]),
        Route("/verdict", forms.verdict, methods=["POST"]),
        Mount("/static", StaticFiles(packages=[("task_activity_log.console", "static")])),
    ]


def create(console: Console) -> Starlette:
    """The application. Its parts begin to work when it starts, and end when it stops."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.console = console
        console.sampler.begin()
        try:
            yield
        finally:
            await console.close()

    return Starlette(
        routes=routes(),
        middleware=[Middleware(_Gate, console=console)],
        exception_handlers={
            Denied: partial(_refused, console),
            ClientError: partial(_refused, console),
            HTTPException: partial(_refused, console),
        },
        lifespan=lifespan,
    )


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _refused(console: Console, request: Request, error: Exception) -> Response:
    """One sentence that says what went wrong; nothing was done."""
    status, text = getattr(error, "status", 503), str(error)
    if isinstance(error, HTTPException):
        status, text = error.status_code, "There is no such page." if error.status_code == 404 else error.detail  # noqa: PLR2004
    page = render(
        request, console, "error.html", status, title="That did not work", sentence=f"{text[:1].upper()}{text[1:]}"
    )
    if status == 401:  # noqa: PLR2004 - Unauthorized
        page.headers["WWW-Authenticate"] = 'Basic realm="task-activity-log console", charset="UTF-8"'
    return page


class _Gate:
    """Finds out who asks, refuses whoever may not look, and sets the headers of every answer."""

    def __init__(self, app: ASGIApp, console: Console) -> None:
        self._app = app
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        request = Request(scope)
        if request.url.path != "/healthz" and not request.url.path.startswith("/static/"):
            try:
                request.state.user = await self._console.user(request)
            except Denied as denied:
                await (await _refused(self._console, request, denied))(scope, receive, send_with_headers)
                return
        await self._app(scope, receive, send_with_headers)


def run(
    settings: Settings,
    own: ConsoleSettings,
    *,
    check: Callable[[], Awaitable[Sequence[Finding]]],
    contract: Mapping[str, bytes],
    on_listening: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: those that are shared with the worker.
        own: those of the console.
        check: makes the findings of `task-activity-log check`.
        contract: the files of `task-activity-log contract`, by name.
        on_listening: called with the console's URL once it listens.

    Raises:
        OSError: it is not possible to listen on CONSOLE_HOST and CONSOLE_PORT.
    """

    async def serve() -> None:
        console = Console(settings, own, check=check, contract=contract)
        config = uvicorn.Config(
            create(console),
            host=own.host,
            port=own.port,
            log_config=None,
            access_log=False,
            proxy_headers=False,  # the peer's address decides whether a header is trusted
            server_header=False,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        server = _Server(config, console.stop)
        family = socket.AF_INET6 if ":" in own.host else socket.AF_INET
        with socket.create_server((own.host, own.port), family=family) as bound:
            host = f"[{own.host}]" if ":" in own.host else own.host
            on_listening(f"http://{host}:{bound.getsockname()[1]}/")
            await server.serve(sockets=[bound])

    asyncio.run(serve())


class _Server(uvicorn.Server):
    """Ends with 0 at a signal, and lets live pages end before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first signal, and at once at the second; uvicorn itself would let the signal kill the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)
        yield

    def _signalled(self) -> None:
        self._stop()
        self.force_exit = self.should_exit
        self.should_exit = True

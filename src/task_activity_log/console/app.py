"""The web console: its routes, and what every answer has."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from task_activity_log.client import ClientError
from task_activity_log.console.access import Denied
from task_activity_log.console.forms import Forms
from task_activity_log.console.pages import Pages
from task_activity_log.console.parts import Console
from task_activity_log.console.rendering import page
from task_activity_log.console.words import capitalized

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def routes(console: Console) -> list[Route | Mount]:
    """Every path of the console."""
    pages, forms = Pages(console), Forms(console)
    post = ["POST"]
    return [
        Route("/healthz", _healthy),
        Route("/", pages.now),
        Route("/dead-letters", pages.dead_letters),
        Route("/dead-letters", forms.look_again, methods=post),
        Route("/dead-letters/{name:path}", pages.dead_letter),
        Route("/download", pages.download),
        Route("/edit", forms.edit, methods=["GET", *post]),
        Route("/bulk", pages.bulk),
        Route("/act", forms.act, methods=post),
        Route("/actions", pages.actions),
        Route("/actions/{id}", pages.action),
        Route("/actions/{id}/stop", forms.stop, methods=post),
        Route("/find", pages.find),
        Route("/snapshot", forms.snapshot, methods=post),
        Route("/try", forms.try_, methods=["GET", *post]),
        Route("/verdict", forms.verdict, methods=post),
        Route("/replies", pages.replies),
        Route("/contract", pages.contract),
        Route("/contract/{file}", pages.contract_file),
        Mount("/static", StaticFiles(packages=[("task_activity_log.console", "static")])),
    ]


def create(console: Console) -> Starlette:
    """The application. Its parts begin to work when it starts, and end when it stops."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        console.sampler.begin()
        try:
            yield
        finally:
            await console.close()

    async def gate(request: Request, answered: RequestResponseEndpoint) -> Response:
        """Find out who asks, refuse whoever may not look, and set the headers of every answer."""
        try:
            if request.url.path != "/healthz" and not request.url.path.startswith("/static/"):
                request.state.user = await console.access.user(request)
                request.state.token = console.access.token(request.state.user)
            answer = await answered(request)
        except Denied as denied:
            answer = await _refused(request, denied)
        answer.headers.update(_HEADERS)
        return answer

    return Starlette(
        routes=routes(console),
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=gate)],
        exception_handlers=dict.fromkeys((Denied, ClientError, HTTPException), _refused),
        lifespan=lifespan,
    )


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _refused(request: Request, error: Exception) -> Response:
    """One sentence that says what went wrong; nothing was done."""
    status, text = getattr(error, "status", 503), str(error)
    if isinstance(error, HTTPException):
        status, text = error.status_code, "There is no such page." if error.status_code == 404 else error.detail  # noqa: PLR2004
    answer = page(request, "error.html", "That did not work", status, sentence=capitalized(text))
    if status == 401:  # noqa: PLR2004 - Unauthorized
        answer.headers["WWW-Authenticate"] = 'Basic realm="task-activity-log console", charset="UTF-8"'
    return answer

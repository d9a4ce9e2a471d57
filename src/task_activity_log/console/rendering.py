"""Templates: pages, parts of pages, and parts that are sent again when they change."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from task_activity_log.client import exported
from task_activity_log.console import charts, now, preview
from task_activity_log.console.access import Denied, User
from task_activity_log.console.letters import NO_FIELD, quoted
from task_activity_log.console.parts import Console
from task_activity_log.streams import printable

_KEEP_ALIVE_SECONDS = 15.0


_templates = Environment(
    loader=PackageLoader("task_activity_log.console"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=lambda value: printable(value) if type(value) is str else value,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _at(time: datetime | None) -> str:
    return "unknown" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _ago(time: datetime | None) -> str:
    return "at an unknown time" if time is None else f"{now.span(datetime.now(UTC) - time)} ago"


class _Exact(str):
    """A text that is shown as it is: what is in a form is sent again. All others are escaped as for a terminal."""

    __slots__ = ()


_templates.filters |= {
    "exact": _Exact,
    "at": _at, "ago": _ago, "span": now.span, "short": now.short, "reason": exported.reasons, "quoted": quoted,
    "count": "{:,}".format, "shown": preview.shown,
}  # fmt: skip
_templates.globals |= {"spark": charts.spark, "bar": charts.bar, "NO_FIELD": NO_FIELD}


def render(request: Request, console: Console, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A page for whoever asks."""
    user: User | None = getattr(request.state, "user", None)
    shared = {
        "user": user,
        "token": console.guard.token(user) if user else "",
        "path": request.url.path,
        "console": console,
    }
    return HTMLResponse(_templates.get_template(template).render(**shared, **context), status)


def fragment(template: str, **context: Any) -> str:
    """A part of a page."""
    return _templates.get_template(template).render(**context)


def console_of(request: Request) -> Console:
    """The console that serves a request."""
    found: Console = request.app.state.console
    return found


def require(allowed: bool, sentence: str) -> None:
    """Raise `Denied` with this sentence unless it is allowed."""
    if not allowed:
        raise Denied(sentence)


def live(console: Console, rendered: Callable[[], str], changed: Callable[[], Awaitable[object]]) -> Response:
    """Server-sent events: a part of a page, each time that it has changed."""

    async def events() -> AsyncIterator[str]:
        last, silent = "", 0.0
        stopping = asyncio.ensure_future(console.stopping.wait())
        try:
            while not stopping.done():
                if (html := rendered()) != last or silent > _KEEP_ALIVE_SECONDS:
                    yield f"data: {json.dumps(html)}\n\n"
                    last, silent = html, 0.0
                waiting = asyncio.ensure_future(changed())
                began = asyncio.get_running_loop().time()
                await asyncio.wait(
                    (waiting, stopping), return_when=asyncio.FIRST_COMPLETED, timeout=_KEEP_ALIVE_SECONDS
                )
                waiting.cancel()
                silent += asyncio.get_running_loop().time() - began
        finally:
            stopping.cancel()

    return StreamingResponse(events(), media_type="text/event-stream")

"""Templates: pages, parts of pages, and parts that are sent again when they change."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from task_activity_log.client import exported
from task_activity_log.client.letters import NO_FIELD, Filter, Letter, shown_headers
from task_activity_log.client.preview import shown
from task_activity_log.console import words
from task_activity_log.streams import printable, shell_word

_KEEP_ALIVE_SECONDS = 15.0
_FOLLOWED_SECONDS = 300.0
"""Then the browser asks again, so that somebody who may not look any more sees no more."""
_RETRY = "retry: 1000\n\n"
"""After how many milliseconds it does."""

Context: TypeAlias = Callable[[], dict[str, Any]]
Changed: TypeAlias = Callable[[], Awaitable[object]]


class _Exact(str):
    """A text that is shown as it is: what is in a form is sent again. All others are escaped as for a terminal."""

    __slots__ = ()


def path_of(letter: Letter) -> str:
    """Its page. A browser would take a name of dots for another path, and a path has one line, so the id is what counts."""
    is_path = letter.name.strip(".") and "\n" not in letter.name
    return f"/dead-letters/{quote(letter.name, safe='') if is_path else '-'}?letter={letter.id}"


def query_of(wanted: Filter, **changes: str) -> str:
    """The query of a URL for a filter, with some members changed; an empty one is left out."""
    return urlencode({name: value for name, value in (wanted.members | changes).items() if value})


templates = Environment(
    loader=PackageLoader("task_activity_log.console"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=lambda value: printable(value) if type(value) is str else value,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters |= {
    "exact": _Exact, "at": words.at, "ago": words.ago, "span": words.span, "short": words.short, "digits": words.digits,
    "count": "{:,}".format, "shown": shown, "reason": exported.reasons, "quoted": shell_word, "path": path_of, "query": query_of,
    "json": json.dumps, "repr": repr, "round_up": words.round_up, "advice": words.advice, "headers": shown_headers,
}  # fmt: skip
templates.globals |= {"NO_FIELD": NO_FIELD}


def page(request: Request, template: str, title: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A page for whoever asks."""
    shared = {"title": title, "path": request.url.path, "user": getattr(request.state, "user", None), "token": ""}
    return HTMLResponse(templates.get_template(template).render(shared | request.state._state | context), status)  # noqa: SLF001 - all of it


def part(request: Request, template: str, **context: Any) -> str:
    """A part of a page."""
    return templates.get_template(template).render(user=request.state.user, token=request.state.token, **context)


def live(rendered: Callable[[], str], changed: Changed, ends: Callable[[], bool]) -> Response:
    """Server-sent events: a part of a page, each time that it has changed."""

    async def events() -> AsyncIterator[str]:
        last, silent = "", 0.0
        clock = asyncio.get_running_loop().time
        began = clock()
        yield _RETRY
        while not ends() and clock() - began < _FOLLOWED_SECONDS:
            if (html := rendered()) != last or clock() - silent > _KEEP_ALIVE_SECONDS:
                yield f"data: {json.dumps(html)}\n\n"
                last, silent = html, clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(_KEEP_ALIVE_SECONDS):
                    await changed()

    return StreamingResponse(events(), media_type="text/event-stream")

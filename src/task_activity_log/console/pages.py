"""The pages, to look: each gathers what its template shows. Nothing here changes anything."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from secrets import token_urlsafe
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from task_activity_log.client import exported
from task_activity_log.console import charts, preview
from task_activity_log.console import now as words
from task_activity_log.console.access import Denied, User
from task_activity_log.console.actions import LONGEST_SECONDS, Action, plan
from task_activity_log.console.history import OUTCOMES
from task_activity_log.console.letters import PARTS, Filter, Letter, groups, quoted
from task_activity_log.console.parts import Console
from task_activity_log.console.rendering import console_of, fragment, live, render, require
from task_activity_log.console.replies import Wanted
from task_activity_log.console.rows import RowsUnknown
from task_activity_log.problem import Code, Problem
from task_activity_log.rabbitmq.headers import received
from task_activity_log.record import Outcome, StoredTaskActivityLog
from task_activity_log.wire.fields import STORED_KINDS

ON_A_PAGE = 50
_GROUPS = 100
_CHART_PARTS = 60
_LISTED = 200
_LEAST_LOOK_SECONDS = 0.3

# ---- now


async def now(request: Request) -> Response:
    """The state of everything in a sentence, and below it what it is made from."""
    console = console_of(request)
    return render(request, console, "now.html", title="Now", **_present(console))


async def live_now(request: Request) -> Response:
    """The same, each time that there is a new sample."""
    console = console_of(request)
    return live(console, lambda: fragment("now_live.html", **_present(console)), console.sampler.next)


def _present(console: Console) -> dict[str, Any]:
    history, topology, looks = console.sampler.history, console.topology, console.looks
    depth = history.queues.get(topology.dead_letters_queue)
    if depth is not None and depth.messages and not looks.is_fresh:
        looks.begin()
    newest = looks.last.newest if looks.last and depth and depth.messages else None
    moment = datetime.now(UTC)
    rates = history.rates()
    return {
        "sentence": words.sentence(history, topology.request_queues, topology.dead_letters_queue, newest, moment),
        "history": history,
        "rates": rates,
        "answered": sum(rates.values()),
        "outcomes": OUTCOMES,
        "chart": charts.stacked(history.rate_series(_CHART_PARTS), "Messages answered per second, by outcome"),
        "chart_seconds": history.seconds,
        "depths": [
            (name, history.queues[name], history.depth_series(name, _CHART_PARTS), history.seconds_to_empty(name))
            for name in console.queues
            if name in history.queues
        ],
        "ages": [history.age(0.5), history.age(0.95)],
        "in_hand": sum(worker.figures.in_hand for worker in history.workers if worker.figures),
        "holds": [(worker, hold) for worker in history.workers for hold in worker.holds],
        "partitions": {part: worker.address for worker in history.workers for part in worker.partitions},
        "partition_count": console.settings.partitions,
        "findings": console.checks.wanted(),
        "moment": moment,
        "dead_letters_queue": topology.dead_letters_queue,
    }


# ---- dead letters


async def dead_letters(request: Request) -> Response:
    """All dead letters in groups, and those that match a filter."""
    console, user = console_of(request), request.state.user
    wanted = filter_of(request, user)
    look = await console.looks.current()
    letters = [letter for letter in look.letters if letter in wanted] if wanted.members else look.letters
    found = groups(letters)
    times = [letter.since for letter in letters if letter.since]
    number = max(1, int(page) if (page := request.query_params.get("page", "1")).isdecimal() else 1)
    newest_first = letters[::-1]
    return render(
        request,
        console,
        "dead_letters.html",
        title="Dead letters",
        look=look,
        wanted=wanted,
        letters=newest_first[(number - 1) * ON_A_PAGE : number * ON_A_PAGE],
        matching=len(letters),
        passing=sum(letter.passes for letter in letters),
        number=number,
        pages=max(1, -(-len(letters) // ON_A_PAGE)),
        groups=found[:_GROUPS],
        more_groups=max(0, len(found) - _GROUPS),
        first=min(times, default=None),
        last=max(times, default=None),
        parts=PARTS,
        problem=console.looks.problem,
        details=Counter(letter.detail for letter in letters).most_common(3) if len(found) == 1 else [],
    )


def filter_of(request: Request, user: User) -> Filter:
    """The filter in the query. Raises `Denied`: it is wrong, or it would tell what bodies contain."""
    try:
        wanted = Filter.of(request.query_params)
    except ValueError as error:
        raise Denied(str(error), 400) from None
    if (wanted.text or wanted.id) and not user.sees_bodies:
        raise Denied("Searching in bodies takes the role bodies.")
    return wanted


async def letter_of(request: Request, console: Console, letter_id: str, *, seen: bool = False) -> Letter:
    """The dead letter with an id, or the only one with the name in the path. Raises `Denied`: it is gone.

    One that was `seen` at the last look is not looked for again: if it is gone since, its action finds out.
    """
    if seen and console.looks.last is not None and letter_id in console.looks.last.by_id:
        return console.looks.last.by_id[letter_id]
    look = await console.looks.current()
    found = look.by_id.get(letter_id)
    if found is None and not letter_id:
        name = request.path_params.get("name", "")
        named = [letter for letter in look.letters if letter.name == name]
        if len(named) > 1:
            raise Denied(f"{len(named):,} dead letters have this message_id: choose one in the list.", 409)
        found = named[0] if named else None
    if found is None:
        raise Denied(
            "This dead letter is not in the queue any more: somebody has replayed, discarded or taken it. Nothing was done.",
            410,
        )
    return found


async def dead_letter(request: Request) -> Response:
    """One dead letter: the reason, the body, the row, and what can be done."""
    console, user = console_of(request), request.state.user
    letter = await letter_of(request, console, request.query_params.get("letter", ""))
    return render(
        request, console, "dead_letter.html", title=letter.name, letter=letter, **await judged(console, user, letter)
    )


async def judged(console: Console, user: User, letter: Letter) -> dict[str, Any]:
    """What a page about one dead letter shows of it."""
    raw = letter.raw
    request_properties = received(raw.restored(None))
    content_type = request_properties.content_type
    row, rows_problem = await row_of(console, preview.record_id(raw.body, content_type))
    properties = raw.properties
    marked = (
        [error.field for error in letter.found.errors] if isinstance(letter.found, Problem) else list(letter.fields)
    )
    text = preview.readable(raw.body, content_type)
    changed = row.modified_dateutc if row else None
    return {
        "verdict": preview.verdict(raw.body, request_properties, console.rules, row),
        "pieces": preview.text_pieces(text, content_type, marked) if user.sees_bodies else [],
        "row": row,
        "rows_problem": rows_problem,
        "newer": changed and raw.overtaken_from is not None and changed > raw.overtaken_from,
        "changed": changed,
        "properties": [
            (name, value)
            for name in (
                "content_type",
                "content_encoding",
                "correlation_id",
                "reply_to",
                "app_id",
                "type",
                "expiration",
            )
            if (value := getattr(properties, name)) is not None
        ],
        "headers": sorted(properties.headers.items()),
        "sent": raw.properties.sent and datetime.fromtimestamp(raw.properties.sent, UTC),
        "first_seen": properties.headers.get("x-first-seen"),
        "command": f"task-activity-log dead-letters replay {quoted(letter.name)}",
    }


async def row_of(console: Console, record: Any) -> tuple[StoredTaskActivityLog | None, str]:
    """The row of a record, and why it is not known."""
    if record is None:
        return None, "the message has no id that can be read"
    try:
        return await console.rows.current(record), ""
    except RowsUnknown as error:
        return None, str(error)


async def download(request: Request) -> Response:
    """A dead letter as a line of JSON that `publish` takes, or its body alone."""
    console = console_of(request)
    require(request.state.user.sees_bodies, "Downloading a body takes the role bodies.")
    letter = await letter_of(request, console, request.query_params.get("letter", ""))
    raw = letter.raw
    if request.query_params.get("as") == "body":
        content, suffix = raw.body, "body"
    else:
        line = exported.line(
            raw.body, raw.restored(None), publisher=letter.publisher, problems=[f"{letter.code}: {letter.detail}"]
        )
        content, suffix = line.encode(errors="backslashreplace") + b"\n", "jsonl"
    named = f"filename*=UTF-8''{quote(letter.name, safe='')}.{suffix}"
    headers = {"Content-Disposition": f'attachment; filename="dead-letter.{suffix}"; {named}'}
    return Response(content, media_type="application/octet-stream", headers=headers)


async def edit(request: Request) -> Response:
    """The body and the headers of a dead letter, to correct."""
    console, user = console_of(request), request.state.user
    require(user.acts and user.sees_bodies, "Editing takes the roles act and bodies.")
    letter = await letter_of(request, console, request.query_params.get("letter", ""))
    console.replies.begin()
    original = received(letter.raw.restored(None))
    body = preview.readable(letter.raw.body, original.content_type)
    row, rows_problem = await row_of(console, preview.record_id(letter.raw.body, original.content_type))
    return render(
        request,
        console,
        "edit.html",
        title=f"Edit {letter.name}",
        letter=letter,
        body=body,
        header=header_text(original),
        why="",
        verdict=preview.verdict(letter.raw.body, original, console.rules, row),
        rows_problem=rows_problem,
        difference=[],
        problem="",
    )


def header_text(properties: Any) -> str:
    """The content type, the content encoding and the headers of a request as JSON, to correct."""
    members = {
        "content_type": properties.content_type,
        "content_encoding": properties.content_encoding,
        "headers": exported.plain_headers(properties),
    }
    return json.dumps(members, indent=2, ensure_ascii=False)


async def bulk(request: Request) -> Response:
    """The dry run for all dead letters that match a filter."""
    console, user = console_of(request), request.state.user
    require(user.acts, "Replaying takes the role act.")
    wanted = filter_of(request, user)
    look = await console.looks.current()
    letters = [letter for letter in look.letters if letter in wanted]
    planned = await plan(letters, console.rows)
    number = token_urlsafe(9)
    console.remember(number, letters)
    console.replies.begin()
    return render(
        request, console, "bulk.html", title="Replay all that match", wanted=wanted, letters=letters, plan=planned, number=number,
        look=look, longest=LONGEST_SECONDS,
    )  # fmt: skip


# ---- actions, replies


async def actions(request: Request) -> Response:
    """What was done, the latest first."""
    return render(
        request, console_of(request), "actions.html", title="Actions", actions=list(console_of(request).actions)
    )


def action_of(request: Request) -> Action:
    """The action in the path. Raises `Denied`: it is not remembered."""
    found = console_of(request).actions.get(request.path_params["id"])
    if found is None:
        raise Denied("This action is not remembered: the console was started since, or there were many others.", 404)
    return found


async def action(request: Request) -> Response:
    """What became of each dead letter of an action."""
    console, found = console_of(request), action_of(request)
    if not found.runs and found.answers[""]:
        found.seen(await console.looks.current())
        await _note_written(console, found)
    return render(request, console, "action.html", title="Action", action=found, **_progress(found))


async def _note_written(console: Console, found: Action) -> None:
    try:
        await console.actions.written(found)
    except RowsUnknown:
        return  # then it stays unknown, and the page says so


def _progress(found: Action) -> dict[str, Any]:
    order = {"kept": 0, "gone": 1, "waiting": 2, "sent": 3, "discarded": 4}
    entries = sorted(found.entries, key=lambda entry: (order[entry.state], entry.answer != "rejected"))
    return {"entries": entries[:_LISTED], "more": max(0, len(entries) - _LISTED), "outcomes": OUTCOMES}


async def live_action(request: Request) -> Response:
    """How far an action has come."""
    console, found = console_of(request), action_of(request)
    user, token = request.state.user, console.guard.token(request.state.user)

    def rendered() -> str:
        return fragment("action_live.html", action=found, user=user, token=token, **_progress(found))

    return live(console, rendered, lambda: asyncio.sleep(_LEAST_LOOK_SECONDS))


async def replies(request: Request) -> Response:
    """The replies as they come."""
    console = console_of(request)
    await console.replies.follow()
    return render(request, console, "replies.html", title="Replies", codes=sorted(map(str, Code)), **_replies(request))


async def live_replies(request: Request) -> Response:
    """The same, while they come."""
    console = console_of(request)

    async def changed() -> None:
        await asyncio.sleep(1)
        await console.replies.follow()

    return live(console, lambda: fragment("replies_live.html", user=request.state.user, **_replies(request)), changed)


def _replies(request: Request) -> dict[str, Any]:
    console, wanted = console_of(request), Wanted.of(request.query_params)
    found = [heard for heard in reversed(console.replies.latest) if heard in wanted][:ON_A_PAGE]
    depth = console.sampler.history.queues.get(console.topology.replies_queue)
    return {
        "replies": found,
        "wanted": wanted,
        "query": request.url.query,
        "problem": console.replies.problem,
        "waiting": depth and depth.messages,
        "subscribers": depth and depth.consumers,
        "count": console.replies.count,
        "outcomes": [*map(str, Outcome)],
        "settings": console.settings,
    }


# ---- try, contract


async def try_(request: Request) -> Response:
    """A form for a message, and what a worker would say of it."""
    return render(
        request, console_of(request), "try.html", title="Try a message", body="", content_type="application/json", headers="",
        verdict=None, rows_problem="", problem="", sent=None, snippets=None, message_id="",
    )  # fmt: skip


async def contract(request: Request) -> Response:
    """The wire contract, from the code that implements it."""
    console = console_of(request)
    return render(
        request, console, "contract.html", title="The contract", kinds=STORED_KINDS, codes=list(Code),
        files=sorted(console.contract), rules=console.rules, settings=console.settings, topology=console.topology,
    )  # fmt: skip


async def contract_file(request: Request) -> Response:
    """One of the descriptions for machines."""
    found = console_of(request).contract.get(request.path_params["file"])
    if found is None:
        raise Denied("There is no such file of the contract.", 404)
    kind = "application/json" if request.path_params["file"].endswith("json") else "application/xml"
    return Response(found, media_type=kind)

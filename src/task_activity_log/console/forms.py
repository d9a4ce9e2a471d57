"""The forms, to act: each checks where it came from and who sent it, begins what it asks for, and leads to its page."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

import structlog
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from task_activity_log import wire
from task_activity_log.client import Answer, ClientError, NoAnswer, TaskActivityLogClient, Upsert, exported
from task_activity_log.client.dead_letters import DeadLetter
from task_activity_log.console import preview
from task_activity_log.console.access import Denied, User
from task_activity_log.console.actions import LONGEST_SECONDS
from task_activity_log.console.letters import Letter
from task_activity_log.console.pages import action_of, header_text, letter_of, row_of
from task_activity_log.console.parts import Console
from task_activity_log.console.rendering import console_of, fragment, render, require
from task_activity_log.message import Properties
from task_activity_log.rabbitmq.headers import received
from task_activity_log.wiring import link_of, partitioned_of, partitions_exchange_of

log = structlog.get_logger(__name__)

_FORM_BYTES = 8 * 2**20
_RATE_MAX = 10_000.0
_ANSWER_SECONDS = 15.0
_APP_ID = "task-activity-log console"


async def _form(request: Request, *, acts: bool = True) -> tuple[Console, User, Mapping[str, str]]:
    """The members of a form. Raises `Denied`: it is not one of ours, or its sender may not act."""
    console, user = console_of(request), request.state.user
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _FORM_BYTES:
            raise Denied("This form is too long.", 413)
    try:
        members = dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=50))
    except ValueError:
        raise Denied("This is not a form of the console.", 400) from None
    console.guard.check(user, members.get("token", ""), request.headers, console.own_hosts(request))
    if acts:
        require(user.acts, f"{user.name} may look and not act: that takes the role act. Nothing was done.")
    return console, user, members


def _see(path: str) -> Response:
    """Lead to a page: loading it again repeats nothing."""
    return RedirectResponse(path, 303)


def _why(members: Mapping[str, str]) -> str:
    why = members.get("why", "").strip()
    if not why:
        raise Denied("Say why: it is logged with your name. Nothing was done.", 400)
    return why


async def look_again(request: Request) -> Response:
    """Look at the dead letters now."""
    console, _, members = await _form(request, acts=False)
    with suppress(ClientError):  # the page says so, next to what was seen last
        await console.looks.current(again=True)
    query = members.get("query", "")
    return _see("/dead-letters" + (f"?{query}" if query and "\n" not in query and "\r" not in query else ""))


async def replay(request: Request) -> Response:
    """Replay one dead letter as it was."""
    console, user, members = await _form(request)
    letter = await letter_of(request, console, members.get("letter", "-"), seen=True)
    await console.replies.follow()
    begun = console.actions.begin("replay", user, members.get("why", ""), [letter], over_newer="over_newer" in members)
    return await _done(console, begun.id)


async def discard(request: Request) -> Response:
    """Discard one dead letter for good."""
    console, user, members = await _form(request)
    letter = await letter_of(request, console, members.get("letter", "-"), seen=True)
    return await _done(console, console.actions.begin("discard", user, _why(members), [letter]).id)


async def _done(console: Console, action: str) -> Response:
    """The page of an action of one dead letter, once it has ended or takes long."""
    await console.actions.wait(action)
    return _see(f"/actions/{action}")


async def edit(request: Request) -> Response:
    """Judge what was corrected, or replay it."""
    console, user, members = await _form(request)
    require(user.sees_bodies, "Editing takes the role bodies.")
    letter = await letter_of(request, console, members.get("letter", "-"), seen=True)
    original = received(letter.raw.restored(None))
    before = preview.readable(letter.raw.body, original.content_type)
    body, header = _unix(members.get("body", "")), _unix(members.get("header", ""))
    found, problem = _edited(letter, original, before, body, header)
    judged, rows_problem = await _judged(console, found.body, received(found.restored(None)))
    why = members.get("why", "").strip()
    if members.get("do") == "replay" and not problem:
        changed = found.body != letter.raw.body or found.corrected is not None
        if not judged.passes:
            problem = "It would be rejected again: nothing was sent."
        elif not why:
            problem = "Say why: it is logged with your name. Nothing was sent."
        elif not changed:
            problem = "Nothing was changed: nothing was sent."
        else:
            await console.replies.follow()
            begun = console.actions.begin(
                "replay", user, why, [letter], edited=found, over_newer="over_newer" in members
            )
            return await _done(console, begun.id)
    return render(
        request, console, "edit.html", 422 if problem else 200, title=f"Edit {letter.name}", letter=letter, body=body,
        header=header, why=why, verdict=judged, rows_problem=rows_problem, problem=problem,
        difference=preview.difference(f"{header_text(original)}\n\n{before}", f"{header}\n\n{body}"),
    )  # fmt: skip


def _edited(letter: Letter, original: Properties, before: str, body: str, header: str) -> tuple[DeadLetter, str]:
    """The dead letter as it was corrected, and why it cannot be sent so. What was not changed stays byte for byte."""
    found = letter.raw
    if body != _unix(before):
        found = replace(found, body=body.encode("utf-8", "replace"))
        with suppress(Exception):  # another charset than that of what a form sends
            media = wire.media_type(original.content_type)
            if media.charset not in (None, "utf-8", "utf8"):
                original = replace(original, content_type=media.name)
                found = replace(found, corrected=replace(letter.raw.restored(None), content_type=media.name))
    if header != _unix(header_text(received(letter.raw.restored(None)))):
        try:
            return replace(found, corrected=exported.corrected(letter.raw.restored(None), header.encode())), ""
        except ValueError as error:
            return found, f"The headers cannot be sent: {error}."
    return found, ""


def _unix(text: str) -> str:
    """A browser sends each line feed of a text area with a carriage return."""
    return text.replace("\r\n", "\n")


async def _judged(console: Console, body: bytes, properties: Properties) -> tuple[preview.Verdict, str]:
    """What a worker would say of a message, and why its row is not known."""
    row, problem = await row_of(console, preview.record_id(body, properties.content_type))
    return preview.verdict(body, properties, console.rules, row), problem


async def bulk(request: Request) -> Response:
    """Replay or discard what a dry run has shown."""
    console, user, members = await _form(request)
    why = _why(members)
    letters = console.plans.get(members.get("plan", ""))
    if letters is None:
        raise Denied("The console does not remember this dry run: make it again. Nothing was done.", 410)
    if members.get("do") == "discard":
        if members.get("count") != str(len(letters)):
            raise Denied(f"To discard {len(letters):,} for good, type this number. Nothing was done.", 400)
        del console.plans[members["plan"]]
        return _see(f"/actions/{console.actions.begin('discard', user, why, letters).id}")
    rate = _rate(members.get("rate", ""))
    if len(letters) / rate > LONGEST_SECONDS:
        raise Denied(
            f"At {rate:g} a second this takes longer than 20 minutes: raise the rate, or replay a part. Nothing was done.",
            400,
        )
    del console.plans[members["plan"]]  # sent twice, it is done once
    await console.replies.follow()
    begun = console.actions.begin("replay", user, why, letters, rate=rate, over_newer="over_newer" in members)
    return _see(f"/actions/{begun.id}")


def _rate(text: str) -> float:
    with suppress(ValueError):
        if 0.1 <= (rate := float(text)) <= _RATE_MAX:  # noqa: PLR2004 - as the command line
            return rate
    raise Denied("The rate should be a number from 0.1 to 10000 a second. Nothing was done.", 400)


async def stop(request: Request) -> Response:
    """Stop a replay that is under way."""
    _, user, _ = await _form(request)
    found = action_of(request)
    log.info("console_action_stopped", action=found.id, user=user.name)
    found.stop()
    return _see(f"/actions/{found.id}")


# ---- try


async def try_(request: Request) -> Response:
    """Judge a message that was written by hand, or send it and show the answer."""
    sends = False
    console, user, members = await _form(request, acts=False)
    sends = members.get("do") == "send"
    upsert, problem = _upsert(members)
    judged, rows_problem = await _judged_try(console, user, upsert)
    sent: Answer | str | None = None
    if sends and not problem:
        require(user.acts, f"{user.name} may look and not act: that takes the role act. Nothing was sent.")
        log.info("console_message_sent", user=user.name, message_id=upsert.message_id)
        sent = await _send(console, upsert)
    return render(
        request, console, "try.html", 422 if problem else 200, title="Try a message", body=members.get("body", ""),
        content_type=members.get("content_type", ""), headers=members.get("headers", ""), verdict=judged,
        rows_problem=rows_problem, problem=problem, sent=sent, message_id=upsert.message_id,
        snippets=_snippets(console, upsert),
    )  # fmt: skip


async def verdict(request: Request) -> Response:
    """What a worker would say of what is in a form of the pages `edit` and `try`, while somebody types."""
    console, user, members = await _form(request, acts=False)
    if "letter" in members:
        require(user.sees_bodies, "Editing takes the role bodies.")
        letter = await letter_of(request, console, members["letter"], seen=True)
        original = received(letter.raw.restored(None))
        body, header = _unix(members.get("body", "")), _unix(members.get("header", ""))
        before = preview.readable(letter.raw.body, original.content_type)
        found, problem = _edited(letter, original, before, body, header)
        judged, rows_problem = await _judged(console, found.body, received(found.restored(None)))
        difference: Sequence[Any] = preview.difference(f"{header_text(original)}\n\n{before}", f"{header}\n\n{body}")
    else:
        upsert, problem = _upsert(members)
        judged, rows_problem = await _judged_try(console, user, upsert)
        difference = []
    return HTMLResponse(
        fragment(
            "verdict.html", verdict=judged, rows_problem=rows_problem, problem=problem, difference=difference, user=user
        )
    )


def _snippets(console: Console, upsert: Upsert) -> dict[str, str]:
    """The parts of the programs that send the same, as literals of their languages."""
    text = upsert.body.decode()
    values = {name: json.dumps(value) for name, value in upsert.headers.items()}
    return {
        "python": repr(text),
        "python_headers": repr(dict(upsert.headers)),
        "json": json.dumps(text),
        "json_headers": json.dumps(dict(upsert.headers)),
        "csharp_headers": ", ".join(f"[{json.dumps(name)}] = {value}" for name, value in values.items()),
        "content_type": json.dumps(upsert.content_type)[1:-1],
        "exchange": json.dumps(console.topology.requests_exchange)[1:-1],
    }


async def _judged_try(console: Console, user: User, upsert: Upsert) -> tuple[preview.Verdict, str]:
    properties = received(upsert.properties(None, _APP_ID))
    if user.sees_bodies:
        return await _judged(console, upsert.body, properties)
    return preview.verdict(upsert.body, properties, console.rules, None), "the values of rows take the role bodies"


def _upsert(members: Mapping[str, str]) -> tuple[Upsert, str]:
    """The request in a form, and why it cannot be sent as it is."""
    body, problem, headers = _unix(members.get("body", "")).encode("utf-8", "replace"), "", dict[str, object]()
    text = members.get("headers", "").strip()
    try:
        parsed = json.loads(text) if text else {}
        if not isinstance(parsed, dict) or not all(isinstance(value, str | int) for value in parsed.values()):
            problem = "The headers should be a JSON object of texts, integers and booleans."
        else:
            headers = parsed
    except (ValueError, RecursionError):
        problem = "The headers should be a JSON object."
    message = members.get("message_id", "").strip() or str(uuid4())
    try:
        return Upsert(body, members.get("content_type", ""), message, headers), problem
    except ValueError as error:
        return Upsert(body, message_id=str(uuid4())), f"It cannot be sent: {error}."


async def _send(console: Console, upsert: Upsert) -> Answer | str:
    """The answer, or why there is none in a sentence."""
    settings = console.settings
    try:
        async with TaskActivityLogClient(
            link_of(settings),
            exchange=settings.requests_exchange,
            partitioned=partitioned_of(settings),
            partitions_exchange=partitions_exchange_of(settings),
            app_id=_APP_ID,
        ) as client:
            async for answer in client.upsert_many([upsert], timeout=_ANSWER_SECONDS):
                return answer
    except NoAnswer:
        return "It was sent, and no worker has answered yet. Sent again with the same message_id, it is applied once."
    except ClientError as error:
        return f"It was not sent: {error}."
    return "It was not sent."

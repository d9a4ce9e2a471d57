"""The forms, to act: each checks where it came from and who sent it, begins what it asks for, and leads to its page."""

import json
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from task_activity_log.client import Answer, ClientError, NoAnswer, TaskActivityLogClient, Upsert, exported
from task_activity_log.client.dead_letters import DeadLetter
from task_activity_log.client.finding import uuid_of
from task_activity_log.client.letters import Letter
from task_activity_log.client.marking import difference, readable
from task_activity_log.client.replays import Replay
from task_activity_log.client.snapshots import Target, resend_one
from task_activity_log.console.access import Denied, OldPage, require
from task_activity_log.console.actions import LONGEST_SECONDS, SENT, Sending, unchanged
from task_activity_log.console.pages import action_of
from task_activity_log.console.parts import Console
from task_activity_log.console.rendering import page, part
from task_activity_log.console.users import User
from task_activity_log.console.words import capitalized
from task_activity_log.problem import Unavailable
from task_activity_log.rabbitmq.headers import received
from task_activity_log.wiring import link_of, sending_of

log = structlog.get_logger(__name__)

_FORM_BYTES = 8 * 2**20
_WHY_LENGTH = 500
_RATES = (0.1, 10_000.0)
_ANSWER_SECONDS = 15.0
_APP_ID = "task-activity-log console"
_TAKES_ACT = "may look and not act: that takes the role act. Nothing was"
_OLD = (
    "The form that you sent was made for another user, or before the console was started: nothing was done. This one has what"
    " you have written: press the button again."
)

Members = dict[str, str]


class Forms:
    """The forms of one console."""

    def __init__(self, console: Console) -> None:
        self.console = console

    async def look_again(self, request: Request) -> Response:
        """Look at the dead letters now."""
        _, members = await self._form(request, acts=False)
        with suppress(ClientError):  # the page says so, next to what was seen last
            await self.console.looks.current(again=True)
        query = members.get("query", "")
        return _see("/dead-letters" + (f"?{query}" if query.isprintable() else ""))

    async def act(self, request: Request) -> Response:
        """Replay or discard one dead letter, or what a dry run has shown."""
        (user, members), console = await self._form(request), self.console
        why, plan, kind = _why(members), members.get("plan", ""), members.get("do", "")
        require(kind in ("replay", "discard"), "This is not a form of the console.", 400)
        letters = console.plans.get(plan) if plan else [await self._letter(request, members)]
        if letters is None:
            raise Denied("The console does not remember this dry run: make it again. Nothing was done.", 410)
        options: dict[str, Any] = {}
        if kind == "replay":
            options = {"rate": _rate(members, len(letters)), "over_newer": "over_newer" in members}
        elif plan:
            is_meant = members.get("count") == str(len(letters))
            require(is_meant, f"To discard {len(letters):,} for good, type this number. Nothing was done.", 400)
        console.plans.pop(plan, None)  # sent twice, it is done once
        return await self._begun(kind, user, why, list(map(unchanged, letters)), **options)

    async def _begun(self, kind: str, user: User, why: str, entries: list[Replay], **options: Any) -> Response:
        """Begin an action, and lead to its page; that of one dead letter once it has ended, or takes long."""
        if kind == "replay":
            await self.console.replies.follow()
        action = self.console.actions.begin(kind, user, why, entries, **options)
        if len(entries) == 1:
            await self.console.actions.wait(action)
        return _see(f"/actions/{action.id}")

    async def edit(self, request: Request) -> Response:
        """Show the body and the headers of a dead letter, judge how they were corrected, or replay them."""
        user, members, old = request.state.user, Members({"letter": request.query_params.get("letter", "")}), ""
        if request.method == "POST":
            members, old = await self._written(request)
        require(user.acts and user.sees_bodies, "Editing takes the roles act and bodies.")
        letter = await self._letter(request, members)
        found, context = await self._edited(letter, members)
        context["problem"] = old or context["problem"]
        if members.get("do") == "replay" and not context["problem"]:
            obstacles = {
                "It would be rejected again": not context["verdict"].passes,
                "Say why: it is logged with your name": not context["why"],
                "Nothing was changed": found == letter.raw,
            }
            applying = [f"{text}. Nothing was sent." for text, applies in obstacles.items() if applies]
            if not applying:
                entry = Replay(letter.raw, found, context["verdict"].found)
                over_newer = "over_newer" in members
                return await self._begun("replay", user, context["why"], [entry], edited=True, over_newer=over_newer)
            context["problem"] = applying[0]
        return page(request, "edit.html", f"Edit {letter.name}", _status(old, context["problem"]), **context)

    async def _edited(self, letter: Letter, members: Members) -> tuple[DeadLetter, dict[str, Any]]:
        """The dead letter as it was corrected, and what its page shows of it."""
        original = letter.raw.restored(None)
        text = readable(letter.raw.body, received(original).content_type)
        before = _in_a_browser(text), _in_a_browser(exported.header_text(original))
        body, header = (
            _in_a_browser(members.get(name, text)) for name, text in zip(("body", "header"), before, strict=True)
        )
        found, problem = letter.raw, ""
        changes = [text if text != old else None for text, old in zip((body, header), before, strict=True)]
        try:
            found = exported.edited(letter.raw, *changes)
        except ValueError as error:
            problem = f"The headers cannot be sent: {error}."
        judged = await self.console.judged(found.body, received(found.restored(None)))
        changed = difference(f"{before[1]}\n\n{before[0]}", f"{header}\n\n{body}") if changes != [None, None] else []
        shown = {"letter": letter, "body": body, "header": header, "why": _why(members, needed=False)}
        of_the_header = letter.code in exported.OF_THE_HEADER
        return found, {**shown, **judged, "problem": problem, "difference": changed, "of_the_header": of_the_header}

    async def stop(self, request: Request) -> Response:
        """Stop a replay that is under way."""
        user, _ = await self._form(request)
        found = action_of(self.console, request)
        log.info("console_action_stopped", action=found.id, user=user.name)
        found.stopping = True
        return _see(f"/actions/{found.id}")

    async def snapshot(self, request: Request) -> Response:
        """Send the row of a record to its subscribers, as it is now."""
        (user, members), console = await self._form(request), self.console
        why, record = _why(members), uuid_of(members.get("record", ""))
        row, problem = await console.row(record)
        if row is None:
            raise Denied(f"There is no row to send{f': {problem}' if problem else ''}. Nothing was done.", 410)
        try:
            if console.survey is not None:
                await console.survey.confirm()
        except Unavailable as error:
            raise Denied(f"The row may not be safe yet: {error.reason}. Nothing was done.", 503) from None
        target = Target(console.topology.replies_exchange, nulls=console.settings.nulls)
        log.info("console_snapshot_sent", user=user.name, why=why, record=str(row.id))
        console.actions.sendings.append(sending := Sending("row", user.name, why, str(row.id)))
        try:
            count = await resend_one(link_of(console.settings), row, target)
        except ClientError as error:
            sending.result = f"it is not known whether it was sent: {error}"
            raise
        sending.result = SENT if count else "not sent"
        require(bool(count), "The row is longer than the broker takes (max_message_size): it was not sent.", 413)
        return _see(f"/find?name={row.id}")

    async def try_(self, request: Request) -> Response:
        """A form for a message; what a worker would say of it; or the answer to it."""
        user, members, old, sent = request.state.user, Members(), "", None
        if request.method == "POST":
            members, old = await self._written(request, acts=False)
        upsert, context = await self._tried(user, members)
        context["problem"] = old or context["problem"]
        if members.get("do") == "send" and not context["problem"]:
            require(user.acts, f"{user.name} {_TAKES_ACT} sent.")
            why = _why(members)
            log.info("console_message_sent", user=user.name, why=why, message_id=upsert.message_id)
            self.console.actions.sendings.append(sending := Sending("message", user.name, why, upsert.message_id))
            sent = await self._send(upsert)
            sending.result = sent if isinstance(sent, str) else f"{sent.outcome} {sent.code or ''}".strip()
        context |= {
            "sent": sent,
            "upsert": upsert,
            "topology": self.console.topology,
            "asked": request.method == "POST",
        }
        return page(request, "try.html", "Try a message", _status(old, context["problem"]), **context)

    async def verdict(self, request: Request) -> Response:
        """What a worker would say of what is in a form of the pages `edit` and `try`, while somebody types."""
        user, members = await self._form(request, acts=False)
        if "letter" in members:
            require(user.sees_bodies, "Editing takes the role bodies.")
            _, context = await self._edited(await self._letter(request, members), members)
        else:
            _, context = await self._tried(user, members)
        return HTMLResponse(part(request, "verdict.html", **context))

    async def _tried(self, user: User, members: Members) -> tuple[Upsert, dict[str, Any]]:
        """The request in a form, and what its page shows of it."""
        upsert, problem = _upsert(members)
        properties = received(upsert.properties(None, _APP_ID))
        judged = await self.console.judged(upsert.body, properties, with_row=user.sees_bodies)
        given = {name: members.get(name, "") for name in ("body", "content_type", "headers", "message_id", "why")}
        return upsert, {**given, **judged, "problem": problem, "difference": []}

    async def _send(self, upsert: Upsert) -> Answer | str:
        """The answer, or why there is none in a sentence."""
        settings = self.console.settings
        try:
            async with TaskActivityLogClient(link_of(settings), app_id=_APP_ID, **sending_of(settings)) as client:
                async for answer in client.upsert_many([upsert], timeout=_ANSWER_SECONDS):
                    return answer if answer.sent else f"It was not sent: {answer.problem.detail}"
        except NoAnswer as error:  # it says whether the broker has it
            text = capitalized(str(error))
            return f"{text}{'' if text.endswith('?') else '.'} Sent again with the same message_id, it is applied once."
        except ClientError as error:
            return f"It was not sent: {error}."
        return "It was not sent."

    async def _letter(self, request: Request, members: Members) -> Letter:
        return await self.console.letter(request, members.get("letter", "-"), seen=True)

    async def _form(self, request: Request, *, acts: bool = True) -> tuple[User, Members]:
        """The members of a form. Raises `Denied`: it is not one of ours, or its sender may not act."""
        members = await _members(request)
        self._check(request, members, acts=acts)
        return request.state.user, members

    async def _written(self, request: Request, *, acts: bool = True) -> tuple[Members, str]:
        """The members of a form that somebody has written a text in, and why it is only shown again, with a new token.

        The sentence is empty if the form may do what it asks for. Raises `Denied` as `_form`.
        """
        members = await _members(request)
        try:
            self._check(request, members, acts=acts)
        except OldPage:
            return members, _OLD
        return members, ""

    def _check(self, request: Request, members: Members, *, acts: bool) -> None:
        user, peer = request.state.user, request.client.host if request.client else ""
        self.console.access.check_form(user, members.get("token", ""), peer, request.headers)
        require(user.acts or not acts, f"{user.name} {_TAKES_ACT} done.")


async def _members(request: Request) -> Members:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            require(len(body) <= _FORM_BYTES, "This form is too long.", 413)
    except ClientDisconnect:
        raise Denied("This form was not sent in full.", 400) from None
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=50))
    except ValueError:
        raise Denied("This is not a form of the console.", 400) from None


def _status(old: str, problem: str) -> int:
    """The status of a page with a form: 403 if its token was an old one, 422 if it cannot be done."""
    return 403 if old else 422 if problem else 200


def _see(path: str) -> Response:
    """Lead to a page: loading it again repeats nothing."""
    return RedirectResponse(path, 303)


def _why(members: Members, *, needed: bool = True) -> str:
    why = " ".join(members.get("why", "").split())[:_WHY_LENGTH]
    require(bool(why) or not needed, "Say why: it is logged with your name. Nothing was done.", 400)
    return why


def _rate(members: Members, count: int) -> float:
    rate = 0.0
    with suppress(ValueError):
        rate = float(members.get("rate", "100"))
    require(
        _RATES[0] <= rate <= _RATES[1], "The rate should be a number from 0.1 to 10000 a second. Nothing was done.", 400
    )
    long = (
        f"At {rate:g} a second this takes longer than 20 minutes: raise the rate, or replay a part. Nothing was done."
    )
    require(count / rate <= LONGEST_SECONDS, long, 400)
    return rate


def _unix(text: str) -> str:
    """A browser sends each line feed of a text area with a carriage return."""
    return text.replace("\r\n", "\n")


def _in_a_browser(text: str) -> str:
    """A text as a text area of a browser has it: what was not edited is equal to this."""
    return _unix(text).replace("\r", "\n").replace("\0", "\ufffd")


def _upsert(members: Members) -> tuple[Upsert, str]:
    """The request in a form, and why it cannot be sent as it is."""
    message, text = members.get("message_id", "").strip() or str(uuid4()), members.get("headers", "").strip()
    line = {"body": _unix(members.get("body", "")), "content_type": members.get("content_type", "")}
    try:
        return exported.upsert({**line, "headers": json.loads(text or "{}")}, message, ""), ""
    except RecursionError:
        problem = "The headers are nested too deeply."
    except json.JSONDecodeError as error:
        problem = f"It cannot be sent: the headers are not JSON: {error}."
    except ValueError as error:
        problem = f"It cannot be sent: {error}."
    with suppress(ValueError):
        return exported.upsert(line, str(uuid4()), ""), problem
    return exported.upsert({**line, "content_type": ""}, str(uuid4()), ""), problem  # that is what cannot be sent

"""The pages, to look: each gathers what its template shows. Nothing here changes anything."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from task_activity_log.client import exported
from task_activity_log.client.dead_letters import may_be_newer
from task_activity_log.client.errors import ClientError
from task_activity_log.client.finding import (
    Waiting,
    is_letter_of,
    is_reply_of,
    names_of_replies,
    uuid_of,
    waiting_replies,
)
from task_activity_log.client.letters import PARTS, Filter, groups
from task_activity_log.client.marking import readable, text_pieces
from task_activity_log.client.messages import Received
from task_activity_log.client.replays import sort_out
from task_activity_log.console.access import Denied, require
from task_activity_log.console.actions import Action, unchanged
from task_activity_log.console.parts import Console
from task_activity_log.console.rendering import Changed, Context, live, page, part
from task_activity_log.problem import Code, Problem, Unavailable
from task_activity_log.rabbitmq.headers import received
from task_activity_log.record import Outcome
from task_activity_log.telemetry.history import OUTCOMES
from task_activity_log.wire.fields import STORED_KINDS
from task_activity_log.wiring import link_of

ON_A_PAGE = 50
_PAGE_DIGITS = 10
_GROUPS = 100
_CHART_PARTS = 60
_LISTED = 200
_LOOK_SECONDS = 0.3
_REPLIES_LOOKED_AT = 10_000
"""If more replies wait, Find looks at them only if it is asked to: it takes seconds."""


class Pages:
    """The pages of one console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._replies_on_loan = asyncio.Lock()
        """Held during a look at the waiting replies: they would be hidden from another one."""

    def _shown(self, request: Request, name: str, title: str, context: Context, changed: Changed) -> Response:
        """A page, or with `live` in its query the part of it that changes, each time that it has changed.

        A HEAD is answered at once, as its answer has no body.
        """
        if "live" in request.query_params and request.method != "HEAD":
            return live(lambda: part(request, f"{name}_live.html", **context()), changed, self.console.stopping)
        return page(request, f"{name}.html", title, **context())

    async def now(self, request: Request) -> Response:
        """The state of everything in a sentence, and below it what it is made from."""
        return self._shown(request, "now", "Now", self._present, self.console.sampler.next)

    def _present(self) -> dict[str, Any]:
        console, history, looks = self.console, self.console.sampler.history, self.console.looks
        depth = history.queues.get(console.topology.dead_letters_queue)
        if depth is not None and depth.messages and not looks.is_fresh:
            looks.begin()
        times = [letter.since for letter in looks.last.letters if letter.since] if looks.last else []
        return {
            "history": history, "sampler": console.sampler, "findings": console.checks.wanted(),
            "checked": console.checks.made, "topology": console.topology, "outcomes": OUTCOMES,
            "newest": max(times, default=None), "now": datetime.now(UTC), "rates": history.rates(),
            "has_management": bool(console.settings.management_url), "parts": _CHART_PARTS,
            "queues": [name for name in console.queues if name in history.queues],
            "partitions": {part: worker.address for worker in history.workers for part in worker.partitions},
            "partition_count": console.settings.partitions,
        }  # fmt: skip

    async def dead_letters(self, request: Request) -> Response:
        """All dead letters in groups, and those that match a filter."""
        wanted, look = _filter(request), await self.console.looks.current()
        letters = await self.console.matching(wanted)
        found, times = groups(letters), [letter.since for letter in letters if letter.since]
        asked = request.query_params.get("page", "1")
        number = max(1, int(asked) if asked.isdecimal() and len(asked) < _PAGE_DIGITS else 1)
        return page(
            request, "dead_letters.html", "Dead letters", look=look, wanted=wanted, number=number, parts=PARTS,
            letters=letters[::-1][(number - 1) * ON_A_PAGE : number * ON_A_PAGE], matching=len(letters),
            passing=sum(letter.passes for letter in letters), pages=max(1, -(-len(letters) // ON_A_PAGE)),
            groups=found[:_GROUPS], more_groups=max(0, len(found) - _GROUPS), problem=self.console.looks.problem,
            first=min(times, default=None), last=max(times, default=None), has_rows=self.console.store is not None,
            details=Counter(letter.detail for letter in letters).most_common(3) if len(found) == 1 else [],
            running=self.console.actions.running(),
        )  # fmt: skip

    async def dead_letter(self, request: Request) -> Response:
        """One dead letter: the reason, the body, the row, and what can be done."""
        letter = await self.console.letter(request, request.query_params.get("letter", ""))
        raw, properties = letter.raw, received(letter.raw.restored(None))
        bad = [error.name for error in letter.found.errors] if isinstance(letter.found, Problem) else letter.fields
        text = readable(raw.body, properties.content_type)
        judged = await self.console.judged(raw.body, properties)
        changed = judged["row"] and judged["row"].modified_dateutc
        return page(
            request, "dead_letter.html", letter.name, letter=letter, **judged, changed=changed,
            pieces=text_pieces(text, properties.content_type, bad) if request.state.user.sees_bodies else [],
            newer=may_be_newer(raw, changed),
        )  # fmt: skip

    async def download(self, request: Request) -> Response:
        """A dead letter as a line of JSON that `publish` takes, or its body alone."""
        require(request.state.user.sees_bodies, "Downloading a body takes the role bodies.")
        letter = await self.console.letter(request, request.query_params.get("letter", ""))
        content, suffix = letter.raw.body, "body"
        if request.query_params.get("as") != "body":
            content, suffix = exported.letter_line(letter.raw).encode(errors="backslashreplace") + b"\n", "jsonl"
        named = f"filename*=UTF-8''{quote(letter.name, safe='')}.{suffix}"
        headers = {"Content-Disposition": f'attachment; filename="dead-letter.{suffix}"; {named}'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def bulk(self, request: Request) -> Response:
        """The dry run for all dead letters that match a filter."""
        require(request.state.user.acts, "Replaying takes the role act.")
        wanted, look = _filter(request), await self.console.looks.current()
        letters = await self.console.matching(wanted)
        replays, store = [unchanged(letter) for letter in letters], self.console.store
        rows_unknown = "" if store else "DATABASE_URL is not set"
        try:
            await sort_out(replays, store.modified if store else None)
        except Unavailable as error:
            rows_unknown = error.reason
        kept = Counter(getattr(each.found, "code", "") for each in replays if each.state == "kept")
        await self.console.replies.follow(0)
        return page(
            request, "bulk.html", "Replay all that match", wanted=wanted, letters=letters, kept=kept, look=look,
            rows_unknown=rows_unknown, has_database=store is not None, number=self.console.remember(letters),
        )  # fmt: skip

    async def find(self, request: Request) -> Response:
        """What became of a message or a record: its row, its dead letters, its replies, and what the journal says."""
        console, name = self.console, request.query_params.get("name", "").strip()
        record = uuid_of(name) if request.state.user.sees_bodies else None
        everything = "all" in request.query_params
        context: dict[str, Any] = {"name": name, "letters": [], "heard": [], "waiting": Waiting([], 0, 0)}
        if name:
            every = (await console.looks.current()).letters
            found = await asyncio.to_thread(lambda: [each for each in every if is_letter_of(each.raw, name, record)])
            answers, no_journal = await console.answers(name, record)
            names = names_of_replies(name, (each.raw for each in found), answers)
            wanted = partial(is_reply_of, names=names, record=record)
            heard = [heard for heard in console.replies.latest if wanted(heard.reply)]
            waiting, unread = await self._waiting_replies(wanted, everything=everything)
            context |= {"letters": found, "heard": heard, "waiting": waiting, "unread": unread}
            context |= {"answers": answers, "no_journal": no_journal, "everything": everything}
            ids = [*(letter.record_id for letter in found), *(answer["record_id"] for answer in answers)]
            record = next(filter(None, ids), record)
        row, problem = await console.row(record) if record else (None, "")
        sent = console.actions.last_sent(record) if record and request.state.user.sees_bodies else None
        context |= {"record": record, "row": row, "rows_problem": problem, "sent": sent}
        return page(request, "find.html", "Find", **context)

    async def _waiting_replies(self, wanted: Callable[[Received], bool], *, everything: bool) -> tuple[Waiting, str]:
        """The wanted replies of those that wait, and why they cannot be looked at; empty if they can.

        Not those of a long queue, unless `everything` is asked for: the other parts of the page would wait for them.
        """
        link, queue = link_of(self.console.settings), self.console.topology.replies_queue
        most = inf if everything else _REPLIES_LOOKED_AT
        try:
            async with self._replies_on_loan:
                return await waiting_replies(link, queue, wanted, most=most), ""
        except ClientError as error:
            return Waiting([], 0, 0), str(error)

    async def actions(self, request: Request) -> Response:
        """What was done, the latest first."""
        return page(request, "actions.html", "Actions", actions=self.console.actions.latest())

    async def action(self, request: Request) -> Response:
        """What became of each dead letter of an action."""
        found = action_of(self.console, request)
        if not found.runs and found.unanswered():
            await self.console.actions.search(found, await self.console.looks.current())
        return self._shown(request, "action", "Action", lambda: _progress(found), partial(asyncio.sleep, _LOOK_SECONDS))

    async def replies(self, request: Request) -> Response:
        """The replies as they come."""

        async def changed() -> None:
            await asyncio.sleep(1)
            await self.console.replies.follow()

        await self.console.replies.follow()
        return self._shown(request, "replies", "Replies", lambda: self._replies(request), changed)

    def _replies(self, request: Request) -> dict[str, Any]:
        wanted = {name: request.query_params.get(name, "").strip() for name in ("outcome", "code", "id")}
        found = [
            heard
            for heard in reversed(self.console.replies.latest)
            if wanted["outcome"] in ("", heard.reply.outcome)
            and wanted["code"] in ("", heard.reply.code)
            and wanted["id"].lower() in ("", heard.record_id)
        ]
        depth = self.console.sampler.history.queues.get(self.console.topology.replies_queue)
        return {
            "replies": found[:ON_A_PAGE], "wanted": wanted, "query": request.url.query, "depth": depth,
            "following": self.console.replies, "codes": sorted(map(str, Code)), "outcomes": [*map(str, Outcome)],
            "settings": self.console.settings,
        }  # fmt: skip

    async def contract(self, request: Request) -> Response:
        """The wire contract, from the code that implements it."""
        console = self.console
        return page(
            request, "contract.html", "The contract", kinds=STORED_KINDS, codes=list(Code), files=sorted(console.contract),
            rules=console.rules, settings=console.settings, topology=console.topology,
        )  # fmt: skip

    async def contract_file(self, request: Request) -> Response:
        """One of the descriptions for machines."""
        name = request.path_params["file"]
        require(name in self.console.contract, "There is no such file of the contract.", 404)
        kind = "application/json" if name.endswith("json") else "application/xml"
        return Response(self.console.contract[name], media_type=kind)


def action_of(console: Console, request: Request) -> Action:
    """The action in the path. Raises `Denied`: it is not remembered."""
    found = console.actions.all.get(request.path_params["id"])
    if found is None:
        raise Denied("This action is not remembered: the console was started since, or there were many others.", 404)
    return found


def _filter(request: Request) -> Filter:
    """The filter in the query. Raises `Denied`: it is wrong, or it would tell what bodies contain."""
    try:
        wanted = Filter.of(request.query_params)
    except ValueError as error:
        raise Denied(str(error), 400) from None
    needs_bodies = wanted.text or wanted.id
    require(request.state.user.sees_bodies or not needs_bodies, "Searching in bodies takes the role bodies.")
    return wanted


def _progress(found: Action) -> dict[str, Any]:
    order = {"kept": 0, "gone": 1, "waiting": 2, "sent": 3, "discarded": 4}
    entries = sorted(found.entries, key=lambda entry: (order[entry.state], entry.answer != "rejected"))
    return {"action": found, "entries": entries[:_LISTED], "more": max(0, len(entries) - _LISTED), "outcomes": OUTCOMES}

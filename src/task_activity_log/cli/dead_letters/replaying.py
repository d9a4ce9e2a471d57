"""Sends dead letters again, except those that would be rejected again or would overwrite a newer row."""

from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from task_activity_log.cli.dead_letters.selection import Selection
from task_activity_log.cli.exit_codes import DONE, SOME_REJECTED
from task_activity_log.cli.terminal import FEW, progress, say
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter, judged
from task_activity_log.client.replaying import replay as replay_letters
from task_activity_log.client.replays import Changed, Replay, StillDue, sort_out
from task_activity_log.problem import Code, Problem, Unavailable
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, rules_of, sending_of, store_of

Requests: TypeAlias = Sequence[tuple[str, DeadLetter]]
"""What is to be sent, each with the `DeadLetter.key` of the rejected one. Exact copies have one key, and an entry each."""


async def replay(selection: Selection, requests: Requests, *, dry_run: bool, rate: float, over_newer: bool) -> int:
    """Send these, as they were or corrected; returns the exit code."""
    settings = selection.settings
    keys = [key for key, _ in requests]
    async with selection.on_loan(keys) as (loan, letters), _changes(settings, over_newer=over_newer) as changed:
        rules, left = rules_of(settings), defaultdict[str, deque[DeadLetter]](deque)
        for key, request in requests:
            left[key].append(request)
        pairs = [(letter, left[letter.key].popleft()) for letter in letters]
        replays = [Replay(letter, request, judged(request, rules)) for letter, request in pairs]
        replays.sort(key=lambda each: each.letter.rejected_at)  # the queue may have another order: see `present`
        try:
            await sort_out(replays, changed)
        except Unavailable as error:
            raise ClientError(f"{error.reason}; use --over-newer to skip this check") from None
        chosen = [each for each in replays if each.state == "waiting"]
        count = 0
        if chosen and not dry_run:
            with progress(len(chosen)) as bar:
                count = await replay_letters(
                    loan,
                    [(each.letter, each.request) for each in chosen],
                    link_of(settings),
                    rate=rate,
                    still_due=StillDue(chosen, changed),
                    on_replayed=lambda _: bar.update(1),
                    **sending_of(settings),
                )
        kept = [(each.letter.name, _why_kept(each)) for each in replays if each.state == "kept"]
        _explain(kept)
        others = f", {len(kept):,} kept" if kept else ""
        if dry_run:
            say(f"{len(chosen):,} would be replayed{others}; nothing was sent")
        elif count:
            say(f"{count:,} replayed{others}; any that are rejected again become dead letters again")
        elif letters:
            say(f"nothing was replayed{others}")
    missing = selection.gone(len(requests) - len(letters))
    return selection.exit_code(letters) or missing or (SOME_REJECTED if kept else DONE)


def _explain(kept: Sequence[tuple[str, str]]) -> None:
    """Say why dead letters are kept: a line for each, or for each reason if there are many."""
    if len(kept) <= FEW:
        for name, reason in kept:
            say(f"{name}: kept, as {reason}")
        return
    for reason, count in Counter(reason for _, reason in kept).most_common(FEW):
        say(f"{count:,} kept, as {reason}")


def _why_kept(kept: Replay) -> str:
    match kept.found:
        case Problem(code=Code.REPLY_AS_REQUEST):  # no edit changes the type of a message
            advice = "find out which program sends it, then discard it"
        case Problem():
            advice = "`replay --edit` opens it to correct it"
        case _:
            advice = "use --over-newer to replay it anyway"
    return f"{kept.why.removesuffix('.')}; {advice}"


@asynccontextmanager
async def _changes(settings: Settings, *, over_newer: bool) -> AsyncIterator[Changed | None]:
    """Says when the rows of records were last changed; None if that does not matter, or no database is set."""
    if over_newer:
        yield None
        return
    if settings.database_url is None:
        say("DATABASE_URL is not set: not checked whether rows have changed since the rejection")
        yield None
        return
    store = store_of(settings)

    async def changed(ids: Sequence[UUID]) -> Mapping[UUID, datetime]:
        try:
            return await store.modified(ids)
        except Unavailable as error:
            raise Unavailable(f"cannot check whether rows have changed: {error.reason}") from None

    try:
        yield changed
    finally:
        await store.close()

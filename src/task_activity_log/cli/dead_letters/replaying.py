"""Sends dead letters again, except those that would be rejected again or would overwrite a newer row."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from task_activity_log.cli.dead_letters.selection import Selection
from task_activity_log.cli.exit_codes import DONE, SOME_REJECTED
from task_activity_log.cli.terminal import FEW, progress, say
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter, judged, may_be_newer
from task_activity_log.client.dead_letters import replay as replay_letters
from task_activity_log.message import VERSION
from task_activity_log.problem import Problem, Unavailable
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, partitioned_of, partitions_exchange_of, rules_of, store_of


async def replay(
    selection: Selection, requests: Mapping[str, DeadLetter], *, dry_run: bool, rate: float, over_newer: bool
) -> int:
    """Send these, as they were or corrected, by the `DeadLetter.key` of the rejected one; returns the exit code."""
    settings = selection.settings
    async with selection.on_loan(requests) as (loan, letters):
        chosen, kept = await _chosen(letters, requests, selection, over_newer=over_newer)
        _explain(kept)
        others = f", {len(kept):,} kept" if kept else ""
        if dry_run:
            say(f"{len(chosen):,} would be replayed{others}; nothing was sent")
        elif chosen:
            with progress(len(chosen)) as bar:
                count = await replay_letters(
                    loan,
                    [(letter, requests[letter.key]) for letter in chosen],
                    link_of(settings),
                    exchange=settings.requests_exchange,
                    partitioned=partitioned_of(settings),
                    partitions_exchange=partitions_exchange_of(settings),
                    rate=rate,
                    on_replayed=lambda _: bar.update(1),
                )
            say(f"{count:,} replayed{others}; any that are rejected again become dead letters again")
        elif letters:
            say(f"nothing was replayed{others}")
    missing = selection.gone(len(requests) - len({letter.key for letter in letters}))
    return selection.exit_code(letters) or missing or (SOME_REJECTED if kept else DONE)


def _explain(kept: Sequence[tuple[str, str]]) -> None:
    """Say why dead letters are kept: a line for each, or for each reason if there are many."""
    if len(kept) <= FEW:
        for name, reason in kept:
            say(f"{name}: kept, as {reason}")
        return
    for reason, count in Counter(reason for _, reason in kept).most_common(FEW):
        say(f"{count:,} kept, as {reason}")


async def _chosen(
    letters: Sequence[DeadLetter], requests: Mapping[str, DeadLetter], selection: Selection, *, over_newer: bool
) -> tuple[list[DeadLetter], list[tuple[str, str]]]:
    """Those to send, and the name and the reason of each that is kept.

    A request with `x-version` is safe to replay in any case: the worker compares versions.
    """
    rules = rules_of(selection.settings)
    found = {letter.key: judged(requests[letter.key], rules) for letter in letters}
    ids = {record.id for record in found.values() if not isinstance(record, Problem)}
    changed = {} if over_newer else await _changed(ids, selection.settings)
    chosen: list[DeadLetter] = []
    kept: list[tuple[str, str]] = []
    for letter in letters:
        record = found[letter.key]
        if isinstance(record, Problem):
            kept.append((letter.name, f"it would be rejected again: {record.code}: {record.detail}"))
            continue
        at = changed.get(record.id)
        if at and VERSION not in requests[letter.key].headers and (newer := may_be_newer(letter, at)):
            kept.append((letter.name, f"{newer}; use --over-newer to replay it anyway"))
        else:
            chosen.append(letter)
    return chosen, kept


async def _changed(ids: set[UUID], settings: Settings) -> Mapping[UUID, datetime]:
    """When the rows of these records were last changed, as far as there are rows and a database is set."""
    if not ids:
        return {}
    if settings.database_url is None:
        say("DATABASE_URL is not set: not checked whether rows have changed since the rejection")
        return {}
    store = store_of(settings)
    try:
        return await store.modified(sorted(ids))
    except Unavailable as error:
        advice = "use --over-newer to skip this check"
        raise ClientError(f"cannot check whether rows have changed: {error.reason}; {advice}") from None
    finally:
        await store.close()

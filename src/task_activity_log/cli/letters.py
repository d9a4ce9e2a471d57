"""What `task-activity-log dead-letters` does, once it is known with which."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import UUID

from task_activity_log.cli import exported
from task_activity_log.cli.editing import Edits
from task_activity_log.cli.terminal import (
    DONE,
    FAILED,
    SOME_REJECTED,
    WRONG_USE,
    guarded,
    printable,
    progress,
    readable,
    say,
    table,
)
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter, Look, look, publishing, replay
from task_activity_log.pipeline.request import Rules, judge
from task_activity_log.problem import Problem, Unavailable
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, rules_of, store_of

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FEW = 20
"""Up to so many reasons are told one by one."""


def seconds(text: str) -> float | None:
    """The seconds in `30s`, `15m`, `2h` or `7d`; None for an empty text. Raises `ValueError` for any other."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise ValueError(f"{text} is no time: write 30s, 15m, 2h or 7d")
    return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True, slots=True)
class Selector:
    """Which dead letters: those that every given choice lets through."""

    names: frozenset[str] = frozenset()
    codes: frozenset[str] = frozenset()
    publishers: frozenset[str] = frozenset()
    older_than: float | None = None
    newer_than: float | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def empty(self) -> bool:
        """Whether nothing was chosen."""
        return not (self.names or self.codes or self.publishers or self.older_than or self.newer_than)

    def __contains__(self, letter: DeadLetter) -> bool:
        age = None if letter.since is None else (self.now - letter.since).total_seconds()
        return (
            (not self.names or letter.name in self.names)
            and (not self.codes or letter.code in self.codes)
            and (not self.publishers or letter.publisher in self.publishers)
            and (self.older_than is None or (age is not None and age > self.older_than))
            and (self.newer_than is None or (age is not None and age < self.newer_than))
        )


class Letters:
    """The dead letters that a person has chosen. Each method is a command and returns its exit code."""

    def __init__(self, settings: Settings, selector: Selector) -> None:
        self._settings = settings
        self._selector = selector

    def show_list(self, *, each: bool, as_json: bool) -> int:
        """Print groups, or with `each` or `as_json` one line a dead letter."""
        return guarded(lambda: asyncio.run(self._list(each=each, as_json=as_json)))

    def show(self) -> int:
        """Print them whole."""

        def command() -> int:
            chosen = asyncio.run(self._copies())
            for letter in chosen:
                print(_whole(letter, rules_of(self._settings)))
            return self._code(chosen)

        return guarded(command)

    def export(self, file: Path) -> int:
        """Write them to a file."""

        def command() -> int:
            chosen = asyncio.run(self._copies())
            if str(file) == "-":
                for letter in chosen:
                    print(_line(letter))
            elif chosen:
                _write(file, chosen)
                say(f"{len(chosen):,} written to {file}; they are still in the queue")
            return self._code(chosen)

        return guarded(command)

    def discard(self, export: Path | None, *, yes: bool) -> int:
        """Remove them."""

        def command() -> int:
            chosen = asyncio.run(self._copies())
            if not chosen:
                return self._code(chosen)
            if not yes:
                if not sys.stdin.isatty():
                    say(f"this would discard {len(chosen):,} for good: say --yes where there is no terminal to ask")
                    return WRONG_USE
                if input(f"Discard {len(chosen):,} dead letters for good? [y/N] ").strip().lower() not in ("y", "yes"):
                    say("nothing was discarded")
                    return DONE
            if export is not None:
                _write(export, chosen)
            count = asyncio.run(self._remove({letter.key for letter in chosen}))
            say(f"{count:,} discarded" + (f"; they are in {export}" if export else ""))
            return self._code(chosen)

        return guarded(command, lambda: "interrupted; what was not discarded is in the queue")

    def replay(self, *, dry_run: bool, edit: bool, rate: float, over_newer: bool) -> int:
        """Send them again, those that the present contract lets through."""

        def command() -> int:
            with Edits() as edits:
                if edit:
                    for letter in asyncio.run(self._copies()):
                        self._edit(letter, edits)
                    if not edits.bodies:
                        say("none was replayed")
                        return FAILED if self._selector.names else DONE
                code = asyncio.run(
                    self._replay(edits if edit else None, dry_run=dry_run, rate=rate, over_newer=over_newer)
                )
                edits.done = True
                return code

        return guarded(command, lambda: "interrupted; what was not replayed is in the queue")

    @asynccontextmanager
    async def _look(self) -> AsyncIterator[Look]:
        async with look(link_of(self._settings), self._settings.dead_letters_queue) as found:
            if found.others:
                say(
                    f"{found.others} others read {self._settings.dead_letters_queue}: what they have in hand is not seen"
                )
            yield found

    @asynccontextmanager
    async def _chosen(
        self, keys: Container[tuple[str, bytes]] | None = None
    ) -> AsyncIterator[tuple[Look, list[DeadLetter]]]:
        """The chosen ones, of those with such a key; all others are back in the queue."""
        async with self._look() as found:
            chosen: list[DeadLetter] = []
            others: list[DeadLetter] = []
            async for letter in found:
                wanted = letter in self._selector and (keys is None or letter.key in keys)
                (chosen if wanted else others).append(letter)
            if keys is None:
                self._tell_missing(chosen, others)
            await found.give_back(others)
            yield found, chosen

    def _tell_missing(self, chosen: Sequence[DeadLetter], others: Sequence[DeadLetter]) -> None:
        for name in sorted(self._selector.names - {letter.name for letter in chosen}):
            say(f"{name}: no such dead letter")
        if not chosen and not self._selector.names:
            say(f"none of the {len(others):,} dead letters is one of those" if others else "there are no dead letters")

    def _code(self, chosen: Sequence[DeadLetter]) -> int:
        """Not finding what was named is a failure; finding none of a kind is not."""
        return FAILED if self._selector.names - {letter.name for letter in chosen} else DONE

    async def _list(self, *, each: bool, as_json: bool) -> int:
        async with self._look() as found:
            letters = [letter async for letter in found if letter in self._selector]
            if found.waiting > len(letters) and self._selector.empty:
                say(f"the oldest {len(letters):,} of {found.waiting:,}")
        if as_json:
            for letter in letters:
                print(json.dumps(_summary(letter), ensure_ascii=False))
        elif not letters:
            say("there are no dead letters" if self._selector.empty else "there are no such dead letters")
        elif each:
            table(
                ("age", "code", "publisher", "message id", "reason"),
                [(self._age(one), one.code, one.publisher, one.name, one.detail) for one in letters],
            )
        else:
            groups: dict[tuple[str, str], list[DeadLetter]] = {}
            for letter in letters:
                groups.setdefault((letter.code, letter.publisher), []).append(letter)
            ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
            table(
                ("count", "code", "publisher", "oldest", "newest", "reason of the oldest"),
                [
                    (f"{len(group)}", *key, self._age(group[0]), self._age(group[-1]), group[0].detail)
                    for key, group in ordered
                ],
            )
        return DONE

    def _age(self, letter: DeadLetter) -> str:
        if letter.since is None:
            return "?"
        age = max(0.0, (self._selector.now - letter.since).total_seconds())
        unit = next((unit for unit, size in reversed(_UNITS.items()) if age >= size), "s")
        return f"{age / _UNITS[unit]:.0f} {unit}"

    async def _copies(self) -> list[DeadLetter]:
        """The chosen ones, to read; they are back in the queue."""
        async with self._chosen() as (_, chosen):
            return chosen

    async def _remove(self, keys: set[tuple[str, bytes]]) -> int:
        async with self._chosen(keys) as (found, chosen):
            return await found.remove(chosen)

    async def _replay(self, edits: Edits | None, *, dry_run: bool, rate: float, over_newer: bool) -> int:
        async with self._chosen(None if edits is None else set(edits.bodies)) as (found, chosen):
            bodies = {} if edits is None else edits.bodies
            good = [(letter, bodies.get(letter.key, letter.body)) for letter in chosen]
            stay_why: list[str] = []
            good = [(letter, body) for letter, body in good if self._would_pass(letter, body, stay_why)]
            if not over_newer:
                good = await self._not_overtaken(good, stay_why)
            for line in stay_why[:_FEW]:
                say(line)
            if len(stay_why) > _FEW:
                say(f"and {len(stay_why) - _FEW:,} more")
            left = len(chosen) - len(good)
            stay = f"; {left:,} stay" if left else ""
            if dry_run:
                say(f"{len(good):,} would be replayed{stay}; nothing was sent")
            elif good:
                count = await self._send(found, good, rate)
                say(f"{count:,} replayed{stay}; what is rejected again comes back to the dead letters")
            elif chosen:
                say(f"none was replayed{stay}")
        return self._code(chosen) or (SOME_REJECTED if left else DONE)

    def _edit(self, letter: DeadLetter, edits: Edits) -> None:
        """Let the person correct a body until it would pass, or they give up."""
        body = letter.body
        found = judge(body, letter.restored(None), rules_of(self._settings))
        for line in _told(found) if isinstance(found, Problem) else [f"{letter.code}: {letter.detail}"]:
            say(f"{letter.name}: {line}")
        while True:
            body, before = edits.edited(letter, body), body
            if body == before:
                say(f"{letter.name}: stays, it was not changed")
                return
            found = judge(body, letter.restored(None), rules_of(self._settings))
            if not isinstance(found, Problem):
                edits.bodies[letter.key] = body
                return
            for line in _told(found):
                say(f"{letter.name}: it would be rejected again: {line}")
            if not sys.stdin.isatty() or input("Edit it again? [Y/n] ").strip().lower() in ("n", "no"):
                return

    async def _send(self, found: Look, good: Sequence[tuple[DeadLetter, bytes]], rate: float) -> int:
        user = urlsplit(self._settings.required_amqp_url).username
        async with publishing(link_of(self._settings)) as publisher:
            with progress(len(good)) as bar:
                return await replay(
                    found,
                    good,
                    publisher,
                    exchange=self._settings.requests_exchange,
                    user=unquote(user) if user else None,
                    rate=rate,
                    on_replayed=lambda _: bar.advance(bar.task_ids[0]),
                )

    def _would_pass(self, letter: DeadLetter, body: bytes, stay_why: list[str]) -> bool:
        found = judge(body, letter.restored(None), rules_of(self._settings))
        if isinstance(found, Problem):
            stay_why.append(f"{letter.name}: stays, it would be rejected again: {found.code}: {found.detail}")
            return False
        return True

    async def _not_overtaken(
        self, good: list[tuple[DeadLetter, bytes]], stay_why: list[str]
    ) -> list[tuple[DeadLetter, bytes]]:
        """Without those whose row was changed since they were rejected. One with a version is safe: the worker compares."""
        if not good:
            return good
        if self._settings.database_url is None:
            say("DATABASE_URL is not set: not looked whether rows were changed since")
            return good
        ids = [self._id(letter, body) for letter, body in good]
        store = store_of(self._settings)
        try:
            changed = await store.modified(sorted(set(ids)))
        except Unavailable as error:
            raise ClientError(
                f"cannot look whether rows were changed since: {error.reason}; or say --over-newer"
            ) from None
        finally:
            await store.close()
        kept = []
        for (letter, body), identifier in zip(good, ids, strict=True):
            at = changed.get(identifier)
            if at and letter.since and at > letter.since and "x-version" not in letter.properties.headers:
                stay_why.append(
                    f"{letter.name}: stays, its row was changed at {at:%Y-%m-%d %H:%M:%S}, after it was rejected:"
                    " say --over-newer to replay it all the same"
                )
            else:
                kept.append((letter, body))
        return kept

    def _id(self, letter: DeadLetter, body: bytes) -> UUID:
        found = judge(body, letter.restored(None), rules_of(self._settings))
        assert not isinstance(found, Problem)  # noqa: S101 - it has passed
        return found.id


def _summary(letter: DeadLetter) -> dict[str, object]:
    return {
        "message_id": letter.name,
        "code": letter.code,
        "detail": letter.detail,
        "publisher": letter.publisher,
        "since": letter.since and letter.since.isoformat(timespec="seconds"),
        "content_type": letter.properties.content_type,
        "bytes": len(letter.body),
    }


def _told(problem: Problem) -> list[str]:
    """A line for each bad field, or the one for all."""
    return [f"{bad.code}: {bad.message}" for bad in problem.errors] or [f"{problem.code}: {problem.detail}"]


def _whole(letter: DeadLetter, rules: Rules) -> str:
    lines = [f"message {letter.name}", f"  reason          {letter.code}: {letter.detail}"]
    lines += [f"  first rejected  {letter.since:%Y-%m-%d %H:%M:%S %Z}" if letter.since else "  first rejected  unknown"]
    found = judge(letter.body, letter.restored(None), rules)
    if isinstance(found, Problem):
        lines += [f"  as it is now    {one}" for one in _told(found)]
    else:
        lines.append("  as it is now    would be accepted by the contract")
    for name in ("content_type", "content_encoding", "correlation_id", "reply_to", "app_id", "type", "timestamp"):
        if (value := getattr(letter.properties, name)) is not None:
            lines.append(f"  {name:14}  {value}")
    lines += [f"  header          {name}: {value!r}" for name, value in sorted(letter.properties.headers.items())]
    return printable("\n".join([*lines, readable(letter.body), ""]))


def _line(letter: DeadLetter) -> str:
    return exported.line(
        letter.body,
        letter.properties.content_type or "",
        letter.properties.message_id,
        letter.headers,
        content_encoding=letter.properties.content_encoding,
        publisher=letter.publisher,
        since=letter.since and letter.since.isoformat(timespec="milliseconds"),
        problems=[f"{letter.code}: {letter.detail}"],
    )


def _write(file: Path, letters: Sequence[DeadLetter]) -> None:
    """Write a new file, and return when it is on the disk."""
    try:
        with file.open("x", encoding="utf-8") as written:
            written.writelines(f"{_line(letter)}\n" for letter in letters)
            written.flush()
            os.fsync(written.fileno())
    except OSError as error:
        raise ClientError(f"{file}: {error.strerror}") from None

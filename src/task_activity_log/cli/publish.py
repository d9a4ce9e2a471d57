"""`task-activity-log publish`: sends records from files, and prints the replies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO
from uuid import uuid4

from task_activity_log.cli import exported
from task_activity_log.cli.exit_codes import DONE, FAILED, SOME_REJECTED, WRONG_USE, guarded
from task_activity_log.cli.sources import Source, Unreadable, expand, line_of
from task_activity_log.cli.terminal import FEW, printable, progress, readable, reasons, say
from task_activity_log.client import Answer, ClientError, Summary, TaskActivityLogClient, Upsert
from task_activity_log.pipeline.request import judge
from task_activity_log.problem import Problem
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, rules_of


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line."""

    timeout: float | None = 60.0
    dry_run: bool = False
    wait: bool = True
    merge: bool = False
    rejected: Path | None = None
    run: str = ""
    stdin_format: str = "jsonl"


def publish(paths: Sequence[str], settings: Settings, options: Options) -> int:
    """Publish what the files contain, print the replies, return the exit code. Nothing is sent from an unreadable file."""
    options = replace(options, run=options.run or uuid4().hex[:12])
    if options.rejected is not None and options.rejected.exists():
        say(f"{options.rejected} already exists: name another file for the rejected records, or remove it")
        return WRONG_USE
    work = _Publication(settings, options)
    return guarded(lambda: work.carry_out(paths), interrupted=lambda: work.explained("interrupted"))


def _readable(paths: Sequence[str], options: Options) -> tuple[list[Source], int, bool]:
    """The sources that can be read to their end, the number of their records, and whether there are unreadable ones."""
    found: list[Source] = []
    total, unreadable = 0, False
    for path in paths:
        try:
            sources = list(expand([path], options.stdin_format, options.run))
        except Unreadable as error:
            say(f"{error}; nothing was sent from it")
            unreadable = True
            continue
        for source in sources:
            try:
                total += sum(1 for _ in source.upserts())
                found.append(source)
            except Unreadable as error:
                say(f"{error}; nothing was sent from it")
                unreadable = True
    return found, total, unreadable


def _upserts(sources: Sequence[Source], options: Options) -> Iterator[Upsert]:
    for source in sources:
        for upsert in source.upserts():
            yield replace(upsert, headers={**upsert.headers, "x-update-mode": "merge"}) if options.merge else upsert


def _judge(sources: Sequence[Source], settings: Settings, options: Options) -> int:
    """Print what the worker would reject, and return the exit code."""
    fine = bad = 0
    rules = rules_of(settings)
    for upsert in _upserts(sources, options):
        found = judge(upsert.body, upsert.properties(None, ""), rules)
        if isinstance(found, Problem):
            bad += 1
            for field, code, message in [(e.field, e.code, e.message) for e in found.errors] or [
                ("", found.code, found.detail)
            ]:
                print(f"{line_of(upsert, field) if field else upsert.source}: {code}: {message}")
        else:
            fine += 1
    say(f"{fine:,} would be accepted, {bad:,} rejected; nothing was sent")
    return SOME_REJECTED if bad else DONE


class _Publication:
    """One run: sends, counts, and reports."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self._settings = settings
        self._options = options
        self._sources: list[Source] = []
        self._total = 0
        self._summary = Summary()
        self._confirmed = 0
        self._outage = ""

    def carry_out(self, paths: Sequence[str]) -> int:
        """Read the sources, then judge or send their records; returns the exit code."""
        self._sources, self._total, unreadable = _readable(paths, self._options)
        failed = FAILED if unreadable else DONE
        if self._options.dry_run:
            return max(_judge(self._sources, self._settings, self._options), failed)
        if self._total:
            return max(asyncio.run(self._publish()), failed)
        if not unreadable:
            say("no records found")
        return FAILED

    @property
    def _few(self) -> bool:
        return self._total <= FEW

    async def _publish(self) -> int:
        try:
            async with TaskActivityLogClient(
                link_of(self._settings),
                exchange=self._settings.requests_exchange,
                app_id="task-activity-log publish",
                on_outage=self._away,
            ) as client:
                await (self._ask(client) if self._options.wait else self._send(client))
        except ClientError as error:
            say(self.explained(str(error)))
            return FAILED
        if self._options.wait:
            say(str(self._summary))
        else:
            say(
                f"{self._confirmed:,} confirmed by the broker in {self._summary.seconds:.1f} s; replies go to the subscribers"
            )
        rejected = self._summary.outcomes["rejected"]
        if rejected and self._options.rejected is not None:
            say(f"rejected records are in {self._options.rejected}: correct them there, then publish that file")
        elif rejected and not self._few:
            say("rejected records are now dead letters: see task-activity-log dead-letters list")
        return SOME_REJECTED if rejected else DONE

    async def _ask(self, client: TaskActivityLogClient) -> None:
        bulk = client.upsert_many(_upserts(self._sources, self._options), timeout=self._options.timeout)
        self._summary = bulk.summary
        with progress(0 if self._few else self._total) as bar, _report(self._options.rejected) as report:
            async for answer in bulk:
                if not self._few:
                    bar.update(bar.task_ids[0], advance=1, description=_outcomes(self._summary))
                if answer.rejected:
                    report(answer)
                self._show(answer)

    async def _send(self, client: TaskActivityLogClient) -> None:
        with progress(self._total) as bar:

            def sent(count: int) -> None:
                self._confirmed += count
                bar.update(bar.task_ids[0], advance=count)

            await client.send_many(_upserts(self._sources, self._options), timeout=self._options.timeout, on_sent=sent)

    def _show(self, answer: Answer) -> None:
        if answer.rejected:
            count = self._summary.outcomes["rejected"]
            if count <= FEW:
                for bad in answer.problem.errors or (answer.problem,):
                    name = getattr(bad, "name", "")
                    where = line_of(answer.upsert, name) if name else answer.upsert.source
                    say(f"{where}: rejected: {bad.code}: {getattr(bad, 'message', answer.problem.detail)}")
            elif count == FEW + 1:
                say("further rejections are not shown")
        elif self._few:
            say(f"{answer.upsert.source}: {answer.outcome}")
        if not sys.stdout.isatty():
            print(answer.body.decode(errors="replace"), flush=self._few)
        elif self._few and not answer.rejected:
            print(printable(readable(answer.body)))

    def _away(self, reason: str) -> None:
        if reason != self._outage:
            say(f"waiting for the broker: {reason}")
        self._outage = reason

    def explained(self, why: str) -> str:
        """Why the run ended, how far it came, and how to continue."""
        if not (self._summary.sent or self._confirmed):
            return why
        done, what = (self._summary.answered, "answered") if self._options.wait else (self._confirmed, "confirmed")
        return (
            f"{why}; {done:,} of {self._total:,} were {what}."
            f" To continue, add --run {self._options.run}: records that were applied are not applied again"
        )


@contextmanager
def _report(path: Path | None) -> Iterator[Callable[[Answer], None]]:
    """A function that adds a rejected record to the file to correct and publish, which the first call creates.

    The function raises `ClientError` if the file exists already, or cannot be written.
    """
    with ExitStack() as stack:
        file: IO[str] | None = None

        def add(answer: Answer) -> None:
            nonlocal file
            if path is None:
                return
            upsert = answer.upsert
            line = exported.line(
                upsert.body,
                upsert.content_type,
                upsert.message_id,
                upsert.headers,
                content_encoding=upsert.content_encoding,
                source=upsert.source,
                problems=reasons(answer.problem),
            )
            try:
                file = file or stack.enter_context(path.open("x", encoding="utf-8"))
                file.write(f"{line}\n")
                file.flush()
            except OSError as error:
                raise ClientError(f"{path}: {error.strerror}") from None

        yield add


def _outcomes(summary: Summary) -> str:
    return " · ".join(f"{count:,} {outcome}" for outcome, count in islice(sorted(summary.outcomes.items()), 5))

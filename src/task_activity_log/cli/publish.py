"""`task-activity-log publish`: sends records from files, and prints the replies."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from task_activity_log.cli import exported
from task_activity_log.cli.exit_codes import DONE, FAILED, SOME_REJECTED
from task_activity_log.cli.sources import Source, Unreadable, expand, line_of
from task_activity_log.cli.terminal import FEW, printable, progress, readable, say
from task_activity_log.client import Answer, ClientError, Summary, TaskActivityLogClient, Upsert, UpsertRejected
from task_activity_log.pipeline.request import judge
from task_activity_log.problem import Problem
from task_activity_log.settings import Settings
from task_activity_log.wiring import link_of, rules_of


@dataclass
class Publication:
    """One run, with the options of the command line: sends, counts, and reports."""

    settings: Settings
    timeout: float
    dry_run: bool
    wait: bool
    merge: bool
    rejected: Path | None
    run: str
    stdin: str
    _sources: list[Source] = field(default_factory=list, init=False)
    _total: int = field(default=0, init=False)
    _summary: Summary = field(default_factory=Summary, init=False)
    _confirmed: int = field(default=0, init=False)
    _outage: str = field(default="", init=False)

    def carry_out(self, paths: Sequence[str]) -> int:
        """Publish what the files contain, print the replies, return the exit code. Nothing is sent from an unreadable file."""
        failed = self._read(paths)
        if self.dry_run:
            return max(self._judge(), failed)
        if self._total:
            return max(asyncio.run(self._publish()), failed)
        if failed == DONE:
            say("no records found")
        return FAILED

    def explained(self, why: str) -> str:
        """Why the run ended, how far it came, and how to continue."""
        if not (self._summary.sent or self._confirmed):
            return why
        done, what = (self._summary.answered, "answered") if self.wait else (self._confirmed, "confirmed")
        return (
            f"{why}; {done:,} of {self._total:,} were {what}."
            f" To continue, add --run {self.run}: records that were applied are not applied again"
        )

    def _read(self, paths: Sequence[str]) -> int:
        """Read all sources to their end, and keep those that can be read; returns the exit code."""
        code = DONE
        for path in paths:
            for source in expand(path, self.stdin, self.run):
                try:
                    self._total += sum(1 for _ in source.upserts())
                    self._sources.append(source)
                except Unreadable as error:
                    say(f"{error}; nothing was sent from it")
                    code = FAILED
        return code

    def _upserts(self) -> Iterator[Upsert]:
        for source in self._sources:
            for upsert in source.upserts():
                yield replace(upsert, headers={**upsert.headers, "x-update-mode": "merge"}) if self.merge else upsert

    def _judge(self) -> int:
        """Print what the worker would reject, and return the exit code."""
        bad = 0
        rules = rules_of(self.settings)
        for upsert in self._upserts():
            found = judge(upsert.body, upsert.properties(None, ""), rules)
            if isinstance(found, Problem):
                bad += 1
                for place, reason in _complaints(upsert, found, [error.field for error in found.errors]):
                    print(f"{place}: {reason}")
        say(f"{self._total - bad:,} would be accepted, {bad:,} rejected; nothing was sent")
        return SOME_REJECTED if bad else DONE

    @property
    def _few(self) -> bool:
        return self._total <= FEW

    async def _publish(self) -> int:
        try:
            async with TaskActivityLogClient(
                link_of(self.settings),
                exchange=self.settings.requests_exchange,
                app_id="task-activity-log publish",
                on_outage=self._away,
            ) as client:
                await (self._ask(client) if self.wait else self._send(client))
        except ClientError as error:
            raise ClientError(self.explained(str(error))) from error
        rejected = self._summary.outcomes["rejected"]
        if rejected and self.rejected is not None:
            say(f"rejected records are in {self.rejected}: correct them there, then publish that file")
        elif rejected and not self._few:
            say("rejected records are now dead letters: see task-activity-log dead-letters list")
        return SOME_REJECTED if rejected else DONE

    async def _ask(self, client: TaskActivityLogClient) -> None:
        bulk = client.upsert_many(self._upserts(), timeout=self.timeout)
        self._summary = bulk.summary
        with progress(0 if self._few else self._total) as bar:
            async for answer in bulk:
                if not self._few:
                    outcomes = islice(sorted(self._summary.outcomes.items()), 5)
                    shown = " · ".join(f"{count:,} {outcome}" for outcome, count in outcomes)
                    bar.update(bar.task_ids[0], advance=1, description=shown)
                if answer.rejected:
                    self._keep(answer)
                self._show(answer)
        say(str(self._summary))

    async def _send(self, client: TaskActivityLogClient) -> None:
        with progress(self._total) as bar:

            def sent(count: int) -> None:
                self._confirmed += count
                bar.update(bar.task_ids[0], advance=count)

            await client.send_many(self._upserts(), timeout=self.timeout, on_sent=sent)
        seconds = self._summary.seconds
        say(f"{self._confirmed:,} confirmed by the broker in {seconds:.1f} s; replies go to the subscribers")

    def _show(self, answer: Answer) -> None:
        count = self._summary.outcomes["rejected"]
        if answer.rejected and count <= FEW:
            problem = answer.problem
            for place, reason in _complaints(answer.upsert, problem, [error.name for error in problem.errors]):
                say(f"{place}: rejected: {reason}")
        elif answer.rejected and count == FEW + 1:
            say("further rejections are not shown")
        elif self._few:
            say(f"{answer.upsert.source}: {answer.outcome}")
        if not sys.stdout.isatty():
            print(answer.body.decode(errors="replace"), flush=self._few)
        elif self._few and not answer.rejected:
            print(printable(readable(answer.body)))

    def _keep(self, answer: Answer) -> None:
        """Add a rejected record to the file to correct and publish, which the first one creates."""
        if self.rejected is None:
            return
        upsert = answer.upsert
        line = exported.line(
            upsert.body,
            upsert.content_type,
            upsert.message_id,
            upsert.headers,
            content_encoding=upsert.content_encoding,
            source=upsert.source,
            problems=exported.reasons(answer.problem),
        )
        try:
            with self.rejected.open("x" if self._summary.outcomes["rejected"] == 1 else "a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise ClientError(f"{self.rejected}: {error.strerror}") from None

    def _away(self, reason: str) -> None:
        if reason != self._outage:
            say(f"waiting for the broker: {reason}")
        self._outage = reason


def _complaints(upsert: Upsert, problem: Problem | UpsertRejected, fields: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Where each bad field is in its file, and what is wrong with it; or the same of the whole record."""
    places = [line_of(upsert, field) for field in fields] or [upsert.source]
    return zip(places, exported.reasons(problem), strict=True)

"""`task-activity-log publish`: sends records from files, and prints the replies."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from task_activity_log.cli.csv_records import columns
from task_activity_log.cli.exit_codes import DONE, FAILED, SOME_REJECTED
from task_activity_log.cli.findings import NOTHING_SENT, Findings, left_out, not_sent, say_faults, say_none_sent, totals
from task_activity_log.cli.judging import Complaints, complaints_of, judged, print_complaint
from task_activity_log.cli.rejected_file import add_line
from task_activity_log.cli.sources import (
    KNOWN,
    STANDARD_INPUT,
    Expanded,
    Source,
    Unreadable,
    expand,
    listed,
)
from task_activity_log.cli.terminal import FEW, agreed, counted, counting, print_data, progress, readable, say
from task_activity_log.client import (
    Answer,
    ClientError,
    NotSent,
    Summary,
    TaskActivityLogClient,
    Upsert,
    exported,
)
from task_activity_log.pipeline.request import Rules
from task_activity_log.settings import Settings
from task_activity_log.streams import printable, shell_command
from task_activity_log.wiring import link_of, rules_of, sending_of

_REPEATS = "records that were applied are not applied again"
_AGAIN = "; {} was a pipe: give the same records again in its place"
_SAME_INPUT = "; give the same records on standard input"
_SILENT_SECONDS = 5.0
"""How long no answer is waited for without a word."""
TIMEOUT_SECONDS = 60.0
"""How long no answer is waited for by default."""
MANY = 1_000
"""From this many records in a folder on, `publish` asks before it sends them, if there is a terminal."""


@dataclass
class Publication:
    """One run, with the options of the command line: reads, judges, sends, counts, and reports."""

    settings: Settings
    timeout: float
    dry_run: bool
    wait: bool
    merge: bool
    rejected: Path | None
    run: str
    stdin: str
    partitioned: bool | None = None
    """Whether records are sent by record; None: with WORKER_PARTITIONS, or if the broker has an exchange for it."""
    send_invalid: bool = False
    strict: bool = False
    """Whether records with any member that is not a field are not sent."""
    priority: int | None = None
    yes: bool = False
    columns: Sequence[str] = ()
    """The fields of columns in CSV files, as `HEADER=FIELD`."""
    quiet: bool = False
    """Whether only what is wrong is printed on standard error."""
    _paths: Sequence[str] = field(default=(), init=False)
    _sources: list[Source] = field(default_factory=list, init=False)
    _usable: Findings = field(default_factory=Findings, init=False)
    """What was found in the sources that can be read; its records are numbered from 0."""
    _unusable: list[Findings] = field(default_factory=list, init=False)
    """What was found in the files from which nothing is sent."""
    _empty: list[str] = field(default_factory=list, init=False)
    """Files without a record."""
    _complained: int = field(default=0, init=False)
    _ignored: Counter[str] = field(default_factory=Counter, init=False)
    """Names of members that are neither fields nor misspelled ones, and how many records have each, sent or not."""
    _new: bool = field(default=True, init=False)  # whether the file of the rejected did not exist
    _written: int = field(default=0, init=False)
    """How many records are in the file of the rejected."""
    _summary: Summary = field(default_factory=Summary, init=False)
    _not_sent: int = field(default=0, init=False)
    """How many answers say that the client or the broker took no such message: the worker has not seen it."""
    _confirmed: int = field(default=0, init=False)
    _began: bool = field(default=False, init=False)
    """Whether records may have been sent without waiting: the broker may have some that it has not confirmed."""
    _addressed: int = field(default=0, init=False)
    _outage: str = field(default="", init=False)

    def carry_out(self, paths: Sequence[str]) -> int:
        """Publish what the files contain, print the replies, return the exit code. Nothing is sent from an unreadable file."""
        self._paths, self._new = paths, self.rejected is None or not self.rejected.exists()
        try:
            return self._carry_out(paths)
        except ClientError as error:
            raise ClientError(self.explained(str(error))) from error

    def _carry_out(self, paths: Sequence[str]) -> int:
        failed = self._read(paths)
        if not self._usable.count and failed == DONE:
            say("no records found")
            return FAILED
        if self._usable.count or sum(look.count + len(look.faults) for look in self._unusable) > 1:
            self._report()  # otherwise there is just one error, which was named
        if not self._usable.count:
            return FAILED
        code = max(SOME_REJECTED if self._usable.kept_back else DONE, failed)
        if self.dry_run or not self._to_send:
            return code
        if not self._agreed(paths):
            self._remove_rejected()
            say("nothing was sent")
            return FAILED
        if not self._few:
            self._tell(f"sending {self._to_send:,} records as run {self.run}")  # one that is killed says no more
        return max(asyncio.run(self._publish()), code)

    def explained(self, why: str) -> str:
        """Why the run ended, how far it came, and how to continue. If nothing was sent, the same command starts again."""
        if not (self._summary.sent or self._began):
            self._remove_rejected()
            return why if "nothing was sent" in why else f"{why}; nothing was sent"
        done, what = (self._summary.answered, "answered") if self.wait else (self._confirmed, "confirmed")
        again = _REPEATS + "".join(map(_AGAIN.format, self._pipes())) + _SAME_INPUT * (STANDARD_INPUT in self._paths)
        if self._written:
            again += f"; {self.rejected} is written again, so correct its records after that"
        # The command ends the line: it is copied from there.
        return f"{why}; {done:,} of {self._to_send:,} were {what}. To continue ({again}): {self._command()}"

    def _command(self) -> str:
        """The whole command that continues this run."""
        flags = {"--no-wait": not self.wait, "--merge": self.merge, "--strict": self.strict}
        flags |= {"--send-invalid": self.send_invalid, "--partitioned": self.partitioned is True}
        flags |= {"--no-partitioned": self.partitioned is False}
        flags |= {"--yes": self.yes, "--quiet": self.quiet}
        given: dict[str, object] = {"--rejected": self.rejected, "--priority": self.priority}
        if self.timeout != TIMEOUT_SECONDS:
            given["--timeout"] = f"{self.timeout:g}"
        if STANDARD_INPUT in self._paths or self._pipes():
            given["--stdin"] = self.stdin
        chosen = [option for option, on in flags.items() if on]
        chosen += [word for column in self.columns for word in ("--column", column)]
        chosen += [word for option, value in given.items() if value is not None for word in (option, str(value))]
        options = [*chosen, "--run", self.run]
        if any(path.startswith("-") and path != STANDARD_INPUT for path in self._paths):
            return shell_command(["task-activity-log", "publish", *options, "--", *self._paths])
        return shell_command(["task-activity-log", "publish", *self._paths, *options])

    def _pipes(self) -> list[str]:
        """The paths of pipes, such as `/dev/fd/63` for `<(…)`: they exist only while this command runs."""
        return [path for path in self._paths if Path(path).is_fifo()]

    @property
    def _to_send(self) -> int:
        return self._usable.count - len(self._usable.kept_back)

    @property
    def _shown_on(self) -> TextIO:
        """Where it is said what is wrong with records."""
        return sys.stdout if self.dry_run else sys.stderr

    def _tell(self, line: str) -> None:
        """Say what is not a problem."""
        if not self.quiet:
            say(line)

    def _read(self, paths: Sequence[str]) -> int:
        """Read all sources to their end, and keep those that can be read; returns the exit code."""
        code = DONE
        expanded = [self._expand(path) for path in paths]  # before anything is written: see `expand`
        for found in expanded:
            if found is None:
                code = FAILED
                continue
            for source in found.sources:
                if source.path == STANDARD_INPUT and sys.stdin.isatty():
                    self._tell("reading records from the terminal; Ctrl-D ends them")
                with counting(quiet=self.quiet) as progress_of_source:
                    look = self._look(source, progress_of_source.update)
                if look.faults:
                    self._unusable.append(look)
                    code = FAILED
                else:
                    self._usable.add(look)
                    self._sources.append(source)
        return code

    def _expand(self, path: str) -> Expanded | None:
        """The sources at a path; None if it cannot be read. Says what is skipped."""
        try:
            found = expand(path, self.stdin, self.run, columns(list(self.columns)), without=self.rejected)
        except Unreadable as error:
            say(f"{error}; {NOTHING_SENT}")
            self._unusable.append(Findings(faults=[str(error)]))
            return None
        if found.skipped and found.sources:
            kinds = ", ".join(KNOWN)
            self._tell(f"{path}: {counted(len(found.skipped), 'file')} skipped, not {kinds}: {listed(found.skipped)}")
        if found.not_files:
            what = "not files: links to folders or to nothing, pipes or devices"
            self._tell(f"{path}: {len(found.not_files):,} skipped, {what}: {listed(found.not_files)}")
        return found

    def _look(self, source: Source, on_read: Callable[[int, str], None]) -> Findings:
        """Read and judge a source. If it has faults, nothing is sent from it.

        They are parts that cannot be read, or it is changed meanwhile. Its records are judged nevertheless, so that
        everything can be corrected at once.
        """
        rules = rules_of(self.settings)
        look = Findings()
        for found in source.read():
            if isinstance(found, Unreadable):
                look.faults.append(str(found) if len(look.faults) < FEW else "")
                continue
            on_read(1, "records read")
            judgement = judged(self._merged(found), rules, strict=self.strict, to=self._shown_on)
            if judgement.complaints and (self.dry_run or not self.send_invalid):
                look.kept_back.add(self._usable.count + look.count)
                look.misspelled += not judgement.rejected
                self._complain(judgement.complaints)
                self._ignored.update(judgement.others)
            else:
                look.sends_ignored |= bool(judgement.unknown)
                self._ignored.update(judgement.unknown)
            look.count += 1
        if not look.faults and not self.dry_run:
            try:
                self._keep_all(source, look.kept_back, rules)
            except Unreadable as error:
                look.faults.append(str(error))
        if look.faults:
            say_faults(source, look.faults, len(look.kept_back))
        elif not look.count:
            self._empty.append(source.name)
        return look

    def _keep_all(self, source: Source, numbers: Collection[int], rules: Rules) -> None:
        """Write the records with these numbers, which are not sent, to the file of the rejected.

        Raises `Unreadable` if the source was changed since it was read first.
        """
        if not numbers or self.rejected is None:
            return
        for number, upsert in enumerate(map(self._merged, source.upserts()), self._usable.count):
            if number in numbers:
                judgement = judged(upsert, rules, strict=self.strict, to=self._shown_on)
                self._keep(upsert, [reason for _, reason in judgement.complaints])

    def _merged(self, upsert: Upsert) -> Upsert:
        if self.merge:
            upsert = replace(upsert, headers={**upsert.headers, "x-update-mode": "merge"})
        return upsert if self.priority is None else replace(upsert, priority=self.priority)

    def _complain(self, complaints: Complaints) -> None:
        """Show what is wrong with a record that is not sent; without --dry-run, for the first few records."""
        self._complained += 1
        for place, reason in complaints:
            if self.dry_run:
                print_complaint(place, reason)
            elif self._complained <= FEW:
                say(f"{place}: not sent: {reason}")

    def _report(self) -> None:
        """Say what is not sent, and which members are ignored, before anything is sent."""
        if self._empty:
            self._tell(f"no records in {listed(self._empty)}")
        if self._ignored:
            names = ", ".join(f"{name} ({count:,})" for name, count in self._ignored.most_common(FEW))
            more = f" and {len(self._ignored) - FEW:,} more" if len(self._ignored) > FEW else ""
            say(f"not fields, and ignored by the worker: {names}{more}")
        if self.dry_run:
            say(f"{totals(self._usable, self._unusable, strict=self.strict)}; nothing was sent")
        elif self._usable.kept_back:
            where = f"; they are in {self.rejected}" if self.rejected else ""
            say(f"{not_sent(self._usable, strict=self.strict)}: not sent{where} (--send-invalid sends them)")
        if not self.dry_run and not self._to_send:
            say_none_sent(self._usable, self._unusable, strict=self.strict)

    def _agreed(self, paths: Sequence[str]) -> bool:
        folders = [path for path in paths if Path(path).is_dir()]
        many = bool(folders) and self._to_send >= MANY
        ignored = self._usable.sends_ignored and not self.merge
        if self.yes or not (many or ignored) or not sys.stdin.isatty():
            return True
        where = f" from {counted(len(self._sources), 'file')} in {', '.join(folders)}" if folders else ""
        clears = ": a field that is missing is cleared" if ignored else ""
        return agreed(f"Send {counted(self._to_send, 'record')}{where}{clears}?")

    def _upserts(self) -> Iterator[Upsert]:
        every = chain.from_iterable(source.upserts() for source in self._sources)
        for number, upsert in enumerate(every):
            if number not in self._usable.kept_back:
                yield self._merged(upsert)

    def _noted(self) -> Iterator[Upsert]:
        """The upserts; those whose answers go to a reply_to that they were exported with are counted."""
        for upsert in self._upserts():
            self._addressed += bool(upsert.properties(None, "").reply_to)
            yield upsert

    @property
    def _few(self) -> bool:
        return self._to_send <= FEW

    async def _publish(self) -> int:
        sending = sending_of(self.settings)
        if self.partitioned is not None:
            sending["partitioned"] = self.partitioned
        async with TaskActivityLogClient(
            link_of(self.settings),
            **sending,
            app_id="task-activity-log publish",
            on_outage=self._away,
            on_connected=self._back,
        ) as client:
            await (self._ask(client) if self.wait else self._send(client))
        rejected = self._summary.outcomes["rejected"]
        if self._not_sent:
            say(f"{self._not_sent:,} of the rejected could not be sent: they are not dead letters")
        if rejected and self.rejected is not None:
            say(f"rejected records are in {self.rejected}: correct them there, then publish that file")
        elif rejected > self._not_sent and not self._few:
            which = "the others are" if self._not_sent else "rejected records are now dead letters"
            say(f"{which}: see task-activity-log dead-letters list")
        return SOME_REJECTED if rejected else DONE

    async def _ask(self, client: TaskActivityLogClient) -> None:
        bulk = client.upsert_many(self._upserts(), timeout=self.timeout)
        self._summary = bulk.summary
        loop = asyncio.get_running_loop()
        reminder = loop.call_later(_SILENT_SECONDS, self._wonder)
        with progress(0 if self._few or self.quiet else self._to_send, self._outcomes, self._unanswered) as bar:
            async for answer in bulk:
                reminder.cancel()
                if not self._few:
                    bar.update(1)
                if answer.rejected:
                    self._not_sent += not answer.sent
                    self._keep(answer.upsert, exported.reasons(answer.problem))
                self._show(answer)
        self._tell(f"{self._summary}{self._left_out}")

    @property
    def _left_out(self) -> str:
        """What was not sent although it was named, for the last line, which many read alone."""
        return f"; not sent: {named}" if (named := left_out(self._usable, self._unusable, strict=self.strict)) else ""

    def _outcomes(self) -> str:
        return " · ".join(islice(self._summary.counts(), 5))

    def _unanswered(self, seconds: float) -> str:
        return f"no answer for {seconds:.0f} s: {self._waits or 'is a worker running and ready?'}"

    def _unconfirmed(self, seconds: float) -> str:
        return f"nothing confirmed for {seconds:.0f} s" + (f": {self._waits}" if self._waits else "")

    @property
    def _waits(self) -> str:
        """What is waited for, as far as the client knows; empty if it is connected."""
        return f"waiting for the broker: {self._outage}" if self._outage else ""

    def _wonder(self) -> None:
        if not self._outage:
            say("no answer yet: is a worker running?")

    async def _send(self, client: TaskActivityLogClient) -> None:
        with progress(0 if self.quiet else self._to_send, idle=self._unconfirmed) as bar:

            def sent(count: int) -> None:
                self._confirmed += count
                bar.update(count)

            self._began = True
            self._summary.begin()
            try:
                await client.send_many(self._noted(), timeout=self.timeout, on_sent=sent)
            except NotSent as error:  # all others were sent: this run is complete
                for answer in error.answers:
                    self._refused(answer)
        seconds = self._summary.seconds
        where = "replies go to the subscribers"
        if self._addressed:
            have = "has" if self._addressed == 1 else "have"
            where = f"replies go to the reply_to, which {self._addressed:,} {have}, or to the subscribers"
        self._tell(f"{self._confirmed:,} confirmed by the broker in {seconds:.1f} s; {where}{self._left_out}")

    def _refused(self, answer: Answer) -> None:
        """Note one that could not be sent, where no answers are waited for."""
        self._summary.outcomes[answer.outcome] += 1
        self._not_sent += 1
        self._keep(answer.upsert, exported.reasons(answer.problem))
        self._show_rejection(answer)

    def _show_rejection(self, answer: Answer) -> None:
        count = self._summary.outcomes["rejected"]
        if count <= FEW:
            problem = answer.problem
            for place, reason in complaints_of(
                answer.upsert, problem, [error.name for error in problem.errors], to=sys.stderr
            ):
                say(f"{place}: {'rejected' if answer.sent else 'not sent'}: {reason}")
        elif count == FEW + 1:
            say("further rejections are not shown")

    def _show(self, answer: Answer) -> None:
        if answer.rejected:
            self._show_rejection(answer)
        elif self._few:
            self._tell(f"{answer.upsert.source}: {answer.outcome}")
        if not sys.stdout.isatty():
            print_data(answer.body)
            if self._few:
                sys.stdout.flush()
        elif self._few and not answer.rejected:
            print(printable(readable(answer.body)))

    def _keep(self, upsert: Upsert, problems: list[str]) -> None:
        """Add a record to the file to correct and publish, which the first one creates."""
        if self.rejected is None:
            return
        properties = upsert.properties(None, "")
        exact = isinstance(upsert, exported.Exported)
        line = exported.line(upsert.body, properties, exact=exact, source=upsert.source, problems=problems)
        add_line(self.rejected, line, first=not self._written, new=self._new)
        self._written += 1

    def _remove_rejected(self) -> None:
        """Remove what was written to the file of the rejected: otherwise the same command would not write it again."""
        if self.rejected is not None and self._written:
            self.rejected.unlink(missing_ok=True)

    def _away(self, reason: str) -> None:
        if reason != self._outage:
            say(f"waiting for the broker: {reason}")
        self._outage = reason

    def _back(self) -> None:
        if self._outage:
            say("connected to the broker again")
        self._outage = ""

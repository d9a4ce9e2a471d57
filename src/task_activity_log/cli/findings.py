"""What `publish` has found in files before it sends anything, and the numbers that it reports of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from task_activity_log.cli.sources import Source
from task_activity_log.cli.terminal import FEW, counted, say

NOTHING_SENT = "nothing was sent from it"


@dataclass
class Findings:
    """What was found in one source, or in several."""

    count: int = 0
    """How many records it has, as far as it could be read."""
    faults: list[str] = field(default_factory=list)
    """What cannot be read; the texts of the first few."""
    kept_back: set[int] = field(default_factory=set)
    """The numbers of the records that are not sent. In a source with faults they only count."""
    misspelled: int = 0
    """How many of these a worker would not reject."""
    sends_ignored: bool = False
    """Whether another one has a member that is not a field."""

    def add(self, found: Findings) -> None:
        """Add what was found in one more source without faults, whose records are numbered from `count`."""
        self.count += found.count
        self.kept_back |= found.kept_back
        self.misspelled += found.misspelled
        self.sends_ignored |= found.sends_ignored


def totals(usable: Findings, unusable: Sequence[Findings], *, strict: bool) -> str:
    """How many records and lines have each fate in a dry run: whatever was named before is in one of these numbers.

    `unusable` are the files from which nothing is sent, because parts of them cannot be read.
    """
    faults = sum(len(found.faults) for found in unusable)
    kept_back = sum(len(found.kept_back) for found in unusable)
    valid = sum(found.count for found in unusable) - kept_back
    misspelled = usable.misspelled + sum(found.misspelled for found in unusable)
    rejected = len(usable.kept_back) + kept_back - misspelled
    accepted = usable.count - len(usable.kept_back)
    counts = [f"{accepted:,} would be accepted", f"{rejected:,} rejected", typos(misspelled, strict=strict)]
    counts.append(f"{counted(faults, 'line')} that cannot be read" if faults else "")
    counts.append(f"{counted(valid, 'valid record')} in the same files would not be sent" if valid else "")
    return ", ".join(filter(None, counts))


def left_out(usable: Findings, unusable: Sequence[Findings], *, strict: bool) -> str:
    """What was not sent, for the end of the last line of a run; empty if everything was."""
    files = f"{counted(len(unusable), 'file')} that cannot be read" if unusable else ""
    return ", ".join(filter(None, (not_sent(usable, strict=strict), files)))


def say_none_sent(usable: Findings, unusable: Sequence[Findings], *, strict: bool) -> None:
    """Say what was not sent, as the last line of a run that sends nothing, unless a line that names it is the last one."""
    if unusable and len(unusable) + bool(usable.kept_back) > 1:
        say(f"nothing was sent: {left_out(usable, unusable, strict=strict)}")


def not_sent(usable: Findings, *, strict: bool) -> str:
    """How many records of files that can be read are not sent, and why; empty for none."""
    invalid = len(usable.kept_back) - usable.misspelled
    counts = f"{invalid:,} invalid" if invalid else "", typos(usable.misspelled, strict=strict)
    return ", ".join(filter(None, counts))


def typos(count: int, *, strict: bool) -> str:
    """How many records are not sent although a worker would not reject them; empty for none."""
    what = "members that are not fields" if strict else "misspelled fields"
    return f"{count:,} with {what}" if count else ""


def say_faults(source: Source, faults: Sequence[str], invalid: int) -> None:
    """Say what cannot be read of a source: the first few, and how many there are, also of the invalid records among others."""
    if len(faults) == 1 and not invalid:
        say(f"{faults[0]}; {NOTHING_SENT}")
        return
    for fault in faults[:FEW]:
        say(fault)
    also = f", {counted(invalid, 'invalid record')}" if invalid else ""
    say(f"{source.name}: {counted(len(faults), 'line')} cannot be read{also}; {NOTHING_SENT}")

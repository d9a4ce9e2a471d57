"""One line of the table that `check` prints."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["fine", "unknown", "warning", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and whether a worker can work with it."""

    verdict: Verdict
    what: str
    """What it is about."""
    found: str
    advice: str = ""
    """What to do; empty if there is nothing to do."""

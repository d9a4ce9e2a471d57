"""Error codes on the command line: completed, and refused if there is no such code."""

from collections.abc import Collection
from difflib import get_close_matches

from task_activity_log.problem import Code

CODES = frozenset(map(str, Code))
"""The codes of the worker."""
DEAD_LETTER_CODES = CODES | {"delivery_limit", "expired", "maxlen", "rejected", "unknown"}
"""The worker's codes, the broker's reasons, and what a message has that has neither."""


def unknown(codes: Collection[str], known: Collection[str]) -> list[str]:
    """A line for each code that is not known, with the one that is probably meant."""
    found = {code: get_close_matches(code, known, n=1) for code in sorted(set(codes).difference(known))}
    return [
        f"{code}: no such code; "
        + (f"did you mean {close[0]}?" if close else f"the codes are {', '.join(sorted(known))}")
        for code, close in found.items()
    ]


def complete(incomplete: str) -> list[str]:
    """The codes that begin with this, for the Tab key."""
    return sorted(code for code in DEAD_LETTER_CODES if code.startswith(incomplete))

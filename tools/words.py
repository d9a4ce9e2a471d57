"""Looks for words that this repository does not use, because a reader would have to guess what they mean.

The list has metaphors of its own making and idioms translated word for word. Each is followed by what to write instead.
Only words that have no other use here are on it: a text without them may still be hard to read.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.generated import ROOT

WORDS = {
    r"(?m:^)[<>|]{7}(?=\s)": "one of the two sides: this is the mark of a merge conflict",
    r"anew": "again",
    r"so many(?! that)": "N, or the name of the limit",
    r"at one with": "consistent with",
    r"beside": "next to, besides, or compared with",
    r"by turns": "alternately",
    r"doors?": "interface, or the name of the module",
    r"for want of": "because there is no",
    r"halls?": "a file that is too long",
    r"houses?": "package",
    r"(is|are) taken for": "is treated as",
    r"is it well": "is it healthy",
    r"killers?": "a message that crashes the worker",
    r"laggards?": "unplaced replies",
    r"leash(es)?": "reaper",
    r"mend(s|ed|ing)?": "fix",
    r"pass(es|ed)? over": "skip, or ignore",
    r"rooms": "modules, or stages",
    r"room by room": "stage by stage",
    r"see it work": "try it",
    r"stubborn": "unresolved requests",
    r"taps?": "frame reader",
    r"the house": "the package",
    r"told by": "identified by",
    r"(?<!there\x20)(?-i:(is|are|was|were) none)(?! of)": "is not one, or there is none",
    r"vouch(es|ed|ing)?": "prove",
}

_SUFFIXES = {"", ".cs", ".env", ".js", ".json", ".md", ".py", ".sh", ".sql", ".svg", ".toml", ".xml", ".xsd", ".yaml"}
_NOT_OURS = {"LICENSE", "asyncapi-3.0.0.json", "package-lock.json"}
_GAP = r"(?:_|\s+(?:#\s*)?)"
"""Between two words: in a name, on a line, from one line to the next, in a comment too."""

_FORBIDDEN = [
    (re.compile(rf"(?<![a-z])(?:{pattern.replace(' ', _GAP)})(?![a-z])", re.IGNORECASE), instead)
    for pattern, instead in WORDS.items()
]


def found(text: str) -> Iterator[tuple[int, str, str]]:
    """Each forbidden word in a text: its line, the word, and what to write instead."""
    for pattern, instead in _FORBIDDEN:
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead


def files() -> Iterator[Path]:
    """The texts that were written for this repository, except this list and its test."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in sorted(set(listed.split("\0")) - {"", "tools/words.py", "tests/unit/test_tools.py"}):
        path = ROOT / name
        if path.suffix in _SUFFIXES and path.name not in _NOT_OURS and path.is_file():
            yield path


def main() -> int:
    """Print where forbidden words are; returns the exit status."""
    count = 0
    for path in files():
        name = path.relative_to(ROOT)
        for line, word, instead in sorted([*found(path.read_text(encoding="utf-8")), *found(str(name))]):
            print(f"{name}:{line}: {word!r}: write {instead}", file=sys.stderr)
            count += 1
    print(f"words: {count} to replace")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Checks that what the documents refer to exists: relative links with their anchors, paths, and tests by name.

It reads every Markdown file in the repository. A path is text in backquotes that contains a slash and ends like a file
name; it may be relative to the repository, to the document, or to the package. External links are not followed.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "task_activity_log"

_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)+\.(?:cs|json|js|md|py|sql|svg|xml|xsd|ya?ml)|test_\w+\.py")
_TEST = re.compile(r"(test_\w+\.py)::(test_\w+)")


def documents() -> list[Path]:
    """The Markdown files of the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def broken(document: Path) -> Iterator[str]:
    """What the document refers to and what does not exist."""
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    for link in _LINK.findall(_CODE.sub("", text)):
        if "://" not in link and not link.startswith("mailto:"):
            yield from _broken_link(document, link)
    for code in _CODE.findall(text):
        if named := _TEST.fullmatch(code):
            if named[2] not in _tests_in(named[1]):
                yield f"no such test: {code}"
        elif _PATH.fullmatch(code) and not _exists(document, code):
            yield f"no such file: {code}"


def _broken_link(document: Path, link: str) -> Iterator[str]:
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    if not target.exists():
        yield f"leads nowhere: {link}"
    elif anchor and anchor not in _anchors(target):
        yield f"no such heading: {link}"


@cache
def _anchors(target: Path) -> frozenset[str]:
    """The anchors that GitHub makes of the headings of a document."""
    headings = _HEADING.findall(_FENCE.sub("", target.read_text(encoding="utf-8")))
    return frozenset(re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings)


@cache
def _tests_in(name: str) -> frozenset[str]:
    """The test functions in the files of this name."""
    files = (ROOT / "tests").rglob(name)
    return frozenset(test for file in files for test in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8")))


def _exists(document: Path, path: str) -> bool:
    if "/" not in path:  # a test file, by its name alone
        return any((ROOT / "tests").rglob(path))
    return any((base / path).exists() for base in (ROOT, document.parent, PACKAGE))


def main() -> int:
    """Print what does not exist; returns the exit status."""
    count = 0
    for document in documents():
        for problem in broken(document):
            print(f"{document.relative_to(ROOT)}: {problem}", file=sys.stderr)
            count += 1
    print(f"links: {count} broken")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())

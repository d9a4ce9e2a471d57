"""Names in XML that publishers choose: libxml2 keeps them, and memory must not grow with them."""

import gc
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from task_activity_log.problem import Rejected
from task_activity_log.wire import as_xml

_NUMBERS = count()


def memory() -> int:
    """The resident memory of this process in bytes."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096


def of_new_names(length: int) -> bytes:
    """XML with names that no other text has."""
    names = (f"<n{next(_NUMBERS):x}/>" for _ in range(length // 8))
    return f"<task_activity_log>{''.join(names)}</task_activity_log>".encode()


def test_memory_does_not_grow_with_names() -> None:
    """40 texts of 200 kB, each with new names, would add some 30 MB, for as long as the thread lives."""
    thread = as_xml.ParserThread(most_bytes=2**19)
    for _ in range(5):
        thread.parse(of_new_names(200_000))
    gc.collect()
    before = memory()
    for _ in range(40):
        thread.parse(of_new_names(200_000))
    gc.collect()
    assert memory() - before < 12 * 2**20


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("<task_activity_log><subject>a &amp; b &#xD;&#10;<![CDATA[<x>]]></subject></task_activity_log>", True),
        (
            '<?xml version="1.0" encoding="utf-8"?>\r\n<task_activity_log xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
            ' xmlns:xsd="http://www.w3.org/2001/XMLSchema">\r\n  <subject xsi:nil="true" />\r\n</task_activity_log>',
            True,
        ),
        ("<task_activity_log><other/></task_activity_log>", False),
        ('<task_activity_log other="1"/>', False),
        ('<task_activity_log xmlns="urn:other"/>', False),
        ('<task_activity_log xmlns:other="http://www.w3.org/2001/XMLSchema-instance"/>', False),
        ('<task_activity_log xmlns:i="http://www.w3.org/2001/XMLSchema-instance" i:other="true"/>', False),
        ("<task_activity_log>&other;</task_activity_log>", False),
        ("<task_activity_log><?other ?></task_activity_log>", False),
        ("<?xml-other ?><task_activity_log/>", False),
        ("<task_activity_log><!-- <other/> --></task_activity_log>", False),
        ("<task_activity_log><subject><![CDATA[]]></subject><other/><![CDATA[]]></task_activity_log>", False),
    ],
)
def test_only_texts_with_known_names_are_parsed_in_the_thread_of_the_caller(
    text: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes less time. All others have names that would stay there."""
    parsed: list[bytes] = []
    monkeypatch.setattr(as_xml._THREAD, "parse", parsed.append)
    with suppress(Rejected):
        as_xml.parse(text)
    assert parsed == [text.encode()] * (not known)


def test_a_thread_is_replaced_after_some_text() -> None:
    """Its parser, too: a parser goes on to use the names of the thread that has made it."""
    thread = as_xml.ParserThread(most_bytes=100)
    parsers = []
    for _ in range(4):
        root = thread.parse(b"<a>" + b" " * 60 + b"</a>")
        assert root is not None
        assert root.tag == "a"
        parsers.append(thread._parser)
    assert parsers[0] is parsers[1] is not parsers[2] is parsers[3]
    assert thread.parse(b"<a>") is None

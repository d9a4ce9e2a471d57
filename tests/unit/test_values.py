"""The value of a bad field, as the person whose file it is sees it."""

import pytest

from task_activity_log.cli.values import shown
from task_activity_log.client import Upsert


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"subject": 5}', "5"),
        (b'{"Subject": "5"}', '"5"'),
        (b'{"subject": 1e400}', "1e400"),
        (b'{"subject": ' + b"9" * 5000 + b"}", "9" * 40 + "…"),
        (b'{"subject": ["\x1b[2J"]}', None),
        (b'{"subject": null}', None),
        (b'{"other": 1}', None),
        (b"no JSON", None),
    ],
)
def test_a_number_is_not_shown_as_a_text(body: bytes, said: str | None) -> None:
    assert shown(Upsert(body), "subject") == said


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_value_of_xml_that_declares_utf_16_is_shown(encoding: str) -> None:
    """.NET declares it in XML that is in UTF-8, too."""
    body = '<?xml version="1.0" encoding="utf-16"?><a><subject>5</subject></a>'.encode(encoding)
    assert shown(Upsert(body, "application/xml"), "subject") == '"5"'

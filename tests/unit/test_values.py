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

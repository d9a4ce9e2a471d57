"""Bodies as people read and edit them."""

import asyncio
import json
import sys
import time
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from task_activity_log.cli import app
from task_activity_log.cli.exit_codes import WRONG_USE
from task_activity_log.cli.publish import Publication
from task_activity_log.cli.replies import _line
from task_activity_log.cli.terminal import Speed, counted, indented, progress, readable, table
from task_activity_log.client.messages import received_reply
from task_activity_log.message import Delivery, Properties
from task_activity_log.settings import load
from task_activity_log.streams import one_line
from tests.terminals import HOSTILE, controls, on_a_terminal
from tests.virtual_time import run


@pytest.mark.parametrize(
    "body",
    [
        '{"a":1.10,"b":[],"c":{},"d":[1,{"e":"}]\\",{"}],"a":1e400}',
        "[[],[[]]]",
        '"text"',
        "{}",
    ],
)
def test_indented_json_has_the_same_values_as_they_were_written(body: str) -> None:
    """Numbers keep their digits, and repeated members stay."""
    lines = indented(body.encode()).decode()
    assert "".join(part.strip() for part in lines.split("\n")).replace('": ', '":') == body
    assert indented(lines.encode()).decode() == lines


def test_indented_json_is_laid_out_as_usual() -> None:
    body = {"a": [1, {"b": None}], "c": "x, y: {", "d": [], "e": {}}
    assert indented(json.dumps(body, separators=(",", ":")).encode()).decode() == json.dumps(body, indent=2)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"<a/>", b"[" * 100_000])
def test_what_is_not_json_stays_as_it_is(body: bytes) -> None:
    assert indented(body) == body


def test_xml_is_shown_on_several_lines() -> None:
    assert readable(b"<a><b>1</b><c/></a>") == "<a>\n  <b>1</b>\n  <c/>\n</a>"
    declared = '<?xml version="1.0" encoding="utf-16"?><a><b>é</b></a>'
    for encoding in ("utf-16", "utf-16-be", "utf-8"):  # .NET writes utf-16 into what it encodes as UTF-8
        assert readable(declared.encode(encoding), "application/xml") == "<a>\n  <b>é</b>\n</a>"
    assert readable('{"id": "é'.encode("utf-16-le"), "application/json; charset=utf-16") == '{"id": "é'


@pytest.mark.parametrize("body", [b"<a><b></a>", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", b"<!-- x --><a><b/></a>"])
def test_xml_that_would_not_be_shown_in_full_stays_as_it_is(body: bytes) -> None:
    assert readable(body) == body.decode()


def test_a_number_has_a_noun_in_the_right_form() -> None:
    assert [counted(number, "record") for number in (0, 1, 1_000)] == ["0 records", "1 record", "1,000 records"]


def test_the_speed_is_that_of_the_last_ten_seconds() -> None:
    """During an outage it falls to nothing, and nobody says how long the rest takes."""
    speed = Speed()
    assert (speed.per_second, speed.seconds_for(1)) == (0, None)
    for second in range(100):
        speed.note(second, 10 * second)
    assert (speed.per_second, speed.seconds_for(50)) == (10, 5)
    for second in range(100, 105):
        speed.note(second, 990)
    assert speed.per_second == 5
    for second in range(105, 111):
        speed.note(second, 990)
    assert (speed.per_second, speed.seconds_for(50)) == (0, None)


def test_progress_is_reported_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A line every ten seconds in the log of a job, also while nothing moves. Nothing where a bar would be hidden."""
    outcomes = ""

    async def work() -> None:
        nonlocal outcomes
        with progress(3_000, lambda: outcomes, lambda seconds: f"no answer for {seconds:.0f} s") as bar:
            await asyncio.sleep(4)
            bar.update(1_500)
            outcomes = "1,500 inserted"
            await asyncio.sleep(28)
            bar.update(1_500)
            outcomes = ""
            await asyncio.sleep(12)
        with progress(0) as bar:
            bar.update(1)
            await asyncio.sleep(60)
        with progress(1):
            await asyncio.sleep(10.5)

    run(work())
    assert capsys.readouterr().err.splitlines() == [
        "task-activity-log: 1,500 of 3,000: 1,500 inserted",
        "task-activity-log: 1,500 of 3,000: 1,500 inserted; no answer for 16 s",
        "task-activity-log: 1,500 of 3,000: 1,500 inserted; no answer for 26 s",
        "task-activity-log: 3,000 of 3,000",
        "task-activity-log: 0 of 1; no progress for 10 s",
    ]


_BAR = """
from task_activity_log import streams
from task_activity_log.cli.terminal import progress

streams.protect()
with progress(2, lambda: {text!r}) as bar:
    bar.update(1)
"""


@pytest.mark.parametrize("text", [HOSTILE, "[/b][bold]x[/i]"])
def test_a_progress_bar_shows_the_text_of_others_as_it_is(text: str) -> None:
    """Outcomes come from replies. They do not control the terminal, and are no markup, which could be wrong."""
    shown = on_a_terminal([sys.executable, "-c", _BAR.format(text=text)], COLUMNS="300")
    assert one_line(text) in shown
    assert not [one for one in controls(shown) if one not in "\x1b\r"]
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown


def test_what_publish_waits_for_is_named() -> None:
    """A broker that is away, which the client knows, or else the worker; with --no-wait only the broker."""
    publication = Publication(load({}, needed=()), 60.0, False, True, False, None, "run", "jsonl")
    assert publication._unanswered(20.4) == "no answer for 20 s: is a worker running and ready?"
    assert publication._unconfirmed(20.4) == "nothing confirmed for 20 s"
    publication._away("connection refused")
    assert publication._unanswered(20.4) == "no answer for 20 s: waiting for the broker: connection refused"
    assert publication._unconfirmed(20.4) == "nothing confirmed for 20 s: waiting for the broker: connection refused"


def test_an_id_stays_on_one_line_of_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it can be copied. Longer ids are broken, or they would leave no room for the other columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    short, long, reason = str(uuid4()), "x" * 100, "Send due_date as a date such as 2026-01-11T20:58:34.720383Z."
    table(("age", "message id", "reason"), [("1 h", short, reason)], unbroken="message id")
    assert short in capsys.readouterr().out
    table(("age", "message id", "reason"), [("1 h", long, reason)], unbroken="message id")
    assert long not in capsys.readouterr().out


@pytest.mark.parametrize("width", [1, 5, 17])
def test_a_table_loses_nothing_on_a_very_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """It is printed as it is where there is no terminal: columns without any room for them would not be printed."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table(("age", "message id", "reason"), [("1 h", "m", "Send due_date.")])
    assert capsys.readouterr().out == "age\tmessage id\treason\n1 h\tm\tSend due_date.\n"


@pytest.mark.parametrize(
    ("paths", "timeout", "words"),
    [
        (["a.jsonl"], 60.0, "a.jsonl --run r"),
        (["a.jsonl"], 600.0, "a.jsonl --timeout 600 --run r"),
        (["-x.jsonl", "a.jsonl"], 60.0, "--run r -- -x.jsonl a.jsonl"),
        (["-"], 60.0, "- --stdin jsonl --run r"),
        (["two  spaces"], 60.0, r"$'two\x20\x20spaces' --run r"),
    ],
)
def test_the_command_that_continues_a_run_is_the_same_command(paths: list[str], timeout: float, words: str) -> None:
    """With the time limit, and with names that begin like an option or have spaces that one line would not keep."""
    publication = Publication(load({}, needed=()), timeout, False, True, False, None, "r", "jsonl")
    publication._paths = paths
    publication._began = True
    said = one_line(publication.explained("interrupted"))
    same = "; give the same records on standard input" if paths == ["-"] else ""
    assert said.endswith(
        f"To continue (records that were applied are not applied again{same}): task-activity-log publish {words}"
    )


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "UTC"])
def test_a_reply_of_the_end_of_time_is_printed(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    """Anybody who may write to the exchange chooses the timestamp. In Tokyo that would be the year 10000."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        reply = received_reply(Delivery(b"", Properties(timestamp=253_402_300_799_999)))
        assert _line(reply).startswith("9999-12-31 23:59:59+0000\tunknown\t-\t")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_reply_without_a_time_has_none() -> None:
    """It is not that of the present: it may be old."""
    assert _line(received_reply(Delivery(b"", Properties()))).startswith("-\tunknown\t-\t")


def test_a_time_zone_of_a_day_or_more_is_replaced_by_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX permits it in TZ, and Python does not."""
    reply = received_reply(Delivery(b"", Properties(timestamp=86_400)))
    monkeypatch.setenv("TZ", "XXX-25")
    time.tzset()
    try:
        assert _line(reply).startswith("1970-01-02 00:00:00+0000\t")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "arguments",
    [
        ["dead-letters", "discard", "--code", "invalid_date", "--older-than", "", "--yes"],
        ["dead-letters", "replay", "--all", "--newer-than=", "--yes"],
        ["resend", "--all", "--queue", "", "--yes"],
        ["publish", "records.jsonl", "--run", ""],
        ["replies", "--since="],
    ],
)
def test_an_option_whose_value_is_empty_is_refused(arguments: list[str]) -> None:
    """As by a script whose variable is not set. Without the option more would be removed, sent or applied again."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == WRONG_USE
    assert ": has an empty value: give it one, or leave the option out" in result.output


def test_a_column_without_a_field_has_a_value() -> None:
    """It is left out of the records."""
    result = CliRunner().invoke(app, ["publish", "missing.csv", "--dry-run", "--column", "Notes=", "--column=Other="])
    assert "has an empty value" not in result.output

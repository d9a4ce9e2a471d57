"""Dead letters judged, filtered and grouped for the console."""

import os
import re
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from task_activity_log.client.letters import Filter, groups
from task_activity_log.client.replays import Replay, present
from task_activity_log.console.rendering import path_of
from task_activity_log.message import Properties
from task_activity_log.streams import one_line, shell_word
from tests.consoles import letter, sample_letters

RECORD = b'{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994", "due_date": "%s"}'


def test_the_samples_are_of_all_kinds() -> None:
    """300 dead letters, in groups by code, field and publisher; one publisher has 40 of which one is really wrong."""
    found = sample_letters()
    assert len(found) == 300
    dates = [group for group in groups(found) if (group.code, group.publisher) == ("invalid_date", "crm-brussels")]
    assert [(group.field, len(group.letters), group.passing) for group in dates] == [("due_date", 40, 39)]
    assert {"missing_id", "invalid_uuid", "malformed_json", "wrong_root", "refused_by_database", "poison_message"} <= {
        group.code for group in groups(found)
    }


def test_groups_are_the_largest_first_and_know_their_times() -> None:
    """The small line counts them in parts of the time of all."""
    found = groups(sample_letters())
    sizes = [len(group.letters) for group in found]
    assert sizes == sorted(sizes, reverse=True)
    first, last = min(group.first for group in found if group.first), max(group.last for group in found if group.last)
    for group in found:
        assert sum(group.counts(first, last)) == len(group.letters)
        assert group.first is not None
        assert group.last is not None
        assert first <= group.first <= group.last <= last


def test_a_text_is_found_in_a_body_in_utf_16() -> None:
    """An id that is not read because the record is invalid is found as a text."""
    body = (
        "<task_activity_log><id>9652e68c-7b6d-4598-bbbd-4e933126c994</id><due_date>Soon</due_date></task_activity_log>"
    )
    found = letter(
        f'<?xml version="1.0" encoding="utf-16"?>{body}'.encode("utf-16"), Properties(content_type="text/xml")
    )
    assert found in Filter.of({"text": "soon", "id": "9652e68c-7b6d-4598-bbbd-4e933126c994"})


def test_the_fields_are_all_that_are_bad_today() -> None:
    """The reason names only the first."""
    two = letter(b'{"id": "nope", "due_date": "nope"}', Properties(headers={"x-error-code": "invalid_uuid"}))
    assert (two.fields, two.field) == (("id", "due_date"), "id")
    passes = letter(
        RECORD % b"2026-01-01T00:00:00Z",
        Properties(headers={"x-error-code": "invalid_date", "x-error-detail": "Send due_date as a date such as x."}),
    )
    assert (passes.passes, passes.fields) == (True, ("due_date",))
    foreign = letter(b"{", Properties(headers={"x-error-code": "other", "x-error-detail": "Send money now"}))
    assert foreign.field == "-"


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({}, 300),
        ({"code": "invalid_date"}, 57),
        ({"code": "invalid_date", "publisher": "crm-brussels"}, 40),
        ({"code": "invalid_date", "publisher": "crm-brussels", "now": "pass"}, 39),
        ({"code": "invalid_date", "publisher": "crm-brussels", "now": "reject"}, 1),
        ({"field": "date_closed"}, 14),
        ({"field": "-", "code": "wrong_root"}, 24),
        ({"text": "ALERT("}, 3),
        ({"message": "no such message"}, 0),
        ({"publisher": "crm"}, 0),
    ],
)
def test_a_filter_selects_what_matches_everything(query: dict[str, str], count: int) -> None:
    """Each member narrows it; codes and publishers are whole, texts are parts."""
    wanted = Filter.of(query)
    assert sum(each in wanted for each in sample_letters()) == count
    assert Filter.of(wanted.members) == wanted


def test_a_filter_by_time_includes_both_ends() -> None:
    """In UTC, unless it says otherwise."""
    found = sample_letters()
    since = sorted(each.since for each in found if each.since)[150]
    wanted = Filter.of({"from": since.isoformat(), "to": since.isoformat()})
    assert [each.since for each in found if each in wanted] == [since]
    assert Filter.of({"from": "2026-01-31T14:30"}).since == datetime(2026, 1, 31, 14, 30, tzinfo=UTC)
    assert Filter.of({"from": "2026-01-31T14:30+02:00"}).since == datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
    for text in ("soon", "0001-01-01T00:00+23:00"):
        with pytest.raises(ValueError, match=f"“{re.escape(text)}” is not a time"):
            Filter.of({"to": text})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("2026-01-31T14:30+02:00", "2026-01-31T12:30"),
        ("2026-01-31T14:30:45", "2026-01-31T14:30:45"),
        ("0026-01-31", "0026-01-31T00:00"),
    ],
)
def test_a_link_to_another_page_has_the_same_time(given: str, text: str) -> None:
    """What is listed is what a replay of all that match then has."""
    wanted = Filter.of({"from": given})
    assert wanted.members == {"from": text}
    assert Filter.of(wanted.members) == wanted


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            {"cod": "invalid_date"},
            "“cod” is not a filter: there are code, field, publisher, from, to, message, id, text, now, ",
        ),
        ({"since": "2026-01-31T14:30"}, "“since” is not a filter"),
        ({"now": "fail"}, "“fail” is not a value of now: it is pass or reject."),
        ({"answered": "no"}, "“no” is not a value of answered: it is yes."),
    ],
)
def test_a_filter_that_is_not_one_is_refused(query: dict[str, str], message: str) -> None:
    """It would otherwise select everything, for a replay too."""
    with pytest.raises(ValueError, match=re.escape(message)):
        Filter.of(query)
    assert Filter.of({"page": "2", "now": "", "answered": "yes"}) == Filter(answered="yes")


def test_a_filter_by_record_finds_also_those_that_are_rejected_again() -> None:
    """No id was read from them, but it is in their text."""
    one = letter(RECORD % b"nope", Properties(headers={"x-error-code": "invalid_date"}))
    other = letter(RECORD.replace(b"9652", b"0000") % b"2026-01-01T00:00:00Z", Properties())
    wanted = Filter.of({"id": "9652E68C-7b6d-4598-bbbd-4e933126c994"})
    assert (one in wanted, other in wanted) == (True, False)


def test_the_link_to_a_dead_letter_survives_any_message_id() -> None:
    """A browser would take a name of dots for another folder, and a question mark for a query."""
    for name in ("..", ".", "a/../b?c#d", "<script>", "é\u202e"):
        path = path_of(letter(b"{}", Properties(message_id=name)))
        assert path.startswith("/dead-letters/")
        assert set(path) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~%/?=")
        assert path.count("?") == 1
        assert not path.partition("?")[0].endswith(("/.", "/.."))


def test_exact_copies_have_the_same_id_and_others_do_not() -> None:
    """A crash can leave a copy there twice."""
    one, copy = (letter(b"{}", Properties(message_id="m")) for _ in range(2))
    assert one.id == copy.id
    assert (
        len({one.id, letter(b"{ }", Properties(message_id="m")).id, letter(b"{}", Properties(message_id="n")).id}) == 3
    )


@pytest.mark.parametrize(
    "text",
    [
        *("plain", "two words", "it's", "$(reboot)", "a\nb", "\x1b[31m", "é", "\u202e", "'", "\\", ""),
        *("two  spaces", " x ", "   ", "no\xa0break", "日本\u3000語", "a\tb", "a\u2028b", os.fsdecode(b"M\xfcller")),
    ],
)
def test_a_text_in_a_command_is_one_word_of_a_shell(text: str) -> None:
    """And nothing in it is carried out, or controls the terminal into which somebody copies it.

    It is the same text if it is printed on one line, whatever spaces it has, and the name of a file that is not UTF-8 too.
    """
    word = shell_word(text)
    assert word.isprintable()
    line = one_line(f"continue: show {word} now").removeprefix("continue: show ").removesuffix(" now")
    said = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True)  # noqa: S603, S607 - that is the test
    assert os.fsdecode(said.stdout) == text


def test_what_a_message_says_of_its_replays_is_shown_and_not_believed() -> None:
    """A publisher can write anything there."""
    for value, count in ((2, 2), (-1, 0), ("3", 0), (10**9, 0), (True, 1)):
        assert letter(b"{}", Properties(headers={"x-replay-count": value})).raw.replays == count


def test_letters_without_a_time_are_in_no_time() -> None:
    """They match no filter by time, and have no place in the line."""
    one = letter(b"{}", Properties())
    assert one not in Filter(since=datetime.now(UTC) - timedelta(days=9999))
    assert Counter(groups([one])[0].counts(None, None)) == {0.0: 24}


def test_a_replay_begins_with_the_oldest_and_names_what_is_gone() -> None:
    """Whatever order the queue has: RabbitMQ returns what was not taken in any order. Exact copies count one by one."""
    times = ["2026-01-01T00:00:03+00:00", "2026-01-01T00:00:01+00:00", "2026-01-01T00:00:02+00:00"]
    one, two, three = (letter(b"{}", Properties(headers={"x-last-seen": time})) for time in times)
    replays = [Replay(each.raw, each.raw, each.found) for each in (one, one, two, three)]
    found = present(replays, [one.raw, three.raw, two.raw])
    assert [each.letter for each in found] == [two.raw, three.raw, one.raw]
    assert [each.state for each in replays] == ["waiting", "gone", "waiting", "waiting"]

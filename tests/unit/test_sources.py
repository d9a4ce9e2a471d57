"""The quick ways in which `publish` reads its files give the same results as the ordinary ones."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_activity_log.cli.exit_codes import SOME_REJECTED
from task_activity_log.cli.judging import Judgement, judged
from task_activity_log.cli.publish import Publication
from task_activity_log.cli.rejected_file import writable
from task_activity_log.cli.sources import Source, Unreadable, expand, is_record, named_uuid, syntax_error
from task_activity_log.client import ClientError, Upsert, exported
from task_activity_log.settings import load

RECORD = {
    "id": str(uuid4()),
    "subject": 'Hé "quoted" \\',
    "is_closed": True,
    "due_date": None,
    "more": [1, {"a": -0.5e3}],
}
ESCAPED, PLAIN = json.dumps(RECORD).encode(), json.dumps(RECORD, ensure_ascii=False).encode()


@given(name=st.text(st.characters(exclude_categories=["Cs"])))
def test_the_message_ids_of_records_are_those_of_the_standard(name: str) -> None:
    """A run that an earlier release began is continued with the same ones."""
    assert named_uuid(name) == str(uuid5(NAMESPACE_URL, name))


@given(
    at=st.integers(0, len(PLAIN)),
    removed=st.integers(0, 3),
    inserted=st.sampled_from([b"", b"\xff", b"\0", b"\n", b'"', b"\\u", b"{", b"]", b",", b"NaN", b"01", b"1.", b"\xef\xbb\xbf"])
    | st.binary(max_size=3),
    original=st.sampled_from([ESCAPED, PLAIN]),
)  # fmt: skip
def test_what_is_quickly_seen_to_be_a_record_is_one(at: int, removed: int, inserted: bytes, original: bytes) -> None:
    """Bytes that are no JSON, or no object, are never taken for a record."""
    content = original[:at] + inserted + original[at + removed :]
    if is_record(content):
        parsed = json.loads(content)
        assert isinstance(parsed, dict)
        assert not exported.is_message(parsed)


@pytest.mark.parametrize(
    ("content", "is_one"),
    [
        (ESCAPED, True),
        (PLAIN, True),
        (b'{"content_type": "application/json"}', True),
        (b'{"content_type": "application/json", "record": {}}', False),
        (b'{"body_base64": "", "content_type": null}', False),
        (b'{"subject": "\\ud800"}', False),
        (b"[{}]", False),
        (b'{"id": }', False),
        (b'{"subject": "' + b"x" * 70_000 + b'"}', False),
    ],
)
def test_a_record_is_told_from_an_exported_message(content: bytes, is_one: bool) -> None:
    """And from what the ordinary reader must decide: lone surrogates, and long texts."""
    assert is_record(content) is is_one


def test_a_file_in_a_folder_that_cannot_be_asked_about_is_not_left_out_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may permit to list it and not to reach what is in it. A link to nothing is no file."""
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").symlink_to("nothing")
    (tmp_path / "c.json").symlink_to("c.json")
    assert [source.path for source in expand(str(tmp_path), "jsonl", "run", {}).sources] == [str(tmp_path / "a.json")]
    asked = os.stat

    def refused(path: Path, **options: Any) -> os.stat_result:
        if str(path).endswith("a.json"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return asked(path, **options)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(Unreadable, match=r"a\.json: Permission denied"):
        expand(str(tmp_path), "jsonl", "run", {})


def test_a_pipe_of_another_format_is_told_to_choose_it_and_not_to_be_renamed(tmp_path: Path) -> None:
    """`<(psql --csv …)` has no name of its own to end in .csv."""
    pipe = tmp_path / "63"
    os.mkfifo(pipe)
    for content, advice in (("id,subject\n1,2\n", "add --stdin csv or --stdin xml"), ("<a/>", "add --stdin xml")):
        writer = threading.Thread(target=pipe.write_text, args=(content,))
        writer.start()
        [source] = expand(str(pipe), "jsonl", "run", {}).sources
        [found] = source.read()
        writer.join()
        assert str(found).startswith(f"{pipe}: is ")
        assert str(found).endswith(advice)


def test_what_is_not_followed_in_a_folder_is_named(tmp_path: Path) -> None:
    """A link to a folder, a link to nothing and a pipe: nobody should believe that their records were sent."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jsonl").write_text("{}")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_text("{}")
    (folder / "linked.jsonl").symlink_to(folder / "a.jsonl")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "gone.jsonl").symlink_to("nowhere")
    (folder / ".hidden").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.jsonl")
    found = expand(str(folder), "jsonl", "r", {})
    assert [source.path for source in found.sources] == [str(folder / "a.jsonl"), str(folder / "linked.jsonl")]
    assert found.not_files == [folder / name for name in ("gone.jsonl", "more", "pipe.jsonl")]


def test_the_file_of_rejected_records_is_not_read(tmp_path: Path) -> None:
    """In a folder that is published it is skipped, also under another name; given by name, it is not written."""
    rejected = tmp_path / "rejected.jsonl"
    rejected.write_text('{"problems": [], "content_type": "application/json", "record": {}}\n')
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "same.jsonl").symlink_to(rejected)
    found = expand(str(tmp_path), "jsonl", "r", {}, without=rejected)
    assert [source.path for source in found.sources] == [str(tmp_path / "a.jsonl")]
    for path in (rejected, tmp_path / "same.jsonl"):
        why = writable(rejected, again=True, paths=[str(tmp_path / "a.jsonl"), str(path)])
        assert why == f"--rejected {rejected}: its records are read: name another file for the rejected records"
    assert writable(rejected, again=True, paths=[str(tmp_path)]) is None


@pytest.mark.parametrize("existed", [False, True], ids=["new", "continued"])
def test_the_rejected_records_of_another_run_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    """Two runs that begin together find no file, and both would say that their records are in it."""
    read, rejected = tmp_path / "read.jsonl", tmp_path / "rejected.jsonl"
    read.write_text('{"id": "no uuid"}\n')
    if existed:
        rejected.write_text("of this run")

    def judged_late(*given: Any, **options: Any) -> Judgement:
        if not existed:
            rejected.write_text("of another run")
        return judged(*given, **options)

    monkeypatch.setattr("task_activity_log.cli.publish.judged", judged_late)
    run = Publication(load({}, needed=()), 60.0, False, True, False, rejected, "run", "jsonl")
    if existed:
        assert run.carry_out([str(read)]) == SOME_REJECTED
        assert "no uuid" in rejected.read_text()
    else:
        with pytest.raises(
            ClientError, match=r"rejected\.jsonl was created by another program meanwhile: name another"
        ):
            run.carry_out([str(read)])
        assert rejected.read_text() == "of another run"


def test_rejected_records_are_not_written_to_a_pipe_or_a_device(tmp_path: Path) -> None:
    """To look whether it is a file of ours would wait for ever, or read for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/full"), Path("/dev/null")):
        for again in (True, False):
            assert writable(path, again=again) == f"--rejected {path}: is a pipe or a device: name a file"


def test_rejected_records_are_not_written_to_standard_output() -> None:
    """The replies are printed there. A dash would be the name of a file."""
    assert writable(Path("-"), again=False) == "--rejected -: name a file: the replies are printed on standard output"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<a>\n<b>x & y</b></a>", "an & that is not written as &amp;"),
        (b"<a><b></a>", "An end tag does not match its start tag."),
        (b"<a><b>", "tag"),
        (b"text", "It does not begin with a tag."),
        (b"<a>\x01</a>", "a character that XML does not allow"),
        (b"<a/><b/>", "Something follows the record."),
        (b"<a>&b;</a>", "a name between & and ; that is not declared"),
        (b"<a:b/>", "a prefix that is not declared"),
        (b"<a/>", ""),
    ],
)
def test_a_syntax_error_of_xml_is_named(body: bytes, words: str) -> None:
    """With its place in a file, and without a part of the record: logs are read by others."""
    place, sentence = syntax_error(Upsert(body, "application/xml", source="a.xml"))
    assert words in sentence
    assert bool(sentence) == bool(words)
    assert place.count(":") == (2 if words else 0)
    assert syntax_error(Upsert(body, "application/xml", source="a.jsonl:7")) == ("a.jsonl:7", sentence)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_syntax_error_of_xml_that_declares_utf_16_is_named(encoding: str) -> None:
    """.NET declares it in XML that is in UTF-8, too: the declaration is not what is wrong."""
    body = '<?xml version="1.0" encoding="utf-16"?>\n<a>\n<b></a>'.encode(encoding)
    place, sentence = syntax_error(Upsert(body, "application/xml", source="a.xml"))
    assert place.startswith("a.xml:3:")
    assert sentence == "An end tag does not match its start tag."


def test_a_device_is_not_read(tmp_path: Path) -> None:
    """It may have no end."""
    link = tmp_path / "zero.json"
    link.symlink_to("/dev/zero")
    [found] = Source(str(link), ".json", "x").read()
    assert str(found) == f"{link}: is a device"


def test_a_file_that_is_larger_than_the_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def records(*_: object) -> None:
        raise MemoryError

    file = tmp_path / "large.json"
    file.write_text("{}")
    monkeypatch.setattr(Source, "_records", records)
    [found] = Source(str(file), ".json", "x").read()
    assert str(found).startswith(f"{file}: is larger than the memory")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_json_in_utf_16_is_named(tmp_path: Path, suffix: str, encoding: str) -> None:
    """As PowerShell writes it. Once, and not for each line."""
    file = tmp_path / f"records{suffix}"
    file.write_text(
        '{"id": "9652e68c-7b6d-4598-bbbd-4e933126c994"}\n' * (2 if suffix == ".jsonl" else 1), encoding=encoding
    )
    assert [str(found) for found in Source(str(file), suffix, "r").read()] == [
        f"{file}: is in UTF-16: save it in UTF-8"
    ]

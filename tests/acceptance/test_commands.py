"""`publish`, `replies` and `dead-letters` as users run them: as processes, with files, pipes, signals and a terminal."""

import asyncio
import errno
import gzip
import json
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import aio_pika
import asyncpg
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from typer.main import get_command

from sandbox import RabbitMQ
from task_activity_log.cli import terminal
from task_activity_log.cli.codes import complete
from task_activity_log.cli.dead_letters import completing, replaying
from task_activity_log.cli.dead_letters.commands import app as dead_letters
from task_activity_log.cli.lookups import complete_setting
from task_activity_log.cli.publish import Publication
from task_activity_log.client.connections import publishing
from task_activity_log.client.replaying import replay as replay_letters
from task_activity_log.hosts import vhost as vhost_of
from task_activity_log.message import STORED, Delivery, Properties
from task_activity_log.pipeline.request import Request, Rules, decode
from task_activity_log.postgresql.connecting import Connector
from task_activity_log.rabbitmq import version
from task_activity_log.rabbitmq.management import Management, delivery_limit
from task_activity_log.rabbitmq.outgoing import Fate, Outgoing
from task_activity_log.rabbitmq.publisher import Publisher
from task_activity_log.rabbitmq.queues import deletes_soon
from task_activity_log.rabbitmq.topology import Topology, declare
from tests.asking import OLDER
from tests.commands import COMMAND, World, command, end, start
from tests.terminals import on_a_terminal

TOPOLOGY = Topology()
REPEATS = " (records that were applied are not applied again)"
SAME_INPUT = f"{REPEATS[:-1]}; give the same records on standard input)"


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """A channel to a virtual host that has the queues but no worker."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, TOPOLOGY)
        yield await connection.channel()


def line(**fields: Any) -> str:
    return json.dumps({"id": str(uuid4()), **fields}) + "\n"


# ---- publish


async def test_rejected_records_are_written_to_a_file_that_can_be_corrected_and_published(
    world: World, tmp_path: Path
) -> None:
    """`publish` reads a folder and standard input, reports each bad record with file and line, and saves them."""
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "a.jsonl").write_text(line(subject="1") + '{"id": "nope",\t"subject": "2"}\n' + line(subject="3"))
    (folder / "b.xml").write_text("<task_activity_log>\n<id>no</id>\n</task_activity_log>")
    (folder / "c.json").write_text(f"[{line()}, {line()}]")
    (folder / "notes.txt").write_text("not a record")
    rejected = tmp_path / "rejected.jsonl"
    stdin = line().encode()
    said = await command("publish", str(folder), "-", "--rejected", str(rejected), AMQP_URL=world.amqp_url, stdin=stdin)
    assert said.code == 3
    assert len(said.lines) == 5
    assert f"{folder}/a.jsonl:2: not sent: invalid_uuid: Send id" in said.err
    assert f"{folder}/b.xml:2: not sent: invalid_uuid: Send id" in said.err
    assert f"2 invalid: not sent; they are in {rejected} (--send-invalid sends them)" in said.err
    assert said.err.endswith("5 inserted; not sent: 2 invalid\n")

    again = await command("publish", str(folder), "--rejected", str(rejected), AMQP_URL=world.amqp_url)
    assert again.code == 2
    assert "already exists" in again.err

    corrected = rejected.read_text().replace('"nope"', f'"{uuid4()}"').replace("<id>no<", f"<id>{uuid4()}<")
    rejected.write_text(corrected)
    said = await command("publish", str(rejected), AMQP_URL=world.amqp_url)
    assert (said.code, [reply[0] for reply in said.lines]) == (0, ["{", "<"])


async def test_invalid_records_are_sent_on_request_and_what_the_worker_rejects_is_kept(
    world: World, tmp_path: Path
) -> None:
    """With --send-invalid the worker judges. Continuing a run writes its file of rejected records again."""
    file, rejected = tmp_path / "a.jsonl", tmp_path / "rejected.jsonl"
    file.write_text(line() + '{"id": "nope"}\n')
    arguments = ("publish", str(file), "--send-invalid", "--run", "tonight", "--rejected", str(rejected))
    for outcome in ("inserted", "duplicate"):
        said = await command(*arguments, AMQP_URL=world.amqp_url)
        assert (said.code, len(said.lines)) == (3, 2)
        assert f"{file}:2: rejected: invalid_uuid" in said.err
        assert "2 answered in" in said.err
        assert f"1 {outcome}, 1 rejected" in said.err
        assert len(rejected.read_text().splitlines()) == 1
    kept = rejected.read_text()
    same = ("publish", str(rejected), "--run", "tonight", "--rejected", str(rejected))
    said = await command(*same, AMQP_URL=world.amqp_url)  # what is corrected there must not be lost
    assert (said.code, rejected.read_text()) == (2, kept)
    assert "its records are read: name another file for the rejected records" in said.err
    rejected.write_text("a file of somebody else\n")
    said = await command(*arguments, AMQP_URL=world.amqp_url)
    assert (said.code, rejected.read_text()) == (2, "a file of somebody else\n")


async def test_what_the_broker_does_not_take_is_not_said_to_be_a_dead_letter(world: World, tmp_path: Path) -> None:
    """A header that the broker itself reads, of a wrong type. The worker has not seen that message, and rejects another."""
    headers = [{"CC": "not a list"}, *[{}] * 24]
    message = {"content_type": "application/json", "record": {"id": str(uuid4())}}
    file = tmp_path / "exported.jsonl"
    file.write_text("".join(json.dumps({**message, "headers": one}) + "\n" for one in headers))
    said = await command("publish", str(file), AMQP_URL=world.amqp_url)
    assert (said.code, len(said.lines)) == (3, 25)
    assert f"{file}:1: not sent: invalid_properties: The broker refuses this message" in said.err
    assert "1 of the rejected could not be sent: they are not dead letters" in said.err
    assert "rejected records are now dead letters" not in said.err
    with file.open("a") as more:
        more.write('{"id": "nope"}\n')
    said = await command("publish", str(file), "--send-invalid", AMQP_URL=world.amqp_url)
    assert "1 of the rejected could not be sent: they are not dead letters" in said.err
    assert "the others are: see task-activity-log dead-letters list" in said.err


async def test_a_misspelled_field_is_named_before_it_clears_the_field(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """The record is not sent. Other members are named and ignored, as the contract has it."""
    records = [
        line(taskId=str(uuid4())),  # the example of the report
        line(subjct="1"),
        line(Subject="fields match without regard to case", **{"$type": "t"}, modified_dateutc="echoed"),
        line(subject="1", subjects=["similar, but the record has the field"]),
        line(note="2"),
    ]
    wrong = line(task_id="wrong in two ways", subjct="2")
    file = tmp_path / "a.jsonl"
    file.write_text("".join(records))
    (tmp_path / "b.xml").write_text(f"<task_activity_log><id>{uuid4()}</id>\n<TaskId/></task_activity_log>")
    said = await command("publish", str(tmp_path), "--no-wait", AMQP_URL=amqp_url)
    assert said.code == 3
    assert f"{file}:1: not sent: taskId is not a field; did you mean task_id?" in said.err
    assert f"{file}:2: not sent: subjct is not a field; did you mean subject?" in said.err
    assert f"{tmp_path}/b.xml:2: not sent: TaskId is not a field; did you mean task_id?" in said.err
    assert "not fields, and ignored by the worker: subjects (1), note (1)" in said.err
    assert len(await names(channel, TOPOLOGY.requests_queue)) == 3
    dry = await command("publish", str(tmp_path), "--dry-run")
    assert (dry.code, len(dry.lines)) == (3, 3)
    assert "3 would be accepted, 0 rejected, 3 with misspelled fields; nothing was sent" in dry.err
    said = await command("publish", str(tmp_path), "--no-wait", "--send-invalid", AMQP_URL=amqp_url)
    assert (said.code, len(await names(channel, TOPOLOGY.requests_queue))) == (0, 6)
    assert "taskId (1)" in said.err
    file.write_text(wrong)
    said = await command("publish", str(file), "--no-wait", AMQP_URL=amqp_url)
    assert f"{file}:1: not sent: invalid_uuid: " in said.err
    assert f"{file}:1: not sent: subjct is not a field; did you mean subject?" in said.err
    assert said.err.endswith("1 invalid: not sent (--send-invalid sends them)\n")


async def test_strict_sends_no_record_with_a_member_that_is_not_a_field(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """Also if it is no misspelled field. Once corrected, it is sent with the priority of the others, and cannot overtake them."""
    file, kept = tmp_path / "a.jsonl", tmp_path / "kept.jsonl"
    file.write_text(line(note="1") + line(subject="2"))
    options = ("--no-wait", "--strict", "--priority", "2", "--rejected", str(kept))
    said = await command("publish", str(file), *options, AMQP_URL=amqp_url)
    assert said.code == 3
    assert f"{file}:1: not sent: note is not a field\n" in said.err
    queue = await channel.get_queue(TOPOLOGY.requests_queue)
    message = await queue.get(no_ack=True)
    assert (json.loads(message.body)["subject"], message.priority) == ("2", 2)
    assert await names(channel, TOPOLOGY.requests_queue) == []
    kept.write_text(kept.read_text().replace('"note"', '"subject"'))
    for others, priority in (((), 2), (("--priority", "1"), 1)):
        assert (await command("publish", str(kept), "--no-wait", *others, AMQP_URL=amqp_url)).code == 0
        message = await queue.get(no_ack=True)
        assert (json.loads(message.body)["subject"], message.priority) == ("1", priority)


async def test_what_is_longer_than_the_broker_takes_is_kept_without_waiting(
    channel: AbstractChannel, amqp_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All others were sent, so there is nothing to continue: the same command would find the same."""
    from task_activity_log.rabbitmq.publisher import MessageMax  # noqa: PLC0415 - patched

    file, kept = tmp_path / "a.jsonl", tmp_path / "kept.jsonl"
    file.write_text(line() + line(subject="x" * 1_000) + line())
    with monkeypatch.context() as patch:
        patch.setattr(MessageMax, "known", 900)
        said = await command("publish", str(file), "--no-wait", "--rejected", str(kept), AMQP_URL=amqp_url)
    assert (said.code, said.lines) == (3, [])
    assert f"{file}:2: not sent: body_too_large: " in said.err
    assert "2 confirmed by the broker" in said.err
    assert "1 of the rejected could not be sent: they are not dead letters" in said.err
    assert "To continue" not in said.err
    assert len(await names(channel, TOPOLOGY.requests_queue)) == 2
    assert (await command("publish", str(kept), "--no-wait", AMQP_URL=amqp_url)).code == 0
    assert len(await names(channel, TOPOLOGY.requests_queue)) == 1


async def test_bad_values_are_shown_on_a_terminal_and_nowhere_else(tmp_path: Path) -> None:
    """Shortened and escaped. A log may be read by others."""
    file = tmp_path / "a.jsonl"
    file.write_text(line(Due_Date="yester\x1bday", is_closed="x" * 100) + line(due_date={"a": [1]}))
    (tmp_path / "b.xml").write_text(
        f"<task_activity_log><id>{uuid4()}</id>\n<due_date>no</due_date></task_activity_log>"
    )
    dry = [COMMAND, "publish", "--dry-run", str(tmp_path)]
    told = await asyncio.to_thread(on_a_terminal, dry)
    assert (
        f'{file}:1: invalid_date: Send due_date as a date such as 2026-01-11T20:58:34.720383Z. It is "yester\\u001bday".'
        in told
    )
    assert f'is_closed as true or false. It is "{"x" * 39}….' in told
    assert 'It is {"a": ["1"]}.' in told
    assert (
        f'{tmp_path}/b.xml:2: invalid_date: Send due_date as a date such as 2026-01-11T20:58:34.720383Z. It is "no".'
        in told
    )
    said = await command(*dry[1:])
    assert len(said.lines) == 4
    assert "It is" not in said.out


async def test_a_continued_run_is_given_as_a_whole_command(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """With all options that decide what is sent, quoted for a shell."""
    file = tmp_path / "two words.jsonl"
    file.write_text(line() + line(subjct="x"))
    rejected = tmp_path / "rejected.jsonl"
    options = (
        "--merge",
        "--strict",
        "--yes",
        "--rejected",
        str(rejected),
        "--run",
        "tonight",
        "--timeout",
        "1.5",  # long enough for a slow machine to send it: what is given up before that is not sent
        "--no-partitioned",
    )
    said = await command("publish", str(file), *options, AMQP_URL=amqp_url)
    assert said.code == 1
    again = (
        f"publish '{file}' --merge --strict --no-partitioned --yes --rejected {rejected} --timeout 1.5 --run tonight"
    )
    continued = f"{REPEATS.removesuffix(')')}; {rejected} is written again, so correct its records after that)"
    assert f"0 of 1 were answered. To continue{continued}: task-activity-log {again}\n" in said.err
    words = shlex.split(again)
    said = await command(*words, AMQP_URL=amqp_url)  # the file of the rejected is written again
    assert (said.code, len(rejected.read_text().splitlines())) == (1, 1)
    assert len(set(await names(channel, TOPOLOGY.requests_queue))) == 1  # twice the same message_id


@pytest.mark.parametrize("name", ["rejected", "rejected.csv", "rejected.json", "rejected.jsonl.gz"])
async def test_a_file_of_rejected_records_has_a_name_that_publish_can_read(name: str, tmp_path: Path) -> None:
    """Otherwise what was corrected there could not be published."""
    (tmp_path / "a.json").write_text("{}")
    said = await command("publish", str(tmp_path / "a.json"), "--rejected", str(tmp_path / name), AMQP_URL="amqp://h/")
    assert (said.code, said.err) == (
        2,
        f"task-activity-log: {tmp_path / name}: the name should end in .jsonl or .ndjson, so that `publish` can read the file\n",
    )
    assert not (tmp_path / name).exists()


@pytest.mark.usefixtures("channel")
async def test_a_record_that_nobody_answers_is_not_waited_for_in_silence(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some seconds `publish` asks whether a worker is running."""
    monkeypatch.setattr(sys.modules[Publication.__module__], "_SILENT_SECONDS", 0.05)
    said = await command("publish", "-", "--timeout", "0.5", AMQP_URL=amqp_url, stdin=line().encode())
    assert said.err.splitlines()[0] == "task-activity-log: no answer yet: is a worker running?"


@pytest.mark.usefixtures("channel")
async def test_a_bulk_that_nobody_answers_says_so_in_its_progress(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line every ten seconds, which is less here."""
    monkeypatch.setattr(terminal, "EVERY_SECONDS", 0.05)
    stdin = "".join(line() for _ in range(1_234)).encode()
    said = await command("publish", "-", "--timeout", "0.5", AMQP_URL=amqp_url, stdin=stdin)
    assert re.search(r": 0 of 1,234; no answer for \d+ s: is a worker running and ready\?\n", said.err)


async def test_a_folder_with_thousands_of_records_is_confirmed_on_a_terminal(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """A mistyped folder floods nobody, and hidden files are never sent: they may hold secrets."""
    for name in (".hidden", "records", "records/.git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text(line())
    (tmp_path / ".b.json").write_text(line())
    (tmp_path / "records" / "b.jsonl").write_text("".join(line() for _ in range(1_000)))
    arguments = ("publish", str(tmp_path), "--no-wait")
    told = await asyncio.to_thread(on_a_terminal, [COMMAND, *arguments], answer="n", AMQP_URL=amqp_url)
    assert "Send 1,001 records from 2 files in" in told
    assert "nothing was sent" in told
    assert await names(channel, TOPOLOGY.requests_queue) == []
    told = await asyncio.to_thread(on_a_terminal, [COMMAND, *arguments], answer="y", AMQP_URL=amqp_url)
    assert "1,001 confirmed" in told
    said = await command(*arguments, AMQP_URL=amqp_url)  # nobody to ask
    assert "1,001 confirmed" in said.err
    assert len(await names(channel, TOPOLOGY.requests_queue)) == 2_002


async def test_what_the_worker_takes_is_sent(channel: AbstractChannel, amqp_url: str, tmp_path: Path) -> None:
    """`publish` reads as the worker does: a declaration of another encoding, odd namespaces, numbers of any length."""
    identity = uuid4()
    (tmp_path / "a.xml").write_text(
        f'<?xml version="1.0" encoding="utf-16"?><task_activity_log><id>{identity}</id></task_activity_log>'
    )
    (tmp_path / "b.xml").write_text(
        f'<task_activity_log xmlns="http://schemas.datacontract.org/2004/07/Société"><id>{identity}</id></task_activity_log>'
    )
    (tmp_path / "c.json").write_text(f'[{{"id": "{identity}", "$n": {"9" * 5_000}}}]')
    dry = await command("publish", "--dry-run", str(tmp_path))
    assert (dry.code, dry.lines) == (0, [])
    assert "3 would be accepted, 0 rejected" in dry.err
    assert (await command("publish", "--no-wait", str(tmp_path), AMQP_URL=amqp_url)).code == 0
    queue = await channel.get_queue(TOPOLOGY.requests_queue)
    bodies = [(await queue.get(no_ack=True)).body for _ in range(3)]
    assert bodies[:2] == [(tmp_path / name).read_bytes() for name in ("a.xml", "b.xml")]
    assert bodies[2] == (tmp_path / "c.json").read_bytes()[1:-1]
    nothing = await command("publish", "--dry-run", "-", "--stdin", "json", stdin=b"[]")
    assert (nothing.code, nothing.err) == (1, "task-activity-log: no records found\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_a_terminated_publish_says_how_to_continue(
    channel: AbstractChannel, amqp_url: str, number: int, code: int
) -> None:
    """An ssh connection that drops, or a canceled CI job, is an interruption like Ctrl-C."""
    before = signal.signal(
        number, signal.SIG_DFL
    )  # `nohup` lets the tests ignore SIGHUP, and what they start would, too
    process = await start("publish", "-", AMQP_URL=amqp_url)
    signal.signal(number, before)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("".join(line() for _ in range(30)).encode())
    process.stdin.close()
    first = (await process.stderr.readline()).decode()
    await first_request(channel)
    process.send_signal(number)
    said = await end(process, err=first)
    assert said.code == code
    assert "sending 30 records as run " in first
    again = f"task-activity-log publish - --stdin jsonl --run {first.split()[-1]}"
    assert f"interrupted; 0 of 30 were answered. To continue{SAME_INPUT}: {again}\n" in said.err


async def test_a_dry_run_validates_without_a_broker(tmp_path: Path) -> None:
    """A dry run reports every bad field with its line, and connects to nothing."""
    (tmp_path / "a.json").write_text('{\n "id": "nope",\n "subject": "1",\n "due_date": "tomorrow"\n}')
    (tmp_path / "b.jsonl").write_text(line() + "{}\n")
    said = await command("publish", "--dry-run", str(tmp_path))
    assert said.code == 3
    assert [told.split(": ")[:2] for told in said.lines] == [
        [f"{tmp_path}/a.json:2", "invalid_uuid"],
        [f"{tmp_path}/a.json:4", "invalid_date"],
        [f"{tmp_path}/b.jsonl:2", "missing_id"],
    ]
    assert "1 would be accepted, 2 rejected; nothing was sent" in said.err


async def test_a_line_that_cannot_be_read_does_not_end_the_look_at_its_file(tmp_path: Path) -> None:
    """All of them, and the invalid records between them, are named in one pass. Nothing is sent from such a file."""
    broken, good = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    broken.write_bytes(line().encode() + b'{"id": }\n{}\n\n{"id": "\xff"}\n' + line(taskId="x").encode())
    good.write_text(line())
    said = await command("publish", "--dry-run", str(tmp_path))
    assert said.code == 1
    assert [told.split(": ")[0] for told in said.err.splitlines()[:1] + said.lines] == [
        "task-activity-log",
        f"{broken}:3",
        f"{broken}:6",
    ]
    assert f"{broken}:2:8: is not JSON" in said.err
    assert f"{broken}:5:9: is not UTF-8" in said.err
    assert f"{broken}: 2 lines cannot be read, 2 invalid records; nothing was sent from it" in said.err
    assert (
        "1 would be accepted, 1 rejected, 1 with misspelled fields, 2 lines that cannot be read, "
        "1 valid record in the same files would not be sent; nothing was sent" in said.err
    )
    sent = await command(
        "publish", str(broken), "--rejected", str(tmp_path / "c.jsonl"), AMQP_URL="amqp://127.0.0.1:1/"
    )
    assert (sent.code, sent.lines) == (1, [])
    assert f"{broken}:3: not sent: missing_id" in sent.err
    assert not (tmp_path / "c.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "options", "advice"),
    [("a.json", (), "name it .jsonl"), ("-", ("--stdin", "json"), "add --stdin jsonl")],
    ids=["file", "stdin"],
)
async def test_what_follows_a_record_may_be_the_next_line(
    tmp_path: Path, name: str, options: Sequence[str], advice: str
) -> None:
    """Then the file is named wrongly. If it follows on the same line, it is only named."""
    path = name if name == "-" else str(tmp_path / name)
    for content, words in (
        (line() + line(), f"something follows the record; if each line is a record, {advice}"),
        (f"{line().strip()} x", "something follows the record"),
    ):
        (tmp_path / name).write_text(content)
        said = await command("publish", "--dry-run", path, *options, stdin=content.encode())
        assert said.code == 1
        assert f": is not JSON: {words}; nothing was sent from it\n" in said.err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", f"{{\n {line()[1:]}", "is one record on several lines, not one record per line: name it .json"),
        ("a.jsonl", f"[{line()}]", "is a JSON list, not one record per line: name it .json"),
        ("a.ndjson", "<a>\n</a>", "is XML, not one record per line: name it .xml"),
        ("-", f"[{line()},\n{line()}]", "stdin: is a JSON list, not one record per line: add --stdin json"),
        (
            "-",
            '"id",subject\na,b\nc,d\n',
            "stdin: is read as jsonl, and its first line is not JSON: for CSV or XML add --stdin csv or --stdin xml",
        ),
    ],
    ids=["pretty", "list", "xml", "stdin", "csv"],
)
async def test_a_file_of_another_format_is_named_in_one_line(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    """Not one line for each of its lines."""
    (tmp_path / name).write_text(content)
    path = name if name == "-" else str(tmp_path / name)
    said = await command("publish", "--dry-run", path, stdin=content.encode())
    assert said.code == 1
    assert f"{words}; nothing was sent from it\n" in said.err
    assert said.err.count("\n") == 1


async def test_compressed_files_and_standard_input_are_read(tmp_path: Path) -> None:
    """Whatever they are called; one that was cut off is named, and nothing is sent from it."""
    content = gzip.compress((line() + "{}\n").encode())
    for name in ("a.jsonl.gz", "b.jsonl"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "c.json.gz").write_bytes(content[:-12])
    said = await command("publish", "--dry-run", str(tmp_path), "-", stdin=content)
    assert said.code == 3
    assert [told.split(": ")[0] for told in said.lines] == [
        f"{tmp_path}/a.jsonl.gz:2",
        f"{tmp_path}/b.jsonl:2",
        "stdin:2",
    ]
    assert f"{tmp_path}/c.json.gz: is not complete, or is not gzip; nothing was sent from it" in said.err


async def test_a_spreadsheet_is_published(world: World, tmp_path: Path) -> None:
    """CSV with other headers than the names of the fields; an empty cell clears its field, or keeps it in a merge."""
    one, file = uuid4(), tmp_path / "calls.csv"
    file.write_text(f"\ufeffId;Betreff;is_closed;Notiz\n{one};Hé;TRUE;x\n;;;\n{one};;0;\n", encoding="utf-8")
    columns = ("--column", "Betreff=subject", "--column", "Notiz=", "--quiet")
    said = await command("publish", str(file), *columns, AMQP_URL=world.amqp_url)
    assert (said.code, said.err) == (0, "")
    assert [(reply["subject"], reply["is_closed"]) for reply in map(json.loads, said.lines)] == [
        ("Hé", True),
        (None, False),
    ]
    said = await command("publish", str(file), *columns, "--merge", AMQP_URL=world.amqp_url)
    assert [json.loads(reply)["subject"] for reply in said.lines] == ["Hé", "Hé"]


async def test_what_is_not_published_of_a_folder_is_named(tmp_path: Path) -> None:
    """Files of other kinds, so that nobody believes that they were sent."""
    (tmp_path / "a.jsonl").write_text(line())
    for name in ("notes.txt", "calls.xlsx"):
        (tmp_path / name).write_text("x")
    said = await command("publish", "--dry-run", str(tmp_path))
    assert said.code == 0
    assert f"{tmp_path}: 2 files skipped, not .json, .jsonl, .ndjson, .xml, .csv: calls.xlsx, notes.txt" in said.err
    (tmp_path / "more").symlink_to(tmp_path)
    said = await command("publish", "--dry-run", str(tmp_path))
    skipped = "1 skipped, not files: links to folders or to nothing, pipes or devices: more"
    assert (said.code, f"{tmp_path}: {skipped}" in said.err) == (0, True)


async def test_a_long_look_at_a_file_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """How many records were read and checked, as no total is known."""
    bar = terminal._Counting(terminal.say, 0.0)
    bar._next = 0.0
    bar.update(1, "records read")
    bar.update(2, "records read")
    bar.update(1, "records checked")
    assert capsys.readouterr().err.splitlines() == [
        "task-activity-log: 1 records read",
        "task-activity-log: 3 records read",
        "task-activity-log: 1 records checked",
    ]


async def test_invalid_records_next_to_a_line_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    """Only the first of them are shown."""
    file = tmp_path / "a.jsonl"
    file.write_text("{" + "\n" + line(taskId="x", task_id="x") * 300)
    said = await command("publish", str(file), AMQP_URL="amqp://127.0.0.1:1/")
    assert said.code == 1
    assert said.err.count("\n") < 30
    last = "not fields, and ignored by the worker: taskId (300)\n"
    assert said.err.endswith(
        f"a.jsonl: 1 line cannot be read, 300 invalid records; nothing was sent from it\ntask-activity-log: {last}"
    )


@pytest.mark.parametrize("body", ["[1]", "5", '"text"', "true", "null", "[[1]]"])
async def test_json_that_is_no_object_is_an_invalid_record(body: str, tmp_path: Path) -> None:
    """It has no members that could be misspelled."""
    file = tmp_path / "a.jsonl"
    file.write_text(f"{body}\n{line()}")
    said = await command("publish", "--dry-run", "--strict", str(file))
    assert (said.code, len(said.lines)) == (3, 1)
    assert ": not_an_object: " in said.lines[0]
    assert "1 would be accepted, 1 rejected; nothing was sent" in said.err


async def test_the_name_of_a_file_may_be_no_text(channel: AbstractChannel, amqp_url: str, tmp_path: Path) -> None:
    """Most file systems take any bytes. It is escaped where it is printed or written."""
    folder = tmp_path / b"f\xff".decode(errors="surrogateescape")
    folder.mkdir()
    (folder / "good.json").write_text(line())
    (folder / "bad.json").write_text('{"id": "nope"}')
    rejected = tmp_path / "rejected.jsonl"
    said = await command(
        "publish", str(folder), "--no-wait", "--run", "r", "--rejected", str(rejected), AMQP_URL=amqp_url
    )
    assert (said.code, said.lines, "1 confirmed" in said.err) == (3, [], True)
    assert json.loads(rejected.read_text())["source"].endswith("f\udcff/bad.json")
    assert len(await names(channel, TOPOLOGY.requests_queue)) == 1


async def test_files_without_records_are_named(tmp_path: Path) -> None:
    """Of each kind; an empty file is not a syntax error."""
    for kind in ("json", "jsonl", "csv"):
        (tmp_path / f"a.{kind}").touch()
    (tmp_path / "b.csv").write_text("id,subject\n")
    (tmp_path / "c.json").write_text(line())
    said = await command("publish", "--dry-run", str(tmp_path))
    assert said.code == 0
    assert f"no records in {tmp_path / 'a.csv'}, {tmp_path / 'a.json'}, {tmp_path / 'a.jsonl'} and 1 more\n" in said.err
    assert "1 would be accepted, 0 rejected; nothing was sent" in said.err
    assert (await command("publish", "--dry-run", str(tmp_path / "a.json"))).code == 1


async def test_all_that_is_wrong_is_named_at_once_and_is_in_the_totals(tmp_path: Path) -> None:
    """Also what is in files with lines that cannot be read: otherwise it would be found after they are corrected."""
    (tmp_path / "good.json").write_text(line())
    invalid = line(due_date="never", shape="round") + line(taskId="x", size=1)
    (tmp_path / "lines.jsonl").write_text(line(colour="red") + invalid + '{"id": \n')
    (tmp_path / "calls.csv").write_text(f"id,Notes\n{uuid4()},a,b\n{uuid4()},a\n")
    ignored = "not fields, and ignored by the worker: Notes (1), colour (1), shape (1), size (1)\n"
    dry = await command("publish", "--dry-run", str(tmp_path))
    assert ignored in dry.err
    assert dry.err.endswith(
        "1 would be accepted, 1 rejected, 1 with misspelled fields, 2 lines that cannot be read, "
        "2 valid records in the same files would not be sent; nothing was sent\n"
    )
    (tmp_path / "good.json").unlink()  # nothing is left to send
    dry = await command("publish", "--dry-run", str(tmp_path))
    assert "task-activity-log: 0 would be accepted, 1 rejected, 1 with" in dry.err
    sent = await command("publish", str(tmp_path), AMQP_URL="amqp://127.0.0.1:1/")
    assert (sent.code, ignored in sent.err) == (1, True)


async def test_the_last_line_says_what_was_not_sent(world: World, tmp_path: Path) -> None:
    """Many read it alone, after thousands of lines of outcomes."""
    (tmp_path / "good.jsonl").write_text(line() + line(due_date="never") + line(taskId="x"))
    (tmp_path / "broken.json").write_text("{")
    for options, fate in (((), "1 inserted"), (("--no-wait",), "replies go to the subscribers")):
        said = await command("publish", str(tmp_path), *options, AMQP_URL=world.amqp_url)
        words = "not sent: 1 invalid, 1 with misspelled fields, 1 file that cannot be read"
        assert (said.code, said.err.splitlines()[-1].partition(f"{fate}; ")[2]) == (3, words)


async def test_the_last_line_says_what_was_not_sent_if_nothing_was(tmp_path: Path) -> None:
    """The files that cannot be read may have been named thousands of lines before."""
    (tmp_path / "bad.jsonl").write_text(line(due_date="never") + line(taskId="x"))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1,")
    for code, words in (
        (3, "1 invalid, 1 with misspelled fields, 2 files that cannot be read"),
        (1, "2 files that cannot be read"),
    ):
        said = await command("publish", str(tmp_path), AMQP_URL="amqp://127.0.0.1:1/")
        assert (said.code, said.err.splitlines()[-1]) == (code, f"task-activity-log: nothing was sent: {words}")
        (tmp_path / "bad.jsonl").unlink(missing_ok=True)
    (tmp_path / "list.json").unlink()  # of one file the line that names it is enough
    said = await command("publish", str(tmp_path), AMQP_URL="amqp://127.0.0.1:1/")
    assert (said.code, said.err.count("\n"), "nothing was sent from it" in said.err) == (1, 1, True)


async def test_records_in_a_list_in_xml_are_no_misspelled_fields(tmp_path: Path) -> None:
    """The wrong root is what has to be corrected."""
    (tmp_path / "list.xml").write_text(f"<records><task_activity_log><id>{uuid4()}</id></task_activity_log></records>")
    said = await command("publish", "--dry-run", str(tmp_path))
    assert (said.code, len(said.lines)) == (3, 1)
    assert "list.xml: wrong_root: Send one record" in said.lines[0]


async def test_a_publish_without_a_connection_has_sent_nothing(tmp_path: Path) -> None:
    """It says so, and leaves no file of rejected records, so that the same command can be given again."""
    file, rejected = tmp_path / "a.jsonl", tmp_path / "rejected.jsonl"
    file.write_text(line() + "{}\n")
    for _ in range(2):
        said = await command("publish", str(file), "--rejected", str(rejected), AMQP_URL="amqp://127.0.0.1:1/")
        last = "task-activity-log: no connection to 127.0.0.1:1: connection refused; nothing was sent"
        assert (said.code, said.err.splitlines()[-1]) == (1, last)
    assert not rejected.exists()


async def test_a_publish_that_is_interrupted_while_it_reads_has_sent_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and leaves no file of rejected records, so that the same command can be given again."""
    file, rejected = tmp_path / "a.jsonl", tmp_path / "rejected.jsonl"
    file.write_text("{}\n")

    def interrupt(_: object) -> None:
        assert rejected.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(Publication, "_report", interrupt)
    said = await command("publish", str(file), "--rejected", str(rejected), AMQP_URL="amqp://127.0.0.1:1/")
    assert (said.code, said.err.splitlines()[-1]) == (130, "task-activity-log: interrupted; nothing was sent")
    assert not rejected.exists()


async def test_thousands_of_lines_that_cannot_be_read_are_summed_up(tmp_path: Path) -> None:
    """Such as those of a file with another kind of content."""
    (tmp_path / "a.jsonl").write_text("no JSON\n" * 5000)
    said = await command("publish", "--dry-run", str(tmp_path))
    assert said.code == 1
    assert said.err.count("\n") < 30
    assert "a.jsonl: 5,000 lines cannot be read; nothing was sent from it" in said.err


async def test_a_pipe_is_read_once(world: World, tmp_path: Path) -> None:
    """As `<(zcat records.jsonl.gz)` is one: a named pipe without an ending has the format of --stdin."""
    os.mkfifo(pipe := tmp_path / "pipe")
    process = await start("publish", str(pipe), AMQP_URL=world.amqp_url)
    await asyncio.to_thread(pipe.write_text, line() + line(subject="2"))
    said = await end(process)
    assert (said.code, len(said.lines)) == (0, 2)
    assert "2 inserted" in said.err


async def test_a_run_that_reads_a_pipe_and_is_interrupted_says_that_its_records_are_needed_again(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """The path of `<(psql …)` exists only while the command runs, and only --stdin says what it contained."""
    os.mkfifo(pipe := tmp_path / "pipe")
    process = await start("publish", str(pipe), "--stdin", "csv", AMQP_URL=amqp_url)
    await asyncio.to_thread(pipe.write_text, f"id,is_closed\n{uuid4()},t\n")
    sent = await first_request(channel)
    process.send_signal(signal.SIGINT)
    said = await end(process)
    assert json.loads(sent.body)["is_closed"] is True
    why = f"{REPEATS[:-1]}; {pipe} was a pipe: give the same records again in its place)"
    assert f"To continue{why}: task-activity-log publish {pipe} --stdin csv --run " in said.err


async def test_a_file_that_is_changed_while_it_is_published_is_not_sent(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was judged before is not what would be sent: a record that was kept back might be sent, and another one not."""
    file = tmp_path / "a.jsonl"
    file.write_text(line())

    def change(_: object) -> None:
        file.write_text(line() * 2)

    monkeypatch.setattr(Publication, "_report", change)
    said = await command("publish", str(file), AMQP_URL=world.amqp_url)
    assert (said.code, said.lines) == (1, [])
    assert said.err == f"task-activity-log: {file}: was changed while it was read; nothing was sent\n"


async def test_a_file_that_is_changed_while_it_is_judged_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(line())

    def change(delivery: Delivery, rules: Rules) -> Request[Delivery]:
        file.write_text(line() + '{"id": "invalid"}\n')
        return decode(delivery, rules)

    monkeypatch.setattr("task_activity_log.cli.judging.decode", change)
    said = await command("publish", "--dry-run", str(file))
    assert (said.code, said.lines) == (1, [])
    assert said.err.startswith(f"task-activity-log: {file}: was changed while it was read; nothing was sent from it\n")
    assert "0 would be accepted, 0 rejected, 1 line that cannot be read" in said.err


async def test_an_interrupted_run_can_be_continued_and_applies_nothing_twice(world: World, tmp_path: Path) -> None:
    """An interrupted `publish` says how to continue: with the same --run name the records keep their message_ids."""
    file = tmp_path / "a.jsonl"
    file.write_text("".join(line(subject=str(number)) for number in range(30)))
    process = await start("publish", str(file), AMQP_URL=world.amqp_url)
    assert process.stdout is not None
    await process.stdout.readline()  # it has begun
    process.send_signal(signal.SIGINT)
    said = await end(process)
    if said.code == 130:  # it may also have finished before the signal
        assert f"of 30 were answered. To continue{REPEATS}: task-activity-log publish " in said.err
    first = await command("publish", str(file), "--run", "tonight", AMQP_URL=world.amqp_url)
    again = await command("publish", str(file), "--run", "tonight", AMQP_URL=world.amqp_url)
    assert (first.code, again.code) == (0, 0)
    assert "30 duplicates" in again.err
    assert sorted(again.lines) == sorted(first.lines)


async def test_publish_interrupted_while_no_worker_answers_says_how_to_continue(
    channel: AbstractChannel, amqp_url: str
) -> None:
    """An interrupted `publish` exits with 130 and one line, and what it has sent is in the queue."""
    process = await start("publish", "-", AMQP_URL=amqp_url)
    assert process.stdin is not None
    process.stdin.write(line().encode())
    process.stdin.close()
    await first_request(channel)
    process.send_signal(signal.SIGINT)
    said = await end(process)
    assert said.code == 130
    assert said.err.startswith(f"task-activity-log: interrupted; 0 of 1 were answered. To continue{SAME_INPUT}: task-")
    assert said.err.count("\n") == 1


async def test_publish_without_waiting_that_is_interrupted_before_a_confirmation_says_how_to_continue(
    channel: AbstractChannel, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker has the record, and the run does not know it. The name of the run prevents that it is applied twice."""
    publish = Publisher.publish

    async def interrupted(publisher: Publisher, messages: Sequence[Outgoing]) -> list[Fate]:
        await publish(publisher, messages)
        raise KeyboardInterrupt

    monkeypatch.setattr(Publisher, "publish", interrupted)
    stdin = line().encode()
    said = await command("publish", "-", "--no-wait", AMQP_URL=amqp_url, stdin=stdin)
    monkeypatch.undo()
    [again] = re.findall(r"interrupted; 0 of 1 were confirmed. To continue \(.*\): task-activity-log (.*)\n", said.err)
    assert said.code == 130
    assert (await command(*shlex.split(again), AMQP_URL=amqp_url, stdin=stdin)).code == 0
    [first, second] = await names(channel, TOPOLOGY.requests_queue)
    assert first == second


async def test_publish_without_waiting_ends_when_the_broker_has_confirmed_everything(
    channel: AbstractChannel, amqp_url: str
) -> None:
    """With --no-wait, `publish` asks for no replies; with --merge, its requests are merges."""
    said = await command("publish", "-", "--no-wait", "--merge", AMQP_URL=amqp_url, stdin=line().encode() * 3)
    assert (said.code, said.lines) == (0, [])
    assert "3 confirmed" in said.err
    message = await (await channel.get_queue(TOPOLOGY.requests_queue)).get(no_ack=True)
    assert message.headers["x-update-mode"] == "merge"
    assert message.reply_to is None


@pytest.mark.usefixtures("channel")
async def test_publish_reports_that_no_worker_answers(amqp_url: str) -> None:
    """`publish` fails with one line that asks whether a worker is running, or says that the broker has confirmed nothing."""
    said = await command("publish", "-", "--timeout", "4", AMQP_URL=amqp_url, stdin=line().encode())
    assert said.code == 1
    why = "(is a worker running|the broker has not confirmed)"
    assert re.search(rf"no answer for 4 s \(1 upsert unanswered\): {why}", said.err)
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (b"", "no records found"),
        (line().encode() + b"{,}\n", "stdin:2:2: is not JSON"),
        (b'{"a": "\xff"}', "stdin:1:8: is not UTF-8"),
        (b"[" * 100_000, "stdin:1: is nested too deeply"),
        (b'{"body_base64": "?", "content_type": ""}', "stdin:1: the body is neither text nor base64"),
        (b'{"body": "", "content_type": "", "message_id": 7}', "stdin:1: message_id should be a string"),
    ],
    ids=["empty", "syntax", "encoding", "depth", "base64", "member"],
)
async def test_unreadable_input_is_reported_in_one_line(stdin: bytes, words: str) -> None:
    """`publish` reports input that it cannot read with line and reason, and connects to nothing."""
    said = await command("publish", "-", AMQP_URL="amqp://127.0.0.1:1/", stdin=stdin)
    assert (said.code, said.lines) == (1, [])
    assert words in said.err
    assert said.err.count("\n") == 1


async def test_an_empty_path_is_named() -> None:
    """It is what a shell makes of `"$FILE"` if the variable is not set."""
    said = await command("publish", "", AMQP_URL="amqp://127.0.0.1:1/")
    assert (said.code, said.err) == (
        2,
        "task-activity-log: a PATH is empty: name a file, a folder, or - for standard input\n",
    )


# ---- replies


async def test_replies_can_be_followed_without_taking_them(channel: AbstractChannel, amqp_url: str) -> None:
    """Following shows filtered replies and leaves them in the queue; --take then removes them from it."""
    following = await start("replies", "--outcome", "rejected", "--json", "-n", "1", AMQP_URL=amqp_url)
    assert following.stderr is not None
    first = (await following.stderr.readline()).decode()
    assert "following replies" in first
    exchange = await channel.get_exchange(TOPOLOGY.replies_exchange, ensure=False)
    stored = {"id": str(uuid4()), "subject": "so\x1b[31m", "modified_dateutc": "2026-01-01T00:00:00+00:00"}
    problem = {"code": "missing_id", "detail": "Send id.", "errors": []}
    for key, kind, body in (("stored.inserted", "", stored), ("rejected", "problem+", problem)):
        headers: Any = {"x-outcome": key.rpartition(".")[2], "x-error-code": "missing_id"}
        message = aio_pika.Message(
            json.dumps(body).encode(), content_type=f"application/{kind}json", headers=headers, correlation_id="mine"
        )
        await exchange.publish(message, key)
    said = await end(following, err=first)
    assert said.code == 0
    assert json.loads(said.out)["problem"] == problem
    taking = await command("replies", "--take", "-n", "2", AMQP_URL=amqp_url)
    assert [one.split("\t")[1:] for one in taking.lines] == [
        ["inserted", stored["id"], "so\\x1b[31m"],
        ["rejected", "message mine", "missing_id: Send id."],
    ]
    nothing = await command("replies", "--take", "--seconds", "0.3", AMQP_URL=amqp_url)
    assert (nothing.code, nothing.lines) == (0, [])


async def test_replies_that_wait_can_be_read_without_taking_them(
    channel: AbstractChannel, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --since: those that were published since then, oldest first, then those that follow, each once."""
    exchange = await channel.get_exchange(TOPOLOGY.replies_exchange, ensure=False)
    now = datetime.now(UTC)

    async def publish(subject: str, at: datetime) -> None:
        body = {"id": str(uuid4()), "subject": subject, "modified_dateutc": at.isoformat()}
        headers: Any = {"x-outcome": "updated"}
        message = aio_pika.Message(
            json.dumps(body).encode(),
            content_type="application/json",
            headers=headers,
            timestamp=at,
            message_id=subject,
        )
        await exchange.publish(message, "stored.updated")

    await publish("old", now - timedelta(hours=3))
    await publish("one", now - timedelta(hours=1))
    await publish("two", now)
    for limit in (("-n", "2"), ("--seconds", "0.1")):  # which begins when those that wait are printed
        said = await command("replies", "--since", "2h", *limit, AMQP_URL=amqp_url)
        assert (said.code, [each.split("\t")[3] for each in said.lines]) == (0, ["one", "two"])
    time = datetime.strptime(said.lines[0].split("\t")[0], "%Y-%m-%d %H:%M:%S%z")
    assert abs(time - (now - timedelta(hours=1))) < timedelta(seconds=2)
    with monkeypatch.context() as patched:
        patched.setattr(
            "task_activity_log.client.dead_letters.PREFETCH_MAX", 1
        )  # stands for a queue of more than 65,535 messages
        said = await command("replies", "--since", "4h", "-n", "1", AMQP_URL=amqp_url)
    assert (said.code, [each.split("\t")[3] for each in said.lines]) == (0, ["old"])
    assert f"{TOPOLOGY.replies_queue} has too many messages to look at all: the newest 2 are not seen here" in said.err
    following = await start("replies", "--since", "2h", "-n", "4", AMQP_URL=amqp_url)
    assert following.stdout is not None
    first = (await following.stdout.readline()).decode()
    await publish("three", now)
    await publish("one", now)  # again, as snapshots are
    said = await end(following)
    assert [each.split("\t")[3] for each in (first + said.out).splitlines()] == ["one", "two", "three", "one"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--code", "mising_id"], "mising_id: no such code; did you mean missing_id?"),
        (["--since", "noon"], "invalid time noon"),
        (["--since", "2h", "--take"], "it has no --since"),
    ],
)
async def test_wrong_options_of_replies_are_refused(amqp_url: str, arguments: list[str], words: str) -> None:
    """Instead of a wait for what never comes."""
    said = await command("replies", *arguments, AMQP_URL=amqp_url)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert words in said.err


async def test_a_code_that_does_not_exist_is_refused(channel: AbstractChannel, amqp_url: str) -> None:
    """Unless a dead letter has it: a later release may have more of them. The Tab key completes codes."""
    await reject(channel, "a", "{}", "of_a_later_release")
    said = await command("dead-letters", "list", "--code", "invalid_dat", AMQP_URL=amqp_url)
    assert (said.code, said.err) == (2, "task-activity-log: invalid_dat: no such code; did you mean invalid_date?\n")
    assert (await command("dead-letters", "list", "--code", "of_a_later_release", AMQP_URL=amqp_url)).code == 0
    assert complete("invalid_d") == ["invalid_date"]


async def test_taking_only_some_replies_is_refused(amqp_url: str) -> None:
    """--take with a filter would lose the other replies; without the worker's exchange, `replies` says so."""
    refused = await command("replies", "--take", "--code", "missing_id", AMQP_URL=amqp_url)
    missing = await command("replies", AMQP_URL=amqp_url)
    assert (refused.code, missing.code) == (2, 1)
    assert "would be lost" in refused.err
    assert "exchange 'task_activity_log.replies' does not exist" in missing.err


# ---- dead letters


async def reject(
    channel: AbstractChannel, name: str, body: str, code: str, /, content_type: str = "application/json", **headers: Any
) -> None:
    """Publish a dead letter to the queue where the worker would publish it."""
    message = aio_pika.Message(
        body.encode(),
        content_type=content_type,
        message_id=name,
        app_id="crm",
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        headers={"x-error-code": code, "x-error-detail": "Why not.", "x-first-seen": "2026-01-01T00:00:00Z", **headers},
    )
    await channel.default_exchange.publish(message, TOPOLOGY.dead_letters_queue)


async def first_request(channel: AbstractChannel) -> AbstractIncomingMessage:
    """Take the first message of the requests queue, once there is one."""
    queue = await channel.get_queue(TOPOLOGY.requests_queue)
    async with asyncio.timeout(30):
        while (message := await queue.get(no_ack=True, fail=False)) is None:
            await asyncio.sleep(0.02)
    return message


async def names(channel: AbstractChannel, queue: str) -> list[str | None]:
    """Take all messages from a queue and return their message_ids."""
    found = []
    while (message := await (await channel.get_queue(queue)).get(no_ack=True, fail=False)) is not None:
        found.append(message.message_id)
    return found


async def test_dead_letters_are_listed_shown_and_exported(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """Listing, showing and exporting leave dead letters in the queue, and `publish` accepts the exported file."""
    await reject(channel, "one", '{"id": "nope", "subject": "\x1b]0;"}', "invalid_uuid")
    await reject(channel, "two", line(), "refused_by_database")
    versioned: dict[str, Any] = {"x-version": 3}
    await reject(channel, "three", line(), "refused_by_database", **versioned)
    file = tmp_path / "letters.jsonl"
    listed = await command("dead-letters", "list", AMQP_URL=amqp_url)
    assert [row.split("\t")[:3] for row in listed.lines] == [
        ["count", "code", "publisher"],
        ["2", "refused_by_database", "crm"],
        ["1", "invalid_uuid", "crm"],
    ]
    each = await command("dead-letters", "list", "--json", "--code", "refused_by_database", AMQP_URL=amqp_url)
    assert [json.loads(one)["message_id"] for one in each.lines] == ["two", "three"]
    shown = await command("dead-letters", "show", "one", AMQP_URL=amqp_url)
    assert "timestamp       2026-01-01 00:00:00 UTC" in shown.out
    assert "invalid_uuid: Why not." in shown.out
    assert "if sent today   rejected: malformed_json: Send JSON" in shown.out
    assert "\x1b" not in shown.out
    exported = await command("dead-letters", "export", str(file), "two", "three", AMQP_URL=amqp_url)
    assert exported.code == 0
    published = await command("publish", str(file), "--no-wait", AMQP_URL=amqp_url)
    assert published.code == 0
    assert await names(channel, TOPOLOGY.requests_queue) == ["two", "three"]
    assert await names(channel, TOPOLOGY.dead_letters_queue) == ["one", "two", "three"]


async def test_dead_letters_are_selected_by_a_bad_field(channel: AbstractChannel, amqp_url: str) -> None:
    """By any that is bad, as the console does; a dash stands for none."""
    await reject(channel, "two", line(due_date="x", is_closed="x"), "invalid_date")
    await reject(channel, "one", line(due_date="x"), "invalid_date")
    await reject(channel, "none", line(), "refused_by_database")
    for fields, found in (
        (["due_date"], ["two", "one"]),
        (["is_closed"], ["two"]),
        (["is_closed", "-"], ["two", "none"]),
    ):
        options = [word for one in fields for word in ("--field", one)]
        said = await command("dead-letters", "list", "--json", *options, AMQP_URL=amqp_url)
        assert [json.loads(one)["message_id"] for one in said.lines] == found
    said = await command("dead-letters", "discard", "--field", "duedate", "--yes", AMQP_URL=amqp_url)
    assert (said.code, "duedate: is not a field; the fields are id, " in said.err) == (2, True)
    said = await command("dead-letters", "discard", "--field", "is_closed", "--yes", AMQP_URL=amqp_url)
    assert (said.code, said.err) == (0, "task-activity-log: 1 discarded\n")


async def test_a_replay_sends_the_oldest_first(channel: AbstractChannel, amqp_url: str) -> None:
    """The queue may have another order: RabbitMQ returns those that an earlier replay has not taken in any order."""
    for name, second in (("b", "02"), ("c", "03"), ("a", "01")):
        seen: dict[str, Any] = {"x-last-seen": f"2026-01-01T00:00:{second}+00:00"}
        await reject(channel, name, line(), "refused_by_database", **seen)
    assert (await command("dead-letters", "replay", "--all", AMQP_URL=amqp_url)).code == 0
    assert await names(channel, TOPOLOGY.requests_queue) == ["a", "b", "c"]


async def test_only_dead_letters_that_would_be_accepted_are_replayed(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """A dry run sends nothing; an invalid dead letter stays until an edit makes it valid."""
    await reject(channel, "good", line(), "refused_by_database")
    await reject(channel, "bad", '{"id": "nope"}', "invalid_uuid")
    dry = await command("dead-letters", "replay", "--all", "--dry-run", AMQP_URL=amqp_url)
    assert dry.code == 3
    assert "bad: kept, as it would be rejected again: invalid_uuid: " in dry.err
    assert "9652e68c-7b6d-4598-bbbd-4e933126c994; `replay --edit` opens it to correct it" in dry.err
    assert "1 would be replayed, 1 kept; nothing was sent" in dry.err
    assert "DATABASE_URL is not set" in dry.err
    real = await command("dead-letters", "replay", "--publisher", "crm", AMQP_URL=amqp_url)
    assert (real.code, await names(channel, TOPOLOGY.requests_queue)) == (3, ["good"])
    lazy = await end(await start("dead-letters", "replay", "bad", "--edit", AMQP_URL=amqp_url, EDITOR="true"))
    assert lazy.code == 1
    assert "bad: kept, as it was not changed" in lazy.err
    identity, editor, opened = uuid4(), tmp_path / "editor", tmp_path / "opened"
    editor.write_text(f'cp "$1" {opened}; sed -i "s/nope/{identity}/" "$1"')
    edited = await end(await start("dead-letters", "replay", "bad", "--edit", AMQP_URL=amqp_url, EDITOR=f"sh {editor}"))
    assert edited.code == 0, edited.err
    assert edited.err.startswith("task-activity-log: bad: rejected before the edit: invalid_uuid: Send id as a uuid")
    assert opened.read_text().startswith("# bad: invalid_uuid: Send id as a uuid")
    assert opened.read_text().endswith('\n{\n  "id": "nope"\n}')
    message = await (await channel.get_queue(TOPOLOGY.requests_queue)).get(no_ack=True)
    assert (message.message_id, json.loads(message.body)) == ("bad", {"id": str(identity)})
    assert await names(channel, TOPOLOGY.dead_letters_queue) == []


async def test_a_letter_that_stays_is_in_the_exit_code_of_those_that_were_edited(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """And an editor that a signal has ended is said to be."""
    for name in ("first", "second"):
        await reject(channel, name, '{"id": "nope"}', "invalid_uuid")
    editor = tmp_path / "editor"
    editor.write_text(f'case "$1" in *first*) sed -i "s/nope/{uuid4()}/" "$1";; esac')
    replay = ("dead-letters", "replay", "--all", "--edit")
    said = await end(await start(*replay, AMQP_URL=amqp_url, EDITOR=f"sh {editor}"))
    assert (said.code, await names(channel, TOPOLOGY.requests_queue)) == (3, ["first"])
    assert "second: kept, as it was not changed" in said.err
    editor.write_text("kill -KILL $$")
    said = await end(await start(*replay, AMQP_URL=amqp_url, EDITOR=f"sh {editor}"))
    assert (said.code, "was ended by signal 9; nothing was replayed" in said.err) == (1, True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_a_command_that_is_terminated_while_its_editor_is_open_sends_nothing(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path, number: int, code: int
) -> None:
    """The editor is told to end as well, and the edits are kept. Ctrl-C alone is meant for the editor."""
    await reject(channel, "one", '{"id": "nope"}', "invalid_uuid")
    editor, opened = tmp_path / "editor", tmp_path / "opened"
    os.mkfifo(opened)
    editor.write_text(f'#!/bin/sh\nsed -i "s/nope/{uuid4()}/" "$1"\necho "$1" > {opened}\nexec sleep 600\n')
    editor.chmod(0o755)
    before = signal.signal(number, signal.SIG_DFL)  # see `test_a_terminated_publish_says_how_to_continue`
    variables = {"EDITOR": str(editor), "VISUAL": "", "TMPDIR": str(tmp_path)}
    process = await start("dead-letters", "replay", "--all", "--edit", AMQP_URL=amqp_url, **variables)
    signal.signal(number, before)
    file = Path((await asyncio.to_thread(opened.read_text)).strip())
    process.send_signal(signal.SIGINT)
    process.send_signal(number)
    said = await end(process)
    assert said.code == code
    assert f"your edits are in {file.parent}" in said.err
    assert "interrupted; dead letters that were not replayed are still in the queue" in said.err
    assert "nope" not in await asyncio.to_thread(file.read_text)
    assert await names(channel, TOPOLOGY.requests_queue) == []
    assert await names(channel, TOPOLOGY.dead_letters_queue) == ["one"]


async def test_a_replay_asks_on_a_terminal(channel: AbstractChannel, amqp_url: str) -> None:
    """Like `discard`. It does not with --yes, nor where there is no terminal, as in scripts."""
    await reject(channel, "one", line(), "refused_by_database")
    replay = [COMMAND, "dead-letters", "replay", "--all"]
    told = await asyncio.to_thread(on_a_terminal, replay, answer="n", AMQP_URL=amqp_url)
    assert "Replay 1 dead letter? [y/N]" in told
    assert "nothing was replayed" in told
    for options, asked in (([], True), (["--yes"], False), (["--dry-run"], False)):
        told = await asyncio.to_thread(on_a_terminal, [*replay, *options], answer="y", AMQP_URL=amqp_url)
        assert ("[y/N]" in told) is asked
        if "--dry-run" not in options:
            assert "1 replayed" in told
            assert await names(channel, TOPOLOGY.requests_queue) == ["one"]
            await reject(channel, "one", line(), "refused_by_database")
    assert await names(channel, TOPOLOGY.dead_letters_queue) == ["one"]


async def test_an_editor_that_cannot_run_is_one_line(
    channel: AbstractChannel, amqp_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Quotes that do not end, and a file system that cannot be written: nothing is said about the message."""
    await reject(channel, "one", '{"id": "nope"}', "invalid_uuid")
    replay = ("dead-letters", "replay", "--all", "--edit")
    said = await command(*replay, AMQP_URL=amqp_url, EDITOR="", VISUAL="", stdin=b"")
    assert (said.code, "there is no terminal for an editor: set EDITOR" in said.err) == (1, True)
    said = await command(*replay, AMQP_URL=amqp_url, EDITOR="vi 'x", VISUAL="")
    assert (said.code, said.lines) == (1, [])
    assert "cannot run vi 'x: its quotes do not end; set EDITOR" in said.err
    assert "cannot be sent" not in said.err

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name, words in (
        (Path, "write_bytes", "No space left on device; nothing was replayed"),
        (tempfile, "mkdtemp", "no folder for a file to edit: No space left on device; set TMPDIR to one that can be"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            said = await command(*replay, AMQP_URL=amqp_url, EDITOR="true", VISUAL="", TMPDIR=str(tmp_path))
        assert (said.code, said.lines, words in said.err) == (1, [], True)


async def test_a_header_that_would_be_rejected_again_can_be_corrected(channel: AbstractChannel, amqp_url: str) -> None:
    """Replayed as it is, it would only come back. The editor opens the headers, as no body can solve it."""
    await reject(channel, "versioned", line(), "invalid_version", **{"x-version": "one", "mine": "stays"})
    for option in ("--dry-run", "--all"):
        said = await command("dead-letters", "replay", "versioned", option, AMQP_URL=amqp_url)
        assert said.code == 3
        assert "versioned: kept, as it would be rejected again: invalid_version" in said.err
    assert await names(channel, TOPOLOGY.requests_queue) == []
    deep = f"sed -i s/.one./{'[' * 3_000}{']' * 3_000}/"
    for editor, words in (
        ("rm", "No such file or directory after rm"),
        ("sed -i s/.one./{/", "cannot be sent"),
        (deep, "cannot be sent: it is nested too deeply"),
    ):
        said = await end(await start("dead-letters", "replay", "versioned", "--edit", AMQP_URL=amqp_url, EDITOR=editor))
        assert (said.code, said.lines, words in said.err) == (1, [], True)
    edited = await end(
        await start("dead-letters", "replay", "versioned", "--edit", AMQP_URL=amqp_url, EDITOR="sed -i s/.one./8/")
    )
    assert edited.code == 0, edited.err
    message = await (await channel.get_queue(TOPOLOGY.requests_queue)).get(no_ack=True)
    assert (message.headers["x-version"], message.headers["mine"]) == (8, "stays")
    assert await names(channel, TOPOLOGY.dead_letters_queue) == []


async def test_an_export_is_published_as_the_same_request(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """Bit by bit: properties, the types of headers, content encoding, and the body with its white space."""
    sent_at = datetime(2026, 1, 1, tzinfo=UTC)
    headers: Any = {"when": sent_at, "bytes": bytearray(b"\xff"), "none": None, "list": [1, "a"], "x-version": 7}
    original = aio_pika.Message(
        f'{{ "id" :\n"{uuid4()}" }}'.encode(),
        content_type="text/json; charset=utf-8",
        content_encoding="utf-8",
        message_id="m",
        correlation_id="c",
        reply_to="theirs",
        priority=3,
        timestamp=sent_at,
        type="kind",
        app_id="crm",
        headers={
            **headers,
            "x-error-code": "empty_body",
            "x-error-detail": "Why not.",
            "x-original-expiration": "60000",
        },
    )
    await channel.default_exchange.publish(original, TOPOLOGY.dead_letters_queue)
    file = tmp_path / "a.jsonl"
    assert (await command("dead-letters", "export", str(file), "--all", AMQP_URL=amqp_url)).code == 0
    said = await command("publish", str(file), "--no-wait", AMQP_URL=amqp_url)
    assert (said.code, "; replies go to the reply_to, which 1 has, or to the subscribers" in said.err) == (0, True)
    message = await (await channel.get_queue(TOPOLOGY.requests_queue)).get(no_ack=True)
    for name in ("body", "content_type", "content_encoding", "message_id", "correlation_id", "reply_to", "priority"):
        assert getattr(message, name) == getattr(original, name), name
    assert (message.timestamp, message.type, message.app_id) == (sent_at, "kind", "crm")
    assert message.expiration == 60
    assert {name: value for name, value in message.headers.items() if name != "x-delivery-count"} == headers


async def test_a_replay_over_a_newer_row_needs_a_flag(
    channel: AbstractChannel, amqp_url: str, database_url: str
) -> None:
    """If its row has changed since, a dead letter is replayed only with --over-newer, unless it has a version."""
    body = line()
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO task_activity_log (id) VALUES ($1)", json.loads(body)["id"])
    await connection.close()
    await reject(channel, "plain", body, "refused_by_database")
    versioned: dict[str, Any] = {"x-version": 3}
    await reject(channel, "versioned", body, "refused_by_database", **versioned)
    said = await command("dead-letters", "replay", "--all", AMQP_URL=amqp_url, DATABASE_URL=database_url)
    assert (said.code, await names(channel, TOPOLOGY.requests_queue)) == (3, ["versioned"])
    assert "plain: kept, as its row has changed at" in said.err
    over = ("dead-letters", "replay", "--all", "--over-newer")
    said = await command(*over, AMQP_URL=amqp_url, DATABASE_URL=database_url)
    assert (said.code, await names(channel, TOPOLOGY.requests_queue)) == (0, ["plain"])


async def test_a_dead_letter_that_is_a_reply_is_kept_and_not_edited(channel: AbstractChannel, amqp_url: str) -> None:
    """It would be rejected again however it is edited, because the type of a message stays."""
    reply = aio_pika.Message(b"{}", message_id="r", type=STORED, headers={"x-error-code": "reply_as_request"})
    await channel.default_exchange.publish(reply, TOPOLOGY.dead_letters_queue)
    said = await command("dead-letters", "replay", "--all", AMQP_URL=amqp_url)
    assert (said.code, await names(channel, TOPOLOGY.requests_queue)) == (3, [])
    assert "find out which program sends it, then discard it" in said.err
    assert "--edit" not in said.err


async def test_a_row_that_is_changed_during_a_replay_is_not_overwritten(
    channel: AbstractChannel, amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay can take long, and others publish meanwhile: rows are looked at directly before each part is sent."""
    body = line()
    await reject(channel, "overtaken", body, "refused_by_database")
    await reject(channel, "other", line(), "refused_by_database")

    async def changed_first(*arguments: Any, **options: Any) -> int:
        connection = await asyncpg.connect(database_url)
        await connection.execute("INSERT INTO task_activity_log (id) VALUES ($1)", json.loads(body)["id"])
        await connection.close()
        return await replay_letters(*arguments, **options)

    monkeypatch.setattr(replaying, "replay_letters", changed_first)
    said = await command("dead-letters", "replay", "--all", AMQP_URL=amqp_url, DATABASE_URL=database_url)
    assert (said.code, await names(channel, TOPOLOGY.requests_queue)) == (3, ["other"])
    assert await names(channel, TOPOLOGY.dead_letters_queue) == ["overtaken"]
    assert "overtaken: kept, as its row has changed at" in said.err
    assert "1 replayed, 1 kept" in said.err


async def test_an_interrupted_replay_loses_nothing(channel: AbstractChannel, amqp_url: str) -> None:
    """An interrupted replay exits with 130, and each message is either replayed or still a dead letter."""
    for number in range(5):
        await reject(channel, str(number), line(), "refused_by_database")
    process = await start("dead-letters", "replay", "--all", "--rate", "0.5", AMQP_URL=amqp_url)
    message = await first_request(channel)
    process.send_signal(signal.SIGINT)
    said = await end(process)
    assert said.code == 130
    assert "interrupted; dead letters that were not replayed are still in the queue" in said.err
    replayed = {message.message_id, *await names(channel, TOPOLOGY.requests_queue)}
    left = await names(channel, TOPOLOGY.dead_letters_queue)
    assert replayed | {*left} == {str(number) for number in range(5)}


async def test_discarding_asks_first_and_can_export_a_copy(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """`discard` asks for confirmation on a terminal, and requires --yes without one."""
    for name in ("a", "b", "c"):
        await reject(channel, name, line(), "refused_by_database")
    refused = await command("dead-letters", "discard", "--all", AMQP_URL=amqp_url)
    assert (refused.code, "confirm with --yes" in refused.err) == (2, True)
    refused = await command("dead-letters", "discard", "a", "--yes", "--export", "-", AMQP_URL=amqp_url)
    assert (refused.code, "--export -: name a file" in refused.err) == (2, True)
    for words in (("discard", "a", "--yes", "--export", "copy.csv"), ("export", "copy", "--all")):
        refused = await command("dead-letters", *words, AMQP_URL=amqp_url)
        assert (refused.code, "copy.csv: the name should end" in refused.err or "copy: the name" in refused.err) == (
            2,
            True,
        )
    copy = tmp_path / "copy.jsonl"
    said = await command("dead-letters", "discard", "a", "--yes", "--export", str(copy), AMQP_URL=amqp_url)
    assert (said.code, json.loads(copy.read_text())["message_id"]) == (0, "a")
    discard = [COMMAND, "dead-letters", "discard", "b"]
    told = await asyncio.to_thread(on_a_terminal, discard, answer="n", AMQP_URL=amqp_url)
    assert "nothing was discarded" in told
    told = await asyncio.to_thread(on_a_terminal, discard, answer="y", AMQP_URL=amqp_url)
    assert "1 discarded" in told
    assert await names(channel, TOPOLOGY.dead_letters_queue) == ["c"]


async def test_dead_letters_that_another_consumer_has_are_not_said_to_be_gone(
    channel: AbstractChannel, amqp_url: str
) -> None:
    """A command looks again for a while. Then it fails, rather than say that there are none."""
    await reject(channel, "a", line(), "missing_id")
    queue = await channel.get_queue(TOPOLOGY.dead_letters_queue)
    held: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    tag = await queue.consume(held.put)
    message = await held.get()
    discarding = await start("dead-letters", "discard", "a", "--yes", AMQP_URL=amqp_url)
    said = await command("dead-letters", "list", AMQP_URL=amqp_url)
    assert (said.code, said.lines) == (1, [])
    assert "other consumers (1) have dead letters: run it again" in said.err or "other consumers (2)" in said.err
    assert (await end(discarding)).code == 1
    await queue.cancel(tag)
    await message.nack(requeue=True)
    said = await command("dead-letters", "discard", "a", "--yes", AMQP_URL=amqp_url)
    assert (said.code, await names(channel, TOPOLOGY.dead_letters_queue)) == (0, [])


async def test_mistakes_with_dead_letters_are_reported_in_one_line(channel: AbstractChannel, amqp_url: str) -> None:
    """An unknown id, no selection, a bad time, an existing file and an unreachable broker are one clear line each."""
    await reject(channel, "a", line(), "missing_id")
    show = ("dead-letters", "show")
    cases = [
        (
            1,
            "12: no such dead letter: give the whole id, or at least 4 characters of it",
            await command(*show, "12", AMQP_URL=amqp_url),
        ),
        (
            1,
            "a: does not match the other options",
            await command(*show, "a", "--code", "empty_body", AMQP_URL=amqp_url),
        ),
        (2, "select dead letters by", await command("dead-letters", "replay", AMQP_URL=amqp_url)),
        (2, "invalid duration soon:", await command("dead-letters", "show", "--older-than", "soon", AMQP_URL=amqp_url)),
        (
            1,
            "already exists: name another file, or remove it",
            await command("dead-letters", "export", __file__, "a", AMQP_URL=amqp_url),
        ),
        (1, "connection refused", await command("dead-letters", "list", AMQP_URL="amqp://u:secret@127.0.0.1:1/")),
        (2, "AMQP_URL is not set", await command("dead-letters", "list")),
        (0, "no match among", await command("dead-letters", "show", "--newer-than", "1d", AMQP_URL=amqp_url)),
    ]
    for code, words, said in cases:
        assert (said.code, said.lines) == (code, [])
        assert words in said.err
        assert said.err.count("\n") == 1
        assert "secret" not in said.err
    assert await names(channel, TOPOLOGY.dead_letters_queue) == ["a"]


async def test_a_message_id_may_be_shortened(channel: AbstractChannel, amqp_url: str) -> None:
    """As long as it is the beginning of one dead letter only, and four characters long."""
    for name in ("781361cc-1", "781361cc-2", "abcd"):
        await reject(channel, name, line(), "refused_by_database")
    said = await command("dead-letters", "show", "781361cc-2", AMQP_URL=amqp_url)
    assert (said.code, "781361cc-2" in said.out, "781361cc-1" in said.out) == (0, True, False)
    await reject(channel, "f00dcafe-3", line(), "refused_by_database")
    said = await command("dead-letters", "discard", "f00dc", "--yes", AMQP_URL=amqp_url)
    assert (said.code, said.err) == (0, "task-activity-log: 1 discarded\n")
    said = await command("dead-letters", "discard", "781361", "--yes", AMQP_URL=amqp_url)
    assert (said.code, "is the beginning of 2 message ids: 781361cc-1, 781361cc-2" in said.err) == (2, True)
    said = await command("dead-letters", "show", "abc", AMQP_URL=amqp_url)
    assert (said.code, "abc: no such dead letter: give the whole id, or at least 4 characters of it" in said.err) == (
        1,
        True,
    )
    assert sorted(map(str, await names(channel, TOPOLOGY.dead_letters_queue))) == ["781361cc-1", "781361cc-2", "abcd"]


async def test_dead_letters_whose_record_was_stored_since_can_be_discarded(
    channel: AbstractChannel, amqp_url: str, database_url: str
) -> None:
    """What a publisher has corrected and sent again. Whatever else is wrong with the message, its id is read."""
    corrected, older, never = (str(uuid4()) for _ in range(3))
    connection = await asyncpg.connect(database_url)
    for identifier in (corrected, older):
        await connection.execute("INSERT INTO task_activity_log (id) VALUES ($1)", identifier)
    await connection.close()
    before, after = "2020-01-01T00:00:00+00:00", "2100-01-01T00:00:00+00:00"
    await reject(
        channel, "a", json.dumps({"ID": corrected, "due_date": "no"}), "invalid_date", **{"x-last-seen": before}
    )
    body = f"<task_activity_log><id>{corrected}</id><is_closed>no</is_closed></task_activity_log>"
    await reject(channel, "b", body, "invalid_boolean", content_type="application/xml", **{"x-last-seen": before})
    await reject(channel, "c", json.dumps({"id": older}), "invalid_date", **{"x-last-seen": after})
    await reject(channel, "d", json.dumps({"id": never}), "invalid_date", **{"x-last-seen": before})
    await reject(channel, "e", "[]", "not_an_object", **{"x-last-seen": before})
    services: dict[str, Any] = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url}
    said = await command("dead-letters", "list", "--answered", "--json", **services)
    assert sorted(json.loads(each)["message_id"] for each in said.lines) == ["a", "b"]
    assert (await command("dead-letters", "discard", "--answered", "--yes", AMQP_URL=amqp_url)).code == 2
    said = await command("dead-letters", "discard", "--answered", "--yes", **services)
    assert (said.code, said.err) == (0, "task-activity-log: 2 discarded\n")
    assert sorted(map(str, await names(channel, TOPOLOGY.dead_letters_queue))) == ["c", "d", "e"]
    said = await command(
        "dead-letters", "list", "--answered", AMQP_URL=amqp_url, DATABASE_URL="postgresql://127.0.0.1:1/nobody"
    )
    assert (said.code, "cannot find out which records were stored since: connection refused" in said.err) == (1, True)


# ---- settings and schema


async def test_settings_are_listed_with_their_origin_and_without_secrets(tmp_path: Path) -> None:
    """Values, defaults, and where they come from; one in full; an unknown one with what was meant."""
    file = tmp_path / "url"
    file.write_text("postgresql://me:secret@db:5432/app?password=secret")
    variables: dict[str, Any] = {
        "AMQP_URL": "amqp://me:secret@mq:5672/%2F",
        "DATABASE_URL_FILE": str(file),
        "WORKER_BATCH_MAX": "7",
    }
    said = await command("settings", **variables)
    rows = {row[0]: row[1:] for row in (each.split("\t") for each in said.lines)}
    assert rows["AMQP_URL"] == ["amqp://…@mq:5672/%2F", "", "environment"]
    assert rows["DATABASE_URL"] == ["postgresql://…@db:5432/app", "", str(file)]
    assert rows["WORKER_BATCH_MAX"] == ["7", "500", "environment"]
    assert rows["WORKER_SINGLE_ACTIVE_CONSUMER"] == ["false", "false", "default"]
    assert "secret" not in said.out
    changed = await command("settings", "--changed", **variables)
    assert [each.split("\t")[0] for each in changed.lines[1:]] == ["AMQP_URL", "DATABASE_URL", "WORKER_BATCH_MAX"]
    hidden = await command("settings", DATABASE_URL="host=db password=secret dbname=app")
    assert "secret" not in hidden.out
    said = await command("settings", "worker_replies")
    assert "one of: reply_to, both" in said.out
    assert "sent only there" in said.out
    said = await command("settings", "WORKER_BATCHMAX")
    assert (said.code, "did you mean WORKER_BATCH_MAX?" in said.err) == (2, True)
    assert complete_setting("worker_b") == ["WORKER_BATCH_MAX", "WORKER_BODY_LIMIT_BYTES"]
    said = await command("settings", "worker_amqp_c")
    assert [line.partition("=")[0] for line in said.lines if line.startswith("WORKER_")] == [
        "WORKER_AMQP_CONNECT_TIMEOUT_SECONDS",
        "WORKER_AMQP_CA_FILE",
        "WORKER_AMQP_CERTIFICATE_FILE",
    ]
    assert (await command("settings", WORKER_BATCH_MAX="none")).code == 2


async def test_a_migration_that_waits_says_so_and_ends_when_it_is_told(database_url: str) -> None:
    """Without a handler, process 1 of a container would ignore SIGTERM."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE task_activity_log_alembic_version")
            before = signal.signal(
                signal.SIGTERM, signal.SIG_DFL
            )  # see `test_a_terminated_publish_says_how_to_continue`
            process = await start("migrate", DATABASE_URL=database_url)
            signal.signal(signal.SIGTERM, before)
            assert process.stderr is not None
            waiting = (await process.stderr.readline()).decode()
            process.send_signal(signal.SIGTERM)
            said = await end(process)
    finally:
        await connection.close()
    assert "not done yet: another migration, or a transaction with a lock on the tables, may have to end" in waiting
    assert (said.code, said.err, said.out) == (143, "task-activity-log: interrupted\n", "")


async def test_migrate_says_what_it_did(empty_database_url: str) -> None:
    """It made the schema, or there was nothing to do."""
    first = await command("migrate", DATABASE_URL=empty_database_url)
    again = await command("migrate", DATABASE_URL=empty_database_url)
    assert first.out.startswith("The schema was created. It is at revision ")
    assert again.out.startswith("Nothing to do: the schema is at revision ")
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute(OLDER)
    await connection.close()
    upgraded = await command("migrate", DATABASE_URL=empty_database_url)
    assert upgraded.out.startswith("The schema was upgraded from revision 0001. It is at revision ")


async def test_message_ids_are_completed(
    channel: AbstractChannel, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the Tab key: those that begin so, but no option, and none that a shell would execute. Without a broker, none."""
    for name in ("first", "fine", "f$(reboot)", "f`x`", "other", "--all"):
        await reject(channel, name, "{}", "invalid_date")
    monkeypatch.setattr(completing, "_SECONDS", 60.0)
    commands: Any = get_command(dead_letters)
    [ids] = [each for each in commands.commands["show"].params if each.name == "ids"]
    closed = "amqp://guest:guest@127.0.0.1:1/"
    for url, begins, expected in (
        (amqp_url, "f", ["first", "fine"]),
        (amqp_url, "", ["first", "fine", "other"]),
        (closed, "f", []),
    ):
        monkeypatch.setenv("AMQP_URL", url)
        context = commands.make_context("", [], resilient_parsing=True)
        found = await asyncio.to_thread(ids.shell_complete, context, begins)
        assert [each.value for each in found] == expected


async def test_migrate_prints_the_sql_for_an_older_schema() -> None:
    """Only with a revision that it knows, and only when it prints."""
    said = await command("migrate", "--sql", "--from", "0001")
    assert (said.code, "CREATE TABLE task_activity_log_journal" in said.out) == (0, True)
    assert "CREATE TABLE task_activity_log (" not in said.out
    for arguments, why in ((["--sql", "--from", "1"], "it has 0001, "), (["--from", "0001"], "only with --sql")):
        said = await command("migrate", *arguments)
        assert (said.code, why in said.err, said.out) == (2, True, "")


async def test_what_became_of_a_message_is_found(
    channel: AbstractChannel, amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By message_id, correlation_id or the record's id: the row, the dead letter, and a reply that waits. All of it stays."""
    stored, other = str(uuid4()), str(uuid4())
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO task_activity_log (id, subject, description) VALUES ($1, 'a\x1bb', repeat('d', 300))", stored
    )
    await connection.close()
    await reject(channel, "mine", json.dumps({"id": stored, "due_date": "no"}), "invalid_date")
    await reject(channel, "another", json.dumps({"id": other}), "invalid_date")
    exchange = await channel.get_exchange(TOPOLOGY.replies_exchange, ensure=False)
    body = {"id": stored, "modified_dateutc": "2026-01-01T00:00:00Z"}
    headers: Any = {"x-outcome": "inserted"}
    message = aio_pika.Message(
        json.dumps(body).encode(),
        content_type="application/json",
        headers=headers,
        message_id="r",
        correlation_id="earlier",
    )
    await exchange.publish(message, "stored.inserted")
    services: dict[str, Any] = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url}
    for name, kinds in (
        (stored, "row dead waiting"),
        ("mine", "row dead"),
        ("earlier", "row waiting"),
        ("another", "dead"),
    ):
        said = await command("find", name, **services)
        assert (said.code, [each.split()[0] for each in said.lines if each[0] != " "]) == (0, kinds.split())
    connect, tries = Connector.connect, list[Connector]()

    def counted(self: Connector, **options: Any) -> Any:
        tries.append(self)
        return connect(self, **options)

    monkeypatch.setattr(Connector, "connect", counted)
    said = await command("find", "another", **services | {"DATABASE_URL": "postgresql://127.0.0.1:1/nobody"})
    monkeypatch.undo()
    assert len(tries) == 1  # each takes up to ten seconds
    assert (said.code, said.lines[0].partition(":")[0]) == (
        1,
        "dead letter another",
    )  # the queues are known all the same
    assert "row and journal are not known: the database cannot be used: connection refused" in said.err
    said = await command("find", stored, **services)
    assert said.lines[1:3] == ["  subject: a\\x1bb", f"  description: {200 * 'd'}… (300 characters)"]
    assert said.lines[3].startswith(
        "dead letter mine: invalid_date since 2026-01-01T00:00:00+00:00, from crm: Why not."
    )
    assert "waiting reply r: inserted" in said.lines[4]
    assert "correlation_id earlier" in said.lines[4]
    odd = str(uuid4())
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO task_activity_log (id, due_date) VALUES ($1, 'infinity')", odd)
    await connection.close()
    said = await command("find", odd, **services)
    assert (said.code, said.lines) == (
        0,
        [f"row {odd}: it has a value that a reply cannot contain, such as a date outside the years 1 to 9999"],
    )
    monkeypatch.setattr(
        "task_activity_log.client.dead_letters.PREFETCH_MAX", 1
    )  # stands for a queue of more than 65,535 messages
    said = await command("find", "another", **services)
    assert (said.code, said.lines) == (1, [])
    assert f"{TOPOLOGY.dead_letters_queue} has too many messages to look at all: the newest 1 are not seen" in said.err
    monkeypatch.undo()
    said = await command("find", b"\xff".decode(errors="surrogateescape"), **services)
    assert (said.code, said.err) == (2, "task-activity-log: ID should be text in UTF-8\n")
    nothing = await command("find", "nobody", **services)
    assert (nothing.code, nothing.lines) == (1, [])
    assert "nobody: no row, no dead letter and no waiting reply has this id: give the whole id\n" in nothing.err
    assert max(map(len, nothing.err.splitlines())) < 130
    whole = str(uuid4())
    nothing = await command("find", whole, **services)
    assert f"{whole}: no row, no dead letter and no waiting reply has this id\n" in nothing.err
    assert sorted(map(str, await names(channel, TOPOLOGY.dead_letters_queue))) == ["another", "mine"]


async def test_exact_copies_are_corrected_one_by_one(channel: AbstractChannel, amqp_url: str, tmp_path: Path) -> None:
    """What is sent for each of two is what was edited for it, and not twice what was edited last."""
    body = line(due_date="tomorrow")
    for _ in range(2):
        await reject(channel, "copy", body, "invalid_date")
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho >> "$0.times"\nsed -i s/tomorrow/202$(wc -l < "$0.times")-01-01/ "$1"\n')
    editor.chmod(0o755)
    replay = ("dead-letters", "replay", "--all", "--edit")
    said = await end(await start(*replay, AMQP_URL=amqp_url, EDITOR=str(editor), VISUAL=""))
    assert (said.code, "2 replayed" in said.err) == (0, True)
    queue = await channel.get_queue(TOPOLOGY.requests_queue)
    requests = [await queue.get(no_ack=True), await queue.get(no_ack=True)]
    assert sorted(json.loads(request.body)["due_date"] for request in requests) == ["2021-01-01", "2022-01-01"]
    assert not await names(channel, TOPOLOGY.dead_letters_queue)


async def test_the_edits_of_exact_copies_are_kept_in_a_file_each(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """The edit of the second one is not written over that of the first."""
    body = line(due_date="tomorrow")
    for _ in range(2):
        await reject(channel, "copy", body, "invalid_date")
    editor, kept = tmp_path / "editor", tmp_path / "kept"
    kept.mkdir()
    editor.write_text('#!/bin/sh\necho >> "$0.times"\nsed -i s/tomorrow/202$(wc -l < "$0.times")-01-01/ "$1"\n')
    editor.chmod(0o755)
    replay = ("dead-letters", "replay", "--all", "--edit", "--dry-run")
    said = await end(await start(*replay, AMQP_URL=amqp_url, EDITOR=str(editor), VISUAL="", TMPDIR=str(kept)))
    assert (said.code, "your edits are in" in said.err) == (0, True), said.err
    files = await asyncio.to_thread(lambda: [*kept.rglob("copy.*.json")])
    dates = sorted(date for file in files for date in ("2021-01-01", "2022-01-01") if date in file.read_text())
    assert dates == ["2021-01-01", "2022-01-01"]


async def test_the_edits_of_what_is_kept_are_kept(
    channel: AbstractChannel, amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    """Also after a rehearsal. Nobody should have to correct a dead letter twice because its row has changed."""
    body = line(due_date="tomorrow")
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO task_activity_log (id) VALUES ($1)", json.loads(body)["id"])
    await connection.close()
    await reject(channel, "one", body, "invalid_date")
    replay = ("dead-letters", "replay", "--all", "--edit")
    services = {"AMQP_URL": amqp_url, "DATABASE_URL": database_url, "EDITOR": "sed -i s/tomorrow/2026-01-01/"}
    found: set[Path] = set()
    for options, code, files in (((), 3, 1), (("--over-newer", "--dry-run"), 0, 2), (("--over-newer",), 0, 2)):
        said = await end(await start(*replay, *options, **services, VISUAL="", TMPDIR=str(tmp_path)))
        new = set(await asyncio.to_thread(lambda: [*tmp_path.rglob("one.*.json")])) - found
        found |= new
        assert (said.code, len(found)) == (code, files), said.err
        for file in new:
            assert "2026-01-01" in file.read_text()
            assert f"your edits are in {file.parent}" in said.err


async def test_the_edits_of_what_is_still_rejected_are_kept(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """So they are if the editor fails after it has saved them. A file in which nothing was changed is not kept."""
    await reject(channel, "one", line(due_date="tomorrow"), "invalid_date")
    replay = ("dead-letters", "replay", "one", "--edit")
    for number, (commands, kept) in enumerate(
        (
            ('sed -i s/tomorrow/soon/ "$1"', True),
            ('sed -i s/tomorrow/2026-01-01/ "$1"; exit 3', True),
            ('echo >> "$1"', False),  # an editor that ends the last line
            ("exit 3", False),
            ('rm "$1"', False),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        editor = folder / "editor"
        editor.write_text(f"#!/bin/sh\n{commands}\n")
        editor.chmod(0o755)
        said = await end(await start(*replay, AMQP_URL=amqp_url, EDITOR=str(editor), VISUAL="", TMPDIR=str(folder)))
        assert (said.code, said.lines) == (1, []), said.err
        files = await asyncio.to_thread(list, folder.rglob("one.*.json"))
        assert ([f"your edits are in {file.parent}" in said.err for file in files]) == [True] * kept, said.err
        assert all("tomorrow" not in file.read_text() for file in files)
    assert await names(channel, TOPOLOGY.dead_letters_queue) == ["one"]


async def test_an_edit_that_is_no_json_is_named_with_its_place_and_can_be_continued(
    channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    """Without a terminal nobody is asked: the file that was kept is corrected, and given in place of the editor."""
    await reject(channel, "one", line(due_date="tomorrow"), "invalid_date")
    replay = ("dead-letters", "replay", "one", "--edit")
    given = {"AMQP_URL": amqp_url, "VISUAL": "", "TMPDIR": str(tmp_path)}
    said = await end(await start(*replay, **given, EDITOR="sed -i 's/\"tomorrow\"/2026-01-01/'"))
    assert said.code == 1
    assert re.search(r"would be rejected again: line \d+, column \d+ of the body: ", said.err), said.err
    [kept] = await asyncio.to_thread(lambda: [*tmp_path.rglob("one.*.json")])
    corrected = kept.read_text().replace("2026-01-01", '"2026-01-01"')
    await asyncio.to_thread(kept.write_text, corrected)
    said = await end(await start(*replay, **given, EDITOR=f"cp {kept}"))
    assert (said.code, "1 replayed" in said.err) == (0, True), said.err
    assert not await names(channel, TOPOLOGY.dead_letters_queue)


async def test_discard_counts_first(channel: AbstractChannel, amqp_url: str, tmp_path: Path) -> None:
    """--dry-run removes nothing, writes no file and asks nothing."""
    await reject(channel, "a", line(), "refused_by_database")
    file = tmp_path / "copy.jsonl"
    discard = ("dead-letters", "discard", "--all", "--dry-run", "--export", str(file))
    said = await command(*discard, AMQP_URL=amqp_url)
    assert (said.code, said.lines, file.exists()) == (0, [], False)
    assert "1 would be discarded; nothing was removed" in said.err
    assert await names(channel, TOPOLOGY.dead_letters_queue) == ["a"]


async def test_dead_letters_are_in_the_order_of_their_rejection(channel: AbstractChannel, amqp_url: str) -> None:
    """In each command, whatever the order in which the queue has them: on RabbitMQ 4.3 a look can change it."""
    for name, second in (("b", 2), ("c", 3), ("a", 1)):
        seen = {"x-first-seen": f"2026-01-01T00:00:0{second}Z"}
        await reject(channel, name, line(), "refused_by_database", "application/json", **seen)
    for arguments in (("list", "--json"), ("export", "-", "--all")):
        said = await command("dead-letters", *arguments, AMQP_URL=amqp_url)
        assert [json.loads(one)["message_id"] for one in said.lines] == ["a", "b", "c"]


@pytest.mark.parametrize("limit", [5, 20, -1])
async def test_a_queue_that_would_soon_delete_its_messages_is_not_read(
    channel: AbstractChannel, amqp_url: str, rabbitmq: RabbitMQ, limit: int
) -> None:
    """A look can count as a delivery. Whatever is read stays, however often it is looked at."""
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": limit}
    await channel.declare_queue("short", durable=True, arguments=arguments)
    await channel.default_exchange.publish(aio_pika.Message(b"{}", message_id="a"), "short")
    refused = deletes_soon(limit, rabbitmq.version)
    for _ in range(3 if refused else 22):
        said = await command("dead-letters", "list", "--json", AMQP_URL=amqp_url, WORKER_DEAD_LETTERS_QUEUE="short")
        assert (said.code, len(said.lines)) == ((1, 0) if refused else (0, 1))
        if refused:
            assert said.err.count("\n") == 1
            assert f"queue short has the delivery limit {limit}: a look can count as a delivery" in said.err
            assert "shovel its messages to a queue with x-delivery-limit 1000000" in said.err
    assert await names(channel, "short") == ["a"]


async def test_a_queue_whose_policy_would_soon_delete_its_messages_is_not_read(
    channel: AbstractChannel, amqp_url: str, database_url: str, rabbitmq: RabbitMQ
) -> None:
    """Only the management API shows it. If it does not answer, no queue is read: its policy may be such a one."""
    vhost = vhost_of(amqp_url)
    for queue in (TOPOLOGY.dead_letters_queue, TOPOLOGY.replies_queue):
        await channel.default_exchange.publish(aio_pika.Message(b"{}", message_id="a"), queue)
    policy = {"pattern": "", "definition": {"delivery-limit": 5}, "apply-to": "queues"}
    await asyncio.to_thread(rabbitmq.api, "PUT", f"/policies/{quote(vhost, safe='')}/all", policy)
    management = Management(rabbitmq.management_url, None)
    async with asyncio.timeout(30):
        limit = None
        while limit is None or limit.limit != 5:
            await asyncio.sleep(0.1)
            shown = await asyncio.to_thread(management.one, "queues", vhost, TOPOLOGY.replies_queue)
            limit = delivery_limit(shown, rabbitmq.version)
    services: dict[str, Any] = {
        "AMQP_URL": amqp_url,
        "DATABASE_URL": database_url,
        "MANAGEMENT_URL": rabbitmq.management_url,
    }
    commands = [("list",), ("show", "a"), ("export", "-", "--all"), ("discard", "a", "--yes"), ("replay", "--all")]
    looks = [*(("dead-letters", *each) for each in commands), ("find", "a"), ("replies", "--since", "1h")]
    for look in looks:
        said = await command(*look, **services)
        assert (said.code, said.lines) == (1, []), look
        assert "has the delivery limit 5: a look can count" in said.err
        assert "remove delivery-limit from the policy that applies to it (all), or set it to 1000000" in said.err
    for look in looks:
        said = await command(*look, **services | {"MANAGEMENT_URL": "http://127.0.0.1:1"})
        assert (said.code, said.lines) == (1, []), look
        assert "has a low delivery limit (management API: " in said.err
    assert await names(channel, TOPOLOGY.dead_letters_queue) == ["a"]
    assert await names(channel, TOPOLOGY.replies_queue) == ["a"]
    await channel.declare_queue("plain", durable=True, arguments={"x-queue-type": "quorum"})
    await asyncio.to_thread(rabbitmq.api, "DELETE", f"/policies/{quote(vhost, safe='')}/all")
    await channel.default_exchange.publish(aio_pika.Message(b"{}", message_id="b"), "plain")
    said = await command("dead-letters", "list", "--json", **services, WORKER_DEAD_LETTERS_QUEUE="plain")
    has_default = (4, 0) <= version.number(rabbitmq.version) < (4, 3)
    assert (said.code, "set a policy with delivery-limit 1000000" in said.err) == (
        (1, True) if has_default else (0, False)
    )


async def test_a_stream_is_not_said_to_be_empty(channel: AbstractChannel, amqp_url: str) -> None:
    """It counts no messages for a while when it has just been filled."""
    await channel.declare_queue("stream", durable=True, arguments={"x-queue-type": "stream"})
    said = await command("dead-letters", "list", AMQP_URL=amqp_url, WORKER_DEAD_LETTERS_QUEUE="stream")
    assert (said.code, said.err) == (1, "task-activity-log: queue stream is a stream: it cannot be looked through\n")


async def test_an_interrupted_take_leaves_what_it_has_not_printed(channel: AbstractChannel, amqp_url: str) -> None:
    """Each reply is printed or in the queue: the last one that was printed too, whose acknowledgement waited to be sent."""
    names_ = [str(number) for number in range(400)]
    async with publishing(amqp_url, "tests") as publisher:
        properties = [Properties(message_id=name, headers={"x-outcome": "updated"}) for name in names_]
        await publisher.publish([Outgoing("", TOPOLOGY.replies_queue, each, b"{}") for each in properties])
    taking = await start("replies", "--take", "--json", AMQP_URL=amqp_url)
    assert taking.stdout is not None
    first = await taking.stdout.readline()
    taking.send_signal(signal.SIGINT)
    said = await end(taking)
    assert said.code == 130
    printed = [json.loads(one)["message_id"] for one in (first.decode(), *said.lines)]
    left: list[str | None] = []
    async with asyncio.timeout(30):
        while len(printed) + len(left) < len(names_):  # until the broker has returned what was not acknowledged
            left += await names(channel, TOPOLOGY.replies_queue)
    assert sorted([*printed, *map(str, left)]) == sorted(names_)

"""`task-activity-log publish`: files → upserts, and their replies → the terminal."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lxml import etree

from task_activity_log.client import Client, ClientError, Upsert
from task_activity_log.settings import Settings

DONE, FAILED, SOME_REJECTED = 0, 1, 3


class UnreadableFile(Exception):
    """A file holds no records that could be sent; the text is one line with file, line and reason."""


def publish_files(files: Sequence[Path], settings: Settings, timeout_seconds: float) -> int:
    """Publish what the files hold, print the replies, return the exit code. Nothing is sent from an unreadable file."""
    upserts: list[Upsert] = []
    code = DONE
    for path in files:
        try:
            upserts += list(read(path))
        except UnreadableFile as error:
            print(f"task-activity-log: {error}; nothing was sent from it", file=sys.stderr)
            code = FAILED
    if upserts:
        try:
            code = max(code, asyncio.run(_exchange(upserts, settings, timeout_seconds)))
        except ClientError as error:
            print(f"task-activity-log: {error}", file=sys.stderr)
            return FAILED
    return code


async def _exchange(upserts: Sequence[Upsert], settings: Settings, timeout_seconds: float) -> int:
    code = DONE
    async with Client(
        settings.amqp_url.get_secret_value(),
        exchange=settings.requests_exchange,
        connect_timeout_seconds=settings.amqp_connect_timeout_seconds,
    ) as client:
        async for answer in client.exchange(upserts, timeout_seconds=timeout_seconds):
            print(f"{answer.upsert.source}: {answer.outcome}", file=sys.stderr)
            print(answer.body.decode(), flush=True)
            if answer.outcome == "rejected":
                code = SOME_REJECTED
    return code


def read(path: Path) -> Iterator[Upsert]:
    """The records in a file, as they will be sent. Only the syntax is looked at: the worker judges the fields.

    Raises:
        UnreadableFile: it is missing, of another kind, or malformed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    match path.suffix.lower():
        case ".json":
            yield _json(path, content, 1, str(path))
        case ".jsonl" | ".ndjson":
            for number, line in enumerate(content.split(b"\n"), 1):
                if line.strip():
                    yield _json(path, line, number, f"{path}:{number}")
        case ".xml":
            try:
                etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True))
            except etree.XMLSyntaxError as error:
                raise UnreadableFile(f"{path}:{error.lineno}: {error.msg}") from None
            yield Upsert(content, "application/xml", str(path))
        case _:
            raise UnreadableFile(f"{path}: is neither .json, .jsonl nor .xml")


def _json(path: Path, content: bytes, first_line: int, source: str) -> Upsert:
    try:
        json.loads(content)
    except json.JSONDecodeError as error:
        raise UnreadableFile(f"{path}:{first_line + error.lineno - 1}: {error.msg}") from None
    except UnicodeDecodeError:
        raise UnreadableFile(f"{path}:{first_line}: is not UTF-8") from None
    except RecursionError:
        raise UnreadableFile(f"{path}:{first_line}: is nested too deeply") from None
    return Upsert(content, "application/json", source)

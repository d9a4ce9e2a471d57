"""Files, folders and standard input as upserts."""

import codecs
import errno
import gzip
import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from io import BytesIO
from pathlib import Path
from typing import IO, cast
from uuid import NAMESPACE_URL

from lxml import etree
from pydantic_core import SchemaValidator, ValidationError
from pydantic_core import core_schema as cs

from task_activity_log import wire
from task_activity_log.cli.csv_records import BadCsv, rows
from task_activity_log.client import ClientError, Upsert, exported
from task_activity_log.client.misspelled import integer
from task_activity_log.problem import Rejected

STANDARD_INPUT = "-"
_LINES = (".jsonl", ".ndjson")
KNOWN = (".json", *_LINES, ".xml", ".csv")
_GZIP = ".gz"
_GZIP_BEGINS = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_MORE = "Extra data"
SYNTAX = {
    "Expecting value": "a value is missing",
    "Expecting property name enclosed in double quotes": "a name in double quotes is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Expecting ',' delimiter": "a comma or a closing bracket is missing",
    "Unterminated string starting at": "the string that begins here does not end",
    "Invalid control character at": "a control character in a string is not escaped",
    _MORE: "something follows the record",
}
"""What Python's `json` says of a syntax error, for people who do not know Python."""
_BETWEEN = re.compile(r"[ \t\r\n,]*")
"""What is between the elements of a JSON array."""
_SHORT_BYTES = 65_536


class Unreadable(ClientError):
    """A file or a line cannot be read as records; the text is one line with file, line, column and reason."""


class _NotJson(Unreadable):
    """A line is not JSON."""


@dataclass
class Source:
    """One file, or what comes through standard input or a pipe, whose records can be iterated over more than once."""

    path: str
    suffix: str
    run: str
    """Part of the message_ids: the same file in the same run has the same ones."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The fields of the columns of a CSV file whose headers are not names of fields."""
    _content: bytes | None = field(default=None, init=False)
    """What was read from a pipe, which gives it only once."""
    _state: tuple[int, ...] | None = field(default=None, init=False)
    """The size of a file and when it was changed: what was judged must be what is sent."""

    def upserts(self) -> Iterator[Upsert]:
        """The records as they will be sent. Only the syntax is checked: the worker judges the fields.

        Raises:
            Unreadable: something is no record, or the file was changed since it was read first.
        """
        for found in self.read():
            if isinstance(found, Unreadable):
                raise found
            yield found

    def read(self) -> Iterator[Upsert | Unreadable]:
        """The records, and an error for each line that is not one: it does not end a file with one record per line."""
        try:
            with self._open() as opened, _unpacked(opened) as file:
                for found in self._records(file):
                    self._check_unchanged(opened)
                    yield found
                self._check_unchanged(opened)
        except Unreadable as error:
            yield error
        except IsADirectoryError:
            yield Unreadable(f"{self.path}: contains no file of a known kind ({', '.join(KNOWN)})")
        except (EOFError, zlib.error, gzip.BadGzipFile):
            yield Unreadable(f"{self.name}: is not complete, or is not gzip")
        except OSError as error:
            yield Unreadable(f"{self.path}: {error.strerror}")
        except MemoryError:
            yield Unreadable(
                f"{self.name}: is larger than the memory: divide it, or use .jsonl, which is read line by line"
            )

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return "stdin" if self.path == STANDARD_INPUT else self.path

    def _open(self) -> IO[bytes]:
        if self._content is not None:
            return BytesIO(self._content)
        if self.path == STANDARD_INPUT:
            self._content = sys.stdin.buffer.read()
            return BytesIO(self._content)
        with ExitStack() as stack:
            file = stack.enter_context(Path(self.path).open("rb"))
            if self.suffix not in KNOWN:
                raise Unreadable(f"{self.path}: the name does not end in {', '.join(KNOWN[:-1])} or {KNOWN[-1]}")
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not file.isatty()):  # it may have no end
                raise Unreadable(f"{self.path}: is a device")
            if not stat.S_ISREG(mode):
                self._content = file.read()
                return BytesIO(self._content)
            self._state = self._state or _state(file)
            self._check_unchanged(file)
            stack.pop_all()
        return file

    def _check_unchanged(self, file: IO[bytes]) -> None:
        """Raise `Unreadable` if a file is not as it was when it was read first. Of a pipe there is only what was read."""
        if self._state is not None and _state(file) != self._state:
            raise Unreadable(f"{self.path}: was changed while it was read")

    def _records(self, file: IO[bytes]) -> Iterator[Upsert | Unreadable]:
        if self.suffix in _LINES:
            yield from self._lines(file)
        elif self.suffix == ".csv":
            for found in rows(file, self.columns):
                if isinstance(found, BadCsv):
                    yield Unreadable(f"{self.name}:{found.line}: {found}")
                else:
                    source = f"{self.name}:{found[0]}"
                    yield Upsert(found[1], message_id=self._message_id(found[1], source), source=source)
        elif self.suffix == ".json":
            content = file.read()
            if _is_utf_16(content):
                raise Unreadable(f"{self.name}: is in UTF-16: save it in UTF-8")
            yield from self._json(content, 1, self.name)
        else:
            content = file.read()
            yield Upsert(content, wire.XML, self._message_id(content, self.name), source=self.name)

    def _lines(self, file: IO[bytes]) -> Iterator[Upsert | Unreadable]:
        for number, line in enumerate(file, 1):
            if number == 1 and _is_utf_16(line):
                yield Unreadable(f"{self.name}: is in UTF-16: save it in UTF-8")
                return
            content = line.removeprefix(_BOM) if number == 1 else line
            if content.strip():
                try:
                    yield from self._json(content.rstrip(), number, f"{self.name}:{number}")
                except Unreadable as error:
                    if number == 1 and isinstance(error, _NotJson) and (why := self._other_format(content, file)):
                        yield Unreadable(f"{self.name}: {why}")
                        return
                    yield error

    def _other_format(self, first: bytes, file: IO[bytes]) -> str | None:
        """What a file is whose first line is not a record; None if it may be one record per line all the same."""
        stdin = not self._is_named
        start = first.lstrip()[:1]
        if start == b"<":
            return "is XML, not one record per line: " + ("add --stdin xml" if stdin else "name it .xml")
        position = file.tell()
        try:
            if start in (b"[", b"{"):
                json.loads(first + file.read())
                what = "is a JSON list" if start == b"[" else "is one record on several lines"
                return f"{what}, not one record per line: " + ("add --stdin json" if stdin else "name it .json")
        except (ValueError, RecursionError):
            pass
        file.seek(position)
        if stdin and start not in (b"[", b"{"):
            format_ = self.suffix.removeprefix(".")
            return (
                f"is read as {format_}, and its first line is not JSON: for CSV or XML add --stdin csv or --stdin xml"
            )
        return None

    @property
    def _is_named(self) -> bool:
        """Whether its name has its format: that of standard input and of a pipe does not."""
        return _kind(Path(self.path)) in KNOWN

    def _what_is_wrong(self, error: json.JSONDecodeError) -> str:
        """What the error is, and what to do if it is that the next line is there: each may be a record."""
        what = SYNTAX.get(error.msg, error.msg)
        if error.msg == _MORE and error.colno == 1:
            how = "name it .jsonl" if self._is_named else "add --stdin jsonl"
            return f"{what}; if each line is a record, {how}"
        return what

    def _json(self, content: bytes, first_line: int, source: str) -> Iterator[Upsert]:
        whole = content  # its columns are those of the file
        content = content.strip() if self.suffix in _LINES else content
        if is_record(content):
            yield Upsert(content, message_id=self._message_id(content, source), source=source)
            return
        try:
            parsed = json.loads(whole, parse_int=integer)
        except json.JSONDecodeError as error:
            if not content.strip():
                return
            where = f"{self.name}:{first_line + error.lineno - 1}:{error.colno}"
            raise _NotJson(f"{where}: is not JSON: {self._what_is_wrong(error)}") from None
        except UnicodeDecodeError as error:
            before = error.object[: error.start].split(b"\n")
            where = f"{self.name}:{first_line + len(before) - 1}:{len(before[-1].decode(errors='replace')) + 1}"
            raise Unreadable(f"{where}: is not UTF-8") from None
        except (ValueError, RecursionError):
            raise Unreadable(f"{self.name}:{first_line}: is nested too deeply") from None
        if isinstance(parsed, list):
            for number, piece in enumerate(_elements(content), 1):
                name = f"{source}[{number}]"
                yield Upsert(piece, message_id=self._message_id(piece, name), source=name)
        elif exported.is_message(parsed):
            try:
                yield exported.upsert(parsed, self._message_id(content, source), source)
            except ValueError as error:
                raise Unreadable(f"{source}: {error}") from None
        else:
            yield Upsert(content, message_id=self._message_id(content, source), source=source)

    def _message_id(self, body: bytes, source: str) -> str:
        # The source is part of it: otherwise a record that is changed, and later changed back, would count as a repeat.
        return named_uuid(f"{self.run}\n{source}\n{sha256(body).hexdigest()}")


@dataclass(frozen=True, slots=True)
class Expanded:
    """What is at a path."""

    sources: list[Source]
    skipped: list[Path]
    """Files of other kinds in a folder."""
    not_files: list[Path] = field(default_factory=list)
    """What else is in a folder: links to folders, which are not followed, links to nothing, pipes and devices."""


def expand(path: str, stdin_format: str, run: str, columns: Mapping[str, str], without: Path | None = None) -> Expanded:
    """The source at a path; for a folder, one for each file of a known kind below it, in the order of their names.

    `stdin_format` is also that of a pipe whose name has no known ending, such as `<(psql …)`. Hidden files and folders in a
    folder are skipped, and so is the file `without`, to which the rejected records are written. `Unreadable` if a folder
    may not be read.
    """
    if path == STANDARD_INPUT:
        return Expanded([Source(path, f".{stdin_format}", run, columns)], [])
    entries = [entry for entry in _below(path) if without is None or not is_same(entry, without)]
    below = sorted(entry for entry in entries if _is_file(entry))
    not_files = sorted(set(entries).difference(below))
    known = [file for file in below if _kind(file) in KNOWN]
    if known:
        skipped = [file for file in below if _kind(file) not in KNOWN]
        return Expanded([Source(str(file), _kind(file), run, columns) for file in known], skipped, not_files)
    kind = _kind(Path(path))
    suffix = f".{stdin_format}" if kind not in KNOWN and Path(path).is_fifo() else kind
    return Expanded([Source(path, suffix, run, columns)], below, not_files)


def is_same(one: Path, other: Path) -> bool:
    """Whether both are the same file, whatever they are called."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return False


def listed(files: Sequence[str | Path], most: int = 3) -> str:
    """Some files, for a message: a text as it is, and a path by its last part."""
    more = f" and {len(files) - most:,} more" if len(files) > most else ""
    return ", ".join(file.name if isinstance(file, Path) else file for file in files[:most]) + more


def not_for_lines(file: Path) -> str | None:
    """Why `publish` would not read lines of JSON from a file of this name; None if it would."""
    if file.suffix.lower() in _LINES:
        return None
    return f"{file}: the name should end in {' or '.join(_LINES)}, so that `publish` can read the file"


def _state(file: IO[bytes]) -> tuple[int, ...]:
    state = os.fstat(file.fileno())
    return state.st_ino, state.st_size, state.st_mtime_ns


def _kind(file: Path) -> str:
    """The ending of a file's name, of a compressed one that before `.gz`."""
    suffix = file.suffix.lower()
    return file.with_suffix("").suffix.lower() if suffix == _GZIP else suffix


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    """The content of a file that can be rewound: decompressed if it is gzip, whatever the file is called."""
    begins = file.read(len(_GZIP_BEGINS))
    file.seek(0)
    return cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if begins == _GZIP_BEGINS else file


def _below(folder: str) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        if not isinstance(error, NotADirectoryError | FileNotFoundError):
            raise Unreadable(f"{error.filename}: {error.strerror}") from None

    for top, folders, names in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(top, name).is_symlink()]
        yield from (Path(top, name) for name in (*names, *links) if not name.startswith("."))


def _is_file(path: Path) -> bool:
    """Whether it is a file, also through a symbolic link. `Unreadable` if that is not known: it is not left out silently."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - since Python 3.13 Path.is_file hides all errors
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # a link to nothing
            return False
        raise Unreadable(f"{path}: {error.strerror}") from None


def line_of(upsert: Upsert, field: str) -> str:
    """`file:line` of a field of an upsert. The source alone if it names a line or a list element already."""
    if upsert.source.rpartition(":")[2].isdecimal() or upsert.source.endswith("]"):
        return upsert.source
    found = re.search(rf'["<:]{re.escape(field)}["\s/>]'.encode(), upsert.body, re.IGNORECASE)
    line = upsert.body.count(b"\n", 0, found.start()) + 1 if found else 1
    return f"{upsert.source}:{line}"


def syntax_error(upsert: Upsert) -> tuple[str, str]:
    """Where the first syntax error of an XML record is, and a sentence that says what it is, if that is known.

    The place is `file:line:column` if the file is one record. The sentence has no part of the record.
    """
    if upsert.content_type == wire.XML:
        try:
            _parse_xml(upsert.body)
        except etree.XMLSyntaxError as error:
            is_file = upsert.source.endswith(".xml")
            place = ":".join(map(str, (upsert.source, *error.position))) if is_file else upsert.source
            return place, _XML_SYNTAX.get(getattr(error, "code", 0), "")
        except ValueError:
            pass
    return upsert.source, ""


def _parse_xml(body: bytes) -> None:
    """Raise `XMLSyntaxError` or `ValueError` if it is not well-formed. Its declaration may say utf-16 although it is in UTF-8."""
    try:
        text = wire.text(body, wire.media_type(wire.XML))
    except Rejected:
        etree.fromstring(body, etree.XMLParser(resolve_entities=False, no_network=True))
    else:
        etree.fromstring(text.encode(), etree.XMLParser(resolve_entities=False, no_network=True, encoding="utf-8"))


_CODES = etree.ErrorTypes
_XML_SYNTAX = {
    _CODES.ERR_DOCUMENT_EMPTY: "It does not begin with a tag.",
    _CODES.ERR_DOCUMENT_END: "Something follows the record.",
    _CODES.ERR_INVALID_CHAR: "It has a character that XML does not allow.",
    _CODES.ERR_UNDECLARED_ENTITY: "It has a name between & and ; that is not declared.",
    _CODES.ERR_LT_IN_ATTRIBUTE: "The value of an attribute has a < that is not written as &lt;.",
    _CODES.ERR_NAME_REQUIRED: "It has an & that is not written as &amp;, or a < that is not written as &lt;.",
    _CODES.ERR_ENTITYREF_SEMICOL_MISSING: "It has an & that is not written as &amp;.",
    _CODES.ERR_GT_REQUIRED: "A tag does not end.",
    _CODES.ERR_TAG_NAME_MISMATCH: "An end tag does not match its start tag.",
    _CODES.ERR_TAG_NOT_FINISHED: "An end tag is missing.",
    _CODES.NS_ERR_UNDEFINED_NAMESPACE: "It has a prefix that is not declared.",
}
"""What libxml2 says of a syntax error, in sentences."""


def named_uuid(name: str) -> str:
    """The same as `str(uuid5(NAMESPACE_URL, name))`, in half of the time. The name of a file may be no text in UTF-8."""
    content = name.encode(errors="surrogateescape")
    number = int.from_bytes(sha1(_NAMESPACE + content, usedforsecurity=False).digest()[:16], "big")
    digits = f"{number & ~_MARKED | _VERSION_5:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_NAMESPACE = NAMESPACE_URL.bytes
_MARKED, _VERSION_5 = 0xF000 << 64 | 0xC000 << 48, 0x5000 << 64 | 0x8000 << 48
"""The bits of a UUID that are its version and its variant, and their values (RFC 9562, section 5.5)."""


def is_record(content: bytes) -> bool:
    """Whether this is certainly a JSON object and no exported message. If not, `json` decides, which takes six times as long."""
    try:
        return len(content) <= _SHORT_BYTES and not exported.is_message(_MARKS.validate_json(content))
    except ValidationError:
        return False


_MARKS = SchemaValidator(
    cs.typed_dict_schema(
        {name: cs.typed_dict_field(cs.any_schema(), required=False) for name in exported.MARKS},
        extra_behavior="ignore",
    )
)
"""Reads only the members that tell an exported message from a record. It accepts less than `json` and never more."""


def _elements(content: bytes) -> Iterator[bytes]:
    """The elements of a JSON array that is known to be well-formed, byte for byte."""
    text = content.decode(json.detect_encoding(content))
    decoder = json.JSONDecoder(parse_int=integer)
    position = text.index("[") + 1
    while (between := _BETWEEN.match(text, position)) and text[between.end()] != "]":
        _, position = decoder.raw_decode(text, between.end())
        yield text[between.end() : position].encode()


def _is_utf_16(content: bytes) -> bool:
    """Whether JSON is in UTF-16, as PowerShell writes it: with a mark, or with a NUL next to each character."""
    return content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]

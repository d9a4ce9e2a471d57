"""Content type and body to text: media type, charset, byte order mark, XML declaration (contract, section 2)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from task_activity_log.problem import Code, Problem, Rejected

JSON = "application/json"
XML = "application/xml"
PROBLEM_JSON = "application/problem+json"
PROBLEM_XML = "application/problem+xml"
MEDIA_TYPES = (JSON, "text/json", XML, "text/xml")

WHITE = " \t\r\n"
"""White space in JSON and in XML. `str.strip()` would also remove U+00A0, U+000B and others."""

# Python's codec for each charset. utf-16 without a byte order mark is little-endian.
_CODECS = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "utf-16": "utf-16-le",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
}
# UTF-32 comes first, because its little-endian mark starts with that of UTF-16.
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32le"),
    (b"\0\0\xfe\xff", "utf-32be"),
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe", "utf-16le"),
    (b"\xfe\xff", "utf-16be"),
)
_ANY_MARK = tuple(mark for mark, _ in _MARKS)

# A quoted value may contain any characters, including `;` and `charset=`.
_PARAMETER = re.compile(r';[ \t]*([^=;" \t]*)[ \t]*(?:=[ \t]*(?:"((?:[^"\\]|\\.)*+)"|([^;]*)))?[^;]*')
_DECLARATION = re.compile(
    rb"<\?xml[ \t\r\n]+version[ \t\r\n]*=[ \t\r\n]*(?:'[^'<>]*'|\"[^\"<>]*\")"
    rb"[ \t\r\n]+encoding[ \t\r\n]*=[ \t\r\n]*(?:'([^'<>]*)'|\"([^\"<>]*)\")"
)
_DECLARATION_MAX = 1024


class MediaType(NamedTuple):
    """The parts of a content type."""

    name: str
    """One of `MEDIA_TYPES`, lower case, without parameters."""
    charset: str | None
    """The charset parameter, lower case; None if it is absent or empty."""


def is_xml(name: str) -> bool:
    """Whether a media type without parameters is XML, including that of a problem. All others are JSON."""
    return name.endswith("xml")


@lru_cache(maxsize=256)
def media_type(content_type: str | None, default: str | None = JSON) -> MediaType:
    """The media type in a content type; `default` if the content type is absent or empty.

    Raises `Rejected` (`unsupported_media_type`) for any other, and for an absent one without a default.
    """
    content_type = (content_type or "").strip(WHITE) or default or ""
    name = content_type.partition(";")[0].strip(WHITE).lower()
    if name not in MEDIA_TYPES:
        raise Rejected(Problem(Code.UNSUPPORTED_MEDIA_TYPE, f"Send the message as one of {', '.join(MEDIA_TYPES)}."))
    charset = None
    for parameter, quoted, plain in _PARAMETER.findall(content_type):
        if parameter.lower() == "charset":
            charset = (quoted or plain).strip(WHITE).lower() or None
            break
    return MediaType(name, charset)


def text(body: bytes, media: MediaType) -> str:
    """The characters of a body, without the byte order mark.

    The charset is that of the byte order mark, else of the charset parameter, else of the XML declaration, else UTF-8.
    Raises `Rejected` with `unsupported_charset`, `empty_body` or `invalid_encoding`.
    """
    charset, mark = media.charset, b""
    if body.startswith(_ANY_MARK):
        mark, charset = next(known for known in _MARKS if body.startswith(known[0]))
    elif charset is None and is_xml(media.name):
        charset = _declared(body)
    codec = _CODECS.get(charset or "utf-8")
    if codec is None:
        raise Rejected(
            Problem(Code.UNSUPPORTED_CHARSET, "Send the message in UTF-8, or set its charset to utf-16 or us-ascii.")
        )
    try:
        characters = body[len(mark) :].decode(codec) if mark else body.decode(codec)
    except UnicodeDecodeError:  # no cause, because the error quotes the body
        raise Rejected(
            Problem(Code.INVALID_ENCODING, "Send bytes that are valid in the charset of the message.")
        ) from None
    if not characters or (characters[0] in WHITE and not characters.strip(WHITE)):
        raise Rejected(Problem(Code.EMPTY_BODY, "Send the record in the body. The body was empty."))
    return characters


def _declared(body: bytes) -> str | None:
    """The encoding in the XML declaration of a body without a byte order mark; None if it has none that applies.

    A declaration may say utf-16 although the bytes are UTF-8: .NET's StringWriter writes it, and UTF8.GetBytes encodes the
    text. It is then ignored. A declaration that is itself in UTF-16 determines the byte order.
    """
    head = body[:_DECLARATION_MAX]
    order = None
    if head.startswith(b"<\0?\0"):
        order, head = "utf-16le", head[::2]
    elif head.startswith(b"\0<\0?"):
        order, head = "utf-16be", head[1::2]
    found = _DECLARATION.match(head)
    if found is None:
        return None
    name = str(found[1] or found[2] or b"", "latin-1").lower()
    return order if name == "utf-16" else name or None

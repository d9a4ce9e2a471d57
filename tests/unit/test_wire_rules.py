"""Sections 2 to 7 of the contract, rule by rule: a row fails if its rule is removed."""

import codecs
from datetime import UTC, datetime
from uuid import UUID

import pytest

from task_activity_log import wire
from task_activity_log.message import Delivery, Timestamp
from task_activity_log.pipeline.request import Request, Rules, UpdateMode, decode
from task_activity_log.problem import Rejected
from tests.fakes import delivered

ID = "9652e68c-7b6d-4598-bbbd-4e933126c994"
HEX = ID.replace("-", "")
MIN, MAX = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)
XSI = "http://www.w3.org/2001/XMLSchema-instance"


def outcome(delivery: Delivery, rules: Rules | None = None) -> Request[Delivery] | str:
    """The request, or the code with which it is rejected."""
    try:
        return decode(delivery, rules or Rules())
    except Rejected as error:
        return str(error.problem.code)


def json_of(members: str) -> Delivery:
    return delivered(f'{{"id":"{ID}"{members and ","}{members}}}'.encode())


def xml_of(children: str, root: str = "task_activity_log", attributes: str = "") -> Delivery:
    body = f'<{root} xmlns:i="{XSI}"{attributes}><id>{ID}</id>{children}</{root}>'
    return delivered(body.encode(), content_type="application/xml")


def after_odd_namespace(text: str) -> Delivery:
    """A request whose namespace is not a URI for libxml2, and this text after the root."""
    return delivered(f'<task_activity_log xmlns="http://x/Société"><id>{ID}</id></task_activity_log>{text}'.encode())


def value_of(delivery: Delivery, field: str, rules: Rules | None = None) -> object:
    """The value of the field in an accepted request, or the code."""
    found = outcome(delivery, rules)
    return found if isinstance(found, str) else getattr(found.record, field)


GOOD = f'{{"id":"{ID}"}}'.encode()
GOOD_XML = f"<task_activity_log><id>{ID}</id></task_activity_log>".encode()
LONG = b" " * (256 * 1024) + GOOD


def declared(encoding: str) -> str:
    """XML with a declaration."""
    return f'<?xml version="1.0" encoding="{encoding}"?>{GOOD_XML.decode()}'


# ---- section 2: media type and charset


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        (None, GOOD, None),
        ("", GOOD, None),
        ("APPLICATION/JSON", GOOD, None),
        ("text/json; charset=utf-8; x=y", GOOD, None),
        ("application/vnd.api+json", GOOD, "unsupported_media_type"),
        ("application/vnd.masstransit+json", GOOD, "unsupported_media_type"),
        ("text/plain", GOOD, "unsupported_media_type"),
        ("TEXT/XML", GOOD_XML, None),
        ("application/json; charset=utf8", GOOD, None),
        ("application/json; charset='utf-8'", GOOD, "unsupported_charset"),
        ('application/json; charset="UTF-8"', GOOD, None),
        ("application/json; charset=us-ascii", GOOD, None),
        ("application/json; charset=us-ascii", GOOD[:-1] + ',"subject":"é"}'.encode(), "invalid_encoding"),
        ("application/json; charset=utf-16", GOOD.decode().encode("utf-16-le"), None),
        ("application/json; charset=utf-16le", GOOD.decode().encode("utf-16-le"), None),
        ("application/json; charset=utf-16be", GOOD.decode().encode("utf-16-be"), None),
        ("application/json; charset=utf-8", codecs.BOM_UTF16_BE + GOOD.decode().encode("utf-16-be"), None),
        ("application/json; charset=utf-16", codecs.BOM_UTF8 + GOOD, None),
        ("application/json; charset=iso-8859-1", GOOD, "unsupported_charset"),
        ("application/json; charset=utf-16", GOOD.decode().encode("utf-16-le")[:-1], "invalid_encoding"),
        ("application/json", b"\xff" + GOOD, "invalid_encoding"),
        ("application/json", b"", "empty_body"),
        ("application/json", b" \t\r\n", "empty_body"),
        ("application/xml", b" \n", "empty_body"),
        ("application/json", LONG, "body_too_large"),
        ("application/json", LONG[len(GOOD) :], None),
        ("application/xml", b'<?xml version="1.0" encoding="utf-16"?>' + GOOD_XML, None),
        ("application/xml", b'<?xml version="1.0" encoding="iso-8859-1"?>' + GOOD_XML, "unsupported_charset"),
        ("application/xml; charset=utf-8", b'<?xml version="1.0" encoding="iso-8859-1"?>' + GOOD_XML, None),
        ("text/xml", codecs.BOM_UTF16_LE + GOOD_XML.decode().encode("utf-16-le"), None),
        (" application/json ; CHARSET = utf-16 ", GOOD.decode().encode("utf-16-le"), None),
        ("application/json;charset=", GOOD, None),
        ('application/json; charset=""', GOOD, None),
        ('application/json; charset="iso-8859-1"', GOOD, "unsupported_charset"),
        ("application/json; x=iso-8859-1; charset=utf-8", GOOD, None),
        ('application/json; x="; charset=iso-8859-1"; charset=utf-8', GOOD, None),
        ("application/json; charset=iso-8859-1", codecs.BOM_UTF8 + GOOD, None),
        ("application/json", codecs.BOM_UTF32_LE + GOOD.decode().encode("utf-32-le"), "unsupported_charset"),
        ("application/json", codecs.BOM_UTF32_BE + GOOD.decode().encode("utf-32-be"), "unsupported_charset"),
        ("application/json", codecs.BOM_UTF8, "empty_body"),
        ("application/json", "\u00a0".encode(), "malformed_json"),
        ("application/json", b'<?xml version="1.0" encoding="iso-8859-1"?><a/>', "malformed_json"),
        ("application/json", b'{"id":"\xed\xa0\x80"}', "invalid_encoding"),
        ("application/json", LONG[len(GOOD) - 1 :], "body_too_large"),
        ("application/xml", declared("utf-16").encode("utf-16-le"), None),
        ("application/xml", declared("utf-16").encode("utf-16-be"), None),
        ("application/xml", declared("UTF-16").encode(), None),
        ("application/xml", declared("utf-16").replace('"', "'").encode(), None),
        ("application/xml", declared("").encode(), "malformed_xml"),
        ("application/xml", declared("us-ascii").encode(), None),
        ("application/xml", codecs.BOM_UTF8 + declared("iso-8859-1").encode(), None),
        ("application/xml", codecs.BOM_UTF16_BE + declared("no-such").encode("utf-16-be"), None),
        ("application/xml; charset=utf-16be", declared("utf-8").encode("utf-16-be"), None),
        ("application/xml; charset=iso-8859-1", declared("utf-8").encode(), "unsupported_charset"),
    ],
)
def test_media_types_and_charsets(content_type: str | None, body: bytes, code: str | None) -> None:
    """Content type, charset, byte order mark and declaration, and which of them has precedence."""
    found = outcome(delivered(body, content_type=content_type))
    assert (found if isinstance(found, str) else None) == code


@pytest.mark.parametrize(
    ("encoding", "code"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("utf-8", None),
        (" UTF-8 ", None),
        ("gzip", "unsupported_encoding"),
        ("utf-16", "unsupported_encoding"),
        ("identity, gzip", "unsupported_encoding"),
    ],
)
def test_content_encodings(encoding: str | None, code: str | None) -> None:
    """kombu sets it to the charset. No content is decompressed."""
    found = outcome(delivered(GOOD, content_encoding=encoding))
    assert (found if isinstance(found, str) else None) == code


def test_an_absent_content_type_can_be_refused() -> None:
    """A setting decides."""
    assert outcome(delivered(GOOD, content_type=None), Rules(default_media_type=None)) == "unsupported_media_type"


def test_checks_run_in_the_order_of_the_contract() -> None:
    """The first check that fails determines the code: from the properties to the fields."""
    ladder: list[tuple[str, dict[str, object]]] = [
        ("invalid_properties", {"unreadable": "message_id is not UTF-8"}),
        ("unsupported_media_type", {"content_type": "text/plain; charset=x"}),
        ("body_too_large", {"body": b" " * 2000}),
        ("unsupported_encoding", {"content_encoding": "gzip"}),
        ("unsupported_charset", {"content_type": "application/json; charset=x"}),
        ("empty_body", {"body": b" "}),
        ("invalid_encoding", {"body": b"\xff"}),
        ("malformed_json", {"body": b"[}"}),
        ("not_an_object", {"body": b"[]"}),
        ("duplicate_field", {"body": b'{"id":1,"id":2}'}),
        ("unsupported_update_mode", {"headers": {"x-update-mode": "patch", "x-version": "x"}}),
        ("invalid_version", {"headers": {"x-version": "x"}}),
        ("missing_id", {"body": b"{}"}),
    ]
    for index, (code, _) in enumerate(ladder):
        faults: dict[str, object] = {"body": GOOD}
        for _, fault in reversed(ladder[index:]):
            faults |= fault
        assert outcome(delivered(**faults), Rules(body_limit=1000)) == code  # type: ignore[arg-type]


# ---- section 3: JSON


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f'{{"id":"{ID}",}}', "malformed_json"),
        (f'{{"id":"{ID}"}} x', "malformed_json"),
        (f'/**/{{"id":"{ID}"}}', "malformed_json"),
        (f"{{'id':'{ID}'}}", "malformed_json"),
        (f'{{id:"{ID}"}}', "malformed_json"),
        (f'{{"id":"{ID}","x":NaN}}', "malformed_json"),
        (f'{{"id":"{ID}","x":-Infinity}}', "malformed_json"),
        (f'{{"id":"{ID}","x":01}}', "malformed_json"),
        (f'{{"id":"{ID}","subject":"a\nb"}}', "malformed_json"),
        (f'{{"id":"{ID}","x":' + "[" * 63 + "]" * 63 + "}", None),
        (f'{{"id":"{ID}","x":' + "[" * 64 + "]" * 64 + "}", "malformed_json"),
        (f'{{"id":"{ID}","x":' + "[" * 100_000, "malformed_json"),
        (f'{{"id":"{ID}","x":' + "[" * 63 + "]" * 63 + ',"y":[[]]}', None),
        (f'{{"id":"{ID}","x":[' + "[],{}," * 100 + "0]}", None),
        (f'{{"id":"{ID}","x":"' + "[" * 100 + '","y":"\\"[{"}', None),
        (f'{{"id":"{ID}","x":' + '{"a":' * 64 + "1" + "}" * 65, "malformed_json"),
        ("[" * 65 + "]" * 65, "malformed_json"),
        ("[]", "not_an_object"),
        ('"text"', "not_an_object"),
        ("null", "not_an_object"),
        (f'{{"ID":"{ID}"}}', None),
        (f'{{"id":"{ID}","TASK_ID":"{ID}"}}', None),
        (f'{{"\\u0069d":"{ID}"}}', None),
        (f'{{"\u0131d":"{ID}"}}', "missing_id"),
        (f'{{"id":"{ID}","ID":"{ID}"}}', "duplicate_field"),
        (f'{{"id":"{ID}","subject":"a","subject":"a"}}', "duplicate_field"),
        (f'{{"id":"{ID}","subject":"a","\\u0073ubject":"a"}}', "duplicate_field"),
        (f'{{"id":"{ID}","tas\u212a_id":1}}', None),
        (f'{{"id":"{ID}","tas\u212a_id":[],"\u017fubject":1}}', None),
        (f'{{"id":"{ID}","subject":"a\\"b","subject":"a\\"b"}}', "duplicate_field"),
        (f'{{"id":"{ID}","subject":"\\\\","description":"\\\\","is_closed":null,"is_closed":null}}', "duplicate_field"),
        (f'{{"id":"{ID}","modified_dateutc":1,"Modified_DateUtc":2}}', "duplicate_field"),
        (f'{{"id":"{ID}","x":1,"x":2,"$type":"t"}}', None),
        (f'{{"id":"{ID}","x":' + "9" * 5000 + "}", None),
        (f'{{"id":"{ID}","x":"\\ud800"}}', None),
        (f'{{"id":"{ID}","modified_dateutc":{{"a":[1]}}}}', None),
        ('{"id":null}', "missing_id"),
        ('{"id":""}', "missing_id"),
        ('{"id":"00000000-0000-0000-0000-000000000000"}', "missing_id"),
        ('{"id":" "}', "invalid_uuid"),
    ],
)
def test_json_syntax_and_members(text: str, code: str | None) -> None:
    """The syntax is strict; names and unknown members are lenient."""
    found = outcome(delivered(text.encode()))
    assert (found if isinstance(found, str) else None) == code


NEXT_TO = "", '"x":[],'
"""Nothing, or an unknown member because of which the complete reader is used."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f'"{HEX}"', UUID(ID)),
        (f'"{{{ID}}}"', UUID(ID)),
        (f'"({ID})"', UUID(ID)),
        (f'" {ID.upper()} "', UUID(ID)),
        ('""', None),
        ("null", None),
        ('"00000000-0000-0000-0000-000000000000"', UUID(int=0)),
        (f'"urn:uuid:{ID}"', "invalid_uuid"),
        (f'"{{{HEX}}}"', "invalid_uuid"),
        (f'"{HEX[:4]}-{HEX[4:]}"', "invalid_uuid"),
        (f'"({ID}}}"', "invalid_uuid"),
        ('"{0x9652e68c,0x7b6d,0x4598,{0xbb,0xbd,0x4e,0x93,0x31,0x26,0xc9,0x94}}"', "invalid_uuid"),
        (f'"{{{ID})"', "invalid_uuid"),
        (f'"{{({ID})}}"', "invalid_uuid"),
        (f'"( {ID} )"', "invalid_uuid"),
        (f'"\u00a0{ID}"', "invalid_uuid"),
        (f'"{ID}0"', "invalid_uuid"),
        ('"  "', "invalid_uuid"),
        ("7", "invalid_uuid"),
        ("[]", "invalid_uuid"),
    ],
)
def test_json_uuids(value: str, expected: object) -> None:
    """Forms N, D, B and P are accepted, but not the others that uuid.UUID or PostgreSQL accept."""
    for next_to in NEXT_TO:
        assert value_of(json_of(f'{next_to}"task_id":{value}'), "task_id") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("true", True),
        ('" TRUE "', True),
        ('"false"', False),
        ("1", True),
        ("0", False),
        ('""', None),
        ("null", None),
        ('"1"', "invalid_boolean"),
        ("2", "invalid_boolean"),
        ("1.0", "invalid_boolean"),
        ("0.0", "invalid_boolean"),
        ("1e0", "invalid_boolean"),
        ('"\u00a0true"', "invalid_boolean"),
        ('"yes"', "invalid_boolean"),
        ('" "', "invalid_boolean"),
        ("{}", "invalid_boolean"),
    ],
)
def test_json_booleans(value: str, expected: object) -> None:
    """The forms that .NET serializers write are accepted."""
    for next_to in NEXT_TO:
        assert value_of(json_of(f'{next_to}"is_closed":{value}'), "is_closed") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('""', ""),
        ('" a "', " a "),
        ("null", None),
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\u0000"', "invalid_string"),
        ('"\\ud800"', "invalid_string"),
        ('"\\udc00\\ud800"', "invalid_string"),
        ("1", "invalid_string"),
        ("true", "invalid_string"),
        ("{}", "invalid_string"),
    ],
)
def test_json_strings(value: str, expected: object) -> None:
    """Only strings are accepted, and they are not changed."""
    for next_to in NEXT_TO:
        assert value_of(json_of(f'{next_to}"subject":{value}'), "subject") == expected


# ---- section 4: dates

BEFORE = "", "<x/>"
"""Nothing, or an unknown child because of which the complete reader is used."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-11", datetime(2026, 1, 11, tzinfo=UTC)),
        ("2026-01-11 20:58", datetime(2026, 1, 11, 20, 58, tzinfo=UTC)),
        ("2026-01-11t20:58:34z", datetime(2026, 1, 11, 20, 58, 34, tzinfo=UTC)),
        (" 2026-01-11T20:58:34+02 ", datetime(2026, 1, 11, 18, 58, 34, tzinfo=UTC)),
        ("2026-01-11T20:58:34+02:00", datetime(2026, 1, 11, 18, 58, 34, tzinfo=UTC)),
        ("2026-01-11T20:58:34.5-02:30", datetime(2026, 1, 11, 23, 28, 34, 500000, UTC)),
        ("2026-01-11T20:58Z", datetime(2026, 1, 11, 20, 58, tzinfo=UTC)),
        ("2026-01-11T20:58:34+0230", datetime(2026, 1, 11, 18, 28, 34, tzinfo=UTC)),
        ("2026-01-11T20:58:34.7203839Z", datetime(2026, 1, 11, 20, 58, 34, 720383, UTC)),
        ("2026-01-11T23:59:59.9999999Z", datetime(2026, 1, 11, 23, 59, 59, 999999, UTC)),
        ("2026-01-11T20:58:34.1Z", datetime(2026, 1, 11, 20, 58, 34, 100000, UTC)),
        ("9999-12-31T23:59:59.9999999Z", MAX),
        ("9999-12-31T23:59:59.9999999-01:00", MAX),
        ("0001-01-01T00:00:00+00:18", MIN),
        ("2026-01-11T20:58:34+14:00", datetime(2026, 1, 11, 6, 58, 34, tzinfo=UTC)),
        ("2026-01-11T20:58:34+14:01", "invalid_date"),
        ("2026-01-11T20:58:60Z", "invalid_date"),
        ("2026-01-11T24:00:00Z", "invalid_date"),
        ("0000-01-01T00:00:00Z", "invalid_date"),
        ("12026-01-11", "invalid_date"),
        ("2026-02-30", "invalid_date"),
        ("2026-01", "invalid_date"),
        ("20:58", "invalid_date"),
        ("11/01/2026", "invalid_date"),
        ("Sun, 11 Jan 2026 20:58:34 GMT", "invalid_date"),
        ("20260111T205834Z", "invalid_date"),
        ("2026-01-11T20:58:34,72Z", "invalid_date"),
        ("2026-01-11Z", "invalid_date"),
        ("٢٠٢٦-01-11", "invalid_date"),
    ],
)
def test_dates_in_both_formats(text: str, expected: object) -> None:
    """The forms that .NET writes are accepted, truncated to microseconds and clamped to the years 1 to 9999."""
    for next_to in NEXT_TO:
        assert value_of(json_of(f'{next_to}"due_date":"{text}"'), "due_date") == expected
    for before in BEFORE:
        assert value_of(xml_of(f"{before}<due_date>{text}</due_date>"), "due_date") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('"/Date(1768165114720)/"', datetime(2026, 1, 11, 20, 58, 34, 720000, UTC)),
        ('"\\/Date(1768165114720-0700)\\/"', datetime(2026, 1, 11, 20, 58, 34, 720000, UTC)),
        ('"/Date(-62135596800000)/"', MIN),
        ('" /Date(0)/ "', datetime(1970, 1, 1, tzinfo=UTC)),
        ('"/Date(253402300799999+0200)/"', MAX.replace(microsecond=999000)),
        ('"/Date(253402300800000)/"', "invalid_date"),
        ('"/Date(0+1401)/"', "invalid_date"),
        ('"/date(0)/"', "invalid_date"),
        ('"/Date(999999999999999999)/"', "invalid_date"),
        ('"/Date()/"', "invalid_date"),
        ("1768165114720", "invalid_date"),
        ('""', None),
        ("null", None),
        ('" "', "invalid_date"),
    ],
)
def test_dates_in_json(value: str, expected: object) -> None:
    """JSON also has Microsoft's form, and an empty string is null."""
    for next_to in NEXT_TO:
        assert value_of(json_of(f'{next_to}"due_date":{value}'), "due_date") == expected


def test_microsofts_form_is_not_a_date_in_xml() -> None:
    """Only JSON has it."""
    assert value_of(xml_of("<due_date>/Date(0)/</due_date>"), "due_date") == "invalid_date"


def test_dates_without_an_offset_can_be_refused() -> None:
    """A setting decides. Forms that are always in UTC are not affected."""
    rules = Rules(naive_dates="reject")
    for text in ("2026-01-11", "2026-01-11T20:58:34"):
        assert value_of(json_of(f'"due_date":"{text}"'), "due_date", rules) == "invalid_date"
        assert value_of(xml_of(f"<due_date>{text}</due_date>"), "due_date", rules) == "invalid_date"
    for text in ("2026-01-11T20:58:34Z", "2026-01-11T20:58z", "2026-01-11T21:58:34+01"):
        assert value_of(json_of(f'"due_date":"{text}"'), "due_date", rules) != "invalid_date"
        assert value_of(xml_of(f"<due_date>{text}</due_date>"), "due_date", rules) != "invalid_date"
    assert value_of(json_of('"due_date":"/Date(0)/"'), "due_date", rules) == datetime(1970, 1, 1, tzinfo=UTC)
    struct = STRUCT.replace("Z<", "<")
    assert value_of(xml_of(f"<due_date>{struct}</due_date>"), "due_date", rules) == datetime(2026, 1, 11, tzinfo=UTC)


# ---- section 5: XML

STRUCT = "<DateTime>2026-01-11T00:00:00Z</DateTime><OffsetMinutes>60</OffsetMinutes>"


@pytest.mark.parametrize(
    ("delivery", "code"),
    [
        (xml_of(""), None),
        (xml_of("", root="Task_Activity_Log"), "wrong_root"),
        (delivered(f'<a:task_activity_log xmlns:a="urn:a"><id>{ID}</id></a:task_activity_log>'.encode()), None),
        (xml_of("<x><y/></x><?pi?><!-- c -->", attributes=' unknown="1"'), None),
        (xml_of("<subject>a</subject><subject>a</subject>"), "duplicate_field"),
        (xml_of("<b:subject xmlns:b='urn:b'>a</b:subject><subject>a</subject>"), None),
        (xml_of("text"), "malformed_xml"),
        (xml_of("<subject>"), "malformed_xml"),
        (xml_of("<subject>a]]>b</subject>"), "malformed_xml"),
        (xml_of("<p:subject/>"), "malformed_xml"),
        (xml_of("<![CDATA[text]]>"), "malformed_xml"),
        (xml_of("\u00a0"), "malformed_xml"),
        (xml_of("<x>text</x>"), None),
        (xml_of("<x>" * 300 + "</x>" * 300), "malformed_xml"),
        (xml_of("<subject><x></subject>", attributes=' xmlns="http://x/Société"'), "malformed_xml"),
        (after_odd_namespace("<!-- c --><?p?>\n"), None),
        (after_odd_namespace("<task_activity_log/>"), "malformed_xml"),
        (after_odd_namespace("text"), "malformed_xml"),
        (after_odd_namespace("<"), "malformed_xml"),
        (xml_of("<subject><![CDATA[<!DOCTYPE a>]]></subject>"), None),
        (xml_of("<!DOCTYPE a>"), "malformed_xml"),
        (delivered(b"<!-- <!DOCTYPE a> --><?p <!DOCTYPE a> ?>" + GOOD_XML), None),
        (delivered(b"<!-- c --><?p?>\n<!DOCTYPE a>" + GOOD_XML), "dtd_forbidden"),
        (delivered(b" <?xml version='1.0'?>" + GOOD_XML), "malformed_xml"),
        (delivered(GOOD_XML * 2), "malformed_xml"),
        (delivered(b"<task>text</task>"), "wrong_root"),
        (delivered(b"<task>"), "malformed_xml"),
        (xml_of("<id>1</id>"), "duplicate_field"),
        (xml_of("<modified_dateutc/><modified_dateutc/>"), "duplicate_field"),
        (xml_of('<task_id i:nil="true"/><is_closed i:nil="true"/><due_date i:nil="true"/>'), None),
        (xml_of('<x/><task_id i:nil="1"/><is_closed i:nil="1"/><due_date i:nil="1"/>'), None),
        (xml_of(f"<task_id>{ID}<x/></task_id>"), "invalid_uuid"),
        (xml_of("<is_closed>true<x/></is_closed>"), "invalid_boolean"),
        (xml_of("<due_date>2026-01-11<x/></due_date>"), "invalid_date"),
        (delivered(f'<task_activity_log xmlns:i="{XSI}"><id></id></task_activity_log>'.encode()), "missing_id"),
        (
            delivered(f'<task_activity_log xmlns:i="{XSI}"><id i:nil="true"/></task_activity_log>'.encode()),
            "missing_id",
        ),
        (delivered(f'<task_activity_log xmlns:i="{XSI}"><id> </id></task_activity_log>'.encode()), "invalid_uuid"),
        (xml_of("<subject>&#xB;</subject>"), "malformed_xml"),
        (xml_of("<subject>&other;</subject>"), "malformed_xml"),
        (xml_of("<subject><b/></subject>"), "invalid_string"),
        (xml_of("<task_id/>"), "invalid_uuid"),
        (xml_of("<is_closed/>"), "invalid_boolean"),
        (xml_of("<due_date/>"), "invalid_date"),
        (xml_of("<is_closed>True</is_closed>"), "invalid_boolean"),
        (xml_of('<task_id i:nil="maybe"/>'), "invalid_boolean"),
        (xml_of("<modified_dateutc>garbage</modified_dateutc>"), None),
        (delivered(b"<task_activity_log><id/></task_activity_log>"), "missing_id"),
        (delivered(b"<task_activity_log/>"), "missing_id"),
        (delivered(b"<!DOCTYPE task_activity_log>" + GOOD_XML), "dtd_forbidden"),
        (delivered(b'<!DOCTYPE a [<!ENTITY b "c">]>' + GOOD_XML), "dtd_forbidden"),
        (delivered(b'<!DOCTYPE a SYSTEM "file:///etc/passwd">' + GOOD_XML), "dtd_forbidden"),
    ],
)
def test_xml_documents(delivery: Delivery, code: str | None) -> None:
    """The rules for root, namespaces, unknown parts, duplicates, empty values and DTDs."""
    found = outcome(delivered(delivery.body, content_type="application/xml"))
    assert (found if isinstance(found, str) else None) == code


@pytest.mark.parametrize(
    ("child", "field", "expected"),
    [
        ("<subject/>", "subject", ""),
        ('<subject i:nil="true"/>', "subject", None),
        ('<subject i:nil="1"/>', "subject", None),
        ('<subject i:nil="false">a</subject>', "subject", "a"),
        (f'<subject xmlns:z="{XSI}" z:nil="true"/>', "subject", None),
        ("<subject> a&#xD;<![CDATA[<b>]]><!-- c -->d </subject>", "subject", " a\r<b>d "),
        (f"<task_id> {ID.upper()} </task_id>", "task_id", UUID(ID)),
        ("<is_closed> 1 </is_closed>", "is_closed", True),
        ("<is_closed>false</is_closed>", "is_closed", False),
        (
            "<due_date xmlns:d='urn:x'><d:DateTime>2026-01-11T20:58:34.7203833Z</d:DateTime>"
            "<d:OffsetMinutes>120</d:OffsetMinutes></due_date>",
            "due_date",
            datetime(2026, 1, 11, 20, 58, 34, 720383, UTC),
        ),
        (f'<due_date i:nil="false">{STRUCT}</due_date>', "due_date", datetime(2026, 1, 11, tzinfo=UTC)),
        (f'<due_date i:nil="1">{STRUCT}</due_date>', "due_date", None),
        (f'<due_date i:nil="">{STRUCT}</due_date>', "due_date", "invalid_boolean"),
        (f"<due_date>{STRUCT.replace('60', '841')}</due_date>", "due_date", "invalid_date"),
        (f"<due_date>{STRUCT.replace('60', '')}</due_date>", "due_date", "invalid_date"),
        (f"<due_date>{STRUCT.replace('60', ' -840 ')}</due_date>", "due_date", datetime(2026, 1, 11, tzinfo=UTC)),
        (
            '<due_date><DateTime>2026-01-11</DateTime><OffsetMinutes i:nil="true"/></due_date>',
            "due_date",
            "invalid_date",
        ),
        ('<due_date><DateTime i:nil="true"/><OffsetMinutes>0</OffsetMinutes></due_date>', "due_date", "invalid_date"),
        (f"<due_date>{STRUCT}text</due_date>", "due_date", "invalid_date"),
        (f"<due_date>{STRUCT}<other/></due_date>", "due_date", "invalid_date"),
        ("<due_date><DateTime>2026-01-11T00:00:00Z</DateTime><other/></due_date>", "due_date", "invalid_date"),
        (f"<subject>{STRUCT}</subject>", "subject", "invalid_string"),
    ],
)
def test_xml_values(child: str, field: str, expected: object) -> None:
    """The rules for nil, empty strings, verbatim text, trimmed values and the DateTimeOffset struct."""
    assert value_of(xml_of(child), field) == expected


@pytest.mark.parametrize("namespace", ["", "urn:a:b", "a}b", "}", "*", "http://x/Société"])
@pytest.mark.parametrize("before", [0, 100])
def test_the_root_may_have_any_namespace(namespace: str, before: int) -> None:
    """With many children, namespaces that the parser would read as patterns are rejected, so that no field is lost."""
    others = "<x/><q:subject xmlns:q='urn:q'/>" * before
    found = xml_of(f"{others}<subject>mine</subject>", attributes=f' xmlns="{namespace}"' if namespace else "")
    assert value_of(found, "subject") == ("wrong_root" if before and namespace in {"a}b", "}", "*"} else "mine")
    assert value_of(xml_of(f"{others}<subject>mine</subject>", attributes=' xmlns:o="urn:o"'), "subject") == "mine"


@pytest.mark.parametrize(("number", "expected"), [("2", "once"), ("3", "invalid_string")])
def test_a_preserved_reference_is_not_null(number: str, expected: str) -> None:
    """DataContractSerializer with PreserveObjectReferences writes the second of two equal strings as a reference."""
    serialization = 'xmlns:z="http://schemas.microsoft.com/2003/10/Serialization/"'
    found = value_of(
        xml_of(
            f'<description {serialization} z:Id="2">once</description>'
            f'<subject {serialization} z:Ref="{number}" i:nil="true"/>'
        ),
        "subject",
    )
    assert found == expected


def test_a_reference_to_itself_is_an_error() -> None:
    """It must not cause endless recursion."""
    loop = 'xmlns:z="http://schemas.microsoft.com/2003/10/Serialization/" z:Id="2" z:Ref="2" i:nil="true"'
    assert value_of(xml_of(f"<subject {loop}/>"), "subject") == "invalid_string"


@pytest.mark.parametrize(
    "delivery",
    [
        json_of('"subject":null,"modified_dateutc":"x","y":1'),
        json_of('"Subject":null,"modified_dateutc":{}'),
        xml_of('<subject i:nil="true"/><modified_dateutc>x</modified_dateutc>'),
        xml_of('<subject i:nil="true"/><modified_dateutc><x/></modified_dateutc>'),
    ],
)
def test_a_request_has_the_names_of_the_fields_that_were_present(delivery: Delivery) -> None:
    """They include fields that are null, but not those that are ignored."""
    found = outcome(delivered(delivery.body, content_type=delivery.properties.content_type))
    assert not isinstance(found, str)
    assert found.record.model_fields_set == {"id", "subject"}


def test_absent_and_nil_are_distinguished() -> None:
    """A merge keeps absent fields and clears fields that are nil."""
    found = outcome(xml_of('<subject i:nil="true"/>'))
    assert not isinstance(found, str)
    assert found.record.model_fields_set == {"id", "subject"}


# ---- section 6: encoded replies


def test_json_replies_have_all_members_in_order_and_trimmed_instants() -> None:
    """They have the sample's order; trailing zeros are removed; nulls are written or left out."""
    body = f'{{"id":"{ID}","due_date":"2026-01-11T20:58:34.72","modified_dateutc":"2026-01-11T20:58:34Z"}}'
    stored = wire.decode_stored(body.encode(), "application/json")
    assert wire.encode(stored, "text/json").body.decode() == (
        f'{{"id":"{ID}","task_id":null,"task_activity_id":null,"user_id":null,"contact_id":null,"subject":null,'
        '"description":null,"due_date":"2026-01-11T20:58:34.72+00:00","is_closed":null,"date_closed":null,'
        '"reference_back_office":null,"modified_dateutc":"2026-01-11T20:58:34+00:00"}'
    )
    assert wire.encode(stored, "text/json", "omit").body.decode() == (
        f'{{"id":"{ID}","due_date":"2026-01-11T20:58:34.72+00:00","modified_dateutc":"2026-01-11T20:58:34+00:00"}}'
    )


def test_xml_replies_are_in_ordinal_order_with_three_digits() -> None:
    """DataContractSerializer skips children in any other order. CR is escaped; characters that XML lacks are replaced."""
    body = f'{{"id":"{ID}","subject":"a\\r\\n<&\\u000b","modified_dateutc":"2026-01-11T20:58:34.7209Z"}}'
    stored = wire.decode_stored(body.encode(), "application/json")
    encoded = wire.encode(stored, "application/xml")
    assert encoded.body.decode() == (
        f'<task_activity_log xmlns:i="{XSI}"><contact_id i:nil="true"/><date_closed i:nil="true"/>'
        f'<description i:nil="true"/><due_date i:nil="true"/><id>{ID}</id><is_closed i:nil="true"/>'
        '<modified_dateutc>2026-01-11T20:58:34.720Z</modified_dateutc><reference_back_office i:nil="true"/>'
        '<subject>a&#xD;\n&lt;&amp;\ufffd</subject><task_activity_id i:nil="true"/><task_id i:nil="true"/>'
        '<user_id i:nil="true"/></task_activity_log>'
    )
    assert list(encoded.replaced) == ["subject"]


def test_requests_are_encoded_with_the_fields_that_were_set() -> None:
    """This is for publishers and independent of nulls in replies. Instants have all their digits."""
    body = f'{{"id":"{ID}","subject":null,"due_date":"2026-01-11T20:58:34.720383+00:00","is_closed":false}}'.encode()
    record = decode(delivered(body), Rules()).record
    for nulls in ("emit", "omit"):
        assert wire.encode(record, "application/json", nulls).body == body
        assert wire.encode(record, "application/xml", nulls).body.decode() == (
            f'<task_activity_log xmlns:i="{XSI}"><due_date>2026-01-11T20:58:34.720383Z</due_date><id>{ID}</id>'
            '<is_closed>false</is_closed><subject i:nil="true"/></task_activity_log>'
        )


def test_a_request_with_characters_that_xml_lacks_is_rejected() -> None:
    """Otherwise replaced characters would be stored."""
    record = decode(json_of('"subject":"\\u0001","description":"\\u0002"'), Rules()).record
    assert wire.encode(record, "application/json").replaced == ()
    with pytest.raises(Rejected) as caught:
        wire.encode(record, "application/xml")
    assert [(error.name, error.code) for error in caught.value.problem.errors] == [
        ("subject", "invalid_string"),
        ("description", "invalid_string"),
    ]


@pytest.mark.parametrize("held", ["", ',"modified_dateutc":null', ',"modified_dateutc":""'])
def test_a_stored_record_needs_its_instant(held: str) -> None:
    """A reply without modified_dateutc is rejected."""
    with pytest.raises(Rejected, match="invalid_date"):
        wire.decode_stored(f'{{"id":"{ID}"{held}}}'.encode(), "application/json")


def test_all_invalid_fields_are_named_and_the_first_determines_the_code() -> None:
    """They are in the record's order, whatever the order in the message, and without their values."""
    bad = delivered(b'{"is_closed":"secret","due_date":"secret","task_id":"secret","id":"' + ID.encode() + b'"}')
    with pytest.raises(Rejected) as caught:
        decode(bad, Rules())
    problem = caught.value.problem
    assert problem.code == "invalid_uuid"
    assert [error.name for error in problem.errors] == ["task_id", "due_date", "is_closed"]
    assert "secret" not in repr(problem)


# ---- section 7: headers


@pytest.mark.parametrize(
    ("version", "expected"),
    [(7, 7), ("7", 7), ("-9223372036854775808", -(2**63)), (2**63, "invalid_version"), ("1.0", "invalid_version"),
     (True, "invalid_version"), ("", "invalid_version"), (b"\xff", "invalid_version"), ([], "invalid_version"),
     (None, "invalid_version"), (-(2**63) - 1, "invalid_version"), ("9223372036854775808", "invalid_version"), (b"7", 7),
     (1.0, "invalid_version"), ("+7", "invalid_version"), (" 7", "invalid_version"), ("\u0667", "invalid_version"),
     (Timestamp(1_767_225_600), "invalid_version")],
)  # fmt: skip
def test_versions(version: object, expected: object) -> None:
    """A version is an AMQP integer or its decimal string, within 64 bits signed."""
    found = outcome(delivered(GOOD, headers={"x-version": version}))
    assert (found if isinstance(found, str) else found.version) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("merge", UpdateMode.MERGE), ("replace", UpdateMode.REPLACE), ("patch", "unsupported_update_mode"),
     ("Merge", "unsupported_update_mode"), ("", "unsupported_update_mode"), (None, "unsupported_update_mode"),
     (b"merge", UpdateMode.MERGE), (1, "unsupported_update_mode")],
)  # fmt: skip
def test_update_modes(mode: object, expected: object) -> None:
    """The header has precedence over the setting."""
    found = outcome(delivered(GOOD, headers={"x-update-mode": mode}))
    assert (found if isinstance(found, str) else found.mode) == expected
    assert outcome(delivered(GOOD), Rules(update_mode=UpdateMode.MERGE)).mode is UpdateMode.MERGE  # type: ignore[union-attr]

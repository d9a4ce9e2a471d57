"""The pages and forms of the console, without services: what they show, to whom, and what they refuse."""

import re
from base64 import b64encode
from collections.abc import Iterator, MutableMapping
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from sandbox.letters import HOSTILE
from task_activity_log.console.actions import SENT, Action, Sending
from task_activity_log.console.app import routes
from task_activity_log.console.forms import Forms
from task_activity_log.console.pages import Pages
from task_activity_log.console.rendering import path_of, templates
from task_activity_log.console.users import ALL, Role, User, password_line
from task_activity_log.message import Properties
from task_activity_log.telemetry.asking import Worker
from task_activity_log.telemetry.history import Depth
from tests.consoles import Browser, browser, console_of, letter, password_file, sample_letters, seen

PAGES = ("/", "/dead-letters", "/find", "/actions", "/try", "/contract")
ID = "9652e68c-7b6d-4598-bbbd-4e933126c994"
SECRET = letter(
    f'{{"id": "{ID}", "subject": "confidential", "due_date": "soon"}}'.encode(),
    Properties(
        message_id="one", app_id="crm", headers={"x-error-code": "invalid_date", "x-error-detail": "Send due_date."}
    ),
)


@pytest.fixture
def local() -> Iterator[Browser]:
    """A browser on the same machine, and 300 dead letters and one more."""
    console = console_of()
    seen(console, [*sample_letters(), SECRET])
    with browser(console) as found:
        yield found


def basic(name: str, password: str) -> str:
    return "Basic " + b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize("path", PAGES)
def test_each_page_is_shown_with_a_strict_policy_and_without_styles_or_scripts_in_it(local: Browser, path: str) -> None:
    """The policy has no exception, so nothing in a page may need one."""
    answer = local.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'none'"
    )
    assert not re.search(r"<script(?! src=)|<style| style=| on\w+=", answer.text)
    assert answer.headers["cache-control"] == "no-store"


def test_every_route_but_the_probe_and_the_files_asks_who_it_is(tmp_path: Path) -> None:
    """A route that is added later as well: the question is asked before any of them."""
    console = console_of(CONSOLE_PASSWORD_FILE=password_file(tmp_path, password_line("anna", "secret")))
    with browser(console) as anybody:
        for route in routes(console):
            path = re.sub(r"\{\w+(:path)?\}", "x", route.path)
            for method in getattr(route, "methods", None) or {"GET"}:
                status = anybody.client.request(method, path).status_code
                assert status == {"/healthz": 200}.get(path, 401), (method, path)
        assert anybody.get("/static/console.css").status_code == 200
        assert anybody.get("/", authorization=basic("anna", "wrong")).status_code == 401
        answer = anybody.get("/", authorization=basic("anna", "secret"))
        assert answer.status_code == 200
        assert "anna" in answer.text


def test_a_changed_password_file_lets_in_whom_it_names_and_nobody_if_it_is_wrong(tmp_path: Path) -> None:
    """A user who was removed is refused at once; and if the file cannot be used, so is everybody, with the reason."""
    anna, bob = password_line("anna", "one"), password_line("bob", "two", [Role.LOOK])
    console = console_of(CONSOLE_PASSWORD_FILE=password_file(tmp_path, anna))
    seen(console, [SECRET])
    with browser(console) as found:

        def answers(path: str = "/contract") -> list[int]:
            credentials = (basic("anna", "one"), basic("bob", "two"))
            return [found.get(path, authorization=each).status_code for each in credentials]

        assert answers() == [200, 401]
        password_file(tmp_path, bob)
        assert answers() == [401, 200]
        assert answers("/edit?letter=" + SECRET.id) == [401, 403]
        password_file(tmp_path, bob.replace(":look:", ":look,act,bodies:"))
        assert answers("/edit?letter=" + SECRET.id) == [401, 200]
        password_file(tmp_path, bob, "anna:secret")
        assert answers() == [503, 503]
        page = found.get("/contract").text
        assert "line 2 is not one of a password file" in page
        assert "secret" not in page
        (tmp_path / "passwords").unlink()
        assert answers() == [503, 503]
        assert "cannot be read (No such file or directory)" in found.get("/contract").text
        password_file(tmp_path, anna)
        assert answers() == [200, 401]


def test_a_foreign_name_of_this_machine_is_refused_without_authentication(local: Browser) -> None:
    """A web site whose name has the address 127.0.0.1 reads nothing."""
    answer = local.get("/dead-letters", host="evil.example")
    assert answer.status_code == 421
    assert "crm-brussels" not in answer.text


def test_a_proxys_header_counts_only_from_its_address() -> None:
    """From anywhere else it is one clear sentence."""
    settings = {"CONSOLE_HOST": "0.0.0.0", "CONSOLE_PROXY_ADDRESSES": "10.0.0.1", "CONSOLE_LOOK_GROUPS": "*"}  # noqa: S104
    for peer, status, said in (
        ("10.0.0.1", 200, "anna"),
        (
            "10.0.0.2",
            403,
            "The header X-Forwarded-User came from 10.0.0.2, which is not one of CONSOLE_PROXY_ADDRESSES",
        ),
    ):
        console = console_of(**settings)
        seen(console, [SECRET])
        with browser(console, peer) as found:
            answer = found.get("/dead-letters", x_forwarded_user="anna")
            assert (answer.status_code, said in answer.text) == (status, True)
            assert found.get("/dead-letters").status_code == 401


@pytest.fixture
def onlooker(tmp_path: Path) -> Iterator[Browser]:
    """A browser of somebody who may look and see no bodies."""
    console = console_of(CONSOLE_PASSWORD_FILE=password_file(tmp_path, password_line("eve", "secret", [Role.LOOK])))
    seen(console, [SECRET])
    with browser(console) as found:
        found.client.headers["authorization"] = basic("eve", "secret")
        yield found


def test_without_the_role_bodies_no_page_shows_or_tells_anything_of_a_body(onlooker: Browser) -> None:
    """Searching would tell it, one letter after the other."""
    page = onlooker.get(path_of(SECRET))
    assert page.status_code == 200
    for path in (path_of(SECRET), "/dead-letters", "/dead-letters?message=one", "/replies"):
        assert "confidential" not in onlooker.get(path).text
    for path in (
        "/dead-letters?text=confidential", f"/dead-letters?id={ID}", f"/download?letter={SECRET.id}", f"/edit?letter={SECRET.id}",
        "/bulk",
    ):  # fmt: skip
        answer = onlooker.get(path)
        assert (answer.status_code, SECRET.id in answer.text) == (403, False)


def test_who_sees_bodies_and_may_not_act_can_download_one(tmp_path: Path) -> None:
    """The page has the link without the buttons of those who act."""
    user = password_line("eve", "secret", [Role.LOOK, Role.BODIES])
    console = console_of(CONSOLE_PASSWORD_FILE=password_file(tmp_path, user))
    seen(console, [SECRET])
    with browser(console) as found:
        found.client.headers["authorization"] = basic("eve", "secret")
        page = found.get(path_of(SECRET)).text
        [link] = re.findall(r'href="(/download[^"]*)"', page)
        assert "Replay" not in page
        assert "confidential" in found.get(unescape(link)).text


@pytest.mark.parametrize("name", ["a\nb", "one\n", "..", "a/b?c#d"])
def test_a_dead_letter_with_an_odd_id_has_a_page(name: str) -> None:
    """A program that reads the output of another one may leave the end of the line in the id."""
    odd = letter(b"{", Properties(message_id=name))
    console = console_of()
    seen(console, [odd])
    with browser(console) as found:
        assert found.get(path_of(odd)).status_code == 200


def test_nobody_is_told_that_a_row_was_sent_that_was_not(local: Browser) -> None:
    """A link that somebody else has made does not say so."""
    assert "The row was sent" not in local.get(f"/find?name={ID}&sent=1").text
    local.console.actions.sendings.append(Sending("row", "anna", "it was lost", ID, SENT))
    assert "The row was sent to its subscribers" in local.get(f"/find?name={ID}").text


def test_without_the_role_bodies_no_page_says_that_a_record_has_no_row(onlooker: Browser, local: Browser) -> None:
    """It is not looked for, and the page says why."""
    page = onlooker.get(f"/find?name={uuid4()}").text
    assert "There is no row" not in page
    assert "No dead letter, no other reply and no answer has this message_id or correlation_id" in page  # no broker
    assert "to find what there is of a record takes the role" in page
    page = local.get(f"/find?name={uuid4()}").text
    assert "There is no row" in page
    assert "takes the role" not in page


def test_without_the_role_act_no_form_does_anything(onlooker: Browser) -> None:
    """The buttons are not there, and what is sent all the same is refused."""
    page = onlooker.get("/dead-letters").text
    token = token_of(page)
    assert "Replay" not in onlooker.get(path_of(SECRET)).text
    for path in ("/act", "/edit", "/snapshot", "/actions/x/stop"):
        answer = onlooker.post(path, {"token": token, "letter": SECRET.id, "why": "x"})
        assert (answer.status_code, "takes the role act" in answer.text) == (403, True)
    answer = onlooker.post("/try", {"token": token, "do": "send", "body": "{}"})
    assert (answer.status_code, "Nothing was sent" in answer.text) == (403, True)
    assert list(onlooker.console.actions.all) == []


def token_of(page: str) -> str:
    found = re.search(r'name="token" value="([0-9a-f]+)"', page)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"sec_fetch_site": "cross-site"}, "another web site"),
        ({"sec_fetch_site": "", "origin": "https://evil.example"}, "another web site"),
    ],
)
def test_a_form_of_another_site_does_nothing(local: Browser, headers: dict[str, str], said: str) -> None:
    """Even with the right token."""
    token = token_of(local.get("/dead-letters").text)
    answer = local.post("/act", {"token": token, "letter": SECRET.id, "do": "replay", "why": "x"}, **headers)
    assert (answer.status_code, said in answer.text) == (403, True)
    assert list(local.console.actions.all) == []


def test_a_form_without_its_token_does_nothing(local: Browser) -> None:
    """Or with that of an earlier process."""
    for path in ("/act", "/snapshot", "/verdict", "/dead-letters", "/actions/x/stop"):
        answer = local.post(path, {"token": "0" * 64, "letter": SECRET.id, "why": "x"})
        assert (answer.status_code, "Load it again" in answer.text) == (403, True)


def test_what_was_sent_is_listed_with_the_actions(tmp_path: Path) -> None:
    """Who, why, and what became of it; without the role bodies not of which record."""
    lines = [password_line("anna", "one"), password_line("eve", "two", [Role.LOOK])]
    console = console_of(CONSOLE_PASSWORD_FILE=password_file(tmp_path, *lines))
    with browser(console) as found:
        anna, eve = basic("anna", "one"), basic("eve", "two")
        assert "Nothing was done since" in found.get("/actions", authorization=anna).text
        token = token_of(found.get("/try", authorization=anna).text)
        members = {"token": token, "do": "send", "body": "{}", "why": "a <b>test</b>", "message_id": "a/b"}
        found.post("/try", members, authorization=anna)
        console.actions.sendings.append(Sending("row", "anna", "it was lost", ID, "sent to its subscribers"))
        listed = unescape(found.get("/actions", authorization=anna).text)
        assert all(
            text in listed for text in ("/find?name=a/b", "It was not sent: ", f"/find?name={ID}", "it was lost")
        )
        assert listed.index("Send a row again") < listed.index("Send a message")
        listed = found.get("/actions", authorization=eve).text
        assert all(text in listed for text in ("a &lt;b&gt;test", "Send a row again", "sent to its subscribers"))
        assert ID not in listed


@pytest.mark.parametrize("path", ["/edit", "/try"])
def test_a_text_that_was_sent_after_a_restart_is_shown_again(local: Browser, path: str) -> None:
    """Nothing is done with it, and the form has a new token. From another site nothing is shown."""
    text = f'{{"id": "{ID}", "subject": "</textarea><b>corrected</b>", "due_date": null}}'
    members = {
        "token": "0" * 64,
        "letter": SECRET.id,
        "body": text,
        "why": 'a "typo"',
        "content_type": "application/json",
    }
    for do in ("replay", "send"):
        answer = local.post(path, members | {"do": do})
        assert answer.status_code == 403
        assert "was made for another user, or before the console was started: nothing was done" in unescape(answer.text)
        assert "<b>corrected" not in answer.text
        area = re.search(r'<textarea name="body"[^>]*>\n(.*?)</textarea>', answer.text, re.DOTALL)
        assert area is not None
        assert unescape(area[1]) == text
        assert 'value="a &#34;typo&#34;"' in answer.text
        assert token_of(answer.text) == local.console.access.token(User("local", ALL))
    assert list(local.console.actions.all) == []
    answer = local.post(path, members, sec_fetch_site="cross-site")
    assert (answer.status_code, "corrected" in answer.text) == (403, False)


@pytest.mark.parametrize("body", [b"\xff", b"a=%zz&&&", b"x" * 9_000_000, b"&".join(b"a=b" for _ in range(100))])
def test_what_is_not_a_form_is_one_sentence(local: Browser, body: bytes) -> None:
    """Too long, not UTF-8, or with too many members."""
    answer = local.client.post("/act", content=body, headers={"sec-fetch-site": "same-origin"})
    assert answer.status_code in (400, 403, 413)
    assert "Traceback" not in answer.text
    assert 'role="alert"' in answer.text


@pytest.mark.parametrize("path", ["/act", "/try", "/verdict"])
async def test_a_browser_that_leaves_while_it_sends_a_form_is_no_error(local: Browser, path: str) -> None:
    """The log had a traceback. Nobody is there to read the answer."""
    coming: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": b"why=a", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return coming.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8081),
    }  # fmt: skip
    await local.client.app(scope, receive, send)
    assert [message.get("status") for message in sent[:1]] == [400]


@pytest.mark.parametrize("path", ["/?live", "/replies?live"])
def test_a_head_of_what_is_followed_is_answered_at_once(path: str) -> None:
    """It was rendered for five minutes, for an answer without a body."""
    console = console_of()
    console.stopping = lambda: pytest.fail("followed")
    with browser(console) as found:
        answer = found.client.head(path, headers={"host": "localhost"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")


def test_groups_say_why_and_how_many_would_pass(local: Browser) -> None:
    """Without a click more, for the largest fault of one publisher."""
    page = unescape(local.get("/dead-letters?code=invalid_date&field=due_date&publisher=crm-brussels").text)
    assert "crm-brussels was told: Send due_date as a date such as" in page
    assert "39 of them would pass now" in page
    assert "1 would be rejected again" in page
    assert "Replay or discard these 40…" in page
    one = unescape(local.get("/dead-letters?code=invalid_date&field=due_date&publisher=crm-brussels&now=reject").text)
    assert "Replay or discard it…" in one


def test_a_filter_is_kept_from_page_to_page(local: Browser) -> None:
    """Its address can be sent to somebody else."""
    page = local.get("/dead-letters?publisher=field-app&page=2").text
    assert "page 2 of 2" in page
    assert re.search(r'href="/dead-letters\?publisher=field-app&amp;page=1"', page)
    assert 'action="/dead-letters"' in page


@pytest.mark.parametrize(
    "path",
    [
        "/dead-letters?from=soon",
        "/dead-letters?page=-1",
        "/dead-letters?page=999999999999999999999",
        "/dead-letters?page=" + "9" * 5000,
        "/dead-letters?from=0001-01-01T00:00%2B23:00",
        "/dead-letters?code=%00",
    ],
)
def test_a_query_that_makes_no_sense_is_answered(local: Browser, path: str) -> None:
    """With a sentence, or with what does match."""
    assert local.get(path).status_code in (200, 400)


def test_hostile_text_is_shown_as_text(local: Browser) -> None:
    """Scripts, sequences for terminals, and marks that turn the direction of the text."""
    page = local.get("/dead-letters?publisher=unknown-script").text
    path = re.search(r'href="(/dead-letters/[^"]+letter=[^"]+)"', page)
    assert path is not None
    shown = local.get(unescape(path[1])).text
    assert "&lt;script&gt;alert(" in shown
    assert "<script>alert" not in shown
    assert not set(shown) & {"\x1b", "\u202e", "\u202c"}
    assert "\\u202egnihton\\u202c" in shown
    edited = local.get(f"/edit?letter={path[1].rpartition('=')[2]}").text
    assert "\u202egnihton" in edited, "what is in a form is sent again, so it is as it was"
    assert HOSTILE.partition("\x1b")[0] not in edited


def test_hostile_names_and_headers_are_shown_as_text() -> None:
    """Not only the body is a publisher's."""
    bad = letter(
        b"{}",
        Properties(
            message_id='"><script>x</script>', app_id="<b>\u202e", content_type="<i>",
            headers={"<h>": "<v>", "x-error-code": "<c>", "x-error-detail": "<d>\x1b[2J"},
        ),
    )  # fmt: skip
    console = console_of()
    seen(console, [bad])
    with browser(console) as found:
        for path in ("/dead-letters", path_of(bad), f"/edit?letter={bad.id}", "/bulk"):
            page = found.get(path).text
            assert "<script>x" not in page
            assert not set(page) & {"\x1b", "\u202e"}
        page = found.get(path_of(bad)).text
        for text in ("h", "v", "c", "d", "i"):
            assert f"&lt;{text}&gt;" in page
            assert not re.search(f"<{text}>", page)


def test_a_dead_letter_that_is_gone_is_one_sentence(local: Browser) -> None:
    """Somebody else was faster."""
    for path in (
        "/dead-letters/x?letter=0123456789abcdef",
        "/edit?letter=0",
        "/download?letter=0",
        "/dead-letters/no-such-name",
    ):
        answer = local.get(path)
        assert (answer.status_code, "is not in the queue" in answer.text) == (410, True)


def test_a_dead_letter_is_found_by_its_name_alone(local: Browser) -> None:
    """A message_id that somebody has in a log."""
    assert '<h1 class="id">one</h1>' in local.get("/dead-letters/one").text


def test_the_download_is_what_publish_takes(local: Browser) -> None:
    """A line of JSON, or the body byte for byte."""
    line = local.get(f"/download?letter={SECRET.id}")
    assert line.json()["record"]["subject"] == "confidential"
    assert local.get(f"/download?letter={SECRET.id}&as=body").content == SECRET.raw.body
    assert line.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"body": f'{{"id": "{ID}", "due_date": "soon"}}'}, "Send due_date as a date"),
        ({"body": f'{{"id": "{ID}", "subjct": "x"}}'}, "did you mean <code>subject</code>?"),
        ({"body": f'{{"id": "{ID}"}}', "headers": '{"x-version": "x"}'}, "Send x-version as a 64-bit integer"),
        ({"body": f'{{"id": "{ID}"}}', "headers": "[]"}, "headers should be an object"),
        ({"body": f'{{"id": "{ID}"}}', "headers": "{"}, "sent: the headers are not JSON: Expecting"),
        ({"body": f'{{"id": "{ID}"}}', "message_id": "é" * 300}, "It cannot be sent"),
        ({"body": f'{{"id": "{ID}"}}', "content_type": "é" * 300}, "It cannot be sent"),
        ({"body": "<task_activity_log/>", "content_type": "application/xml"}, "Send id as a uuid"),
        ({"body": ""}, "Send the record in the body"),
        ({}, "Send the record in the body"),
    ],
)
def test_the_verdict_while_typing_names_what_is_wrong(local: Browser, members: dict[str, str], said: str) -> None:
    """The same as a worker would say."""
    token = token_of(local.get("/try").text)
    answer = local.post("/verdict", {"token": token, "content_type": "application/json", **members})
    assert (answer.status_code, said in unescape(answer.text)) == (200, True)


def test_the_edit_page_needs_a_change_and_a_reason_and_a_valid_message(local: Browser) -> None:
    """Nothing is sent otherwise, and what was written is kept."""
    token = token_of(local.get(f"/edit?letter={SECRET.id}").text)
    good = f'{{"id": "{ID}", "subject": "confidential", "due_date": null}}'
    for body, why, said in (
        (good, "", "Say why"),
        (good.replace("null", '"later"'), "a typo", "It would be rejected again"),
        (good, "a typo", ""),
    ):
        members = {"token": token, "letter": SECRET.id, "body": body, "header": "{", "why": why, "do": "replay"}
        if said:
            members["header"] = header_of(local)
        answer = local.post("/edit", members)
        assert (answer.status_code, (said or "headers cannot be sent: it is not JSON") in answer.text) == (422, True)
        assert body in unescape(answer.text)
    assert list(local.console.actions.all) == []


async def test_a_body_that_a_browser_cannot_show_exactly_is_sent_as_it_was_if_only_the_headers_are_edited() -> None:
    """A browser shows a carriage return as a line feed, and a NUL as another character, and sends what it shows."""
    found = letter(b"<task_activity_log>\r<id>\0</id>\r\n</task_activity_log>", Properties(content_type="text/plain"))
    members = {
        "body": "<task_activity_log>\r\n<id>\ufffd</id>\r\n</task_activity_log>",
        "header": '{"content_type": "application/xml", "content_encoding": null, "headers": {}}',
    }
    edited, shown = await Forms(console_of())._edited(found, members)
    assert (edited.body, edited.restored(None).content_type) == (found.raw.body, "application/xml")
    other = "<task_activity_log></task_activity_log>"
    changed, _ = await Forms(console_of())._edited(found, members | {"body": other})
    assert (changed.body, shown["problem"]) == (other.encode(), "")


def header_of(found: Browser) -> str:
    page = found.get(f"/edit?letter={SECRET.id}").text
    text = re.search(r'<textarea name="header"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    assert text is not None
    return unescape(text[1])


def test_bulk_needs_a_dry_run_a_reason_and_for_discarding_the_number(local: Browser) -> None:
    """So that nobody discards 300 by one click."""
    page = local.get("/bulk?publisher=field-app").text
    token, plan = token_of(page), re.search(r'name="plan" value="([^"]+)"', page)
    assert plan is not None
    shared = {"token": token, "plan": plan[1], "why": "x", "do": "replay", "rate": "100"}
    for change, said in (
        ({"why": " "}, "Say why"),
        ({"plan": "other"}, "does not remember this dry run"),
        ({"rate": "fast"}, "The rate should be a number"),
        ({"rate": "nan"}, "The rate should be a number"),
        ({"do": "discard", "count": "3"}, "type this number"),
    ):
        answer = local.post("/act", shared | change)
        assert (answer.status_code in (400, 410), said in answer.text) == (True, True)
    assert list(local.console.actions.all) == []


@pytest.mark.parametrize(
    ("publishers", "asked"),
    [(["crm"], "crm"), (["crm", "crm"], "crm"), ([None], "their publishers"), (["crm", "erp"], "their publishers")],
)
def test_who_can_be_asked_for_corrected_messages(publishers: list[str | None], asked: str) -> None:
    """A dead letter without an app_id has the publisher `-`, which is no name; and one of several is not the only one to ask."""
    console = console_of()
    headers = {"x-error-code": "missing_id", "x-error-detail": "Send id."}
    seen(
        console,
        [
            letter(b"{}", Properties(message_id=f"m-{number}", app_id=name, headers=headers))
            for number, name in enumerate(publishers)
        ],
    )
    with browser(console) as found:
        assert f"or ask {asked} for corrected messages" in found.get("/bulk").text


def test_a_replay_that_would_take_longer_than_the_broker_waits_is_refused(local: Browser) -> None:
    """Its dead letters are on loan for so long."""
    page = local.get("/bulk").text
    plan = re.search(r'name="plan" value="([^"]+)"', page)
    assert plan is not None
    answer = local.post("/act", {"token": token_of(page), "plan": plan[1], "why": "x", "do": "replay", "rate": "0.1"})
    assert "longer than 20 minutes" in answer.text


def test_no_broker_is_one_sentence() -> None:
    """On each page that needs it, and the first page works without."""
    with browser(console_of()) as found:
        answer = found.get("/dead-letters")
        assert (answer.status_code, "connection refused" in answer.text) == (503, True)
        assert found.get("/").status_code == 200


def test_what_was_seen_before_the_broker_went_away_is_still_shown(local: Browser) -> None:
    """With a sentence that says so."""
    local.console.looks.outdate()
    page = local.get("/dead-letters").text
    assert "The broker cannot be asked now" in page
    assert "crm-brussels" in page


@pytest.mark.parametrize(
    ("more", "said"), [({"others": 1}, "1 other consumer"), ({"waiting": 5}, "Only the oldest 1 of 5 were read")]
)
def test_what_is_not_shown_is_said(more: dict[str, int], said: str) -> None:
    """Others have it, or there is too much."""
    console = console_of()
    seen(console, [SECRET], **more)
    with browser(console) as found:
        assert said in found.get("/dead-letters").text


def test_an_empty_queue_is_good_news() -> None:
    """And says what would be there."""
    console = console_of()
    seen(console, [])
    with browser(console) as found:
        page = found.get("/dead-letters").text
        assert "There are no dead letters." in page
        assert "Every request was stored and answered." in page
        assert found.get("/bulk").status_code == 200


def test_a_queue_of_which_a_running_replay_has_all_is_not_called_empty() -> None:
    """The page names the replay, and does not say that there are no dead letters."""
    console = console_of()
    seen(console, [])
    action = Action("replay", "anna", "corrected", [])
    console.actions.all[action.id] = action
    with browser(console) as found:
        page = found.get("/dead-letters").text
        assert f'<a href="/actions/{action.id}">A replay</a> of 0 dead letters is running' in page
        assert "There are no other dead letters." in page
        assert "Every request was stored" not in page
        action.runs = False
        assert "is running" not in found.get("/dead-letters").text


def test_files_and_pages_that_do_not_exist_are_one_sentence(local: Browser) -> None:
    """And nothing outside of the folder is served."""
    for path in ("/nothing", "/contract/x", "/actions/x", "/actions/x?live"):
        assert local.get(path).status_code == 404
    for path in ("/static/../app.py", "/static/" + quote("../app.py", safe="")):
        assert local.get(path).status_code == 404
    assert local.get("/contract/schema.json").json() == {"title": "record"}


def test_the_contract_page_is_made_from_the_code(local: Browser) -> None:
    """Every field and every code is there."""
    page = local.get("/contract").text
    for word in ("reference_back_office", "modified_dateutc", "invalid_string", "507", "262,144"):
        assert word in page


@pytest.mark.parametrize(
    ("queue", "cell"),
    [
        (Depth(5, 0), "no consumer"),
        (Depth(5, 1), "not shrinking"),
        (Depth(0, 0), "\N{EN DASH}"),
        (Depth(5, None), "not shrinking"),
    ],
)
async def test_a_queue_without_a_consumer_has_no_time_in_which_it_is_empty(queue: Depth, cell: str) -> None:
    """Nor one that does not shrink, or is empty already. Where the number of consumers is not known, nothing is said of it."""
    console = console_of()  # it does not sample: nothing was started
    console.sampler.history.add(0, [], {console.topology.requests_queue: queue})
    page = templates.get_template("now_live.html").render(**Pages(console)._present())
    await console.checks.close()
    assert re.findall(r'data-label="empty in">([^<]*)<', page) == [cell]


async def test_an_outage_is_shown_with_what_the_runbook_says() -> None:
    """Next to the worker that waits, with the commands as such."""
    hold = {"place": "store", "reason": "not migrated yet (42P01)", "seconds": 90}
    status = {"not_ready": ["holding"], "holds": [hold], "version": "1", "started": "2026-01-01T00:00:00"}
    console = console_of()  # it does not sample: nothing was started
    console.sampler.history.add(0, [Worker("10.0.0.7:8080", status)], {})
    page = templates.get_template("now_live.html").render(**Pages(console)._present())
    await console.checks.close()
    assert "10.0.0.7:8080 waits (store): not migrated yet (42P01)" in page
    assert "<b>What to do:</b> Run <code>task-activity-log migrate</code>." in page

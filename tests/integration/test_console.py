"""The console on a real broker and database, with a worker: what is done to dead letters, and what becomes of them."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import aio_pika
import asyncpg
import httpx2
import pytest
from structlog.testing import capture_logs

from sandbox import RabbitMQ
from sandbox.letters import letters, publish
from sandbox.proxy import Proxy
from task_activity_log.client import ClientError
from task_activity_log.client.dead_letters import DeadLetter, borrow_dead_letters
from task_activity_log.client.letters import Letter
from task_activity_log.console import forms
from task_activity_log.console.actions import Action
from task_activity_log.console.app import create
from task_activity_log.console.parts import Console
from task_activity_log.console.rendering import path_of
from task_activity_log.rabbitmq.publisher import MessageMax
from task_activity_log.rabbitmq.topology import Topology, declare
from task_activity_log.telemetry.history import Depth
from tests.asking import Connection
from tests.commands import World
from tests.consoles import console_of, console_process
from tests.users import user_who_may

QUEUE = Topology().dead_letters_queue
BASIC_ACK = b"\x00\x3c\x00\x50"


@asynccontextmanager
async def serving(console: Console) -> AsyncIterator["Viewer"]:
    """The console, and somebody who looks at it."""
    app = create(console)
    async with app.router.lifespan_context(app):
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app),
            base_url="http://127.0.0.1:8081",
            headers={"sec-fetch-site": "same-origin"},
        ) as client:
            yield Viewer(client, console)


class Viewer:
    """Looks and presses buttons, as a browser without scripts does."""

    def __init__(self, client: httpx2.AsyncClient, console: Console) -> None:
        self.client = client
        self.console = console

    async def page(self, path: str, status: int = 200) -> str:
        """The text of a page."""
        answer = await self.client.get(path)
        assert answer.status_code == status, answer.text
        return unescape(answer.text)

    async def press(self, path: str, status: int = 303, /, **members: str) -> str:
        """Send a form; where it leads to, or the page that says why not."""
        token = console_token(await self.page("/try"))
        answer = await self.client.post(path, data={"token": token, **members})
        assert answer.status_code == status, answer.text
        return answer.headers.get("location") or unescape(answer.text)

    async def look(self) -> list[Letter]:
        """The dead letters, seen again."""
        return list((await self.console.looks.current(again=True)).letters)

    async def dry_run(self, query: str = "") -> tuple[str, str]:
        """The text of the page of a dry run, and its plan."""
        await self.look()
        page = await self.page(f"/bulk?{query}")
        plan = re.search(r'name="plan" value="([^"]+)"', page)
        assert plan is not None
        return re.sub("<[^>]+>", "", page), plan[1]

    def action(self, path: str) -> Action:
        """The action with this page."""
        return self.console.actions.all[path.rpartition("/")[2]]

    async def ended(self, path: str) -> None:
        """Wait until the action with this page has ended."""
        await self.console.actions.wait(self.action(path))

    async def until(self, path: str, text: str) -> str:
        """The page once it has this text."""
        async with asyncio.timeout(90):
            while text not in (page := await self.page(path)):
                await asyncio.sleep(0.05)
        return page


def console_token(page: str) -> str:
    found = re.search(r'name="token" value="([0-9a-f]+)"', page)
    assert found is not None
    return found[1]


async def keep(amqp_url: str, *messages: tuple[bytes, dict[str, Any]]) -> None:
    """Put dead letters into the queue, as a worker would."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, Topology())
        channel = await connection.channel()
        for body, properties in messages:
            headers = {
                "x-error-code": "invalid_date",
                "x-error-detail": "Send due_date as a date.",
                **properties.pop("headers", {}),
            }
            message = aio_pika.Message(
                body, **{"content_type": "application/json", "app_id": "crm", "headers": headers, **properties}
            )
            await channel.default_exchange.publish(message, QUEUE)


def record(identifier: UUID, due: str = "2026-12-01", **more: str) -> bytes:
    members = {"id": str(identifier), "due_date": due, **more}
    return ("{" + ", ".join(f'"{name}": "{value}"' for name, value in members.items()) + "}").encode()


async def row(database_url: str, identifier: UUID) -> Any:
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetchrow("SELECT * FROM task_activity_log WHERE id = $1", identifier)
    finally:
        await connection.close()


async def waiting(amqp_url: str) -> list[DeadLetter]:
    """All dead letters. While a console looks at them, they are in its hands and nobody else sees them."""
    async with asyncio.timeout(90):
        while True:
            async with borrow_dead_letters(amqp_url) as loan:
                letters = [letter async for letter in loan]
                if not loan.others and len(letters) == loan.waiting:
                    return letters
            await asyncio.sleep(0.05)


async def names_in(amqp_url: str, queue: str) -> list[str]:
    """The message_ids of all that is in a queue, in its order. Takes them."""
    async with await aio_pika.connect(amqp_url) as connection:
        found = await (await connection.channel()).get_queue(queue)
        names: list[str] = []
        while (message := await found.get(no_ack=True, fail=False)) is not None:
            names.append(message.message_id or "")
        return names


@pytest.fixture
async def viewer(world: World) -> AsyncIterator[Viewer]:
    """Somebody who looks at the dead letters of a running worker."""
    async with serving(console_of(world.amqp_url, world.database_url)) as found:
        for letter in await found.look():  # of an earlier test
            await found.press("/act", letter=letter.id, do="discard", why="cleaning")
        await found.console.replies.follow()
        await found.console.replies._connected.wait()  # a form waits only some seconds for that
        yield found


async def test_one_is_replayed_stored_and_answered(viewer: Viewer, world: World) -> None:
    """Its message_id and headers stay, and it says who has replayed it."""
    one = uuid4()
    await keep(world.amqp_url, (record(one), {"message_id": "m1", "headers": {"x-version": 7}}))
    [letter] = await viewer.look()
    with capture_logs() as logs:
        path = await viewer.press("/act", letter=letter.id, do="replay", why="the worker takes it now")
        page = await viewer.until(path, "inserted")
    assert "sent again" in page
    assert (await row(world.database_url, one))["source_version"] == 7
    assert await waiting(world.amqp_url) == []
    [ended] = [event for event in logs if event["event"] == "console_action_ended"]
    assert (ended["user"], ended["kind"], ended["count"], ended["sent"], ended["why"]) == (
        "local", "replay", 1, 1, "the worker takes it now",
    )  # fmt: skip


async def test_one_that_is_rejected_again_is_kept_and_not_sent(viewer: Viewer, world: World) -> None:
    """The contract says so before anything is sent."""
    await keep(world.amqp_url, (record(uuid4(), "soon"), {"message_id": "m2"}))
    [letter] = await viewer.look()
    page = await viewer.page(await viewer.press("/act", letter=letter.id, do="replay", why="it passes now"))
    assert "it would be rejected again: invalid_date" in page
    assert [each.name for each in await waiting(world.amqp_url)] == ["m2"]


async def test_one_is_corrected_with_its_message_id(viewer: Viewer, world: World) -> None:
    """What is not changed stays: the properties and the headers."""
    one = uuid4()
    await keep(
        world.amqp_url,
        (record(one, "soon", subject="Call"), {"message_id": "m3", "headers": {"x-update-mode": "merge"}}),
    )
    [letter] = await viewer.look()
    edit = await viewer.page(f"/edit?letter={letter.id}")
    header = re.search(r'<textarea name="header"[^>]*>\n(.*?)</textarea>', edit, re.DOTALL)
    assert header is not None
    body = record(one, "2026-12-24", subject="Call").decode().replace("{", "{\r\n")
    members = {
        "letter": letter.id,
        "body": body,
        "header": header[1].replace("\n", "\r\n"),
        "why": "a typo",
        "do": "replay",
    }
    path = await viewer.press("/edit", **members)
    await viewer.until(path, "inserted")
    stored = await row(world.database_url, one)
    assert (stored["due_date"].isoformat()[:10], stored["subject"]) == ("2026-12-24", "Call")
    assert "Edit and replay" in await viewer.page("/actions")


async def test_an_edit_of_one_that_is_gone_does_nothing(viewer: Viewer, world: World) -> None:
    """Somebody else has discarded it in the meantime."""
    one = uuid4()
    await keep(world.amqp_url, (record(one, "soon"), {"message_id": "m4"}))
    [letter] = await viewer.look()
    async with borrow_dead_letters(world.amqp_url) as loan:
        assert await loan.remove([each async for each in loan]) == 1
    members = {"letter": letter.id, "body": record(one).decode(), "header": "{}", "why": "a typo", "do": "replay"}
    page = await viewer.page(await viewer.press("/edit", **members))
    assert "it was not in the queue" in page
    assert await row(world.database_url, one) is None
    assert "is not in the queue" in await viewer.page(path_of(letter), 410)


async def test_two_viewers_who_replay_one_at_once_send_it_once(world: World, viewer: Viewer) -> None:
    """The second one is told that it is gone."""
    one = uuid4()
    await keep(world.amqp_url, (record(one), {"message_id": "m5"}))
    [letter] = await viewer.look()
    paths = await asyncio.gather(
        *(viewer.press("/act", letter=letter.id, do="replay", why="it passes now") for _ in range(2))
    )
    pages = [await viewer.page(path) for path in paths]
    assert sorted("gone before" in page for page in pages) == [False, True]
    await viewer.until(paths[["gone before" in page for page in pages].index(False)], "inserted")


async def test_two_consoles_that_act_at_once_do_nothing_twice(world: World, viewer: Viewer) -> None:
    """Two processes: what one has on loan, the other does not see."""
    ids = [uuid4() for _ in range(20)]
    await keep(world.amqp_url, *((record(one), {"message_id": f"two-{number}"}) for number, one in enumerate(ids)))
    async with serving(console_of(world.amqp_url, world.database_url)) as other:
        both = []
        for one in (viewer, other):
            both += [(one, (await one.dry_run())[1])]
        paths = await asyncio.gather(
            *(one.press("/act", plan=plan, do="replay", rate="1000", why="both") for one, plan in both)
        )
        sent = 0
        for (one, _), path in zip(both, paths, strict=True):
            await one.ended(path)
            action = one.action(path)
            sent += action.counts["sent"]
        assert sent == len(ids) - len(await waiting(world.amqp_url))
    async with asyncio.timeout(30):
        while any([await row(world.database_url, one) is None for one in ids][: 0 if sent < len(ids) else None]):
            await asyncio.sleep(0.05)


async def test_all_that_match_are_replayed_in_order_and_what_became_of_each_is_shown(
    world: World, viewer: Viewer
) -> None:
    """Forty of one publisher, of which one is really wrong; others stay untouched."""
    one = uuid4()
    await keep(
        world.amqp_url,
        *((record(one, subject=f"{number:02}"), {"message_id": f"all-{number}"}) for number in range(39)),
        (record(uuid4(), "31/12/2026"), {"message_id": "wrong"}),
        (record(uuid4()), {"message_id": "others", "app_id": "erp"}),
    )
    await viewer.console.replies.follow(60)  # the button waits for 5 s only, and begins all the same
    page, plan = await viewer.dry_run("publisher=crm")
    assert "39 would be sent" in page
    assert "1 would be rejected again" in page
    path = await viewer.press("/act", plan=plan, do="replay", rate="1000", why="the setting was changed")
    await viewer.ended(path)
    await viewer.until(path, "updated <b>38</b>")
    assert (await row(world.database_url, one))["subject"] == "38", "the last one of the queue is stored last"
    assert sorted(each.name for each in await waiting(world.amqp_url)) == ["others", "wrong"]
    assert "does not remember this dry run" in await viewer.press(
        "/act", 410, plan=plan, do="replay", rate="1", why="again"
    )


async def test_a_row_that_cannot_be_read_is_not_said_to_be_missing(world: World, viewer: Viewer) -> None:
    """The page would show the message as a new record; a replay leaves the row as it is."""
    one = uuid4()
    connection = await asyncpg.connect(world.database_url)
    await connection.execute("INSERT INTO task_activity_log (id, due_date) VALUES ($1, 'infinity')", one)
    await connection.close()
    await keep(world.amqp_url, (record(one, subject="older"), {"message_id": "unreadable"}))
    [letter] = await viewer.look()
    page = await viewer.page(path_of(letter))
    assert "Its row is not shown: it has a value that a reply cannot contain" in page
    path = await viewer.press("/act", letter=letter.id, do="replay", why="to see")
    await viewer.ended(path)
    assert [each.name for each in await waiting(world.amqp_url)] == ["unreadable"]


async def test_a_replay_is_stopped_and_the_rest_stays(world: World, viewer: Viewer) -> None:
    """What was sent is sent once, what was not is in the queue, in its order."""
    names = [f"stop-{number:02}" for number in range(30)]
    await keep(world.amqp_url, *((record(uuid4()), {"message_id": name}) for name in names))
    _, plan = await viewer.dry_run()
    path = await viewer.press("/act", plan=plan, do="replay", rate="5", why="slowly")
    await viewer.until(path, "1</b> sent again")
    assert await viewer.press(f"{path}/stop") == path
    await viewer.until(path, "It was stopped.")
    action = viewer.action(path)
    sent = action.counts["sent"]
    assert 0 < sent < 30
    assert [each.name for each in await waiting(world.amqp_url)] == names[sent:]


async def test_what_is_rejected_again_is_seen_in_the_dead_letters(world: World, viewer: Viewer) -> None:
    """Its reply goes to its publisher, so the next look says it; and the next dead letter says how often it was replayed."""
    connection = await asyncpg.connect(world.database_url)
    await connection.execute("ALTER TABLE task_activity_log ADD CONSTRAINT short CHECK (length(subject) < 5) NOT VALID")
    try:
        async with await aio_pika.connect(world.amqp_url) as broker:
            mailbox = await (await broker.channel()).declare_queue(exclusive=True)
            await keep(
                world.amqp_url, (record(uuid4(), subject="too long"), {"message_id": "again", "reply_to": mailbox.name})
            )
            [letter] = await viewer.look()
            path = await viewer.press("/act", letter=letter.id, do="replay", why="it passes now")
            async with asyncio.timeout(30):
                while not (found := await viewer.look()):
                    await asyncio.sleep(0.05)
            assert (found[0].code, found[0].raw.replays, found[0].raw.replayed_by) == (
                "refused_by_database",
                1,
                "local",
            )
            assert "refused_by_database" in await viewer.page(path)
            assert "replayed 1 time, last by local" in await viewer.page(path_of(found[0]))
    finally:
        await connection.execute("ALTER TABLE task_activity_log DROP CONSTRAINT short")
        await connection.close()


async def test_a_row_that_was_changed_since_is_not_overwritten_without_saying_so(world: World, viewer: Viewer) -> None:
    """The dry run says it, the replay keeps it, and a box replays it all the same."""
    one = uuid4()
    seen = {"x-last-seen": "2026-01-01T00:00:00.000+00:00", "x-first-seen": "2026-01-01T00:00:00.000+00:00"}
    await keep(world.amqp_url, (record(one, subject="newer"), {"message_id": "first"}))
    [letter] = await viewer.look()
    await viewer.until(await viewer.press("/act", letter=letter.id, do="replay", why="it passes now"), "inserted")
    await keep(world.amqp_url, (record(one, subject="older"), {"message_id": "second", "headers": seen}))
    [letter] = await viewer.look()
    assert "The row was changed" in await viewer.page(path_of(letter))
    assert "1 is kept, because its row" in re.sub("<[^>]+>", "", await viewer.page("/bulk"))
    page = await viewer.page(await viewer.press("/act", letter=letter.id, do="replay", why="it passes now"))
    assert "its row has changed" in page
    assert (await row(world.database_url, one))["subject"] == "newer"
    await viewer.until(
        await viewer.press("/act", letter=letter.id, do="replay", why="it passes now", over_newer="on"), "updated"
    )
    assert (await row(world.database_url, one))["subject"] == "older"


async def test_all_that_match_are_discarded_by_number_and_no_others(world: World, viewer: Viewer) -> None:
    """Exact copies count one by one; what came in since is another dead letter."""
    body = record(uuid4(), "soon")
    await keep(
        world.amqp_url,
        (body, {"message_id": "copy"}),
        (body, {"message_id": "copy"}),
        (body, {"message_id": "other", "app_id": "erp"}),
    )
    _, plan = await viewer.dry_run("publisher=crm")
    await keep(world.amqp_url, (body, {"message_id": "copy"}))
    path = await viewer.press("/act", plan=plan, do="discard", count="2", why="tests")
    await viewer.until(path, "2</b> discarded")
    assert sorted(each.name for each in await waiting(world.amqp_url)) == ["copy", "other"]


async def test_looking_changes_nothing(world: World, viewer: Viewer) -> None:
    """Not even the order; and all viewers share one look."""
    names = [f"look-{number}" for number in range(50)]
    await keep(world.amqp_url, *((record(uuid4(), "soon"), {"message_id": name}) for name in names))
    looks = await asyncio.gather(*(viewer.console.looks.current(again=True) for _ in range(8)))
    assert len({id(look) for look in looks}) == 1
    for _ in range(5):
        await viewer.look()
    assert [each.name for each in await waiting(world.amqp_url)] == names


async def test_a_message_is_tried_and_sent(world: World, viewer: Viewer) -> None:
    """The verdict is that of a worker, and so is the answer."""
    one = uuid4()
    page = await viewer.press("/try", 200, body=record(one).decode(), content_type="application/json", do="check")
    assert "The contract accepts it." in page
    assert await row(world.database_url, one) is None
    page = await viewer.press(
        "/try", 200, body=record(one).decode(), content_type="application/json", do="send", why="a test"
    )
    assert (
        page.index("The answer:") < page.index("What was found before it was sent") < page.index("It would be inserted")
    )
    [sent] = re.findall(r"<tr>.*?Send a message.*?</tr>", await viewer.page("/actions"), re.DOTALL)
    assert all(text in sent for text in ("local", "a test", "inserted"))
    assert await row(world.database_url, one) is not None
    page = await viewer.press(
        "/try", 200, body=record(one, subject="x").decode(), content_type="application/json", do="check"
    )
    assert "row after" in page
    page = await viewer.press(
        "/try",
        200,
        body=record(one).decode(),
        content_type="application/json",
        do="send",
        why="x",
        headers='{"CC": "x"}',
    )
    assert "It was not sent: The broker refuses this message" in page  # the client says so in the form of an answer
    assert "The answer:" not in page


@pytest.mark.parametrize(
    ("most", "said"),
    [(0, "is the queue full? Sent again"), (9, "What was sent is in its queue")],
    ids=["refused", "waiting"],
)
async def test_a_message_without_an_answer_is_said_to_be_sent_only_if_the_broker_has_it(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch, most: int, said: str
) -> None:
    """The broker may refuse it. No worker runs."""
    monkeypatch.setattr(forms, "_ANSWER_SECONDS", 2.0)
    topology = Topology()
    async with await aio_pika.connect(amqp_url) as connection, serving(console_of(amqp_url)) as viewer:
        await declare(connection, topology)
        channel = await connection.channel()
        await channel.queue_delete(topology.requests_queue)
        queue = await channel.declare_queue(
            topology.requests_queue, durable=True, arguments={"x-max-length": most, "x-overflow": "reject-publish"}
        )
        await queue.bind(topology.requests_exchange, "upsert")
        page = await viewer.press(
            "/try", 200, body=record(uuid4()).decode(), content_type="application/json", do="send", why="a test"
        )
        assert "No answer for 2 s (1 upsert unanswered): " in page
        assert said in page
        assert (await queue.get(no_ack=True, fail=False) is not None) is (most > 0)


async def test_replies_are_followed_and_none_is_taken(world: World, viewer: Viewer) -> None:
    """Those to the replies exchange; the subscriber's queue keeps them."""
    await viewer.page("/replies")
    one = uuid4()
    async with await aio_pika.connect(world.amqp_url) as connection:
        channel = await connection.channel()
        before = (
            await channel.declare_queue(Topology().replies_queue, passive=True)
        ).declaration_result.message_count or 0
        exchange = await channel.get_exchange(Topology().requests_exchange)
        await exchange.publish(
            aio_pika.Message(record(one, subject="followed"), content_type="application/json"), "upsert"
        )
        page = await viewer.until(f"/replies?id={one}", "followed")
        after = (
            await channel.declare_queue(Topology().replies_queue, passive=True)
        ).declaration_result.message_count or 0
    assert "inserted" in page
    assert after == before + 1


async def test_find_does_not_wait_for_a_long_queue_of_replies(
    world: World, viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how many there are, and looks at them when it is asked to."""
    one, name = uuid4(), "a & b"
    monkeypatch.setattr("task_activity_log.console.pages._REPLIES_LOOKED_AT", 1)
    async with await aio_pika.connect(world.amqp_url) as connection:
        channel = await connection.channel()
        for message_id in ("first", "last"):
            reply = aio_pika.Message(b"", message_id=message_id, correlation_id=name)
            await channel.default_exchange.publish(reply, Topology().replies_queue)
        for each in (name, "first", "last", one):
            waiting = (
                await channel.declare_queue(Topology().replies_queue, passive=True)
            ).declaration_result.message_count
            page = await viewer.page(f"/find?name={quote(str(each))}")
            assert f"{waiting} replies wait for their subscriber. They were not looked at" in page
        assert "no dead letter and no other reply of it. A reply that was not looked at may be its own." in page
        page = await viewer.page(f"/find?name={quote(name)}&all=1")
        assert (">first<" in page, ">last<" in page, "look at all" in page) == (True, True, False)


async def test_find_shows_the_rest_if_the_replies_cannot_be_looked_at(world: World, viewer: Viewer) -> None:
    """For example because their queue was deleted, or would soon delete them."""
    one = uuid4()
    await keep(world.amqp_url, (record(one, "soon"), {"message_id": "of-the-record"}))
    await viewer.look()
    viewer.console.topology = replace(viewer.console.topology, replies_queue="nowhere")
    page = await viewer.page(f"/find?name={one}")
    assert "of-the-record" in page
    assert "The waiting replies cannot be looked at: queue 'nowhere' does not exist on this broker: a worker" in page


async def test_a_record_is_found_and_its_row_is_sent_again(world: World, viewer: Viewer) -> None:
    """With its row, its dead letter and its reply; the subscribers get the row as it is now."""
    one, name = uuid4(), f"sent-{uuid4()}"
    await viewer.press(
        "/try", 200, body=record(one, subject="found").decode(), content_type="application/json", message_id=name,
        do="send", why="a test",
    )  # fmt: skip
    await keep(world.amqp_url, (record(one, "soon"), {"message_id": "of-the-record"}))
    await viewer.look()
    page = await viewer.page(f"/find?name={one}")
    assert "found" in page
    assert "of-the-record" in page
    assert "Send it to its subscribers again" in page
    assert "There is no row, no dead letter and no reply of it" in await viewer.page(f"/find?name={uuid4()}")
    connection = await asyncpg.connect(world.database_url)
    await connection.execute(
        "INSERT INTO task_activity_log_journal (answered_at, outcome, code, record_id, message_id, publisher, reply_id)"
        " VALUES (now(), 'rejected', 'invalid_date', $1, 'long-ago', 'crm-of-old', $2)",
        one,
        uuid4(),
    )
    await connection.close()
    page = await viewer.page("/find?name=long-ago")
    assert "crm-of-old" in page
    assert "Send it to its subscribers again" in page  # the journal says which record it was
    with capture_logs() as logs:
        path = await viewer.press("/snapshot", record=str(one), why="a subscriber lost it")
    assert "The row was sent to its subscribers" in await viewer.page(path)
    await viewer.until(f"/replies?id={one}&outcome=snapshot", "found")
    [sent] = [event for event in logs if event["event"] == "console_snapshot_sent"]
    assert (sent["user"], sent["why"], sent["record"]) == ("local", "a subscriber lost it", str(one))
    [listed] = re.findall(r"<tr>\s*<th[^>]*>Send a row again.*?</tr>", await viewer.page("/actions"), re.DOTALL)
    assert all(
        text in listed for text in (f"/find?name={one}", "local", "a subscriber lost it", "sent to its subscribers")
    )
    assert "There is no row to send" in await viewer.press("/snapshot", 410, record=str(uuid4()), why="x")


async def test_a_row_whose_sending_fails_is_in_the_list_of_actions(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may have it: the log and the list say who has sent it, and why."""
    one = uuid4()
    await viewer.press("/try", 200, body=record(one).decode(), content_type="application/json", do="send", why="x")

    async def lost(*_: object) -> int:
        raise ClientError("the connection was lost")

    monkeypatch.setattr(forms, "resend_one", lost)
    with capture_logs() as logs:
        assert "The connection was lost" in await viewer.press("/snapshot", 503, record=str(one), why="it was lost")
    assert [event["why"] for event in logs if event["event"] == "console_snapshot_sent"] == ["it was lost"]
    [listed] = re.findall(r"<tr>\s*<th[^>]*>Send a row again.*?</tr>", await viewer.page("/actions"), re.DOTALL)
    assert "it is not known whether it was sent: the connection was lost" in listed


async def test_a_row_that_is_longer_than_the_broker_takes_is_not_said_to_be_sent(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page and the list of actions say so."""
    one = uuid4()
    await viewer.press(
        "/try", 200, body=record(one, subject="x" * 1000).decode(), content_type="application/json", do="send", why="x"
    )
    monkeypatch.setattr(MessageMax, "known", 900)
    assert "it was not sent" in await viewer.press("/snapshot", 413, record=str(one), why="it was lost")
    [listed] = re.findall(r"<tr>\s*<th[^>]*>Send a row again.*?</tr>", await viewer.page("/actions"), re.DOTALL)
    assert "not sent" in listed


async def test_those_whose_row_was_stored_since_are_found(world: World, viewer: Viewer) -> None:
    """Their publishers have probably sent them again, corrected: then they can be discarded."""
    stored, missing = uuid4(), uuid4()
    old = {"x-last-seen": "2026-01-01T00:00:00.000+00:00"}
    await viewer.press("/try", 200, body=record(stored).decode(), content_type="application/json", do="send", why="x")
    await keep(
        world.amqp_url,
        (record(stored, "soon"), {"message_id": "corrected", "headers": old}),
        (record(missing, "soon"), {"message_id": "not-yet", "headers": old}),
    )
    await viewer.look()
    page = await viewer.page("/dead-letters?answered=yes")
    assert "1 message of 2" in re.sub("<[^>]+>", "", page)
    assert "corrected" in page
    assert "not-yet" not in page


async def test_the_first_page_knows_the_queues_and_the_worker(viewer: Viewer) -> None:
    """From the broker; the worker of these tests has a port that the console is not told."""
    async with asyncio.timeout(30):
        while viewer.console.sampler.history.queues.get(QUEUE) != Depth(
            0, 0
        ):  # the broker's count is some seconds late
            await viewer.console.sampler.next()
    page = await viewer.until("/", "no answer")  # the first check takes a while
    assert "Nothing waits. No dead letters." in page


async def test_without_a_database_the_first_page_shows_what_is_found_at_the_broker(
    amqp_url: str, tmp_path: Path
) -> None:
    """The findings of a console as it is started: it needs no DATABASE_URL."""
    with console_process(tmp_path, AMQP_URL=amqp_url) as url:
        async with asyncio.timeout(60), httpx2.AsyncClient() as client:
            while "set DATABASE_URL to check it" not in (page := (await client.get(url)).text):
                await asyncio.sleep(0.05)  # the page has no event when the findings are there
    assert "RabbitMQ" in page


async def test_a_broker_that_goes_away_in_the_middle_loses_nothing(amqp_url: str, database_url: str) -> None:
    """One sentence says what was sent; the rest is in the queue. No worker takes what was sent."""
    names = [f"cut-{number:02}" for number in range(30)]
    await keep(amqp_url, *((record(uuid4()), {"message_id": name}) for name in names))
    async with Proxy.to(amqp_url) as proxy, serving(console_of(proxy.url, database_url)) as viewer:
        _, plan = await viewer.dry_run("message=cut-")
        path = await viewer.press("/act", plan=plan, do="replay", rate="10", why="cut")
        await viewer.until(path, "</b> sent again")
        proxy.cut()
        page = await viewer.until(path, 'role="alert"')
        assert "in the queue" in page
        action = viewer.action(path)
        sent = action.counts["sent"]
    assert 0 < sent < len(names)
    left = [each.name for each in await waiting(amqp_url)]
    # Of the one that was under way when the connection was lost, nobody knows whether it was removed.
    assert left in (names[sent:], names[sent + 1 :])
    assert (await names_in(amqp_url, Topology().requests_queue))[:sent] == names[:sent]


@pytest.mark.parametrize("kind", ["replay", "discard"])
async def test_what_was_done_before_a_connection_was_lost_is_not_said_to_be_undone(amqp_url: str, kind: str) -> None:
    """The queue was told to remove them, and its answer has not come."""
    await keep(amqp_url, *((record(uuid4()), {"message_id": f"{kind}-{number}"}) for number in range(3)))
    async with Proxy.to(amqp_url) as proxy, serving(console_of(proxy.url)) as viewer:
        _, plan = await viewer.dry_run(f"message={kind}-")
        proxy.hold_at(BASIC_ACK, after=True)
        path = await viewer.press("/act", plan=plan, do=kind, count="3", why="cut")
        await proxy.held_back()
        proxy.cut()
        proxy.resume()
        page = await viewer.until(path, 'role="alert"')
    done = "sent" if kind == "replay" else "discarded"
    assert f"3 not known to be {done}: those that were not are still in the queue" in re.sub("<[^>]+>", "", page)


async def test_replies_with_one_correlation_id_are_told_apart_by_their_records(world: World, viewer: Viewer) -> None:
    """Publishers may give a whole batch one: what is not known is not said."""
    names, ids = [f"batch-{number}" for number in range(3)], [uuid4() for _ in range(3)]
    await keep(
        world.amqp_url,
        *(
            (record(identifier, subject=name), {"message_id": name, "correlation_id": "batch"})
            for name, identifier in zip(names, ids, strict=True)
        ),
    )
    connection = await asyncpg.connect(world.database_url)
    await connection.execute(
        "ALTER TABLE task_activity_log ADD CONSTRAINT other CHECK (subject <> 'batch-2') NOT VALID"
    )
    try:
        _, plan = await viewer.dry_run("message=batch-")
        path = await viewer.press("/act", plan=plan, do="replay", why="batch")
        await viewer.ended(path)
        async with asyncio.timeout(90):
            while sum(heard.reply.correlation_id == "batch" for heard in viewer.console.replies.latest) < len(ids):
                await asyncio.sleep(0.05)
    finally:
        await connection.execute("ALTER TABLE task_activity_log DROP CONSTRAINT other")
        await connection.close()
    answers = {entry.letter.name: (entry.answer, entry.code) for entry in viewer.action(path).entries}
    assert (answers["batch-0"], answers["batch-1"]) == (("inserted", ""), ("inserted", ""))
    assert answers["batch-2"] in (("", ""), ("rejected", "refused_by_database"))


async def test_a_user_without_the_rights_is_told_so(rabbitmq: RabbitMQ, world: World) -> None:
    """On the page that needs them."""
    await keep(world.amqp_url, (record(uuid4()), {"message_id": "rights"}))
    with user_who_may(rabbitmq, world.amqp_url, read="^$") as url:
        async with serving(console_of(url)) as viewer:
            page = await viewer.page("/dead-letters", 503)
            assert re.search(rf"may not \w+ queue '{QUEUE}': see Permissions in docs/dead-letters.md", page)
            await viewer.page("/")
    with user_who_may(rabbitmq, world.amqp_url, read=QUEUE) as url:
        async with serving(console_of(url)) as viewer:
            [letter] = [each for each in await viewer.look() if each.name == "rights"]
            page = await viewer.page(await viewer.press("/act", letter=letter.id, do="replay", why="it passes now"))
            assert "in the queue" in page
            assert 'role="alert"' in page
            assert [each.name for each in await waiting(world.amqp_url) if each.name == "rights"] == ["rights"]
            await viewer.until(await viewer.press("/act", letter=letter.id, do="discard", why="done"), "discarded")


def documented(use: str) -> dict[str, str]:
    """The permissions that docs/console.md names for a use of the console."""
    text = (Path(__file__).parents[2] / "docs" / "console.md").read_text()
    [line] = [line for line in text.splitlines() if line.startswith(f"| {use} |")]
    cells = [cell.strip(" `").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[2:-1]]
    return dict(zip(("configure", "write", "read"), cells, strict=True))


async def test_the_rights_that_are_documented_are_enough(
    rabbitmq: RabbitMQ, amqp_url: str, database_url: str, database: Connection
) -> None:
    """To look and discard, to replay, and for all uses. In the database SELECT on the records."""
    role, identifier = f"console_{uuid4().hex[:8]}", uuid4()
    await database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; GRANT SELECT ON task_activity_log TO {role}")
    await database.execute("INSERT INTO task_activity_log (id, subject) VALUES ($1, 'the row')", identifier)
    await keep(amqp_url, *((record(identifier), {"message_id": name}) for name in ("one", "two")))
    reading = re.sub(r"//[^@]*@", f"//{role}:secret@", database_url)
    looking, replaying = documented("looking and discarding"), documented("replaying")
    try:
        with user_who_may(rabbitmq, amqp_url, **looking) as url:
            async with serving(console_of(url, reading)) as viewer:
                [one, two] = await viewer.look()
                assert "the row" in await viewer.page(path_of(two))
                await viewer.until(await viewer.press("/act", letter=one.id, do="discard", why="done"), "discarded")
        with user_who_may(rabbitmq, amqp_url, **{**replaying, "read": looking["read"]}) as url:
            async with serving(console_of(url, reading)) as viewer:
                [left] = await viewer.look()
                await viewer.until(
                    await viewer.press("/act", letter=left.id, do="replay", why="done", over_newer="on"), "sent again"
                )
        assert await waiting(amqp_url) == []
        await keep(amqp_url, *((record(identifier), {"message_id": name}) for name in ("three", "four")))
        with user_who_may(rabbitmq, amqp_url, **documented("all of these")) as url:
            async with serving(console_of(url, reading)) as viewer:
                [three, four] = await viewer.look()
                await viewer.until(await viewer.press("/act", letter=three.id, do="discard", why="done"), "discarded")
                await viewer.until(
                    await viewer.press("/act", letter=four.id, do="replay", why="done", over_newer="on"), "sent again"
                )
                await viewer.console.replies.follow()
                await viewer.console.replies._connected.wait()
                path = await viewer.press("/snapshot", record=str(identifier), why="lost")
                assert "The row was sent to its subscribers" in await viewer.page(path)
                await viewer.until(f"/replies?id={identifier}&outcome=snapshot", "the row")
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_one_look_serves_all_pages(amqp_url: str) -> None:
    """A filter is applied to what is in memory; the queue is not asked again."""
    async with await aio_pika.connect(amqp_url) as connection:
        await declare(connection, Topology())
    many = letters(datetime.now(UTC))
    await publish(amqp_url, QUEUE, many * 4)
    async with serving(console_of(amqp_url)) as viewer:
        page = await viewer.page("/dead-letters")
        assert "1,200 messages" in re.sub("<[^>]+>", "", page)
        look = viewer.console.looks.last
        await viewer.page("/dead-letters?code=invalid_date")
        assert viewer.console.looks.last is look

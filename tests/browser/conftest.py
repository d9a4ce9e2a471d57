"""A console as a process, with a worker and 300 dead letters, and Chromium to look at it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from sandbox import PostgreSQL, RabbitMQ, SandboxError, letters, packages
from sandbox.service import NotOurs
from tests.commands import World
from tests.consoles import console_process

QUEUE = "task_activity_log.dead-letters"


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium. It is installed if that is possible without a password; otherwise the test fails, and says how."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if (obstacle := packages.cannot_install()) is not None:
        pytest.fail(f"Chromium is not installed, and {obstacle}: install it (Debian: apt-get install chromium)")
    try:
        packages.install("chromium", print)
    except SandboxError as error:
        pytest.fail(f"{error}\ninstall Chromium (Debian: apt-get install chromium)")
    return shutil.which("chromium") or pytest.fail("the package chromium was installed but has no command chromium")


@pytest.fixture
def fresh(world: World, rabbitmq: RabbitMQ) -> World:
    """The services of a running worker, with the 300 dead letters and no others."""
    vhost = world.amqp_url.rpartition("/")[2]
    rabbitmq.api("DELETE", f"/queues/{vhost}/{QUEUE}/contents")
    PostgreSQL(NotOurs("DATABASE_URL", "a test only empties its tables"), world.database_url).execute(
        "TRUNCATE task_activity_log, task_activity_log_inbox"  # another test may have replayed the same dead letters
    )
    asyncio.run(letters.publish(world.amqp_url, QUEUE, letters.letters(datetime.now(UTC))))
    return world


@pytest.fixture
def url(fresh: World, tmp_path: Path) -> Iterator[str]:
    """The URL of a console."""
    with console_process(tmp_path, AMQP_URL=fresh.amqp_url, DATABASE_URL=fresh.database_url) as found:
        yield found


class Visit:
    """A page in a browser, and whatever was wrong with it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url
        self.complaints: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    async def go(self, path: str) -> None:
        """Open a page of the console."""
        answer = await self.page.goto(self._url + path)
        assert answer is not None
        assert answer.ok, f"{path}: {answer.status}"


Open: TypeAlias = Callable[..., Awaitable[Visit]]


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """Chromium, headless."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def open_page(browser: Browser, url: str) -> AsyncIterator[Open]:
    """Opens a page as somebody of their own would. Afterwards nothing may have been wrong with any of them."""
    async with AsyncExitStack() as stack:
        visits: list[Visit] = []

        async def opened(*, base: str = url, **options: Any) -> Visit:
            context: BrowserContext = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            visits.append(Visit(await context.new_page(), base.rstrip("/")))
            return visits[-1]

        yield opened
        assert [complaint for visit in visits for complaint in visit.complaints] == []

"""The console in a real browser, in a few seconds: the story that it is made for."""

import re
from typing import Any

from tests.browser.conftest import Open


async def test_why_forty_messages_were_rejected_is_found_one_is_corrected_and_the_others_are_replayed(
    open_page: Open,
) -> None:
    """With scripts, by what the pages say and nothing else."""
    visit = await open_page()
    page: Any = visit.page
    await visit.go("/dead-letters")
    await page.get_by_role("row", name=re.compile("invalid_date due_date crm-brussels 40")).get_by_role("link").click()
    await page.get_by_text("crm-brussels was told: Send due_date as a date").wait_for()
    await page.get_by_text("39 of them would pass now.").wait_for()

    await page.get_by_role("link", name="show it").click()
    await page.locator("table .id").last.click()
    assert await page.locator("mark").inner_text() == '"due_date": "31/12/2026 17:00"'
    await page.get_by_role("link", name="Edit and replay").click()
    body = page.get_by_role("textbox", name="Body")
    await body.fill((await body.input_value()).replace("31/12/2026 17:00", "2026-12-31T17:00:00+01:00"))
    await page.get_by_text("The contract accepts it.").wait_for()  # while typing
    await page.get_by_label("Why?").fill("the publisher confirmed the date")
    await page.get_by_role("button", name="Replay what I have written").click()
    await page.get_by_text("1 sent again").wait_for()
    await page.get_by_role("cell", name="inserted").wait_for()

    await page.get_by_role("link", name="Dead letters", exact=True).click()
    await page.get_by_role("row", name=re.compile("invalid_date due_date crm-brussels 39")).get_by_role("link").click()
    await page.get_by_role("link", name="Replay these").click()
    await page.get_by_label("Why?").first.fill("dates without an offset are UTC now")
    await page.get_by_role("button", name="Replay 39, the oldest first").click()
    await page.get_by_text("39 sent again").wait_for()
    await page.get_by_text("inserted 39", exact=True).wait_for()
    await page.get_by_role("link", name="To the dead letters").click()
    await page.get_by_text("260 messages, by reason").wait_for()

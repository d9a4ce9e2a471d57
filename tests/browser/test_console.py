"""The console in a real browser: every page, both themes, two widths, with scripts and without, and what people do."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]  # it has no types

from sandbox.proxy import Proxy
from tests.browser.conftest import Open, Visit
from tests.commands import World
from tests.consoles import console_process

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(os.environ["SCREENSHOTS"]) if os.environ.get("SCREENSHOTS") else None
THEMES, WIDTHS = ("light", "dark"), (1280, 390)
GROUP = "/dead-letters?code=invalid_date&field=due_date&publisher=crm-brussels"


async def wrong_one(visit: Visit) -> str:
    """The path of the message that is really wrong."""
    await visit.go(f"{GROUP}&now=reject")
    return str(await visit.page.locator("table .id").last.get_attribute("href"))


async def paths(visit: Visit) -> dict[str, str]:
    """Every page, by a name for its screenshot."""
    letter = await wrong_one(visit)
    await visit.go(f"{GROUP}&now=pass")
    replayed, passing = [
        str(await visit.page.locator("table .id").nth(place).get_attribute("href")) for place in (0, -1)
    ]
    await visit.go(replayed)
    await visit.page.get_by_text("Replay…", exact=True).click()
    await visit.page.locator("#replay").get_by_label("Why?").fill("dates without an offset are UTC now")
    await visit.page.get_by_role("button", name="Replay it as it is").click()
    await visit.page.get_by_text("1 sent again").wait_for()
    return {
        "action": urlsplit(visit.page.url).path,
        "now": "/",
        "dead-letters": "/dead-letters",
        "group": GROUP,
        "nothing": "/dead-letters?publisher=nobody",
        "find": f"/find?name={letter.split('/')[2].partition('?')[0]}",
        "dead-letter": letter,
        "passes": passing,
        "edit": f"/edit?letter={letter.rpartition('=')[2]}",
        "bulk": "/bulk?code=invalid_date",
        "actions": "/actions",
        "replies": "/replies",
        "try": "/try",
        "contract": "/contract",
    }


@pytest.mark.parametrize("script", [True, False], ids=["with scripts", "without"])
async def test_every_page_fits_and_can_be_read_by_everybody(open_page: Open, script: bool, tmp_path: Path) -> None:
    """No violation of the policy, no error, nothing wider than the screen, and nothing serious for axe."""
    first = await open_page()
    every = await paths(first)
    for theme in THEMES if script else THEMES[:1]:
        for width in WIDTHS:
            visit = await open_page(
                color_scheme=theme, viewport={"width": width, "height": 900}, java_script_enabled=script
            )
            for name, path in every.items():
                await visit.go(path)
                await visit.page.locator("h1").wait_for()
                folder = SCREENSHOTS or tmp_path
                folder.mkdir(exist_ok=True)
                where = folder / f"{name}-{width}-{theme}{'' if script else '-no-script'}.png"
                await visit.page.screenshot(path=where, full_page=True)
                if not script:
                    continue
                assert not await visit.page.evaluate("document.documentElement.scrollWidth > innerWidth"), (name, width)
                found = (await Axe().run(visit.page)).response["violations"]
                serious = [
                    (each["id"], [node["html"][:200] for node in each["nodes"]])
                    for each in found
                    if each["impact"] in ("serious", "critical", "moderate")
                ]
                assert serious == [], (name, width, theme)


async def test_the_picture_of_the_readme(open_page: Open, tmp_path: Path) -> None:
    """`make screenshot` writes it to docs/."""
    visit = await open_page(viewport={"width": 1120, "height": 700})
    await visit.go("/dead-letters")
    await visit.page.get_by_text("300 messages, by reason").wait_for()
    await visit.page.screenshot(path=(SCREENSHOTS or tmp_path) / "console.png")


async def test_without_scripts_one_is_corrected_and_others_are_replayed(open_page: Open) -> None:
    """Forms and links alone."""
    visit = await open_page(java_script_enabled=False)
    page: Any = visit.page
    letter = await wrong_one(visit)
    await visit.go(f"/edit?letter={letter.rpartition('=')[2]}")
    body = page.get_by_role("textbox", name="Body")
    await body.fill((await body.input_value()).replace("31/12/2026 17:00", "2026-12-31"))
    await page.get_by_role("button", name="Check").click()
    await page.get_by_text("The contract accepts it.").wait_for()
    assert (await page.locator("ins").inner_text()).rstrip() == '  "due_date": "2026-12-31",'
    await page.get_by_label("Why?").fill("a typo")
    await page.get_by_role("button", name="Replay what I have written").click()
    await page.get_by_text("1 sent again").wait_for()
    await visit.go(GROUP)
    await page.get_by_role("link", name="Replay these").click()
    await page.get_by_label("Why?").first.fill("they pass now")
    await page.get_by_role("button", name="Replay 39").click()
    await page.get_by_text("39 sent again").wait_for()  # the page loads itself again until it has ended


async def test_the_keyboard_alone_replays_one(open_page: Open) -> None:
    """From the first page, with Tab and Enter."""
    visit = await open_page()
    page: Any = visit.page

    async def press(name: str, role: str) -> None:
        for _ in range(120):
            await page.keyboard.press("Tab")
            focused = await page.evaluate("[document.activeElement.tagName, document.activeElement.textContent.trim()]")
            if focused[0] == role and re.fullmatch(name, focused[1]):
                shown = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert shown != "none", "who uses a keyboard must see where they are"
                await asyncio.gather(page.wait_for_load_state(), page.keyboard.press("Enter"))
                await page.wait_for_timeout(100)
                return
        pytest.fail(f"Tab never came to {name}")

    await visit.go("/dead-letters?publisher=crm-brussels&now=pass&code=invalid_date")
    await press("[0-9a-f-]{36}", "A")
    await page.get_by_text("Replay…", exact=True).wait_for()
    await press("Replay…", "SUMMARY")
    await page.keyboard.press("Tab")
    await page.keyboard.type("it passes now")
    await press("Replay it as it is", "BUTTON")
    await page.get_by_text("1 sent again").wait_for()


async def test_two_people_act_on_the_same_one(open_page: Open) -> None:
    """Both have its page open. One replays it, and the other one is told that it is gone."""
    visits = [await open_page(), await open_page()]
    for visit in visits:
        await visit.go(f"{GROUP}&now=pass")
        await visit.page.locator("table .id").last.click()
        await visit.page.get_by_text("Replay…", exact=True).click()
        await visit.page.locator("#replay").get_by_label("Why?").fill("it passes now")
    await asyncio.gather(*(visit.page.get_by_role("button", name="Replay it as it is").click() for visit in visits))
    await asyncio.gather(
        *(visit.page.get_by_role("heading", name="Replay 1 dead letter").wait_for() for visit in visits)
    )
    texts = [await visit.page.locator("main").inner_text() for visit in visits]
    assert sorted("1 sent again" in text for text in texts) == [False, True]
    assert sorted("1 gone before" in text for text in texts) == [False, True]


async def test_hostile_text_does_nothing_and_is_shown(open_page: Open) -> None:
    """On the page, in the form, and in the difference."""
    visit = await open_page()
    page: Any = visit.page
    await visit.go("/dead-letters?publisher=unknown-script")
    await page.locator("table .id").last.click()
    shown = await page.locator("pre.body").first.inner_text()
    assert '<script>alert(\\"seen\\")</script>' in shown
    assert "\\u202e" in shown
    await page.get_by_role("link", name="Edit and replay").click()
    body = page.get_by_role("textbox", name="Body")
    await body.fill((await body.input_value()).replace("<b>soon</b>", "2026-12-31<img src=x onerror=alert(1)>"))
    await page.locator("ins", has_text="onerror").wait_for()
    assert await page.locator("main img").count() == 0


async def test_the_broker_goes_away_in_the_middle_and_comes_back(open_page: Open, fresh: World, tmp_path: Path) -> None:
    """The first page says so by itself, and the list shows what was seen last."""
    async with Proxy.to(fresh.amqp_url) as proxy:
        with console_process(tmp_path, AMQP_URL=proxy.url) as base:
            visit = await open_page(base=base)
            page: Any = visit.page
            await visit.go("/dead-letters")
            await page.get_by_text("300 messages, by reason").wait_for()
            proxy.refuse()
            proxy.cut()
            await visit.go("/")
            await page.get_by_text("The broker does not answer").first.wait_for()
            await visit.go("/dead-letters")
            await page.get_by_role("button", name="Look again").click()
            await page.get_by_text("This is what was seen last.").wait_for()
            await page.get_by_text("300 messages, by reason").wait_for()
            proxy.accept()
            await visit.go("/")
            await page.get_by_text("300 dead letters").first.wait_for()
            await page.context.close()  # before the console: a page that lives on would ask for it again

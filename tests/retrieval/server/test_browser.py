"""The page in a real browser: searching, videos that really play, the timeline, keys, sizes, accessibility."""

import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra [browser]")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"]
WAIT = 120_000  # milliseconds; a machine under load decodes and renders slowly
PLAYS = "video => video.currentTime > {0} && video.videoWidth > 0 && !video.paused"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser, server):
    """A page on the search; what the console complains of, or leaves the server's address, fails the test."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(WAIT)
    complaints = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on(
        "request",
        lambda one: None if one.url.startswith((server.url, "data:", "blob:")) else complaints.append(one.url),
    )
    opened.goto(server.url)
    yield opened
    opened.close()
    assert not [one for one in complaints if "favicon" not in one], complaints


def search(page, words: str) -> None:
    page.get_by_label("What happens in the video").fill(words)
    page.get_by_label("What happens in the video").press("Enter")
    page.wait_for_selector("#results ol.cards .card .poster")


def plays_beyond(page, video: str, seconds: float) -> None:
    page.wait_for_function(f"() => [document.querySelector('{video}')].every({PLAYS.format(seconds)})")


def test_typing_searches_and_the_address_is_the_search(page, server):
    page.get_by_label("What happens in the video").type("a red square")
    page.wait_for_function("() => document.querySelectorAll('#results .card .timeline, #results .about').length > 1")
    assert "q=a+red+square" in page.url
    names = page.locator("#results .card h2").all_inner_texts()
    assert len(names) == 14 and "<img src=x onerror=alert(1)>" in names
    page.goto(page.url)
    assert page.locator("#results .card h2").all_inner_texts() == names
    page.get_by_text("Filter, sort, save").click()
    page.get_by_label("Filter").fill("year=2003")
    page.wait_for_function("() => document.querySelectorAll('#results .card').length === 1")
    assert page.locator("#results .card h2").inner_text() == "clip03"


def test_posters_show_and_a_click_plays(page):
    search(page, "a red square")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.poster img')].slice(0, 4).every(i => i.naturalWidth > 0)"
    )
    page.locator("#results .card .poster").first.click()
    plays_beyond(page, "#player video", 0.2)
    page.keyboard.press("j")  # the next result plays
    assert page.locator("#player-title").inner_text() == page.locator("#results .card h2").nth(1).inner_text()
    plays_beyond(page, "#player video", 0.0)
    page.keyboard.press("Escape")
    assert not page.locator("#player").is_visible()


def test_an_emptied_box_is_the_start_again(page):
    search(page, "a red square")
    page.locator("#results .card .poster").first.click()
    plays_beyond(page, "#player video", 0.0)
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.activeElement.matches('#results .card a.poster')")
    page.get_by_label("What happens in the video").fill("")
    page.wait_for_selector("#results .welcome")
    assert page.evaluate("location.search") == ""


def test_a_format_that_browsers_do_not_play_is_converted(page):
    search(page, "a red square")
    card = page.locator("#results .card", has_text="old").filter(has=page.locator("h2", has_text="old"))
    card.locator(".poster").click()
    page.wait_for_function("() => document.querySelector('#player .player-note').textContent.includes('converted')")
    plays_beyond(page, "#player video", 0.0)


def test_a_click_on_the_timeline_plays_from_there(page):
    search(page, "two dogs")
    bar = page.locator("#results .card .timeline rect").nth(2)
    at = float(bar.get_attribute("data-at"))
    bar.click()
    plays_beyond(page, "#player video", at)
    assert page.evaluate("document.querySelector('#player video').currentTime") < at + 60


def test_hovering_plays_a_preview(page):
    search(page, "a red square")
    page.locator("#results .card .poster").first.hover()
    page.wait_for_selector("#results .card .poster video", state="attached")
    plays_beyond(page, ".poster video", 0.0)
    page.mouse.move(5, 5)
    page.wait_for_selector("#results .card .poster video", state="detached")


def test_the_keyboard_is_enough(page):
    """Search, go through the results, play, pause, favourite, details, back: without a mouse."""
    page.keyboard.press("/")
    page.keyboard.type("a red square")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results ol.cards .card .poster")
    page.wait_for_function("() => location.search.includes('red')")
    page.keyboard.press("ArrowDown")
    focused = "() => document.activeElement.closest('.card')?.dataset.name"
    names = page.locator("#results .card h2").all_inner_texts()
    assert page.evaluate(focused) == names[0]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == names[1]
    page.keyboard.press("Enter")
    plays_beyond(page, "#player video", 0.0)
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == names[1]
    star = page.locator("#results .card").nth(1).locator("[data-do=favourite]")
    before = star.get_attribute("aria-pressed")
    page.keyboard.press("f")
    page.wait_for_function(
        "([star, was]) => star.getAttribute('aria-pressed') !== was", arg=[star.element_handle(), before]
    )
    page.keyboard.press("f")
    page.keyboard.press("d")
    page.wait_for_selector("article.one table")
    page.keyboard.press("Shift+?")
    assert page.locator("#keys").is_visible()


def test_pages_links_and_words_to_leave_out(page, server):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    page.goto(f"{server.url}/?q=a+red+square&size=12")
    assert page.locator("#results .card").count() == 12
    first = page.locator("#results .card h2").all_inner_texts()
    page.get_by_text("Next", exact=True).click()
    page.wait_for_function("() => document.querySelectorAll('#results .card').length === 2")
    assert "page=2" in page.url and not {*page.locator("#results .card h2").all_inner_texts()} & {*first}
    page.locator("#results .card [data-do=link]").first.click()
    row = page.locator("#results .card").first.get_attribute("data-row")
    page.wait_for_function("async row => (await navigator.clipboard.readText()).includes('/videos/' + row)", arg=row)
    page.locator("#results .card [data-do=path]").first.click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).endsWith('.mp4')")
    search(page, 'a red square -"two dogs"')
    page.wait_for_function("() => location.search.includes('dogs')")
    page.locator("#results .card [data-do=details]").first.click()
    page.wait_for_selector("article.one table")
    captions = page.locator("article.one table caption").all_inner_texts()
    assert len(captions) == 2 and "weight 1.0" in captions[0] and "weight -0.5" in captions[1]


def test_words_beside_a_clip(page, clips):
    page.set_input_files("#clip", str(clips / "clip05.mp4"))
    page.wait_for_url("**/?clip=*")
    alone = page.locator("#results .card h2").all_inner_texts()
    search(page, "two dogs run on the grass")
    page.wait_for_function("() => location.search.includes('dogs') && location.search.includes('clip')")
    assert sorted(page.locator("#results .card h2").all_inner_texts()) == sorted(alone)
    assert "like your clip05.mp4" in page.locator(".tag").inner_text()


def test_searching_with_a_clip(page, clips):
    page.set_input_files("#clip", str(clips / "clip05.mp4"))
    page.wait_for_url("**/?clip=*")
    assert page.locator("#results .card h2").first.inner_text() == "clip05"
    assert "like your clip05.mp4" in page.locator(".tag").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280, 2560])
def test_every_page_fits_and_is_accessible(browser, server, width, scheme, tmp_path):
    """Nothing is wider than the screen, and axe finds nothing wrong. DMAE_SCREENSHOTS=FOLDER keeps the pictures."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    kept = Path(os.environ.get("DMAE_SCREENSHOTS", tmp_path))
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(WAIT)
    places = {"home": "/", "results": "/?q=a+red+square&sort=name", "video": "/videos/2?q=a+red+square"}
    for name, path in {**places, "saved": "/saved", "docs": "/docs", "login": "/login", "none": "/nowhere"}.items():
        page.goto(server.url + path)
        page.screenshot(path=str(kept / f"{name}-{width}-{scheme}.png"))
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        if width in (390, 1280):  # what differs between the others is how many cards stand side by side
            found = axe.run(page).response["violations"]
            assert not found, [(name, one["id"], one["nodes"][0]["html"]) for one in found]
    page.close()

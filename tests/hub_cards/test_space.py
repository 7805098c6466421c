"""The Space from the published files alone, in headless Chromium: upload, type, click, see the right clip first."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

CHROMIUM = os.environ.get("DMAE_CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
START = "import sys, runpy; sys.path.append({packages!r}); runpy.run_path('app.py', run_name='__main__')"
SENTENCES = ["a red square moves left", "the sky is blue"]

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def page(hub, run_folder, dmae, tmp_path_factory):
    """A browser page on the Space: `app.py` as it was pushed, run where `dmae` cannot be imported."""
    sync_api = pytest.importorskip("playwright.sync_api")
    folder = tmp_path_factory.mktemp("space")
    environment = hub.environment(folder / "home")
    dmae(["push", run_folder, "--repo-id", "user/tiny", "--space"], environment)
    for name, content in hub.files("spaces/user/tiny").items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-S", "-c", START.format(packages=str(Path(torch.__file__).parents[1]))]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment | settings, stdout=log, stderr=log)
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            open_when_ready(page, f"http://127.0.0.1:{port}", server, folder / "log")
            yield page
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


def open_when_ready(page, address: str, server, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            page.goto(address)
            return page.get_by_role("button", name="Search").wait_for(timeout=60_000)
        except Exception as error:
            if "ERR_CONNECTION_REFUSED" not in str(error):
                raise
            time.sleep(0.5)
    raise TimeoutError(log.read_text())


def search(page, clips: list[Path], sentences: list[str]) -> None:
    page.locator("input[type=file]").first.set_input_files([str(clip) for clip in clips])
    # the links appear when the uploads are finished, the names before
    page.locator(".file-preview td.download a").nth(len(clips) - 1).wait_for(timeout=60_000)
    page.get_by_label("Sentences, one per line").fill("\n".join(sentences))
    page.get_by_role("button", name="Search").click()


def picture(page, name: str) -> None:
    """Screenshots for people, where DMAE_SCREENSHOTS names a folder."""
    if folder := os.environ.get("DMAE_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.fixture(scope="module")
def best(run_folder, clips) -> list[str]:
    """The name of the best clip of each sentence, by the local model."""
    from dmae import DMAEForTextVideoRetrieval, DMAEProcessor

    model = DMAEForTextVideoRetrieval.from_pretrained(run_folder / "best").eval()
    processor = DMAEProcessor.from_pretrained(run_folder / "best")
    batch = processor(text=SENTENCES, videos=[str(clip) for clip in clips.values()], return_tensors="pt")
    order = model(**batch, return_loss=False).logits_per_text.argmax(1)
    return [list(clips)[i] for i in order]


def test_a_search_shows_the_right_clip_first_with_times_and_map(page, clips, best):
    search(page, list(clips.values()), SENTENCES)
    page.get_by_role("heading", name=SENTENCES[1]).wait_for(timeout=120_000)
    lists = page.locator("#found ol")
    assert lists.count() == len(SENTENCES)
    for number, name in enumerate(best):
        first = lists.nth(number).locator("li").first
        assert first.locator("strong").inner_text() == f"1. {name}.mp4"
        assert re.search(r"score -?\d\.\d{3} · best at 0:0[01]\.\d", first.inner_text())
        assert first.locator("th[scope=row]").count() > 3 and first.locator("th[scope=col] img").count() == 2
        moment = first.locator("th.best").inner_text()  # the outlined frame is the one the line above names
        assert f"best at {moment}" in first.inner_text()
        assert first.locator(".hit img").get_attribute("alt") == f"frame at {moment}"
    picture(page, "space_result")


def test_keyboard_and_screen_reader_find_everything(page):
    """Labels name the inputs, pictures have a text, new results are announced, Tab reaches everything in its order."""
    for role, name in (("textbox", "Sentences, one per line"), ("button", "Search")):
        assert page.get_by_role(role, name=name).count() == 1
    assert page.get_by_text(re.compile("Clips, up to 8")).count() >= 1
    assert page.locator("#found img:not([alt])").count() == 0
    assert page.locator("#found").get_attribute("aria-live") == "polite"
    page.get_by_label("Sentences, one per line").focus()
    reached = [tabbed(page) for _ in range(4)]
    assert reached == ["Search", "Words and frames", "region: Words and frames", "Words and frames"]
    for _ in range(3):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # the first map folds up
    page.locator("#found details:not([open])").nth(2).wait_for(state="attached")


FOCUSED = """() => { const at = document.activeElement, name = at.getAttribute('aria-label');
return name ? `${at.getAttribute('role') || at.localName}: ${name}` : at.textContent.trim() }"""


def tabbed(page) -> str:
    """What Tab reaches next, as a screen reader would name it."""
    page.keyboard.press("Tab")
    return page.evaluate(FOCUSED)


def test_the_upload_is_reached_by_keyboard_and_says_what_it_takes(page):
    page.reload()
    page.get_by_role("button", name="Search").wait_for(timeout=60_000)
    names = [tabbed(page) for _ in range(4)]  # the model's link, the upload, the sentences, the button
    assert "upload" in names[1].lower() and names[3] == "Search", names


def test_a_name_cannot_smuggle_markup_and_a_broken_clip_is_named(page, clips, tmp_path):
    odd = tmp_path / "<img src=x onerror=alert(1)>.mp4"
    shutil.copy(clips["red"], odd)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 500)
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:2,\n{clips['green']}\n")
    page.reload()
    search(page, [odd, broken, playlist], ["<b>bold</b> words"])
    page.get_by_role("alert").filter(has_text="broken.mp4: cannot be opened").wait_for(timeout=120_000)
    said = " ".join(page.get_by_role("alert").all_inner_texts())
    assert "playlist.mp4: is not an MP4" in said and "gradio" not in said and str(tmp_path) not in said
    assert page.locator("#found b").count() == 0 and page.locator("#found img[src=x]").count() == 0
    picture(page, "space_broken_clip")


def test_nothing_to_search_is_said_plainly(page):
    page.reload()
    page.get_by_role("button", name="Search").click()
    page.get_by_text("Add at least one clip and one sentence.").wait_for(timeout=60_000)


def test_a_narrow_screen_fits(page, clips):
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    search(page, [clips["red"], clips["green"]], SENTENCES[:1])
    page.get_by_role("heading", name=SENTENCES[0]).wait_for(timeout=120_000)
    overflow = json.loads(page.evaluate("JSON.stringify(document.documentElement.scrollWidth - innerWidth)"))
    assert overflow <= 0
    picture(page, "space_narrow")

"""The result page plays each clip at its moment, marks the true one, and escapes what people wrote."""

import os
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from dmae.visuals import gallery
from dmae.visuals.gallery import card, write_results_page
from dmae.visuals.pages import render, video_source


class Hit(NamedTuple):
    video_id: str = "a"
    path: str = "a.mp4"
    score: float = 0.5
    start: float = 1.5
    end: float | None = 3.0


def results_page(*cards, query="q", title="T"):
    return render("results.html", title=title, sections=[{"query": query, "cards": cards}])


def test_cards_carry_moment_score_and_note():
    page = results_page(
        card("a", "a.mp4", Hit(), border="right"), card("b", "b.mp4", Hit(), border="near", note="colour")
    )
    assert page.count('data-start="1.500" data-end="3.000"') == 2
    assert 'class="right"' in page and 'class="near"' in page and ">colour<" in page and "0.500" in page


def test_everything_a_person_wrote_is_escaped():
    evil = "<script>alert(1)</script>\"'"
    page = results_page(card(evil, evil, Hit(), note=evil, caption=evil), query=evil, title=evil)
    assert "<script>alert" not in page and page.count("<script>") == 1


def test_a_query_without_results_says_so():
    assert "No result." in results_page()


def test_a_name_that_is_no_utf8_is_shown_and_linked(clips, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9 #1.mp4")
    odd.write_bytes((clips / "clip00.mp4").read_bytes())
    write_results_page(tmp_path / "page.html", ["q"], [[Hit(odd.name, str(odd))]])
    assert "caf\\udce9 #1.mp4" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert video_source(odd, tmp_path / "page.html", embed_bytes=10) == "caf%E9%20%231.mp4"


def test_a_missing_folder_for_the_page_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_results_page(tmp_path / "nowhere" / "page.html", ["q"], [[]])


def test_results_without_a_query_are_no_page(tmp_path):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        write_results_page(tmp_path / "page.html", ["one"], [[], []])
    assert not (tmp_path / "page.html").exists()


def test_small_clips_travel_inside_and_large_ones_are_linked(clips, tmp_path):
    clip = clips / "clip00.mp4"
    assert video_source(clip, tmp_path / "page.html").startswith("data:video/mp4;base64,")
    linked = video_source(clip, tmp_path / "page.html", embed_bytes=10)
    assert (tmp_path / linked).resolve() == clip.resolve()


@pytest.mark.browser
def test_a_browser_plays_from_the_moment(clips, tmp_path):
    from playwright.sync_api import sync_playwright

    hit = Hit(path=str(clips / "clip00.mp4"), start=1.0, end=1.8)
    write_results_page(tmp_path / "page.html", ["q"], [[hit]])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_function("document.querySelector('video').currentTime >= 1")
        browser.close()


def test_a_result_plays_its_own_file_from_where_the_page_lies(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(gallery, "video_source", lambda *words: asked.append(words) or "src")
    hit = SimpleNamespace(video_id="a", path="x/a.mp4", score=0.5, start=None, end=None)
    gallery.write_results_page(tmp_path / "page.html", ["q"], [[hit]])
    assert asked == [("x/a.mp4", tmp_path / "page.html")] and 'src="src"' in (tmp_path / "page.html").read_text()

"""The result page plays each clip at its moment, marks the true one, and escapes what people wrote."""

import pytest

from dmae.visuals.gallery import render_gallery, video_source


def card(**more):
    return {"src": "a.mp4", "label": "a", "score": 0.5, "start": 1.5, "end": 3.0, **more}


def test_cards_carry_moment_score_and_note():
    page = render_gallery(
        [{"query": "a dog", "results": [card(border="true"), card(border="near", note="colour")]}], "T"
    )
    assert page.count('data-start="1.500" data-end="3.000"') == 2
    assert 'class="true"' in page and 'class="near"' in page and ">colour<" in page and "0.500" in page


def test_everything_a_person_wrote_is_escaped():
    evil = "<script>alert(1)</script>"
    page = render_gallery([{"query": evil, "results": [card(label=evil, note=evil)]}], evil)
    assert evil not in page


def test_an_unknown_border_and_an_empty_section():
    with pytest.raises(ValueError, match="'blue'"):
        render_gallery([{"query": "q", "results": [card(border="blue")]}], "T")
    assert "No result." in render_gallery([{"query": "q", "results": []}], "T")


def test_small_clips_travel_inside_and_large_ones_are_linked(clips, tmp_path):
    clip = clips / "clip00.mp4"
    assert video_source(clip, tmp_path / "page.html").startswith("data:video/mp4;base64,")
    linked = video_source(clip, tmp_path / "page.html", embed_bytes=10)
    assert (tmp_path / linked).resolve() == clip.resolve()


@pytest.mark.browser
def test_a_browser_plays_from_the_moment(clips, tmp_path):
    from playwright.sync_api import sync_playwright

    results = [card(src=video_source(clips / "clip00.mp4", tmp_path / "page.html"), start=1.0, end=1.8)]
    (tmp_path / "page.html").write_text(render_gallery([{"query": "q", "results": results}], "T"), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_function("document.querySelector('video').currentTime >= 1")
        browser.close()

"""Numbers reach the place that names them: tables, maps of words and frames, marks of right and near clips."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmae.visuals.demo_report import _answer, _number, _table
from dmae.visuals.matches import Match, word_frame_match
from dmae.visuals.pages import COLOURS, colour, picture_uri, video_source
from dmae.visuals.pictures import Strips, _ink, word_frame_map
from dmae.visuals.plots import PANELS, plot_curves, plot_words_and_frames

METRICS = {
    row: {
        f"{side}_{name}": base + step / 100
        for side, base in (("text_to_video", first), ("video_to_text", first + 0.5))
        for step, name in enumerate(("R@1", "R@5", "R@10", "median_rank", "mean_rank"))
    }
    for row, first in (("random", 0.0), ("before", 0.1), ("after", 0.3))
}


def test_a_table_has_its_direction_s_numbers_before_and_after():
    table = _table(METRICS, "video_to_text", "title")
    assert [row["label"] for row in table["rows"]] == ["random scores", "before training", "after training"]
    assert [row["strong"] for row in table["rows"]] == [False, False, True]
    assert table["rows"][1]["numbers"] == ["60.0", "61.0", "62.0", "0.6", "0.6"]
    assert _table(METRICS, "text_to_video", "t")["rows"][2]["numbers"][0] == "30.0"
    assert (_number("R@10", 0.5), _number("median_rank", 7.0)) == ("50.0", "7.0")


def test_an_answer_marks_the_clip_that_was_asked_for_and_its_near_misses(tmp_path, clips):
    (tmp_path / "a.mp4").write_bytes((clips / "clip00.mp4").read_bytes())
    rows = {name: {"video_id": name, "captions": [f"first {name}", "second"], "near_misses": []} for name in "abc"}
    rows["a"]["near_misses"] = [{"video_id": "b", "attribute": "colour"}]
    rows["c"]["near_misses"] = [{"video_id": "a", "attribute": "motion"}]  # of another: says nothing here
    results = [{"video_id": name, "path": "x/a.mp4", "score": 0.5 - n / 10} for n, name in enumerate("bca")]
    cards = _answer({"query": "q", "row": rows["a"], "results": results}, tmp_path, rows)["cards"]
    assert [card["border"] for card in cards] == ["near", None, "right"]
    assert [card["note"] for card in cards] == ["near miss: colour", "", "the right one"]
    assert [card["caption"] for card in cards] == ["first b", "first c", "first a"]
    assert [card["label"] for card in cards] == ["1. score 0.500", "2. score 0.400", "3. score 0.300"]


PRODUCTS = np.array([[0.1, 0.7, 0.2], [0.9, 0.0, 0.3]])


def a_match():
    return Match(["dog", "runs"], torch.zeros(3, 3, 8, 8, dtype=torch.uint8), [0.5, 1.25, 2.0], PRODUCTS)


def test_the_map_outlines_each_word_s_best_frame_and_shades_by_the_product():
    shown = word_frame_map(a_match())
    assert [word for word, _ in shown["rows"]] == ["dog", "runs"]
    assert [[cell["best"] for cell in cells] for _, cells in shown["rows"]] == [
        [False, True, False],
        [True, False, False],
    ]
    assert [[cell["value"] for cell in cells] for _, cells in shown["rows"]] == PRODUCTS.tolist()
    lowest, highest = shown["rows"][1][1][1], shown["rows"][1][1][0]
    assert (lowest["colour"], highest["colour"]) == (colour(0), colour(1))
    assert (lowest["ink"], highest["ink"]) == ("#fff", "#000")
    assert [_ink(share) for share in (0.0, 0.5, 0.51, 1.0)] == ["#fff", "#fff", "#000", "#000"]
    assert shown["rows"][0][1][2]["colour"] == colour(0.2 / 0.9), "one scale for all words"
    above = word_frame_map(a_match()._replace(products=PRODUCTS + 0.5))
    shades = [[[cell["colour"] for cell in cells] for _, cells in map_["rows"]] for map_ in (shown, above)]
    assert shades[0] == shades[1], "from the lowest product, not from 0"
    assert [seconds for _, seconds in shown["pictures"]] == [0.5, 1.25, 2.0]
    assert colour(0.25) == f"rgb({','.join(map(str, COLOURS[1]))})" and colour(2) == colour(1) != colour(0) == colour(
        -1
    )


def test_a_match_has_a_time_and_a_product_for_every_real_frame(model, processor, clips):
    item = {"video_id": "a", "path": str(clips / "clip03.mp4"), "start": 0.5, "end": 1.5}
    found = word_frame_match(model, processor, "a red square", item)
    clip = processor.feature_extractor.decode(item["path"], 0.5, 1.5)
    assert found.timestamps == list(clip.timestamps) and torch.equal(found.frames, clip.frames)
    assert found.products.shape == (len(found.words), len(clip.frames)) and "".join(found.words) == "aredsquare"
    batch = processor(text=["a red square"], return_tensors="pt")
    text = model.get_text_features(**batch)
    words = text.word_embeds[0, text.word_mask[0]].detach()
    padded = processor.feature_extractor.pad(clip)
    video = model.get_video_features(*(torch.as_tensor(padded[name])[None] for name in ("pixel_values", "video_mask")))
    frames = video.attended_embeds[0, : len(clip.frames)].detach()
    np.testing.assert_allclose(found.products, (words @ frames.T).numpy(), atol=1e-5)


def test_a_strip_is_spread_over_the_clip_s_window(processor, clips):
    item = {"video_id": "a", "path": str(clips / "clip03.mp4"), "start": 1.0, "end": 2.0}
    asked, frames = [], torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 2, 2)

    def decode(path, start, end):
        asked.append((start, end))
        return SimpleNamespace(frames=frames)

    strips = Strips([item], SimpleNamespace(decode=decode), 3)
    shown = strips[0]
    whole = Strips([item], SimpleNamespace(decode=decode), 12)[0]
    assert whole == [picture_uri(frame) for frame in frames]
    assert shown == [whole[0], whole[4], whole[8]] and strips[0] is shown and asked == [(1.0, 2.0)] * 2


@pytest.mark.parametrize("kind", ["curves", "words"])
def test_pictures_draw_each_series_at_its_steps(tmp_path, monkeypatch, kind):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: (drawn.append(self), path.write_bytes(b"x")))
    if kind == "words":
        plot_words_and_frames("a dog", a_match(), tmp_path / "x.png")
        top, below = drawn[0].axes[:2]
        ring = below.collections[0].get_offsets().tolist()
        assert ring == [[1, 0], [0, 1]] and top.get_title() == "“a dog”"
        assert [tick.get_text() for tick in below.get_xticklabels()] == ["0.5 s", "1.2 s", "2.0 s"]
        return
    rows = [
        {"step": 2, "loss": 3.0, "contrastive": 2.0},
        {"step": 4, "loss": 1.0},
        {"step": 4, "text_to_video_R@1": 0.5},
    ]
    plot_curves(rows, tmp_path / "x.png")
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert set(panels) == {title for title in PANELS if "negatives" not in title}
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels["loss"].lines}
    assert lines == {"loss": [[2, 3], [4, 1]], "contrastive": [[2, 2]]}
    plot_curves([{"step": 1, "other": 2.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_clip_s_source_is_itself_while_small_and_else_the_way_to_it(tmp_path):
    (tmp_path / "pages").mkdir()
    kinds = {"a.webm": "video/webm", "b.MOV": "video/mp4", "c.m4v": "video/mp4", "d.mp4": "video/mp4", "e": "video/mp4"}
    for name, kind in kinds.items():
        (tmp_path / name).write_bytes(b"abc")
        source = video_source(tmp_path / name, tmp_path / "pages" / "page.html", embed_bytes=3)
        assert source == f"data:{kind};base64,YWJj"
    assert video_source(tmp_path / "a.webm", tmp_path / "pages" / "page.html", embed_bytes=2) == "../a.webm"
    assert video_source(tmp_path / "no ne?.mp4", tmp_path / "page.html") == "no%20ne%3F.mp4"

"""How large a picture is, what is drawn at which place, what judges agree on, and where clips of any size play from."""

from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from jinja2 import UndefinedError

from dmae.visuals import demo_report, hard_negatives, matches, pages, pictures, plots
from dmae.visuals.hard_negatives import HardNegative, agreement, read_csv, write_csv
from dmae.visuals.matches import Match, pieces


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved, each with the options of its saving."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def savefig(figure, path, **options):
        figures.append((figure, options))
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def size_of(path: Path) -> tuple[int, int]:
    with av.open(str(path)) as picture:
        return picture.streams.video[0].width, picture.streams.video[0].height


def test_curves_are_three_panels_of_their_own_scale(drawn, tmp_path):
    rows = [{"step": 50 * step, "loss": 1.0 / (1 + step), "contrastive": 0.5} for step in range(30)]
    rows += [{"step": 150, "hard_negative_share": 0.25}, {"step": 1450, "video_to_text_R@10": 0.5}]
    del rows[7]["contrastive"]
    plots.plot_curves(rows, tmp_path / "curves.png")
    ((figure, options),) = drawn
    assert options == {"dpi": 120, "format": "png"} and size_of(tmp_path / "curves.png") == (1800, 420)
    loss, share, recall = figure.axes
    assert loss.get_position().x0 < share.get_position().x0 < recall.get_position().x0
    assert [axes.get_title() for axes in figure.axes] == list(plots.PANELS)
    assert {axes.get_xlabel() for axes in figure.axes} == {"step"}
    for axes in figure.axes:
        assert axes.get_ylim()[0] == 0 and axes.xaxis.get_major_locator()._integer is True
        assert axes.xaxis.get_gridlines()[0].get_alpha() == 0.3 and axes.xaxis.get_gridlines()[0].get_visible()
        assert axes.get_legend().get_texts()[0].get_fontsize() == 8
    lines = {
        line.get_label(): (len(line.get_xdata()), line.get_marker()) for axes in figure.axes for line in axes.lines
    }
    assert lines == {
        "loss": (30, ""), "contrastive": (29, "."), "hard negative share": (1, "."), "video→text R@10": (1, "."),
    }  # fmt: skip
    contrastive = next(line for line in loss.lines if line.get_label() == "contrastive")
    assert contrastive.get_xdata().tolist() == [50 * step for step in range(30) if step != 7], "steps, not rows"


def test_words_stand_beside_their_products_below_their_frames(drawn, tmp_path):
    frames = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 2) * 100
    products = np.array([[0.1, 0.7, 0.2], [0.9, 0.0, 0.3]])
    plots.plot_words_and_frames("a dog", Match(["dog", "runs"], frames, [0.5, 1.25, 2.0], products), tmp_path / "w.png")
    ((figure, options),) = drawn
    assert options == {"dpi": 110, "format": "png"}
    assert size_of(tmp_path / "w.png") == (int(110 * (1.1 * 3 + 1.2)), int(110 * (0.28 * 2 + 1.8)))
    top, below, bar = figure.axes
    shown = top.get_images()[0].get_array()
    assert shown.shape == (4, 6, 3) and shown[0, :, 0].tolist() == [0, 0, 100, 100, 200, 200]
    assert top.get_title() == "“a dog”" and top.title.get_fontsize() == 10 and not top.axison
    assert below.get_images()[0].get_array().tolist() == products.tolist()
    assert [tick.get_text() for tick in below.get_yticklabels()] == ["dog", "runs"]
    assert below.get_yticks().tolist() == [0, 1] and below.get_xticks().tolist() == [0, 1, 2]
    ring = below.collections[0]
    assert ring.get_sizes().tolist() == [40] and ring.get_linewidths().tolist() == [2]
    assert len(ring.get_facecolors()) == 0 and below.get_gridspec().get_height_ratios() == [1, 0.56]
    assert bar.get_position().height < below.get_position().height


# ---------------------------------------------------------------------- judgements


def pair(number: int, verdict: str = "") -> HardNegative:
    return HardNegative(f"c{number}", "r", "w", 0.5, 0.75, 0.25, "colour", verdict)


def test_agreement_is_fleiss_kappa_over_pairs_that_several_judged():
    """By hand: 3 judges; pair 0: w w r, pair 1: w w, pair 2: u r, pair 3: w alone."""
    judges = [
        [pair(0, "wrong"), pair(1, "wrong"), pair(2, "unsure"), pair(3, "wrong")],
        [pair(0, "wrong"), pair(1, "wrong"), pair(2, "right"), pair(3)],
        [pair(0, "right"), pair(4)],
    ]
    observed = (1 / 3 + 1 + 0) / 3
    chance = (4 / 7) ** 2 + (2 / 7) ** 2 + (1 / 7) ** 2
    assert agreement(judges) == {
        "judged": 4, "really_wrong": pytest.approx(5 / 7), "also_right": pytest.approx(2 / 7),
        "agreement": pytest.approx(observed), "kappa": pytest.approx((observed - chance) / (1 - chance)),
    }  # fmt: skip
    nothing = {"judged": 1, "really_wrong": None, "also_right": None, "agreement": 1.0, "kappa": None}
    assert agreement([[pair(0, "unsure")], [pair(0, "unsure")]]) == nothing
    assert agreement([]) == {**nothing, "judged": 0, "agreement": None}


def test_a_judge_s_file_is_read_as_a_spreadsheet_leaves_it(tmp_path):
    file = tmp_path / "pairs.csv"
    write_csv([pair(0, "right"), pair(1)], file)
    lines = file.read_text().splitlines()
    assert lines[0] == "caption,right_video,wrong_video,right_score,wrong_score,margin,differs_in,verdict"
    assert lines[1] == "c0,r,w,0.5,0.75,0.25,colour,right" and len(lines) == 3
    file.write_text("\ufeff" + "\n".join([lines[0] + ",", lines[1].replace("right", " WRONG ") + ",", lines[2] + ","]))
    assert read_csv(file) == [pair(0, "wrong"), pair(1)]
    file.write_text("\n".join([lines[0], lines[1], lines[2].replace("0.75", "much")]))
    with pytest.raises(ValueError, match=r"pairs\.csv, line 3: not a pair of this report \("):
        read_csv(file)


def test_the_best_wrong_video_of_each_caption_counts_and_ties_keep_their_order():
    scores = np.array([[0.5, 0.25, 0.0], [0.75, 0.25, 0.5], [0.5, 0.75, 0.25]], dtype=np.float32)
    items = [{"video_id": name} for name in "abc"]
    found = hard_negatives.hard_negatives(scores, np.array([0, 1, 2]), items, ["x", "y", "z"])
    assert [(p.caption, p.right_video, p.wrong_video, p.right_score, p.wrong_score, p.margin) for p in found] == [
        ("y", "b", "a", 0.25, 0.75, 0.5), ("z", "c", "b", 0.25, 0.75, 0.5), ("x", "a", "b", 0.5, 0.25, -0.25),
    ]  # fmt: skip
    assert all(p.differs_in == p.verdict == "" for p in found) and scores[0, 0] == 0.5, "the caller's are left alone"
    assert len(hard_negatives.hard_negatives(scores, np.array([0, 1, 2]), items, ["x", "y", "z"], limit=1)) == 1
    assert len(hard_negatives.hard_negatives(scores[:, :2], np.array([0, 1, 0]), items[:2], ["x", "y", "z"])) == 3
    with pytest.raises(ValueError, match="two videos at least"):
        hard_negatives.hard_negatives(scores[:, :1], np.array([0, 0, 0]), items[:1], ["x", "y", "z"])


def test_a_clip_plays_from_the_page_or_from_where_it_lies(tmp_path, monkeypatch):
    clip = tmp_path / "a b.MP4"
    clip.write_bytes(b"abc")
    play = hard_negatives._playable
    assert play({"path": str(clip)}) == "data:video/mp4;base64,YWJj"
    assert play({"path": str(clip), "start": 1.5, "end": 3.0}).endswith("YWJj#t=1.5,3.0")
    assert play({"path": str(clip), "start": 0.0}).endswith("#t=0.0,")
    monkeypatch.setattr(hard_negatives, "EMBED_BYTES", 3)
    assert play({"path": str(clip)}).startswith("data:")
    monkeypatch.setattr(hard_negatives, "EMBED_BYTES", 2)
    assert play({"path": str(clip), "start": 1.0}) == clip.resolve().as_uri() + "#t=1.0,"
    assert play({"path": "a.avi"}) is None and play({"video": b"x"}) is None


# ---------------------------------------------------------------------- pages


def test_a_page_is_written_whole_or_refused(tmp_path, monkeypatch):
    rendered = []
    monkeypatch.setattr(pages, "render", lambda template, **values: rendered.append((template, values)) or "é\udce9")
    assert pages.write_page(str(tmp_path / "p.html"), "t.html", a=1) == tmp_path / "p.html"
    assert (tmp_path / "p.html").read_bytes() == "é\\udce9".encode() and rendered == [("t.html", {"a": 1})]
    with pytest.raises(FileNotFoundError, match="none: no such folder for the page p"):
        pages.write_page(tmp_path / "none" / "p", "t.html")
    made = pages.environment.__wrapped__()
    assert made.from_string("  {% if a %}\n{{ a }}\n  {% endif %}\n").render(a="<b>") == "&lt;b&gt;\n"
    for name in ("base.css", "style.css", "playing.js", "judging.js"):
        assert made.globals[name.split(".")[0]].__html__() == (pages.TEMPLATES / name).read_text(encoding="utf-8")
    with pytest.raises(UndefinedError, match="'a' is undefined"):
        made.from_string("{{ a }}").render()
    stops = [f"rgb({red},{green},{blue})" for red, green, blue in pages.COLOURS]
    assert pages.gradient() == f"linear-gradient(to right,{','.join(stops)})"
    assert pages.colour(0.125) == "rgb(32,54,92)" and pages.colour(0.875) == "rgb(221,204,91)"


def test_the_demo_s_report_is_of_its_own_folder(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(demo_report, "write_page", lambda *words, **named: asked.append((words, named)) or "the page")
    monkeypatch.setattr(demo_report, "_answer", lambda *words: words)
    monkeypatch.setattr(demo_report, "_table", lambda metrics, direction, title: (direction, title))
    metrics, rows = {"after": {"gallery_size": 17}, "near_miss": {"colour": 0.5}}, [{"video_id": "a"}]
    assert demo_report.write_report(tmp_path, metrics, ["answer"], rows) == "the page"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curves.png").write_bytes(b"abc")
    demo_report.write_report(tmp_path, metrics, [], rows)
    (words, named), (_, later) = asked
    assert words == (tmp_path / "report.html", "demo_report.html") and named == {
        "title": "DMAE demo", "gallery_size": 17, "columns": ["R@1", "R@5", "R@10", "MdR", "MnR"],
        "tables": [("text_to_video", "text → video"), ("video_to_text", "video → text")],
        "near_misses": {"colour": 0.5}, "curves": None,
        "answers": [("answer", tmp_path / "corpus" / "test", {"a": rows[0]})],
    }  # fmt: skip
    assert later["curves"] == "data:image/png;base64,YWJj"


def test_a_frame_s_tokens_are_a_grid_with_its_own_beside_it():
    frame = torch.zeros(3, 4, 4, dtype=torch.uint8)
    patches = SimpleNamespace(temporal_input="patch", patches_in_frame=4)
    found = SimpleNamespace(
        frames=[frame, frame], positions=torch.tensor([0, 2, 5, 6, 9]),  # frame 0: own, patch 1; 1: own, patches 0, 3
        weights=torch.tensor([0.1, 0.2, 0.4, 0.05, 0.25]), masked=torch.tensor([True, False, False, True, False]),
    )  # fmt: skip
    grid = pictures._token_grid(patches, found, 1)
    assert (grid["side"], grid["label"], grid["masked"]) == (2, "[CLS] 0.400", False)
    assert [cell and cell["masked"] for cell in grid["cells"]] == [True, None, None, False]
    assert grid["cells"][3]["colour"] == pages.colour(0.625) and grid["cells"][0]["colour"] == pages.colour(0.125)
    first = pictures._token_grid(patches, found, 0)
    assert (first["masked"], first["label"]) == (True, "[CLS] 0.100")
    assert [cell is not None for cell in first["cells"]] == [False, True, False, False]
    whole = SimpleNamespace(temporal_input="frame", patches_in_frame=4)
    found.positions, found.weights, found.masked = (
        torch.arange(2),
        torch.tensor([0.25, 0.5]),
        torch.tensor([True, False]),
    )
    grid = pictures._token_grid(whole, found, 0)
    assert (grid["side"], grid["label"], grid["masked"]) == (1, "frame 0.250", True)
    assert grid["cells"] == [{"colour": pages.colour(0.5), "masked": True}]


def test_each_query_has_its_best_videos_by_each_model(monkeypatch):
    monkeypatch.setattr(pictures, "Strips", lambda items, sampler, count: {n: [f"{n} of {count}"] for n in range(3)})
    monkeypatch.setattr(pictures, "render", lambda template, **values: (template, values))
    items = [{"video_id": name} for name in "abc"]
    scores = {"ours": np.array([[0.5, 0.9, 0.5]]), "theirs": np.array([[0.1, 0.2, 0.3]])}
    template, shown = pictures.side_by_side_page(["q"], [2], items, scores, None, top_k=2, frames_shown=5)
    assert (template, shown["title"]) == ("side_by_side.html", "The top 2 of ours and theirs")

    def card(number, score):
        return {"right": number == 2, "score": score, "pictures": [f"{number} of 5"], "video_id": "abc"[number]}

    assert shown["queries"] == [{"text": "q", "models": [
        {"name": "ours", "rank": 2, "cards": [card(1, 0.9), card(0, 0.5)]},
        {"name": "theirs", "rank": 1, "cards": [card(2, 0.3), card(1, 0.2)]},
    ]}]  # fmt: skip
    with pytest.raises(ValueError, match=r"shorter|longer"):
        pictures.side_by_side_page(["q"], [2, 1], items, scores, None)


def test_a_pair_s_report_shows_its_own_video_and_the_model_s(monkeypatch):
    monkeypatch.setattr(
        hard_negatives, "Strips", lambda items, sampler, count: {n: [n, sampler, count] for n in (0, 1)}
    )
    monkeypatch.setattr(hard_negatives, "_playable", lambda item: item["video_id"].upper())
    monkeypatch.setattr(hard_negatives, "render", lambda template, **values: (template, values))
    items = [{"video_id": "w"}, {"video_id": "r"}]
    template, shown = hard_negatives.report_page([pair(0)], items, "sampler")
    told = vars(pair(0))
    own = {"right": True, "label": "its own", "score": 0.5, "video_id": "r", "src": "R", "pictures": [1, "sampler", 4]}
    wrong = {"right": False, "label": "the model's", "score": 0.75, "video_id": "w", "src": "W"}
    assert (template, shown) == ("hard_negatives.html", {
        "title": "Hardest wrong matches", "data": [told], "verdicts": hard_negatives.VERDICTS,
        "pairs": [told | {"cards": [own, wrong | {"pictures": [0, "sampler", 4]}]}],
    })  # fmt: skip


@pytest.mark.parametrize("caption", ["a red square moves left and a green circle " * 9, "a </s> dog", "a  dog"])
def test_the_pieces_are_those_that_the_model_reads(processor, caption):
    """Cut off where the model cuts; what looks like a token of the model's own is a person's text."""
    shown = pieces(processor, caption)
    assert caption.startswith("".join(shown)) and all(shown)
    assert len(shown) == int(processor(text=[caption], return_tensors="pt")["word_mask"].sum())


def test_one_vector_of_a_window_stands_under_its_middle_frame(model, processor, clips, monkeypatch):
    item = {"video_id": "a", "path": str(clips / "clip03.mp4")}
    whole = matches.word_frame_match(model, processor, "a dog", item)
    model = SimpleNamespace(
        config=SimpleNamespace(sees_windows=True), device=model.device,
        get_text_features=model.get_text_features, get_video_features=lambda **words: None,
    )  # fmt: skip
    monkeypatch.setattr(
        matches, "word_frame_products", lambda text, video: torch.ones(1, 1, text.word_mask.shape[1], 1)
    )
    found = matches.word_frame_match(model, processor, "a dog", item)
    middle = len(whole.frames) // 2
    assert found.timestamps == [whole.timestamps[middle]] and torch.equal(found.frames[0], whole.frames[middle])
    assert len(found.frames) == 1 and found.products.shape == (len(whole.words), 1)

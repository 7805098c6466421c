"""What the Space's page answers to clips and sentences, from `app.py` as it is, in this process."""

import base64
import html
import io
import os
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dmae import DMAEForTextVideoRetrieval, DMAEProcessor

gradio = pytest.importorskip("gradio")
APP = Path(__file__).resolve().parents[2] / "hub_cards" / "space" / "app.py"
SENTENCES = ["a red square moves left", "the sky is blue & <b>wide</b>"]


@pytest.fixture(scope="session")
def app(model_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMAE_MODEL", str(model_folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        return SimpleNamespace(**runpy.run_path(str(APP), run_name="app"))


class Answer(HTMLParser):
    """An answer's headings, alerts, and for each clip what is shown of it."""

    def __init__(self, page: str):
        super().__init__()
        self.headings, self.alerts, self.clips, self.inside = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("img",):
            self.inside.append((tag, attributes))
        if tag == "h3":
            self.clips.append([])
        if tag == "li":
            self.clips[-1].append({"texts": [], "heads": [], "rows": [], "images": []})
        clip = self.clips[-1][-1] if self.clips and self.clips[-1] else None
        if tag == "details":
            clip["open"] = "open" in attributes
        if attributes.get("class") == "bar":
            clip["width"] = attributes["style"]
        if tag == "img":
            clip["images"].append((attributes["src"], attributes["alt"]))
        if tag == "th" and attributes["scope"] == "col":
            clip["heads"].append(["best" in attributes.get("class", ""), ""])
        if tag == "tr":
            clip["rows"].append([])
        if tag == "td" and "style" in attributes:
            clip["rows"][-1].append([attributes["style"], ""])

    def handle_endtag(self, tag):
        assert self.inside.pop()[0] == tag, "every tag is closed"

    def handle_data(self, data):
        tag, attributes = self.inside[-1]
        if tag == "h3":
            self.headings.append(data)
        elif attributes.get("role") == "alert":
            self.alerts.append(data)
        elif tag in ("strong", "span"):
            self.clips[-1][-1]["texts"].append(data)
        elif tag == "th" and attributes["scope"] == "col":
            self.clips[-1][-1]["heads"][-1][1] += data
        elif tag in ("th", "small"):
            self.clips[-1][-1]["rows"][-1].append(data)
        elif tag == "td":
            self.clips[-1][-1]["rows"][-1][-1][1] += data


def test_a_page_has_every_clip_in_order_with_its_moment_and_map(app, model_folder, clips, tmp_path):
    broken = tmp_path / "<i>broken.mp4"
    broken.write_text("#EXTM3U")
    files = [str(path) for path in clips.values()]
    page = app.search([files[0], str(broken), *files[1:]], "\n".join(["", *SENTENCES, " "]))
    shown = Answer(page)
    assert shown.headings == [f"“{sentence}”" for sentence in SENTENCES] and not shown.inside
    assert shown.alerts == ["Left out: <i>broken.mp4: is not an MP4, MOV, MKV, WebM or AVI file."]
    assert str(tmp_path) not in page and "<b>" not in page and page.startswith("<div class='found'><p role='alert'>")

    model = DMAEForTextVideoRetrieval.from_pretrained(model_folder).eval()
    processor = DMAEProcessor.from_pretrained(model_folder)
    words = processor(text=SENTENCES, return_tensors="pt")
    frames = processor(videos=files, return_timestamps=True, return_tensors="pt")
    times = frames.pop("timestamps")
    with torch.no_grad():
        output = model(**words, **frames, return_loss=False, output_explanation=True)
    scores = output.logits_per_text / model.logit_scale.exp()
    for i, row in enumerate(scores):
        order = row.argsort(descending=True).tolist()
        low, high = min(row.min().item(), 0), row.max().item()
        for place, (j, clip) in enumerate(zip(order, shown.clips[i], strict=True)):
            real, seen = words["word_mask"][i], frames["video_mask"][j]
            map_ = output.word_frame_similarities[i, j][real][:, seen].numpy()
            best = int((output.word_weights[i][real].numpy() @ map_).argmax())
            stamps = [f"0:{time:04.1f}" for time in times[j][seen].tolist()]
            name = f"{place + 1}. {list(clips)[j]}.mp4"
            assert clip["texts"] == [name, f"score {row[j]:.3f} · best at {stamps[best]}"]
            assert clip["open"] == (place == 0)
            assert clip["width"] == f"width:{100 * (row[j].item() - low) / (high - low):.0f}%"
            assert clip["heads"] == [[number == best, stamp] for number, stamp in enumerate(stamps)]
            pictures, alts = zip(*clip["images"])
            assert alts == tuple(f"frame at {stamp}" for stamp in (stamps[best], *stamps))
            assert pictures == (pictures[1 + best], *app.thumbnails(frames["pixel_values"][j][seen]))
            rows = clip["rows"][1:]
            pieces = [processor.tokenizer.decode([token]).strip(" Ġ") for token in words["input_ids"][i][real]]
            weights = output.word_weights[i][real].tolist()
            assert [cells[0].strip() for cells in rows] == pieces
            assert [cells[1] for cells in rows] == [f"{weight:.0%}" for weight in weights]
            assert [[value for _, value in cells[2:]] for cells in rows] == [
                [f"{v:.2f}" for v in line] for line in map_
            ]
            shades = (map_ - map_.min()) / (map_.max() - map_.min())
            assert [[style for style, _ in cells[2:]] for cells in rows] == [
                [app.colours(share) for share in line] for line in shades
            ]


def test_bars_start_at_nothing_or_at_the_worst_and_equals_keep_their_order(app):
    def widths(*scores):
        names = [f"{number}<" for number in range(len(scores))]
        maps = [(f"0:0{number}.0", "data:p", "table") for number in range(len(scores))]
        page = app.section("a & b", torch.tensor(scores), maps, names)
        assert page.startswith("<h3>“a &amp; b”</h3><ol><li>") and page.endswith("</li></ol>")
        return [
            (name, int(width))
            for name, width in zip(re.findall(r"\d\. (\d)&lt;", page), re.findall(r"width:(\d+)%", page), strict=True)
        ]

    assert widths(0.25, 0.5) == [("1", 100), ("0", 50)]
    assert widths(-0.5, 0.5, 0.0) == [("1", 100), ("2", 50), ("0", 0)]
    assert widths(-0.5, -0.25) == [("1", 50), ("0", 0)]
    assert widths(2.0, 4.0, 4.0, 1.0, 4.0) == [("1", 100), ("2", 100), ("4", 100), ("0", 50), ("3", 25)]
    assert widths(0.0, 0.0) == [("0", 0), ("1", 0)]


def test_the_map_weighs_words_for_the_best_frame_and_shades_from_its_own_least(app):
    output = SimpleNamespace(
        video_mask=torch.tensor([[True, True, False]]),
        word_frame_similarities=torch.tensor([[[[9.0, 9, 9], [0.0, 1.0, 9], [0.75, 0.25, 9]]]]),
        word_weights=torch.tensor([[9.0, 0.25, 0.75]]),
    )
    words = {"word_mask": torch.tensor([[False, True, True]]), "input_ids": torch.tensor([[0, 70, 71]])}
    moment, picture, table = app.clip_map(output, words, torch.tensor([[1.0, 75.5, 9]]), [["p0", "p1"]], 0, 0)
    assert (moment, picture) == ("0:01.0", "p0") and re.findall(r"alt='([^']*)'>([^<]*)<", table) == [
        ("frame at 0:01.0", "0:01.0"), ("frame at 1:15.5", "1:15.5"),
    ]  # fmt: skip
    assert re.findall("(scope='col'[^>]*)>", table) == ["scope='col' class=best", "scope='col'"]
    assert re.findall("<td style='([^']*)'>([^<]*)<", table) == [
        (app.colours(0), "0.00"), (app.colours(1), "1.00"), (app.colours(0.75), "0.75"), (app.colours(0.25), "0.25"),
    ]  # fmt: skip
    assert re.findall("<small>([^<]*)<", table) == ["25%", "75%"] and table.count("</tr>") == 3
    output.word_frame_similarities = torch.full((1, 1, 3, 3), 0.5)
    assert app.clip_map(output, words, torch.ones(1, 3), [["p0", "p1"]], 0, 0)[2].count(app.colours(0)) == 4
    light, dark = "background:hsl(226 75% 96%);color:#111", "background:hsl(226 75% 38%);color:#fff"
    assert (app.colours(0), app.colours(1)) == (light, dark) and app.colours(0.5).endswith("67%);color:#111")


def test_pictures_are_the_frames_as_they_were(app):
    levels = [-0.02, 0.0, 0.5, 1.0, 1.02]  # a decoder's rounding goes a little beyond black and white
    frames = torch.tensor(levels)[:, None, None, None].expand(-1, 3, 32, 48).clone()
    frames[2, 0] = 1.0
    mean, std = (torch.tensor(values)[:, None, None] for values in (app.sampler.image_mean, app.sampler.image_std))
    shown = app.thumbnails((frames - mean) / std)
    pixels = []
    for picture in shown:
        kind, _, data = picture.partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (kind, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", (96, 96))
        pixels.append(np.asarray(image)[48, 48].tolist())
    assert [pixels[0], pixels[1], *pixels[3:]] == [[0] * 3, [0] * 3, [255] * 3, [255] * 3]
    np.testing.assert_allclose(pixels[2], [255, 127, 127], atol=2)


def test_one_vector_of_a_window_is_shown_at_its_middle_frame(app, clips, monkeypatch):
    """As video towers give it: a single column, whatever the number of frames."""

    class Windows:
        logit_scale = torch.tensor(0.0)

        def __call__(self, pixel_values, video_mask, return_loss, output_explanation, **words):
            assert not return_loss and output_explanation and torch.is_inference_mode_enabled()
            rows, count = len(words["input_ids"]), len(pixel_values)
            return SimpleNamespace(
                logits_per_text=torch.arange(count).float().flip(0)[None].expand(rows, -1),
                video_mask=torch.ones(count, 1, dtype=torch.bool),
                word_frame_similarities=torch.ones(rows, count, words["input_ids"].shape[1], 1),
                word_weights=torch.ones(words["input_ids"].shape),
            )

    monkeypatch.setitem(app.search.__globals__, "model", Windows())
    files = [str(path) for path in clips.values()][:2]
    (found,) = Answer(app.search(files, "a dog")).clips
    for file, clip in zip(files, found, strict=True):
        frames = app.read(file)
        times, mask = frames["timestamps"][0], frames["video_mask"][0]
        middle = int(mask.sum()) // 2
        assert clip["heads"] == [[True, f"0:{times[middle]:04.1f}"]] and middle
        assert clip["images"][1][0] == app.thumbnails(frames["pixel_values"][0][mask])[middle]


def test_what_cannot_be_searched_is_refused_with_its_reason(app, clips, tmp_path):
    file = str(clips["red"])
    least, most = "Add at least one clip and one sentence.", "At most 8 clips, 5 sentences and 300 characters each."
    for files, sentences, said in (
        (None, "a", least), ([], "a", least), ([file], None, least), ([file], " \n ", least),
        ([file] * 9, "a", most), ([file], "a\n" * 6, most), ([file], "a\n" + "b" * 301, most),
    ):  # fmt: skip
        with pytest.raises(gradio.Error) as refused:
            app.search(files, sentences)
        assert refused.value.message == said
    for name, content in (("a.mp4", b""), ("b.avi", b"RIFF0000WAVE"), ("c.mp4", b"0000ftyp")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(gradio.Error) as refused:
        app.search([str(tmp_path / name) for name in ("a.mp4", "b.avi", "c.mp4")], "a")
    said = refused.value.message
    assert said.startswith("Left out: a.mp4: is not an MP4, MOV, MKV, WebM or AVI file. Left out: b.avi: is not an MP4")
    assert ". Left out: c.mp4: " in said and "c.mp4: is not" not in said and str(tmp_path) not in said

    def wordless(text=None, videos=None, **options):
        if text is not None:
            raise ValueError("no word in it")
        return processor(videos=videos, **options)

    processor = app.processor
    with pytest.MonkeyPatch.context() as patch, pytest.raises(gradio.Error, match="no word in it"):
        patch.setitem(app.search.__globals__, "processor", wordless)
        app.search([file], "…")
    shown = Answer(app.search([file] * 8, "\n".join(["b" * 300] * 5)))
    assert [len(clips) for clips in shown.clips] == [8] * 5


def test_examples_are_the_folder_s_clips_and_the_first_two_captions(app, tmp_path, monkeypatch):
    monkeypatch.setitem(app.examples.__globals__, "EXAMPLES", str(tmp_path))
    assert app.examples() == ([], "")
    (tmp_path / "captions.txt").write_text("one\n\n two \nthree\n")
    for name in ("b.mp4", "a.mp4", "c.txt", *(f"{number}.mp4" for number in range(7))):
        (tmp_path / name).touch()
    names = [*(f"{number}.mp4" for number in range(7)), "a.mp4"]
    assert app.examples() == ([os.path.join(tmp_path, name) for name in names], "one\ntwo")
    assert html.escape(app.MODEL) in app.INTRODUCTION and "deleted within 60 minutes" in app.INTRODUCTION

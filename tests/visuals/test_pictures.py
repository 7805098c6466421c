"""Pages carry what they claim to show, load nothing from elsewhere, and survive hostile captions."""

import base64
import csv
import io
import re

import av
import numpy as np
import pytest
import torch

from dmae import DMAEConfig, DMAEForTextVideoRetrieval, DMAEProcessor, FrameSampler
from dmae.visuals.hard_negatives import agreement, hard_negatives, read_csv, report_page, write_csv
from dmae.visuals.pages import picture_uri
from dmae.visuals.pictures import masked_tokens_page, side_by_side_page, word_frame_page

HOSTILE = "</script><img src=x onerror=alert(1)> & a \"red\" square, 'moves'"


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Three clips in colours of their own."""
    folder, items = tmp_path_factory.mktemp("clips"), []
    for name, colour in (("red", (250, 0, 0)), ("green", (0, 250, 0)), ("blue", (0, 0, 250))):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(16):
                image = np.full((48, 64, 3), colour, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        items.append({"video_id": f"<{name}>", "video": str(folder / f"{name}.mp4")})
    return items


def assert_self_contained(page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "http" not in page and page.count("<html") == page.count("</html>") == 1


def test_a_png_holds_the_pixels_it_was_given():
    frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8))
    kind, _, data = picture_uri(frame).partition(",")
    assert kind == "data:image/png;base64"
    with av.open(io.BytesIO(base64.b64decode(data))) as container:
        (found,) = container.decode(video=0)
    np.testing.assert_array_equal(found.to_ndarray(format="rgb24"), frame.permute(1, 2, 0).numpy())


def test_side_by_side_marks_the_right_video_and_its_rank(items, processor):
    scores = {"ours": np.array([[0.9, 0.5, 0.1]]), "theirs": np.array([[0.1, 0.5, 0.9]])}
    page = side_by_side_page([HOSTILE], [0], items, scores, processor.feature_extractor, top_k=2)
    assert_self_contained(page)
    assert "onerror=alert(1)>" not in page and "&lt;red&gt;" in page
    ours, theirs = page.split('<div class="name">')[1:]
    assert "rank 1" in ours and ours.count('<figure class="right"') == 1
    assert "rank 3" in theirs and theirs.count('<figure class="right"') == 0


def test_the_word_frame_map_has_a_row_per_piece_and_one_best_frame_each(items, model, processor):
    caption = "a red square moves left"
    page = word_frame_page(model, processor, [(caption, items[0])])
    assert_self_contained(page)
    batch = processor(text=[caption], return_tensors="pt")
    pieces = int(batch["word_mask"].sum())
    assert page.count('class="best"') == pieces == page.count("<tr>") - 1


@pytest.mark.parametrize("temporal_input", ["frame", "patch"])
def test_masked_tokens_are_those_the_model_masks(items, tokenizer, temporal_input):
    torch.manual_seed(0)
    config = DMAEConfig.tiny(temporal_init="random", temporal_input=temporal_input, mask_ratio=0.5)
    config.text_config.vocab_size = len(tokenizer)
    model = DMAEForTextVideoRetrieval(config).eval()
    sampler = FrameSampler(num_frames=config.max_frames, size=config.vision_config.image_size, fps=2)
    processor = DMAEProcessor(tokenizer, sampler, max_words=config.max_words)
    caption = "a red square moves left"
    page = masked_tokens_page(model, processor, [(caption, items[0])])
    assert_self_contained(page)
    batch = processor(text=[caption], videos=[items[0]["video"]], return_tensors="pt")
    text, _, tokens = model.encode_pairs(**batch)
    _, words_kept, _, visual_kept = model.partial_order_masks(text, tokens)
    per_frame = 1 if temporal_input == "frame" else 1 + config.patches_in_frame
    own_token = tokens.positions % per_frame == 0
    masked_words = int((~words_kept & tokens.text_mask).sum())
    masked_frames = int((~visual_kept & tokens.visual_mask & own_token).sum())
    cells = int((~visual_kept & tokens.visual_mask & (~own_token if per_frame > 1 else own_token)).sum())
    assert masked_words > 0 and masked_frames + cells > 0
    assert page.count("<s>") == masked_words + masked_frames
    assert page.count('<i class="masked"') == cells
    assert caption in re.sub("<.*?>", "", page)


def test_a_model_without_partial_order_has_nothing_masked_to_show(items, model, processor):
    with pytest.raises(ValueError, match="partial_order=False"):
        masked_tokens_page(model, processor, [("a red square", items[0])])


@pytest.fixture
def pairs(items):
    similarities = np.array([[0.5, 0.6, 0.1], [0.2, 0.9, 0.3], [0.8, 0.1, 0.4]])
    captions = [HOSTILE, "a green square", "a blue square"]
    known = {("<blue>", "<red>"): "colour"}
    return hard_negatives(similarities, np.arange(3), items, captions, 2, lambda *ids: known.get(ids))


def test_the_hardest_pairs_come_first_with_what_differs(pairs):
    assert [(pair.right_video, pair.wrong_video, pair.differs_in) for pair in pairs] == [
        ("<blue>", "<red>", "colour"),
        ("<red>", "<green>", ""),
    ]
    assert [pair.margin for pair in pairs] == pytest.approx([0.4, 0.1])


def test_the_report_plays_both_and_keeps_captions_inert(pairs, items, processor):
    page = report_page(pairs, items, processor.feature_extractor)
    assert page.count("<video") == 4 and page.count('type="radio"') == 6
    assert page.count("</script>") == 1 and "differs in: colour" in page
    assert_self_contained(page)


def test_pairs_survive_the_csv_and_verdicts_are_checked(pairs, tmp_path):
    pairs[0].verdict = "right"
    write_csv(pairs, tmp_path / "pairs.csv")
    assert read_csv(tmp_path / "pairs.csv") == pairs
    text = (tmp_path / "pairs.csv").read_text(encoding="utf-8")
    (tmp_path / "bad.csv").write_text(text.replace(",right\n", ",maybe\n").replace(",right\r\n", ",maybe\r\n"))
    with pytest.raises(ValueError, match="line 2: verdict 'maybe'"):
        read_csv(tmp_path / "bad.csv")
    with open(tmp_path / "other.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], ["1", "2"]])
    with pytest.raises(ValueError, match="not a pair of this report"):
        read_csv(tmp_path / "other.csv")


def judged(pairs, *verdicts):
    return [type(pair)(**{**vars(pair), "verdict": verdict}) for pair, verdict in zip(pairs, verdicts)]


def test_agreement_of_judges(pairs):
    same = agreement([judged(pairs, "wrong", "right"), judged(pairs, "wrong", "right")])
    assert same == {"judged": 2, "really_wrong": 0.5, "also_right": 0.5, "agreement": 1.0, "kappa": 1.0}
    opposed = agreement([judged(pairs, "wrong", "right"), judged(pairs, "right", "wrong")])
    assert opposed["agreement"] == 0 and opposed["kappa"] == -1
    alone = agreement([judged(pairs, "wrong", "")])
    assert alone == {"judged": 1, "really_wrong": 1.0, "also_right": 0.0, "agreement": None, "kappa": None}


def test_shapes_that_do_not_fit_are_refused(items):
    with pytest.raises(ValueError, match="2 captions, 3 videos"):
        hard_negatives(np.zeros((1, 3)), np.array([0, 1]), items, ["a", "b"])

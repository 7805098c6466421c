"""What an evaluation rests on reaches its keys, its record and its comparison: nothing stale, nothing swapped."""

import copy
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmae.data.registry import DatasetLocation
from dmae.evaluation import near_misses, pictures
from dmae.evaluation.cache import cache_key
from dmae.evaluation.evaluate_model import (
    EvaluationOptions,
    _arrays,
    _conditions,
    _training_record,
    _what_was_ranked,
    split_and_bank,
)
from dmae.evaluation.pictures import _known_difference
from dmae.evaluation.queries import Queries, moved
from dmae.evaluation.results import PROTOCOL, Results, check_same_protocol, compare, show
from dmae.evaluation.scoring import EncodedSplit, score_split
from dmae.inference.embedding import encode_texts
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_ranks, summarize_ranks
from dmae.modeling_dmae.attention_dmae import attended_frames
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.modeling_dmae.vectors_dmae import uniform_weights
from dmae.processing.words_dmae import WordWeigher


def test_the_key_of_kept_embeddings_changes_with_all_that_they_depend_on(model, processor, clips):
    rows = [{"video_id": "a", "video": str(clips / "clip00.mp4"), "captions": ["one", "two"], "start": None}]
    base = cache_key(model, processor, rows)
    assert cache_key(copy.deepcopy(model), copy.deepcopy(processor), [dict(rows[0])]) == base
    keys = [base]

    def other(model=model, processor=processor, **changed):
        keys.append(cache_key(model, processor, [{**rows[0], **changed}]))

    other(captions=["one", "three"])
    other(captions=["two", "one"])
    other(start=1.0)
    other(video_id="b")
    other(video=str(clips / "gone.mp4"))
    other(model=copy.deepcopy(model).to(torch.bfloat16))
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.visual_projection.weight[0, 0] += 1.0
    other(model=trained)
    for name, value in (("visual_top_k", 1), ("interaction", "ti")):
        changed = copy.deepcopy(model)
        setattr(changed.config, name, value)
        other(model=changed)
    for name, value in (
        ("max_words", 9),
        ("word_weighting", "uniform"),
        ("word_weigher", WordWeigher(content_weight=3.0, tagger=processor.word_weigher.tagger)),
    ):
        changed = copy.copy(processor)
        setattr(changed, name, value)
        other(processor=changed)
    changed = copy.deepcopy(processor)
    changed.feature_extractor.num_frames -= 1
    other(processor=changed)
    state = os.stat(rows[0]["video"])
    os.utime(rows[0]["video"], ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    other()
    os.utime(rows[0]["video"], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(set(keys)) == len(keys)


def split_of(seed: int, captions: int = 30, videos: int = 12) -> EncodedSplit:
    """Embeddings of few bits: their products and sums are exact, so that equal scores are equal in any order."""
    rng = torch.Generator().manual_seed(seed)
    coarse = lambda *shape: torch.randint(-4, 5, shape, generator=rng) / 8  # noqa: E731
    words, frames = torch.ones(captions, 4).bool(), torch.ones(videos, 4).bool()
    text = TextEmbeddings(coarse(captions, 8), coarse(captions, 4, 8), uniform_weights(words), words)
    embeds = coarse(videos, 4, 8)
    video = VideoEmbeddings(embeds, attended_frames(embeds, frames, 2), uniform_weights(frames), frames)
    return EncodedSplit(text, video, np.arange(captions) % videos, [f"v{n}" for n in range(videos)], [])


@pytest.mark.parametrize("ties", ["optimistic", "average", "pessimistic"])
@pytest.mark.parametrize("protocol", ["group_max", "individual"])
def test_ties_and_protocol_reach_the_ranks_whole_and_tiled(ties, protocol):
    """Every video twice, so that ties decide every rank."""
    config, split = DMAEConfig.tiny(), split_of(0)
    rows = torch.arange(12) // 2
    split.videos = split.videos[rows]
    whole = score_split(split, config, ties=ties, protocol=protocol)
    tiled = score_split(split, config, ties=ties, protocol=protocol, matrix_bytes=8)
    own = whole.similarities[np.arange(30), split.gold][:, None]
    higher, equal = (whole.similarities > own).sum(1), (whole.similarities == own).sum(1) - 1
    share = {"optimistic": 0, "average": 0.5, "pessimistic": 1}[ties]
    assert (equal > 0).all()
    np.testing.assert_array_equal(whole.text_ranks, 1 + higher + share * equal)
    np.testing.assert_array_equal(tiled.text_ranks, whole.text_ranks)
    np.testing.assert_array_equal(tiled.video_ranks, whole.video_ranks)
    if protocol == "individual":
        assert not np.array_equal(whole.video_ranks, score_split(split, config, ties=ties).video_ranks)


@pytest.mark.parametrize("post", ["dsl", "qbnorm"])
def test_post_processing_keeps_the_plain_matrix_beside_the_one_that_ranked(post):
    config, split = DMAEConfig.tiny(), split_of(0)
    plain = score_split(split, config)
    found = score_split(split, config, post=post, bank=split_of(1), ties="pessimistic")
    np.testing.assert_array_equal(found.similarities, plain.similarities)
    assert not np.allclose(found.ranked, plain.similarities) and plain.ranked is plain.similarities


def test_the_bank_is_a_fixed_draw_of_the_split_it_names(miniature):
    dataset = DatasetLocation(*miniature("msvd"))
    options = EvaluationOptions(split="test", post="qbnorm", bank_videos=3)
    split, bank = split_and_bank(dataset, options)
    _, everything = split_and_bank(dataset, EvaluationOptions(split="test", post="qbnorm"))
    names = [row["video_id"] for row in everything]
    assert [row["video_id"] for row in bank] == names[:3] and len(names) == 12
    assert names != sorted(names) and not set(names) & set(split.dataset["video_id"])
    assert split_and_bank(dataset, EvaluationOptions(split="test"))[1] is None
    with pytest.raises(ValueError, match=r"\(test\) shares \d+ videos with the evaluated split"):
        split_and_bank(dataset, EvaluationOptions(split="test", post="qbnorm", bank_split="test"))


def test_the_record_counts_and_names_what_was_ranked(model, processor, tmp_path):
    encoded, captions = split_of(0), [f"red {n}" for n in range(29)] + ["word " * 40]
    said = _what_was_ranked(encoded, captions, processor)
    assert (said["videos"], said["captions"], said["truncated_captions"]) == (12, 30, 1)
    other = _what_was_ranked(encoded, [*captions[:-1], "another"], processor)
    assert (other["gallery"] == said["gallery"], other["queries"] == said["queries"]) == (True, False)
    renamed = EncodedSplit(encoded.texts, encoded.videos, encoded.gold, [*encoded.video_ids[:-1], "w"], [])
    other = _what_was_ranked(renamed, captions, processor)
    assert (other["gallery"] == said["gallery"], other["queries"] == said["queries"]) == (False, True)
    (tmp_path / "best").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"seed": 5, "global_batch": 96, "world_size": 3}))
    assert _training_record(str(tmp_path / "best"))["seed"] == _training_record(str(tmp_path))["seed"] == 5
    assert _training_record("openai/some-model") == {}
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    options = EvaluationOptions(post="qbnorm", seed=9)
    facts = _conditions(accelerator, narrow, str(tmp_path / "best"), options, encoded)
    assert (facts["seed"], facts["global_batch"], facts["training_world_size"]) == (5, 96, 3)
    assert facts["bank"] == {"split": "train", "videos": 12, "captions": 30} and facts["dtype"] == "bfloat16"
    assert (facts["frames"], facts["max_words"]) == (model.config.max_frames, model.config.max_words)


def test_a_caption_of_two_videos_is_two_queries():
    encoded = split_of(0, captions=4, videos=4)
    scored = score_split(encoded, DMAEConfig.tiny())
    keys = _arrays(encoded, ["same", "same", "other", "same"], scored)["caption_keys"]
    assert len(set(keys.tolist())) == 4


def result(seed: int, **data) -> Results:
    random = np.random.default_rng(seed)
    scores, gold = random.standard_normal((40, 20)), np.arange(40) % 20

    text, video = retrieval_ranks(scores, gold)
    arrays = {"gold": gold, "text_ranks": text, "video_ranks": video}
    arrays |= {"caption_keys": np.arange(40), "video_keys": np.arange(20)}
    facts = {"dataset": "own", "split": "test", "gallery": "a", "queries": "b"}
    record = {"ties": "average", "protocol": "group_max", "postprocessing": None, "data": {**facts, **data}}
    return Results({**record, "metrics": summarize_ranks(text, video)}, arrays)


def test_results_take_the_place_of_earlier_ones(tmp_path):
    folder = tmp_path / "new" / "out"
    for seed in (0, 1):
        result(seed).write(folder, ["v"])
        read, written = Results.read(folder), result(seed)
        assert read.record == written.record and read.arrays.keys() == written.arrays.keys()
        assert all(np.array_equal(read.arrays[name], written.arrays[name]) for name in written.arrays)


def test_every_word_of_the_protocol_is_compared():
    paths = {f"data.{name}" for name in ("dataset", "split", "gallery", "queries")}
    assert set(PROTOCOL) == {*paths, "ties", "protocol", "postprocessing"}
    for path, name in PROTOCOL.items():
        ours, theirs = result(0).record, result(0).record
        *folder, last = path.split(".")
        (theirs[folder[0]] if folder else theirs)[last] = "another"
        with pytest.raises(ValueError, match="their protocols differ in") as refusal:
            check_same_protocol(ours, theirs)
        assert name in str(refusal.value)
    known = {"ties": "average"}  # before anything is encoded
    check_same_protocol(known, result(0).record, known_only=True)
    with pytest.raises(ValueError, match="not recorded there"):
        check_same_protocol(result(0).record, known, known_only=True)


def test_a_comparison_is_this_one_minus_the_other_in_its_seed():
    ours, theirs = result(0), result(1)
    found = compare(ours, theirs, samples=30)
    for name, entry in found.items():
        assert entry["difference"] == ours.record["metrics"][name] - theirs.record["metrics"][name]
        back = compare(theirs, ours, samples=30)[name]["interval"]
        assert entry["interval"] == pytest.approx([-back[1], -back[0]])
    assert compare(ours, theirs, samples=30, seed=1) != found == compare(ours, theirs, samples=30, seed=0)


def test_ranks_are_shown_as_they_are_and_shares_in_percent():
    assert show("text_to_video_R@1", 0.125) == "12.5" and show("video_to_text_rsum", 1.5) == "150.0"
    assert show("text_to_video_median_rank", 7.0) == "7.0" and show("x_mean_rank", -2.0, "+") == "-2.0"


def test_moved_queries_come_by_the_ratio_of_their_ranks(tmp_path):
    keys = [("v", f"c{n}", 0) for n in range(3)]
    first, second = (
        Queries(Path(name), keys, np.array(ranks)) for name, ranks in (("a", [1.0, 50, 9]), ("b", [4.0, 90, 9]))
    )
    assert [row["caption"] for row in moved(first, second)] == ["c0", "c1"]


def test_a_known_difference_is_that_of_the_right_video_to_the_wrong_one():
    metadata = {"a": {"near_misses": [{"video_id": "b", "attribute": "digit"}]}, "b": {}}
    known = _known_difference(metadata)
    assert known("a", "b") == "digit" and known("b", "a") is None


def test_near_misses_are_scored_by_first_captions_in_the_order_of_the_rows(model, processor, clips, encoded):
    rows = [
        {"video_id": f"v{n}", "file_name": f"clip{n:02d}.mp4", "captions": [f"a red square {n}", f"the sky {n}"]}
        for n in (7, 2, 9)
    ]
    found = near_misses.first_caption_scores(model, processor, clips, rows, num_workers=0)
    texts = encode_texts(model, processor, [row["captions"][0] for row in rows])
    expected = similarity(texts, encoded.embeddings[torch.tensor([7, 2, 9])], model.config)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"1 clips of .* the first: .*v2"):
        broken = [rows[0], {**rows[1], "file_name": "none.mp4"}]
        near_misses.first_caption_scores(model, processor, clips, broken, num_workers=0)


def test_a_near_miss_is_won_lost_or_half_by_attribute():
    def row(name, *near):
        return {"video_id": name, "near_misses": [{"video_id": other, "attribute": what} for other, what in near]}

    rows = [row("a", ("b", "digit"), ("c", "colour")), row("b", ("a", "digit")), row("c", ("b", "digit"))]
    scores = np.array([[5.0, 4.0, 5.0], [3.0, 1.0, 0.0], [0.0, 2.0, 9.0]])
    assert near_misses.near_miss_accuracy(scores, rows) == {"digit": 2 / 3, "colour": 0.5}


def test_pictures_show_the_video_that_was_missed_in_the_order_of_the_models(model, processor, monkeypatch, tmp_path):
    """Captions 0 and 2 read alike, of different videos; the third is missed most, the first matched best."""
    shown = {}
    for name in ("report_page", "word_frame_page", "masked_tokens_page", "side_by_side_page", "plot_words_and_frames"):
        monkeypatch.setattr(pictures, name, lambda *arguments, name=name: shown.update({name: arguments}) or "")
    monkeypatch.setattr(pictures, "word_frame_match", lambda *arguments: arguments)
    rows = [
        {"video_id": f"v{n}", "captions": captions} for n, captions in enumerate([["same", "one"], ["same"], ["x"]])
    ]
    split = SimpleNamespace(dataset=rows[::-1], metadata={})
    encoded = SimpleNamespace(video_ids=["v0", "v1", "v2"], gold=np.array([0, 0, 1, 2]))
    scores = np.array([[9.0, 0, 0], [2, 1, 0], [8, 1, 2], [0, 2, 3]])
    ours, theirs = (SimpleNamespace(arrays={"similarities": matrix}) for matrix in (scores, -scores))
    paths = pictures.write_pictures(tmp_path, model, processor, split, encoded, ours, theirs, names=("we", "they"))
    captions, gold, items, both, _ = shown["side_by_side_page"]
    assert captions == ["same", "one", "x", "same"] and gold == [1, 0, 2, 0] and items == rows
    assert shown["word_frame_page"][2] == [("same", rows[1]), ("one", rows[0]), ("x", rows[2]), ("same", rows[0])]
    np.testing.assert_array_equal(both["we"], scores[[2, 1, 3, 0]])
    np.testing.assert_array_equal(both["they"], -scores[[2, 1, 3, 0]])
    assert shown["plot_words_and_frames"][:2] == ("same", (model, processor, "same", rows[0]))
    assert shown["word_frame_page"][:2] == (model, processor) and shown["report_page"][1] == rows
    assert shown["report_page"][2] is processor.feature_extractor and shown["report_page"][0][0].caption == "same"
    assert [path.name for path in paths if path.is_file()] == [
        "hard_negatives.html", "words_and_frames.html", "side_by_side.html", "hard_negatives.csv",
    ] and [path.name for path in paths][-1] == "words_and_frames.png"  # fmt: skip
    assert "masked_tokens_page" not in shown
    ordered = SimpleNamespace(config=SimpleNamespace(partial_order=True))
    shown.clear()
    bare = SimpleNamespace(arrays={})
    paths = pictures.write_pictures(tmp_path, ordered, processor, split, encoded, ours, bare)
    assert [path.name for path in paths if path.suffix == ".html"] == [
        "hard_negatives.html", "words_and_frames.html", "masked_tokens.html",
    ]  # fmt: skip
    assert shown["masked_tokens_page"] == (ordered, processor, shown["word_frame_page"][2])
    with pytest.raises(ValueError, match="need the whole similarity matrix; take a smaller split"):
        pictures.write_pictures(tmp_path, model, processor, split, encoded, bare)


def test_the_rows_of_a_split_are_read_as_they_stand(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"video_id": "é"}\n{"n": 2}\n', encoding="utf-8")
    assert near_misses.read_rows(tmp_path) == [{"video_id": "é"}, {"n": 2}]

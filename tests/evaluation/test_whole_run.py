"""An evaluation around embeddings that are given: what is asked for, kept, written, recorded and compared, in full."""

import copy
import hashlib
import json
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmae.data.registry import DatasetLocation
from dmae.evaluation import cache, evaluate_model, queries, scoring
from dmae.evaluation.evaluate_model import EvaluationOptions, split_and_bank
from dmae.evaluation.results import MATRIX, Results, compare, compare_results
from dmae.evaluation.scoring import POSTPROCESSING, EncodedSplit, score_split, similarity_matrix
from dmae.inference.conditions import code_version, hardware
from dmae.inference.embedding import encode_texts, encode_videos
from dmae.inference.identity import describe_model
from dmae.metrics.text_video_retrieval.bootstrap import bootstrap_intervals
from dmae.metrics.text_video_retrieval.postprocessing import DSL_TEMPERATURE, QB_NORM_TEMPERATURE, dsl, qb_norm
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_ranks, summarize_ranks
from dmae.modeling_dmae.attention_dmae import attended_frames
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.modeling_dmae.vectors_dmae import uniform_weights


def split_of(seed: int, counts, names=None, skipped=()) -> EncodedSplit:
    """Embeddings of few bits (sums are exact in any order), with `counts` captions a video."""
    random = torch.Generator().manual_seed(seed)
    coarse = lambda *shape: torch.randint(-4, 5, shape, generator=random) / 8  # noqa: E731
    texts, videos = sum(counts), len(counts)
    words, frames = torch.ones(texts, 4).bool(), torch.ones(videos, 4).bool()
    text = TextEmbeddings(coarse(texts, 8), coarse(texts, 4, 8), uniform_weights(words), words)
    embeds = coarse(videos, 4, 8)
    video = VideoEmbeddings(embeds, attended_frames(embeds, frames, 2), uniform_weights(frames), frames)
    names = names or [f"v{number}" for number in range(videos)]
    return EncodedSplit(text, video, np.repeat(np.arange(videos), counts), names, list(skipped))


def same(ours: EncodedSplit, theirs: EncodedSplit) -> bool:
    pairs = [*zip(ours.texts, theirs.texts), *zip(ours.videos, theirs.videos)]
    return all(torch.equal(one, other) for one, other in pairs) and np.array_equal(ours.gold, theirs.gold) and (
        (ours.video_ids, ours.skipped) == (theirs.video_ids, theirs.skipped)
    )  # fmt: skip


# ---- what is kept -----------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(monkeypatch):
    """`encode_split` that gives what it is told to, and remembers what it was asked."""
    asked, given = [], split_of(0, [2, 1, 3], skipped=[{"video_id": "w", "error": "é"}])
    given.videos = VideoEmbeddings(given.videos[0], given.videos[0], *given.videos[2:])  # one tensor under two names

    def encode(*arguments):
        asked.append(arguments)
        return given

    monkeypatch.setattr(cache, "encode_split", encode)
    return SimpleNamespace(asked=asked, given=given)


def test_embeddings_are_kept_once_under_their_key_and_read_whole(encoder, model, processor, tmp_path):
    main, folder = SimpleNamespace(is_main_process=True), tmp_path / "a" / "b"
    rows = [{"video_id": "v0", "video": "gone.mp4", "captions": ["x"]}]
    words = (model, processor, iter(rows), 5, 0, "videos")
    assert cache.cached_encode_split(main, None, *words) is encoder.given and not folder.exists()
    assert encoder.asked == [(main, model, processor, rows, 5, 0, "videos")]
    assert cache.cached_encode_split(main, folder, model, processor, iter(rows), 5, 0, "bank") is encoder.given
    assert encoder.asked[1:] == [(main, model, processor, rows, 5, 0, "bank")]
    kept = folder / f"{cache.cache_key(model, processor, rows)}.safetensors"
    assert list(folder.iterdir()) == [kept] and len(kept.stem) == 32
    found = cache.cached_encode_split(main, folder, model, processor, rows, 5, 0, "videos")
    assert same(found, encoder.given) and len(encoder.asked) == 2
    other = [{**rows[0], "captions": ["y"]}]
    cache.cached_encode_split(main, folder, model, processor, other, 5, 0, "videos")
    assert len(list(folder.iterdir())) == 2 and len(encoder.asked) == 3
    kept.write_bytes(kept.read_bytes()[:100])
    assert cache.cached_encode_split(main, folder, model, processor, rows) is encoder.given
    assert same(cache._read(kept), encoder.given) and cache._read(folder / "none") is None


def test_another_process_than_the_main_one_reads_and_writes_nothing(encoder, monkeypatch, model, processor, tmp_path):
    monkeypatch.setattr(cache, "_read", lambda path: pytest.fail("read"))
    monkeypatch.setattr(cache, "encode_split", lambda *_: None)
    worker = SimpleNamespace(is_main_process=False)
    assert cache.cached_encode_split(worker, tmp_path / "c", model, processor, []) is None
    assert not (tmp_path / "c").exists()


def test_a_key_is_not_of_names_and_orders(model, processor):
    rows = [{"video_id": "a", "video": "gone.mp4", "captions": ["one"]}]
    renamed = copy.deepcopy(model)
    renamed.config._name_or_path = "elsewhere"
    assert cache.cache_key(renamed, processor, rows) == cache.cache_key(model, processor, rows)
    turned = [dict(reversed(rows[0].items()))]
    assert cache.cache_key(model, processor, turned) == cache.cache_key(model, processor, rows)
    plain = copy.copy(processor)
    plain.word_weigher = None
    assert cache.cache_key(model, plain, rows) != cache.cache_key(model, processor, rows)
    assert cache.hash_text("é") == hashlib.sha256("é".encode()).hexdigest()


# ---- scoring ----------------------------------------------------------------------------------------------------


def test_the_matrix_is_whole_up_to_its_limit_in_bytes():
    split, config = split_of(0, [2, 1, 3]), DMAEConfig.tiny()
    assert score_split(split, config, matrix_bytes=4 * 6 * 3).similarities.shape == (6, 3)
    assert score_split(split, config, matrix_bytes=4 * 6 * 3 - 1).similarities is None
    told = r"^dsl needs the whole matrix, 6 x 3 similarities, which exceeds 0\.0 GiB; evaluate without it"
    with pytest.raises(ValueError, match=told):
        score_split(split, config, post="dsl", matrix_bytes=71)
    large = SimpleNamespace(texts=None, videos=None, gold=np.zeros(1 << 20), video_ids=range(1 << 10))
    with pytest.raises(ValueError, match=r"1048576 x 1024 similarities, which exceeds 2\.0 GiB"):
        score_split(large, config, post="dsl")
    with pytest.raises(ValueError, match=r"^post='qbnorm' normalises with a bank of training captions and videos"):
        score_split(split, config, post="qbnorm")


@pytest.mark.parametrize("tile", [1, 4, 512])
def test_post_processing_is_of_the_whole_split_however_it_is_tiled(tile, monkeypatch):
    monkeypatch.setattr(scoring, "TEXT_TILE", tile)
    config, split, bank = DMAEConfig.tiny(), split_of(0, [2, 1, 3, 1]), split_of(1, [1, 4, 2, 1, 1])

    def scores(texts, videos):
        return similarity(texts, videos, config).numpy()

    plain = scores(split.texts, split.videos)
    np.testing.assert_array_equal(similarity_matrix(split.texts, split.videos, config), plain)
    for post in (None, "dsl", "qbnorm"):
        to_video = to_text = plain
        if post == "dsl":
            to_video, to_text = dsl(plain, DSL_TEMPERATURE / config.score_scale)
        if post == "qbnorm":
            beta = QB_NORM_TEMPERATURE / config.score_scale
            to_video = qb_norm(plain, scores(bank.texts, split.videos), beta)
            to_text = qb_norm(plain.T, scores(split.texts, bank.videos).T, beta).T
        for protocol in ("group_max", "individual"):
            words = {"ties": "pessimistic", "protocol": protocol}
            found = score_split(split, config, post=post, bank=bank, **words)
            np.testing.assert_array_equal(found.text_ranks, retrieval_ranks(to_video, split.gold, **words)[0])
            np.testing.assert_array_equal(found.video_ranks, retrieval_ranks(to_text, split.gold, **words)[1])
            np.testing.assert_allclose(found.ranked, to_video, rtol=1e-6)
            np.testing.assert_array_equal(found.similarities, plain)
    tiled = score_split(split, config, matrix_bytes=1, ties="pessimistic", protocol="individual")
    assert tiled.ranked is tiled.similarities is None
    np.testing.assert_array_equal(tiled.text_ranks, retrieval_ranks(plain, split.gold, "pessimistic")[0])


def test_a_split_is_encoded_in_the_order_of_its_rows_on_any_number_of_ranks(model, processor, clips, tmp_path):
    """Captions of unequal number; one clip is broken."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    paths = [clips / "clip04.mp4", tmp_path / "broken.mp4", clips / "clip01.mp4", clips / "clip09.mp4"]
    captions = [["a red square", "it moves"], ["none"], ["two dogs"], ["the sky", "is", "blue"]]
    rows = [
        {"video_id": f"v{9 - n}", "video": str(path), "captions": words}
        for n, (path, words) in enumerate(zip(paths, captions))
    ]
    main = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)
    found = scoring.encode_split(main, model, processor, rows, 5, 0, "videos")
    assert (found.video_ids, found.gold.tolist()) == (["v9", "v7", "v6"], [0, 0, 1, 2, 2, 2])
    assert [entry["video_id"] for entry in found.skipped] == ["v8"]
    kept = [captions[0], captions[2], captions[3]]
    texts = encode_texts(model, processor, [*kept[0], *kept[1], *kept[2]])
    torch.testing.assert_close(found.texts.sentence_embeds, texts.sentence_embeds)
    videos = encode_videos(model, processor, [rows[0], rows[2], rows[3]], num_workers=0).embeddings
    torch.testing.assert_close(found.videos.video_embeds, videos.video_embeds)
    parts = []
    for rank in (0, 1):  # rows 0 and 2, rows 1 and 3
        own = [{**row, "number": number} for number, row in enumerate(rows)][rank::2]
        part = encode_videos(model, processor, own, num_workers=0)
        said = [caption for item in part.items for caption in item["captions"]]
        parts.append((part, encode_texts(model, processor, said)))
    other = scoring._in_order(parts[::-1], 4)
    assert (other.video_ids, other.gold.tolist()) == (found.video_ids, found.gold.tolist())
    torch.testing.assert_close(other.texts.sentence_embeds, found.texts.sentence_embeds)
    torch.testing.assert_close(other.videos.video_embeds, found.videos.video_embeds)
    with pytest.raises(ValueError, match=r"^none of the 1 videos can be decoded; the first: v8: "):
        scoring.encode_split(main, model, processor, rows[1:2], 5, 0, "videos")
    with pytest.raises(ValueError, match=r"^none of the 0 videos can be decoded$"):
        scoring.encode_split(main, model, processor, [], 5, 0, "videos")
    second = SimpleNamespace(process_index=1, num_processes=2, is_main_process=True)
    found = scoring.encode_split(second, model, processor, rows, 5, 0, "videos")
    assert (found.video_ids, len(found.skipped)) == (["v6"], 1), "every other row, from the second on"
    worker = SimpleNamespace(process_index=0, num_processes=1, is_main_process=False)
    assert scoring.encode_split(worker, model, processor, rows[:1], 5, 0, "videos") is None


# ---- a run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def around(model, processor, miniature, monkeypatch, tmp_path):
    """`evaluate` on the generated MSVD: encoders that give numbers, and everything that is called by the way."""
    asked, location = [], DatasetLocation(*miniature("msvd"))
    made = SimpleNamespace(asked=asked, model=model, processor=processor, location=location, main=True, seed=0)

    def encode(accelerator, folder, network, worker, rows, *words):
        rows = list(rows)
        asked.append(("encode", folder, network, worker, len(rows), *words))
        kept = rows[1:]  # the first did not decode
        skipped = [{"video_id": rows[0]["video_id"], "error": "cut off"}]
        names, counts = [row["video_id"] for row in kept], [len(row["captions"]) for row in kept]
        return split_of(made.seed + (words[-1] == "bank"), counts, names, skipped)

    def accelerator(cpu):
        asked.append(("accelerator", cpu))
        waits = lambda: asked.append(("wait", sorted(path.name for path in tmp_path.iterdir())))  # noqa: E731
        device = torch.device("cpu")
        return SimpleNamespace(is_main_process=made.main, device=device, num_processes=2, wait_for_everyone=waits)

    def load(*words):
        asked.append(("load", *words))
        return model, processor

    monkeypatch.setattr(evaluate_model, "cached_encode_split", encode)
    monkeypatch.setattr(evaluate_model, "Accelerator", accelerator)
    monkeypatch.setattr(evaluate_model, "load_model_and_processor", load)
    for name in ("write_pictures", "write_queries"):
        monkeypatch.setattr(evaluate_model, name, lambda *words, name=name: asked.append((name, *words)))
    clock = SimpleNamespace(monotonic=iter([10.0, 12.34] * 9).__next__, strftime=time.strftime)
    monkeypatch.setattr(evaluate_model, "time", clock)

    def run(name, other=None, **options):
        del asked[:]
        words = {key: options.pop(key) for key in ("cache", "pictures", "per_query") if key in options}
        made.options = EvaluationOptions(num_workers=3, batch_size=5, **{"samples": 20, **options})
        return evaluate_model.evaluate_model("name", location, tmp_path / name, made.options, other=other, **words)

    made.run = run
    return made


def test_a_record_in_full_and_in_the_file(around, model, processor, tmp_path):
    words = {"ties": "pessimistic", "protocol": "individual"}
    record, nothing = around.run(
        "out", cache=tmp_path / "kept", bank_videos=3, post="qbnorm", confidence=0.5, seed=4, benchmark="org/set:task",
        device="cpu", dtype="bfloat16", **words,
    )  # fmt: skip
    assert nothing is None
    options = around.options
    split, bank_rows = split_and_bank(around.location, options)
    kept = tmp_path / "kept", model, processor
    assert around.asked == [
        ("accelerator", True), ("load", "name", "cpu", "bfloat16"),
        ("encode", *kept, len(split.dataset), 5, 3, "videos"), ("encode", *kept, 3, 5, 3, "bank"), ("wait", ["out"]),
    ]  # fmt: skip
    rows, bank_rows = list(split.dataset)[1:], bank_rows[1:]
    encoded = split_of(0, [len(row["captions"]) for row in rows], [row["video_id"] for row in rows])
    bank = split_of(1, [len(row["captions"]) for row in bank_rows])
    scored = score_split(encoded, model.config, "cpu", *words.values(), "qbnorm", bank)
    captions = [caption for row in rows for caption in row["captions"]]
    draws = {"samples": 20, "confidence": 0.5, "seed": 4}
    ranks = scored.text_ranks, scored.video_ranks
    intervals = bootstrap_intervals(*ranks, encoded.gold, summarize_ranks, **draws)
    first = split.dataset[0]["video_id"]

    def short(lines) -> str:
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]

    lengths = [len(ids) for ids in processor.tokenizer(captions)["input_ids"]]
    assert record == {
        "metrics": summarize_ranks(*ranks), **words, "postprocessing": POSTPROCESSING["qbnorm"],
        "intervals": {name: list(bounds) for name, bounds in intervals.items()}, "bootstrap": draws,
        "model": {**describe_model(model, processor), "name": "name"},
        "data": {
            **split.report, "dataset": "msvd", "split": "test", "videos": len(rows), "captions": len(captions),
            "truncated_captions": sum(length > processor.max_words for length in lengths), "undecodable_videos": 1,
            "undecodable": [{"video_id": first, "error": "cut off"}],
            "gallery": short(encoded.video_ids), "queries": short(captions),
            "benchmark": {"id": "org/set", "task": "task", "metric": "text_to_video_R@1"},
        },
        "frames": model.config.max_frames, "max_words": model.config.max_words, "dtype": "float32", "seed": None,
        "global_batch": None, "training_world_size": None, "world_size": 2,
        "bank": {"split": "train", "videos": 2, "captions": len(bank.gold)}, "options": asdict(options),
        "code": code_version(), "hardware": hardware(torch.device("cpu")), "date": record["date"], "seconds": 2.3,
    }  # fmt: skip
    assert time.strptime(record["date"], "%Y-%m-%d")
    found = Results.read(tmp_path / "out")
    assert found.record == record
    assert set(found.arrays) == {"gold", "text_ranks", "video_ranks", "similarities", "caption_keys", "video_keys"}
    for name, expected in (("gold", encoded.gold), ("text_ranks", ranks[0]), ("video_ranks", ranks[1])):
        np.testing.assert_array_equal(found.arrays[name], expected)
    np.testing.assert_array_equal(found.arrays["similarities"], scored.similarities)
    assert len(set(found.arrays["video_keys"].tolist())) == len(rows)


def test_what_is_asked_for_besides_is_made_of_the_same_numbers(around, model, processor, tmp_path):
    around.seed = 7
    first, _ = around.run("first", post="dsl")
    assert around.asked[0] == ("accelerator", False) and around.asked[1] == ("load", "name", "cpu", "auto")
    assert [word[0] for word in around.asked] == ["accelerator", "load", "encode", "wait"]
    assert first["bank"] is None
    around.seed = 0
    record, comparison = around.run("second", tmp_path / "first", post="dsl", pictures=True, per_query=tmp_path / "q")
    ours, theirs = Results.read(tmp_path / "second"), Results.read(tmp_path / "first")
    assert ours.record == record
    assert comparison == compare(ours, theirs, 20, 0) and comparison["text_to_video_mean_rank"]["interval"]
    assert [word[0] for word in around.asked[3:]] == ["write_queries", "write_pictures", "wait"]
    _, path, encoded, captions, scored, *rest = around.asked[3]
    assert path == tmp_path / "q" and rest == [model.config, "cpu"] and len(captions) == len(encoded.gold)
    assert not np.array_equal(scored.ranked, scored.similarities)
    _, folder, *both, split, again, mine, other = around.asked[4]
    assert (folder, *both, again) == (tmp_path / "second", model, processor, encoded)
    assert split.report["split"] == "test" and mine.record is record
    np.testing.assert_array_equal(other.arrays["text_ranks"], theirs.arrays["text_ranks"])
    _, drawn_again = around.run("seeded", tmp_path / "first", post="dsl", seed=9)
    assert drawn_again == compare(ours, theirs, 20, 9) != comparison
    third, _ = around.run("third", post="dsl", pictures=True, samples=0)
    assert not {"intervals", "bootstrap"} & set(third)
    assert around.asked[3][-1] is None
    (tmp_path / "first" / MATRIX).unlink()
    _, comparison = around.run("fourth", tmp_path / "first", post="dsl", pictures=True)
    assert around.asked[3][-1] is None and "interval" not in comparison["text_to_video_mean_rank"]


def test_the_training_is_what_its_record_says_and_the_dtype_the_model_s(model, tmp_path):
    """The record lies beside a pushed model, or one folder up, beside best/ and last/."""
    record = {"seed": 5, "global_batch": 48, "train_batch_size": 12, "world_size": 3}
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    one = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    half = copy.deepcopy(model).to(torch.bfloat16)
    for folder in ("run", "run/best"):
        said = evaluate_model._conditions(one, half, str(tmp_path / folder), EvaluationOptions(seed=7), None)
        assert (said["seed"], said["global_batch"], said["training_world_size"], said["world_size"]) == (5, 48, 3, 2)
        assert said["dtype"] == "bfloat16" and said["bank"] is None


def test_other_processes_score_nothing_and_wait(around, tmp_path):
    around.main = False
    assert around.run("none") is None
    assert [word[0] for word in around.asked] == ["accelerator", "load", "encode", "wait"]
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_is_refused_before_the_model_is_loaded(around, tmp_path):
    for options, told in (
        ({"benchmark": "one"}, "--benchmark 'one': give the Hub's id"),
        ({"protocol": "x"}, "^protocol 'x' is not a choice; valid: group_max, individual$"),
        ({"ties": "x"}, "^ties 'x' is not a choice; valid: optimistic, average, pessimistic$"),
        ({"post": "x"}, "^post 'x' is not a choice; valid: dsl, qbnorm$"),
    ):
        with pytest.raises(ValueError, match=told):
            around.run("none", **options)
        assert around.asked == []
    around.run("first")
    with pytest.raises(ValueError, match="ties: optimistic here, average there"):
        around.run("none", tmp_path / "first", ties="optimistic")
    assert around.asked == []
    with pytest.raises(ValueError, match=r"QB-Norm's bank \(test\) shares 6 videos with the evaluated split, e\.g\. '"):
        around.run("none", post="qbnorm", bank_split="test")
    assert around.asked == []


def test_a_caption_is_cut_when_it_is_longer_than_what_the_model_reads():
    """As many tokens as it reads are whole. The tokenizer's own warning would be about another limit."""
    asked = []

    def tokenizer(captions, verbose):
        asked.append((captions, verbose))
        return {"input_ids": [[0] * int(caption) for caption in captions]}

    encoded, captions = split_of(0, [2, 1]), ["7", "8", "9"]
    said = evaluate_model._what_was_ranked(encoded, captions, SimpleNamespace(tokenizer=tokenizer, max_words=8))
    assert (said["truncated_captions"], said["undecodable_videos"]) == (1, 0) and asked == [(captions, False)]
    with pytest.raises(ValueError, match="zip"):
        evaluate_model._arrays(encoded, captions[:-1], score_split(encoded, DMAEConfig.tiny()))


def test_the_name_of_one_s_own_data_is_its_folder_s(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "x"}\n')
    name = evaluate_model._dataset_name
    assert name(DatasetLocation(str(tmp_path / "holiday")), {"dataset": "videofolder"}) == "holiday"
    assert name(DatasetLocation("msvd", str(tmp_path)), {"dataset": "MSVD"}) == "MSVD"


# ---- results and queries ----------------------------------------------------------------------------------------


def results(seed: int) -> Results:
    """Ranks of 12 captions of 5 videos, one caption given twice."""
    scores, gold = np.random.default_rng(seed).standard_normal((12, 5)), np.arange(12) % 5
    keys = np.array([100, 101, 102, 103, 104, 100, 106, 107, 108, 109, 110, 111])
    text, video = retrieval_ranks(scores, gold)
    arrays = {"gold": gold, "text_ranks": text, "video_ranks": video, "caption_keys": keys}
    arrays |= {"video_keys": np.arange(5) + 50, "similarities": scores}
    facts = {"dataset": "own", "split": "test", "gallery": "a", "queries": "b"}
    record = {"ties": "average", "protocol": "group_max", "postprocessing": None, "data": facts}
    return Results({**record, "metrics": summarize_ranks(text, video)}, arrays)


def test_rows_and_columns_are_brought_into_the_other_s_order():
    ours, turned = results(0), results(0)
    rows, columns = np.array([3, 0, 7, 5, 2, 1, 4, 6, 11, 10, 9, 8]), np.array([2, 4, 0, 1, 3])
    for name in ("text_ranks", "caption_keys"):
        turned.arrays[name] = ours.arrays[name][rows]
    for name in ("video_ranks", "video_keys"):
        turned.arrays[name] = ours.arrays[name][columns]
    turned.arrays["gold"] = np.argsort(columns)[ours.arrays["gold"][rows]]
    turned.arrays["similarities"] = ours.arrays["similarities"][np.ix_(rows, columns)]
    found = turned.in_order_of(ours)
    assert found.record is turned.record and set(found.arrays) == set(ours.arrays)
    for name, expected in ours.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], expected, name)
    other = results(1)
    assert compare(other, turned, 30) == compare(other, ours, 30), "pairs are the same caption, wherever its row is"
    del turned.arrays["similarities"]
    assert "similarities" not in turned.in_order_of(ours).arrays
    turned.arrays["video_keys"] = turned.arrays["video_keys"] + 1
    del ours.arrays["video_ranks"]
    with pytest.raises(ValueError, match="beside one of the results does not say which captions it holds"):
        turned.in_order_of(ours)
    ours.arrays["video_ranks"] = turned.arrays["video_ranks"]
    with pytest.raises(ValueError, match=r"they rank other videos\. Evaluate both on the same data"):
        turned.in_order_of(ours)


def test_a_comparison_in_full():
    first, second = results(0), results(1)
    pairs = compare(first, second, 30, 2)
    found = compare_results(first, second, 30, 2)
    assert list(found) == list(first.record["metrics"])
    for name, entry in found.items():
        ours, theirs = first.record["metrics"][name], second.record["metrics"][name]
        low, high = pairs[name]["interval"]
        assert entry == {"first": ours, "second": theirs, "difference": ours - theirs, "low": low, "high": high}
        assert pairs[name] == {"other": theirs, "difference": ours - theirs, "interval": [low, high]}
    assert all(set(entry) == {"other", "difference"} for entry in compare(first, second, samples=0).values())
    del second.record["metrics"]["video_to_text_rsum"]
    assert "video_to_text_rsum" not in compare(first, second, 30) and len(compare(first, second, 30)) == 11
    other = replace(second, record={**second.record, "ties": "optimistic"})
    with pytest.raises(ValueError, match="ties: average here, optimistic there"):
        compare(first, other, 30)
    bare = replace(second, arrays={})
    assert "interval" not in compare(first, bare)["text_to_video_R@1"]
    for pair in ((first, bare), (bare, first)):
        with pytest.raises(ValueError, match="an interval needs the ranks"):
            compare_results(*pair)


@pytest.mark.parametrize("tile", [1, 4, 512])
def test_lines_of_queries_are_the_same_from_a_matrix_and_from_tiles(tile, monkeypatch, tmp_path):
    """Equal scores stand in the order of the videos; a score has six decimals."""
    monkeypatch.setattr(queries, "TEXT_TILE", tile)
    config, split = DMAEConfig.tiny(), split_of(0, [1] * 11 + [2])
    split.videos = split.videos[torch.arange(12) // 2]
    captions = [f"é {number}" for number in range(13)]
    scored = score_split(split, config)
    queries.write_queries(tmp_path / "a" / "b" / "whole.jsonl", split, captions, scored, config)
    bare = replace(scored, similarities=None, ranked=None)
    queries.write_queries(tmp_path / "a" / "b" / "tiles.jsonl", split, captions, bare, config)
    text = (tmp_path / "a" / "b" / "whole.jsonl").read_text(encoding="utf-8")
    assert text == (tmp_path / "a" / "b" / "tiles.jsonl").read_text(encoding="utf-8") and text.endswith("}\n")
    assert "é 0" in text and len(text.splitlines()) == 13
    found = queries.Queries.read(tmp_path / "a" / "b" / "whole.jsonl")
    assert found.keys == [(f"v{row}", caption, 0) for row, caption in zip(split.gold, captions)]
    np.testing.assert_array_equal(found.ranks, scored.text_ranks)
    for row, line in enumerate(text.splitlines()):
        order = np.argsort(-scored.similarities[row], kind="stable")[:10]
        top = [{"video_id": f"v{n}", "score": round(float(scored.similarities[row, n]), 6)} for n in order]
        assert queries.json.loads(line)["top"] == top


def test_two_files_of_queries_are_compared_and_refused_by_their_captions(tmp_path):
    keys = [("v1", "a", 0), ("v0", "b", 0), ("v1", "d", 0), ("v2", "b", 0)]
    first = queries.Queries(tmp_path / "x", keys, np.array([1.0, 4, 2, 12]))
    second = queries.Queries(tmp_path / "y", keys[::-1], np.array([3.0, 6, 4, 1]))
    found = queries.compare_queries(first, second, 50, 3)
    ones = np.ones(3)
    ours, theirs = summarize_ranks(first.ranks, ones), summarize_ranks(second.ranks[::-1], ones)
    gold = np.array([1, 0, 1, 2])
    pair = (first.ranks, ones), (second.ranks[::-1], ones)
    intervals = queries.paired_difference(*pair, gold, summarize_ranks, 50, seed=3)
    assert found == {
        name: {
            "first": ours[name], "second": theirs[name], "difference": ours[name] - theirs[name],
            "low": intervals[name][0], "high": intervals[name][1],
        }
        for name in ours if name.startswith("text_to_video")
    }  # fmt: skip
    assert queries.moved(first, second) == [
        {"caption": "b", "video_id": "v2", "first": 12.0, "second": 3.0},
        {"caption": "d", "video_id": "v1", "first": 2.0, "second": 6.0},
    ]
    more = queries.Queries(tmp_path / "z", [*keys, ("v9", "e", 0)], np.ones(5))
    with pytest.raises(ValueError, match=r"z and .*x cannot be compared: 1 and 0 of .* 'e' of 'v9'\. Evaluate both"):
        more.in_order_of(first)


@pytest.mark.parametrize("rank, fine", [(1, True), (0.5, False), (0, False)])
def test_a_rank_is_counted_from_one(tmp_path, rank, fine):
    (tmp_path / "q").write_text(f'\n{{"caption": "a", "video_id": "v", "rank": {rank}}}\n \n')
    if fine:
        assert queries.Queries.read(tmp_path / "q").ranks.tolist() == [1.0]
    else:
        with pytest.raises(ValueError, match=f"q, line 2: no line of .*rank {float(rank)}"):
            queries.Queries.read(tmp_path / "q")

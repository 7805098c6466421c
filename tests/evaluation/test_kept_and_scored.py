"""Embeddings of a split: kept once under their key, and scored in full, whole or in tiles, on any number of ranks."""

import copy
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmae.evaluation import cache, scoring
from dmae.evaluation.scoring import EncodedSplit, score_split, similarity_matrix
from dmae.inference.embedding import encode_texts, encode_videos
from dmae.metrics.text_video_retrieval.postprocessing import DSL_TEMPERATURE, QB_NORM_TEMPERATURE, dsl, qb_norm
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_ranks
from dmae.modeling_dmae.configuration_dmae import DMAEConfig
from dmae.modeling_dmae.embeddings_dmae import VideoEmbeddings
from dmae.modeling_dmae.similarity_dmae import similarity


def same(ours: EncodedSplit, theirs: EncodedSplit) -> bool:
    pairs = [*zip(ours.texts, theirs.texts), *zip(ours.videos, theirs.videos)]
    return all(torch.equal(one, other) for one, other in pairs) and np.array_equal(ours.gold, theirs.gold) and (
        (ours.video_ids, ours.skipped) == (theirs.video_ids, theirs.skipped)
    )  # fmt: skip


# ---- what is kept -----------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(split_of, monkeypatch):
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


def test_the_matrix_is_whole_up_to_its_limit_in_bytes(split_of):
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
def test_post_processing_is_of_the_whole_split_however_it_is_tiled(split_of, tile, monkeypatch):
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

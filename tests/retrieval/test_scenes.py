"""Scenes choose among the candidates; frames are read of the chosen alone, and what is returned is exact."""

import shutil

import numpy as np
import pytest
import torch

from dmae.inference.embedding import EncodedVideos
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.vectors_dmae import unit
from dmae.retrieval import narrow
from dmae.retrieval.calibration import SearchPlan
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.repair import repair

FRAMES, ROWS = 12, 2500


def videos(model, rows: int = ROWS, seed: int = 0) -> EncodedVideos:
    """Three unlike shots each: what their mean says little of, their scenes say well."""
    rng, dim = torch.Generator().manual_seed(seed), model.config.projection_dim
    shots = unit(torch.randn(rows, 3, dim, generator=rng)).repeat_interleave(FRAMES // 3, 1)
    frames = unit(shots + 0.1 * torch.randn(rows, FRAMES, dim, generator=rng))
    mask = torch.ones(rows, FRAMES, dtype=torch.bool)
    items = [{"video_id": f"{seed}-{row}", "path": f"{seed}-{row}.mp4"} for row in range(rows)]
    times = torch.arange(float(FRAMES)).expand(rows, -1)
    return EncodedVideos(VideoEmbeddings(frames, frames, mask / FRAMES, mask), items, times, [])


def texts(model, count: int, seed: int) -> TextEmbeddings:
    rng, dim = torch.Generator().manual_seed(seed), model.config.projection_dim
    sentence = unit(torch.randn(count, dim, generator=rng))
    words = unit(sentence[:, None] + 0.3 * torch.randn(count, 5, dim, generator=rng))
    mask = torch.ones(count, 5, dtype=torch.bool)
    return TextEmbeddings(sentence, words, mask / 5, mask)


@pytest.fixture(scope="module")
def built(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "index"
    VideoIndex.build(videos(model), model, processor, backend="faiss").save(folder).save_backend()
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "index")


def with_plan(index: VideoIndex, plan: SearchPlan) -> VideoIndex:
    index._state = index._state._replace(plan=plan)
    return index


def shared(some: list, others: list) -> float:
    pairs = [({hit.row for hit in a}, {hit.row for hit in b}) for a, b in zip(some, others, strict=True)]
    return float(np.mean([len(a & b) / len(b) for a, b in pairs]))


def test_scenes_choose_better_than_means_and_frames_are_read_of_the_chosen_alone(folder, model, processor):
    index = VideoIndex.open(folder, model, processor)
    queries = texts(model, 10, 3)
    exact = VideoIndex.open(folder, model, processor).search_embeddings(queries, exact=True)
    scores = {hit.row: hit.score for hits in exact for hit in hits}
    direct = with_plan(index, SearchPlan(candidates=30, codes=0)).search_embeddings(queries)
    chosen = with_plan(VideoIndex.open(folder, model, processor), SearchPlan(candidates=30, codes=0, scenes=1500))
    found = chosen.search_embeddings(queries)
    assert shared(found, exact) > shared(direct, exact) + 0.05
    for hits, truth in zip(found, exact):
        assert hits[0].row == truth[0].row and hits[0].score == pytest.approx(scores[hits[0].row], abs=1e-5)
    read = sum(int(segment.arrays.checked_rows["frames"].sum()) for segment in chosen.snapshot.segments)
    assert read <= 10 * 30


def test_a_calibrated_plan_takes_scenes_where_they_save_reading_and_keeps_its_promise(folder, model, processor):
    index = VideoIndex.open(folder, model, processor)
    plan = index.calibrate(texts(model, 100, 4), 0.95)
    assert plan.scenes > plan.candidates and plan.recall > plan.recall_low >= 0.95
    again = VideoIndex.open(folder, model, processor)
    assert again.plan == plan
    queries = texts(model, 40, 5)
    assert shared(again.search_embeddings(queries), index.search_embeddings(queries, exact=True)) >= 0.95
    # more results than the plan's candidates: each stage hands on in proportion
    assert all(len(hits) == 2 * plan.candidates for hits in again.search_embeddings(queries[:2], 2 * plan.candidates))


def test_rows_of_earlier_versions_have_no_scenes_and_are_scored_exactly_instead(
    model, processor, tmp_path, monkeypatch
):
    with monkeypatch.context() as earlier:
        earlier.setattr(narrow, "scenes_of", lambda video: {})
        index = VideoIndex.build(videos(model), model, processor, backend="faiss").save(tmp_path / "index")
    index.add(videos(model, 300, seed=1))
    assert not index.snapshot.has_scenes
    queries, plan = texts(model, 10, 3), SearchPlan(candidates=60, codes=0, scenes=1500)
    exact = index.search_embeddings(queries, exact=True)
    with_plan(index, plan)
    assert shared(index.search_embeddings(queries), exact) >= 0.95  # 1,500 rows scored, not 60
    index.delete([f"0-{row}" for row in range(ROWS // 3)] + [f"1-{row}" for row in range(100)])
    index.compact()  # both kinds of segments become one
    assert len(index.snapshot.segments) == 1 and not index.snapshot.has_scenes
    assert index.search_embeddings(queries)


def test_scenes_stay_through_deleting_joining_and_rewriting(folder, model, processor):
    index = VideoIndex.open(folder, model, processor)
    before = {
        row["video_id"]: scenes for row, scenes in zip(index.rows(), index.snapshot.tensor("scenes", np.arange(ROWS)))
    }
    index.delete([f"0-{row}" for row in range(500)])
    index.compact()
    index.rewrite({"0-2000": {"metadata": {"title": "another"}}})
    index = VideoIndex.open(folder, model, processor)
    assert index.snapshot.has_scenes and len(index) == 2000
    for row, scenes in zip(index.rows(), index.snapshot.tensor("scenes", np.arange(2000))):
        assert torch.equal(scenes, before[row["video_id"]])


def test_a_damaged_scene_is_noticed_and_its_video_embedded_again(folder, model, processor):
    index = VideoIndex.open(folder, model, processor)
    (segment,) = index.snapshot.segments
    path, row = folder / segment.file, segment.arrays.arrays["scenes"][1234].tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(row) + 5] ^= 8
    path.write_bytes(content)
    damaged = with_plan(VideoIndex.open(folder, model, processor), SearchPlan(candidates=60, codes=0, scenes=ROWS))
    with pytest.raises(ValueError, match="the scenes of row 1234"):
        damaged.search_embeddings(texts(model, 1, 3))
    assert repair(folder) == ["0-1234"]
    assert len(VideoIndex.open(folder, model, processor)) == ROWS - 1

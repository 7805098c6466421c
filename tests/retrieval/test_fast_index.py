"""Quicker ways to embed: key frames only, and products in 8 bits. The index stays what any later run can go on with."""

import shutil

import numpy as np
import pytest
import torch

from dmae.retrieval import storage
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos


@pytest.fixture
def videos(clips, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("clip00.mp4", "clip01.mp4"):
        shutil.copy(clips / name, tmp_path / "videos" / name)
    return tmp_path / "videos"


def frames_of(index: VideoIndex) -> torch.Tensor:
    return index.snapshot.gather(np.arange(len(index))).video_embeds.float()


def test_an_index_of_key_frames_knows_that_it_is_one(videos, tmp_path, model_folder, make_clip):
    output = tmp_path / "index"
    index_videos(videos, output, str(model_folder), fast=True, num_workers=0)
    index = VideoIndex.open(output)
    assert index.processor.feature_extractor.key_frames  # asked of the index alone
    # the clips have one key frame each, at their beginning
    assert index.snapshot.gather(np.arange(2)).video_mask.sum(1).tolist() == [1, 1]
    make_clip(videos / "later.mp4", seed=9)
    assert index_videos(videos, output, num_workers=0).embedded == 1  # goes on without being told
    index_videos(videos, tmp_path / "all", str(model_folder), num_workers=0)
    with pytest.raises(ValueError, match="built with all frames"):
        index_videos(videos, tmp_path / "all", fast=True)


def test_a_loaded_processor_takes_key_frames_for_this_index_only(videos, tmp_path, model, processor):
    before = processor.feature_extractor
    index_videos(videos, tmp_path / "index", (model, processor), fast=True, num_workers=0)
    for wrong in ({"model": model}, {"processor": processor}):
        with pytest.raises(ValueError, match="give a loaded model together with its processor, or neither"):
            VideoIndex.open(tmp_path / "index", **wrong)
    index = VideoIndex.open(tmp_path / "index")
    assert index.manifest["model"]["key_frames"] is True
    assert index.snapshot.gather(np.arange(2)).video_mask.sum(1).tolist() == [1, 1]
    assert processor.feature_extractor is before and not before.key_frames, "the caller's own goes on with all frames"
    with pytest.raises(ValueError, match="processor settings"):
        index_videos(videos, tmp_path / "index", (model, processor), num_workers=0)
    again = index_videos(videos, tmp_path / "index", (model, processor), fast=True, num_workers=0)
    assert (again.embedded, again.unchanged) == (0, 2)


def test_8_bit_products_change_scores_a_little_and_the_index_stays_the_models(videos, tmp_path, model_folder):
    index_videos(videos, tmp_path / "plain", str(model_folder), dtype="float32", num_workers=0)
    index_videos(videos, tmp_path / "int8", str(model_folder), dtype="int8", num_workers=0)
    plain, narrow = VideoIndex.open(tmp_path / "plain"), VideoIndex.open(tmp_path / "int8")
    assert storage.read_manifest(tmp_path / "int8")["model"] == storage.read_manifest(tmp_path / "plain")["model"]
    cosines = torch.cosine_similarity(frames_of(plain), frames_of(narrow), dim=-1)
    assert cosines.min() > 0.99 and not torch.equal(frames_of(plain), frames_of(narrow))
    assert narrow.search("a red square", top_k=2)  # the model of the index, in float32, is accepted


def test_a_word_that_is_no_choice_is_refused_before_a_model_is_loaded(videos, tmp_path):
    for words, told in (
        ({"frames": "int4"}, "frames='int4' is not a choice"),
        ({"backend": "x"}, "unknown backend 'x'"),
    ):
        with pytest.raises(ValueError, match=told):
            index_videos(videos, tmp_path / "index", str(tmp_path / "no model"), num_workers=0, **words)
    assert not (tmp_path / "index").exists()

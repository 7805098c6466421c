"""Shards are embedded once, whatever runs them, and an index of them answers as one of the videos does."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from dmae.retrieval import corpus
from dmae.retrieval.bound import coarse_vectors
from dmae.retrieval.corpus import embed_corpus, read_corpus
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.windows import WindowPlan


def test_shards_are_done_once_and_make_the_same_index(model, processor, clips, encoded, tmp_path, monkeypatch):
    shards = embed_corpus(model, processor, clips, tmp_path / "out", shard_size=5, num_workers=0)
    assert [path.name for path in shards] == [f"shard-{n:06d}.parquet" for n in range(3)]
    first = VideoIndex.build(encoded, model, processor).search("a red square", top_k=12)[0]
    again = VideoIndex.build(read_corpus(tmp_path / "out"), model, processor).search("a red square", top_k=12)[0]
    assert [hit.video_id for hit in again] == [hit.video_id for hit in first]
    monkeypatch.setattr(corpus, "embed_shard", lambda *args, **kwargs: pytest.fail("embedded again"))
    assert embed_corpus(model, processor, clips, tmp_path / "out", shard_size=5) == shards


def test_a_missing_shard_alone_is_done_again(model, processor, clips, tmp_path):
    shards = embed_corpus(model, processor, clips, tmp_path / "out", shard_size=5, num_workers=0)
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    embed_corpus(model, processor, clips, tmp_path / "out", shard_size=5, num_workers=0)
    assert shards[0].stat().st_mtime_ns == kept
    assert sorted(read_corpus(tmp_path / "out").video_ids) == [f"clip{n:02d}" for n in range(12)]


def test_another_plan_for_the_same_folder_is_refused(model, processor, clips, tmp_path):
    embed_corpus(model, processor, clips, tmp_path / "out", shard_size=12, num_workers=0)
    with pytest.raises(ValueError, match="shard_size was 12 and is 5"):
        embed_corpus(model, processor, clips, tmp_path / "out", shard_size=5)


def test_a_damaged_file_is_named_beside_its_shard(model, processor, clips, tmp_path):
    videos = shutil.copytree(clips, tmp_path / "videos")
    (videos / "bad.mp4").write_bytes(b"no video")
    embed_corpus(model, processor, videos, tmp_path / "out", shard_size=100, num_workers=0)
    skipped = (tmp_path / "out" / "shard-000000.skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["video_id"] for line in skipped] == ["bad"]
    assert len(read_corpus(tmp_path / "out").items) == 12


def test_odd_names_cost_nothing_and_what_cannot_be_read_is_named(model, processor, clips, tmp_path):
    """A name that is no UTF-8 comes back as it is from Parquet, which holds UTF-8 only."""
    (tmp_path / "videos").mkdir()
    names = [os.fsdecode(b"caf\xe9.mp4"), "two\u2028lines [b].mp4"]
    for number, name in enumerate(names):
        shutil.copy(clips / f"clip{number:02d}.mp4", tmp_path / "videos" / name)
    (tmp_path / "videos" / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    embed_corpus(model, processor, tmp_path / "videos", tmp_path / "out", num_workers=0)
    found = read_corpus(tmp_path / "out")
    assert sorted(item["path"] for item in found.items) == sorted(str(tmp_path / "videos" / name) for name in names)
    assert set(found.video_ids) == {name.removesuffix(".mp4") for name in names}
    assert len(VideoIndex.build(found, model, processor).search("a red square")[0]) == 2
    skipped = (tmp_path / "out" / "shard-000000.skipped.jsonl").read_text()
    assert json.loads(skipped)["video_id"] == "nowhere" and "leads nowhere" in skipped


PROGRAM = """
import os, sys
from dmae.retrieval.corpus import embed_corpus
from dmae.inference.loading import load_model_and_processor
assert os.environ["WORLD_SIZE"] == "2"
loaded = load_model_and_processor(sys.argv[1])
embed_corpus(*loaded, sys.argv[2], sys.argv[3], runner="accelerate", shard_size=4, num_workers=0)
"""


def test_two_processes_share_the_shards(model_folder, clips, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", str(port), str(program), str(model_folder), str(clips), str(tmp_path / "out")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(launch, check=True, env=environment, capture_output=True, timeout=1000)
    assert sorted(read_corpus(tmp_path / "out").video_ids) == [f"clip{n:02d}" for n in range(12)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ray_runs_sixty_four_clips_and_a_damaged_one(model, processor, make_clip, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default (15) actors starve beside other work
    for seed in range(64):
        make_clip(tmp_path / f"c{seed}.mp4", seed, seconds=0.5)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    shards = embed_corpus(model, processor, tmp_path, tmp_path / "out", runner="ray", shard_size=16)
    assert len(shards) == 5
    assert sorted(read_corpus(tmp_path / "out").video_ids) == sorted(f"c{seed}" for seed in range(64))
    skipped = [line for path in (tmp_path / "out").glob("*.skipped.jsonl") for line in path.read_text().splitlines()]
    assert [json.loads(line)["video_id"] for line in skipped] == ["bad"]


# ---- who embeds which shard, without embedding --------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """told(output, names, **options) -> (what is returned, the shards that are asked for)."""
    asked = []

    def embed_shard(model, processor, items, path, **options):
        asked.append(([item["video_id"] for item in items], path.name, options))
        path.write_text("")

    def tell(output, names, **options):
        asked.clear()
        items = [{"video_id": name} for name in names]
        monkeypatch.setattr(corpus, "corpus_items", lambda source, window: items if window == WindowPlan() else None)
        return embed_corpus("model", "processor", "videos", output, **options), list(asked)

    monkeypatch.setattr(corpus, "embed_shard", embed_shard)
    monkeypatch.setattr(corpus, "describe_model", lambda *loaded: {"name": "/".join(loaded)})
    return tell


def test_every_process_does_its_own_shards(told, tmp_path, monkeypatch):
    """Alone all of them, those that are there left out; with others every second one. What is done is returned."""
    names = [f"shard-{number:06d}.parquet" for number in range(3)]
    usual, given = {"batch_size": 16, "num_workers": None}, {"batch_size": 3, "num_workers": 0}
    done, asked = told(tmp_path / "a", "abcde", shard_size=2)
    assert asked == [(["a", "b"], names[0], usual), (["c", "d"], names[1], usual), (["e"], names[2], usual)]
    assert done == [tmp_path / "a" / name for name in names]
    (tmp_path / "a" / names[1]).unlink()
    assert told(tmp_path / "a", "abcde", shard_size=2, **given)[1] == [(["c", "d"], names[1], given)]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done, asked = told(tmp_path / "b", "abcde", shard_size=2, runner="accelerate")
    assert [name for _, name, _ in asked] == [names[1]] and done == [tmp_path / "b" / names[1]]
    monkeypatch.delenv("RANK"), monkeypatch.delenv("WORLD_SIZE")
    assert len(told(tmp_path / "b", "abcde", shard_size=2, runner="accelerate")[1]) == 2
    monkeypatch.setattr(corpus, "_run_on_ray", lambda *about: asked.append(about))
    asked.clear()
    told(tmp_path / "c", "ab", shard_size=1, runner="ray", **given)
    assert asked == [
        ("model", "processor", [(0, [{"video_id": "a"}]), (1, [{"video_id": "b"}])], tmp_path / "c", given)
    ]


def test_a_wrong_plan_is_refused_before_anything_is_read(told, tmp_path):
    with pytest.raises(ValueError, match="unknown runner 'slurm'; valid: local, accelerate, ray"):
        told(tmp_path, "a", runner="slurm")
    with pytest.raises(ValueError, match="shard_size=0 must be at least 1"):
        told(tmp_path, "a", shard_size=0)
    assert len(told(tmp_path / "x", "ab", shard_size=1)[1]) == 2
    plan = json.loads((tmp_path / "x" / corpus.PLAN).read_text())
    source = os.path.abspath("videos")
    assert plan == {"model": {"name": "model/processor"}, "source": source, "shard_size": 1, "items": 2}
    with pytest.raises(ValueError) as error:
        told(tmp_path / "x", "abc", shard_size=2)
    different = "shard_size was 1 and is 2; items was 2 and is 3"
    assert str(error.value) == f"{tmp_path / 'x'} holds shards of another run ({different}); choose another folder"
    with pytest.raises(FileNotFoundError, match="holds no shards; make them with embed_corpus"):
        read_corpus(tmp_path)


def test_a_shard_comes_back_as_it_was(make_videos, model):
    """Frames in float16, all else as it is, spans that are not known too; of earlier versions without names."""
    videos = make_videos(["a", "\udce9", "a"])
    about = [{"span": [0.5, 9.0]}, {"span": None, "start": None}, {"span": None, "end": None}]
    items = [{**item, "signature": [1, 2], "metadata": {"n": n}, **about[n]} for n, item in enumerate(videos.items)]
    table = corpus._table(videos._replace(items=items), model.config)
    (back,) = corpus._parts(table)
    assert back.items == items and back.skipped == []
    values = videos.embeddings
    assert np.array_equal(back.embeddings.attended_embeds, values.attended_embeds.half().float())
    assert np.array_equal(back.embeddings.frame_weights, values.frame_weights)
    assert np.array_equal(back.embeddings.video_mask, values.video_mask)
    assert np.array_equal(back.timestamps, videos.timestamps)
    pooled = coarse_vectors(values, model.config).half().numpy()
    assert np.array_equal(np.stack(table["pooled"].to_numpy()), pooled)
    assert table["video_id"].to_pylist() == ["a", "\\udce9", "a"]
    (older,) = corpus._parts(table.drop_columns(["names"]))
    assert [item["video_id"] for item in older.items] == ["a", "\\udce9", "a"]
    empty = corpus._table(videos._replace(embeddings=None, items=[]), model.config)
    assert len(empty) == 0 and list(corpus._parts(empty)) == []

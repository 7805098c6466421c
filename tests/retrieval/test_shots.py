"""Windows follow shots; every frame is decoded and embedded once; scores are those of each window alone."""

from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from dmae.inference import embedding
from dmae.inference.embedding import encode_videos
from dmae.processing.frames_dmae import FrameSampler
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.shots import LEAST_SECONDS, FollowShots, cuts, stretches
from dmae.retrieval.windows import WindowPlan

SHOTS = [0, 13, 27, 50, 58]  # seconds at which another picture begins
SECONDS = 72


def film(path, rate: int = 4):
    """One picture per shot, which moves a little; the last frames as bright as the first ones."""
    random = np.random.default_rng(5)
    pictures = [random.integers(0, 256, (6, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1) for _ in SHOTS]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "g": "16"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(SECONDS * rate):
            shot = np.searchsorted(SHOTS, number / rate, side="right") - 1
            image = np.roll(pictures[shot], number % 8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    film(folder / "film.mp4")
    return folder


def rows_of(folder):
    index = VideoIndex.open(folder)
    rows = index.rows()
    order = np.argsort([row["start"] + row["end"] / 1e6 for row in rows], kind="stable")
    return [rows[place] for place in order], index.snapshot.gather(order)


@pytest.mark.parametrize("plan", [None, WindowPlan(10, 5), WindowPlan(7, 3)])
def test_windows_decoded_together_are_those_decoded_alone(videos, tmp_path, model_folder, model, processor, plan):
    index_videos(videos, tmp_path / "index", str(model_folder), plan, num_workers=0, device="cpu", dtype="float32")
    rows, stored = rows_of(tmp_path / "index")
    items = [{name: row[name] for name in ("video_id", "path", "start", "end")} for row in rows]
    alone = encode_videos(model, processor, items, num_workers=0).embeddings
    assert torch.equal(stored.video_mask, alone.video_mask)
    torch.testing.assert_close(stored.attended_embeds.float(), alone.attended_embeds.half().float(), rtol=0, atol=1e-3)
    if plan is not None:
        wanted = list(plan.cut((0.0, SECONDS)))
        np.testing.assert_allclose([(row["start"], row["end"]) for row in rows], wanted, atol=0.3)


def test_no_window_straddles_a_cut(videos, tmp_path, model_folder):
    index_videos(videos, tmp_path / "index", str(model_folder), num_workers=0)
    rows, _ = rows_of(tmp_path / "index")
    for row in rows:
        assert not any(row["start"] < cut < row["end"] for cut in SHOTS), (row["start"], row["end"])
        assert row["end"] - row["start"] <= 10.0
    covered = sum(rows[n]["end"] > rows[n + 1]["start"] - 0.01 for n in range(len(rows) - 1))
    assert covered == len(rows) - 1 and rows[0]["start"] == 0 and rows[-1]["end"] == pytest.approx(SECONDS, abs=0.5)
    assert [row["last"] for row in rows] == [False] * (len(rows) - 1) + [True]


def test_every_frame_is_decoded_and_embedded_once(videos, tmp_path, model, processor, monkeypatch):
    read, embedded = [], []
    grid, tokens = FrameSampler.decode_grid, embedding._Encoder._pixels
    monkeypatch.setattr(FrameSampler, "decode_grid", lambda *a: read.append(grid(*a)) or read[-1])
    monkeypatch.setattr(embedding._Encoder, "_pixels", lambda self, new: embedded.append(len(new)) or tokens(self, new))
    monkeypatch.setattr(FrameSampler, "decode_windows", lambda *_: pytest.fail("decoded again"))
    index_videos(videos, tmp_path / "index", (model, processor), num_workers=0)
    times = torch.cat([part.timestamps for part in read])
    assert len(times) == len(times.unique())
    snapshot = VideoIndex.open(tmp_path / "index").snapshot
    every = np.arange(len(snapshot))
    used = snapshot.tensor("timestamps", every)[snapshot.tensor("video_mask", every)]
    assert sum(embedded) == len(used.unique()) < len(used)  # fewer than the windows have together


def test_an_interrupted_film_goes_on_where_it_was(videos, tmp_path, model, processor, monkeypatch):
    whole = index_videos(videos, tmp_path / "whole", (model, processor), num_workers=0, batch_size=1)
    from dmae.retrieval import indexing

    def stops(*arguments, batches=indexing.iter_videos, **options):
        for number, batch in enumerate(batches(*arguments, **options)):
            yield batch
            if number == 0:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(indexing, "iter_videos", stops)
        index_videos(videos, tmp_path / "part", (model, processor), num_workers=0, batch_size=1)
    begun = len(VideoIndex.open(tmp_path / "part"))
    assert 0 < begun < whole.rows
    index_videos(videos, tmp_path / "part", (model, processor), num_workers=0, batch_size=1)
    spans = [[(row["start"], row["end"]) for row in rows_of(tmp_path / name)[0]] for name in ("whole", "part")]
    assert spans[0] == spans[1]


def test_a_pan_and_a_flicker_are_no_cuts():
    random = np.random.default_rng(1)
    wide = random.integers(0, 256, (40, 400, 3)).astype(np.uint8)
    pan = np.stack([wide[:, 6 * n : 6 * n + 60] for n in range(40)])
    flicker = np.stack([wide[:, :60] // (1 + n % 2) for n in range(20)])
    for frames in (pan, flicker):
        assert len(cuts(torch.from_numpy(frames).permute(0, 3, 1, 2))) == 0
    both = np.concatenate([pan[:20], 255 - pan[:20] // 3])
    assert cuts(torch.from_numpy(both).permute(0, 3, 1, 2)).tolist() == [20]


@pytest.mark.parametrize("seed", range(5))
def test_windows_cover_every_frame_and_none_is_short(seed):
    random = np.random.default_rng(seed)
    times = np.cumsum(random.uniform(0.9, 1.1, 30))
    frames = torch.from_numpy(random.integers(0, 256, (30, 3, 8, 8)).astype(np.uint8))
    windows = FollowShots(float(times[-1]) + 1.0, 12)(times, frames)
    assert set(np.concatenate([places for *_, places in windows])) == set(range(30))
    assert all(end - start >= LEAST_SECONDS - 0.3 for start, end, _ in windows)
    assert all(len(places) <= 12 for *_, places in windows)


@pytest.mark.parametrize("length", [0.5, 30, 44, 46, 3600.5])
def test_stretches_follow_one_another(length):
    parts = stretches(2.0, 2.0 + length)
    assert parts[0][0] == 2.0 and parts[-1][1] == 2.0 + length
    assert all(earlier[1] == later[0] for earlier, later in pairwise(parts))
    assert all(0 < end - start <= 46 for start, end in parts)

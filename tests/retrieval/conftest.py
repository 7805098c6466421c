"""Embedded videos that nobody had to decode."""

import pytest


@pytest.fixture(scope="session")
def make_videos(model):
    """make_videos(["a", "b", "a"], seed=0) -> a row of random frames for each name; equal names are windows."""
    import torch

    from dmae.inference.embedding import EncodedVideos
    from dmae.modeling_dmae.similarity_dmae import VideoEmbeddings
    from dmae.modeling_dmae.vectors_dmae import unit

    def make(names, seed: int = 0, frames: int = 8) -> EncodedVideos:
        rng, names = torch.Generator().manual_seed(seed), list(names)
        count, width = len(names), model.config.projection_dim
        values = unit(
            torch.randn(count, 1, width, generator=rng) + 0.5 * torch.randn(count, frames, width, generator=rng)
        )
        mask = torch.arange(frames) < torch.randint(1, frames + 1, (count, 1), generator=rng)
        weights = torch.rand(count, frames, generator=rng).masked_fill(~mask, 0.0)
        videos = VideoEmbeddings(values, values, weights / weights.sum(1, keepdim=True), mask)
        items = [
            {"video_id": name, "path": f"/videos/{name}.mp4", "start": 1.0 * names[:row].count(name), "end": 2.0 + row}
            for row, name in enumerate(names)
        ]
        return EncodedVideos(videos, items, torch.arange(frames).float().expand(count, -1), [])

    return make

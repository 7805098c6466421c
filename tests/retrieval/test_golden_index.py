"""Indexes that earlier versions wrote open, answer as they did, and can be written on."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dmae.modeling_dmae.similarity_dmae import TextEmbeddings
from dmae.retrieval import storage
from dmae.retrieval.index import VideoIndex

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = sorted(path.name for path in GOLDEN.glob("index-?"))


@pytest.fixture(params=FORMATS)
def golden(request, tmp_path):
    """(a copy of the index, queries, answers)"""
    expected = json.loads((GOLDEN / f"{request.param}.json").read_text(encoding="utf-8"))
    text = {name: torch.tensor(values) for name, values in expected["queries"].items()}
    folder = shutil.copytree(GOLDEN / request.param, tmp_path / "index")
    return folder, TextEmbeddings(**text), expected["answers"]


def answers(index, text):
    found = index.search_embeddings(text, top_k=5, hits_per_video=2)
    return [[[h.video_id, round(h.score, 4), h.start, h.end, h.metadata] for h in hits] for hits in found]


def test_there_is_one_of_every_format():
    assert [f"index-{number}" for number in range(1, storage.FORMAT + 1)] == FORMATS


def test_it_opens_and_answers_as_it_did(golden):
    folder, text, expected = golden
    index = VideoIndex.open(folder)
    assert [row["metadata"]["n"] for row in index.rows()] == ["0", "1", "2", "3", "4", "6", "5"]
    for found, wanted in zip(answers(index, text), expected):
        for hit, golden_hit in zip(found, wanted, strict=True):
            assert hit == [golden_hit[0], pytest.approx(golden_hit[1], abs=2e-4), *golden_hit[2:]]
    assert index.plan.candidates == 300


def test_it_can_be_written_on(golden):
    folder, text, expected = golden
    reader = VideoIndex.open(folder)
    writer = VideoIndex.open(folder)
    assert writer.delete(["plain"]) == 1
    writer.compact()
    assert reader.refresh()
    for found, wanted in zip(answers(VideoIndex.open(folder), text), expected):
        assert [hit[0] for hit in found][:3] == [hit[0] for hit in wanted if hit[0] != "plain"][:3]
    assert storage.read_manifest(folder)["format"] == storage.FORMAT

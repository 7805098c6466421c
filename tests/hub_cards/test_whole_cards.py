"""Whole cards, word for word, as they lie in `tests/golden/cards`.

A card that is meant to change: delete its file, run this test, which writes it anew and fails, and read what it wrote.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dmae.hub_cards.cards import Statement, as_yaml, eval_results_yaml, model_card
from dmae.hub_cards.dataset_cards import dataset_card
from dmae.hub_cards.record import METRICS, Result, Source
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cards"
RECORD = {
    "config": {
        "model": {"from_clip": "openai/clip-vit-base-patch32", "interaction": "wti", "max_frames": None},
        "data": {"videos": "/home/anna/holiday/", "extra": ["~/a/b.csv", 3, "C:\\anna\\c", "./f", "d/e"]},
        "training": {"seed": 7, "metric_for_best_model": "text_to_video_rsum", "note": "é"},
        "empty": {},
    },
    "code": {"packages": {"torch": "2.13.0", "av": None}, "git": {"commit": "0f" * 20, "dirty": True}},
    "hardware": {"gpus": [], "cpu": "x86_64", "threads": 2},
    "splits": {
        "train": {"dataset": "videofolder", "videos": 90, "captions": 180, "missing_videos": 2},
        "validation": {"dataset": "msvd", "videos": 10, "captions": 20, "missing_videos": 0},
    },
    "parameters": 151_000, "trained_parameters": 51_000, "seed": 7, "dtype": "fp32", "global_batch": 16, "steps": 30,
    "wall_seconds": 754.2, "best": {"epoch": 3},
}  # fmt: skip
SHARES = {
    f"{side}_{name}": (place + 1) / 16 + half / 8 if "rank" not in name else place + half
    for half, side in enumerate(("text_to_video", "video_to_text"))
    for place, name in enumerate(METRICS)
}
RESULTS = [
    Result("holiday", "validation", SHARES, ["10 videos", "epoch 3"], "2026-01-02T03:04:05+0000"),
    Result("msvd", "test", {"text_to_video_R@1": 0.5}, ["post-processing: DSL", "dtype bfloat16"], None),
]
SEEDS = {
    "dataset": "msvd", "split": "test", "seeds": [3, 1],
    "metrics": {name: {"mean": value, "low": value - 0.5, "high": value + 0.25} for name, value in SHARES.items()},
}  # fmt: skip
PICTURES = [{"name": "curves.png", "path": "pictures/curves.png", "caption": "Losses over the steps"}]


@pytest.fixture(scope="module")
def model(model_folder):
    return DMAEForTextVideoRetrieval.from_pretrained(model_folder)


def assert_golden(name: str, found: str) -> None:
    file = GOLDEN / name
    if not file.is_file():
        GOLDEN.mkdir(parents=True, exist_ok=True)
        file.write_text(found, encoding="utf-8")
        pytest.fail(f"{file} was not there; it is now: read it")
    (header, body), (expected_header, expected) = (_parts(text) for text in (found, file.read_text(encoding="utf-8")))
    assert yaml.safe_load(header) == yaml.safe_load(expected_header)  # in the order of the Hub's own library
    assert body == expected


def _parts(card: str) -> list[str]:
    empty, header, body = card.split("---\n", 2)
    assert empty == ""
    return [header, body]


def test_a_trained_model_s_card(model, model_folder):
    source = Source(model_folder, RECORD, RESULTS, seeds=SEEDS)
    said = Statement("mit", ("user/holiday", "user/more"), space=True)
    assert_golden("trained.md", model_card(source, model, "user/a-b", said, PICTURES))


def test_the_card_of_an_adapter_on_gpus(model, tmp_path):
    machine = {"gpus": ["H200", "H200"], "cpu": "x86_64"}
    record = {"wall_seconds": 7200, "hardware": machine, "code": {"git": {"commit": "a" * 40, "dirty": False}}}
    (tmp_path / "word_tagger.bin").touch()
    card = model_card(Source(tmp_path, record), model, "user/a-b", adapter_of="google/siglip2-base-patch16-224")
    assert_golden("adapter.md", card)


def test_the_card_of_a_model_of_which_nothing_is_known(model, tmp_path):
    assert_golden("unknown.md", model_card(Source(tmp_path), model, "user/a-b"))


def test_a_corpus_s_card(tmp_path):
    (tmp_path / "test").mkdir()
    rows = [{"file_name": "a.mp4", "captions": ["x", "y"]}, {"file_name": "b.mp4", "captions": ["é"], "place": "sea"}]
    (tmp_path / "test" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "metadata.csv").write_text("file_name,text\nc.mp4,z\n")
    found = dataset_card(tmp_path, "user/clips", "cc-by-4.0")
    assert_golden("corpus.md", found)


def test_a_prepared_corpus_s_card(tmp_path):
    split = {"dataset": "msvd", "split": "train", "listed_videos": 1200, "videos": 1198, "missing_videos": 2}
    split |= {"missing": ["a", "b"], "captions": 48_000, "unreadable": [{"video_id": "c"}]}
    report = {"splits": {"train": split, "test": {**split, "split": "test"}, "more": {**split, "dataset": "didemo"}}}
    (tmp_path / "report.json").write_text(json.dumps(report | {"words": {"paragraphs": 1198, "words": 9000}}))
    assert_golden("prepared.md", dataset_card(tmp_path, "user/prepared", "other"))
    frames = {"codec": "jpeg", "num_frames": 12, "size": 224, "sampling": "fps"}
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "cache.json").write_text(json.dumps(frames))
    assert_golden("prepared_with_frames.md", dataset_card(tmp_path, "user/prepared", "other"))


def test_a_result_for_a_benchmark_s_own_page():
    metrics, known = {"text_to_video_R@1": 0.512567}, {"id": "a/B", "task": "é", "metric": "text_to_video_R@1"}
    files = eval_results_yaml([Result("MSR-VTT (full)", "1k-A", metrics, ["12 frames"], "2026-01-02T03", known)])
    ((name, content),) = files.items()
    assert name == ".eval_results/msr_vtt_full_1k_a.yaml"
    lines = ["- dataset:", "    id: a/B", "    task_id: é", "  value: 51.26", "  date: '2026-01-02'"]
    assert content.splitlines() == [*lines, "  notes: 1k-A split, 12 frames"]


def test_yaml_is_in_the_order_it_was_given_and_in_its_own_letters():
    assert as_yaml({"b": "é", "a": [1]}) == "b: é\na:\n- 1"


def test_towers_of_two_depths_count_both(model):
    from dmae.hub_cards.cards import _architecture

    config = SimpleNamespace(**{**vars(model.config), "frame_size": 8, "vision_config": SimpleNamespace(
        hidden_size=8, num_spatial_layers=3, num_temporal_layers=2)})  # fmt: skip
    rows = dict(_architecture(SimpleNamespace(config=config, parameters=list), None))
    assert rows["Towers"] == "trained from scratch, 8 wide, 5 layers"

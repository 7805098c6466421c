"""Cards say what the run recorded: every number from there, nothing that was not measured, in valid YAML."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from dmae.evaluation.results import named_benchmark
from dmae.hub_cards.cards import Statement, eval_results_yaml, model_card, render
from dmae.hub_cards.licences import HUB_LICENCES, check_licence
from dmae.hub_cards.record import Result, find_source
from dmae.modeling_dmae.modeling_dmae import DMAEForTextVideoRetrieval


@pytest.fixture(scope="module")
def model(model_folder):
    return DMAEForTextVideoRetrieval.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def card(run_folder, identity, model) -> str:
    said = Statement("mit", datasets=("user/holiday",), space=True)
    return model_card(find_source(run_folder / "best", identity), model, "user/tiny", said)


def test_the_header_is_valid_and_carries_the_model_index(card):
    data = ModelCard(card).data
    assert data.pipeline_tag == "feature-extraction" and data.license == "mit"
    assert {"text-to-video-retrieval", "video-text-retrieval", "clip", "custom_code"} <= set(data.tags)
    assert data.base_model == "openai/clip-vit-base-patch32" and data.base_model_relation == "finetune"
    assert data.datasets == ["user/holiday"]
    name, results = model_index_to_eval_results(data.to_dict()["model-index"])
    assert name == "tiny"
    assert {result.metric_type: result.metric_value for result in results} == {
        "text_to_video_R@1": 12.3,
        "text_to_video_median_rank": 3.5,
    }


def test_the_card_says_what_a_score_means_and_whose_terms_hold(card):
    assert "## What a score means" in card and "weighted means" in card and "is no probability" in card
    assert "any deployed use" in card and "surveillance" in card  # CLIP's own card
    assert "https://huggingface.co/spaces/user/tiny" in card and "datasets/user/holiday" in card


@pytest.mark.parametrize(
    "base, header, said",
    [
        ("openai/clip-vit-base-patch16", ["en"], "Sentences are expected in English"),
        ("OFA-Sys/chinese-clip-vit-base-patch16", ["zh"], "text tower: Chinese"),
        ("google/siglip2-base-patch16-224", ["multilingual"], "text tower: more than 100"),
        ("somebody/clip", None, "text tower: those of its base model"),
    ],
)
def test_the_languages_are_those_of_the_base(run_folder, identity, model, base, header, said):
    source = find_source(run_folder / "best", identity)
    source.record["config"]["model"]["from_clip"] = base
    card = model_card(source, model, "user/tiny")
    language = ModelCard(card).data.to_dict().get("language")
    assert ([language] if isinstance(language, str) else language) == header
    assert said in card and ("expected in English" in card) == (header == ["en"])


def test_what_the_publisher_did_not_say_is_not_in_the_card(run_folder, identity, model):
    card = model_card(find_source(run_folder / "best", identity), model, "user/tiny")
    assert "huggingface.co/spaces/" not in card and "huggingface.co/datasets/" not in card
    assert "license" not in ModelCard(card).data.to_dict() and ModelCard(card).data.datasets is None


@pytest.mark.parametrize("licence, near", [("Apache-2", "apache-2.0"), ("cc-by-4", "cc-by-4.0"), ("MIT", "mit")])
def test_a_licence_the_hub_does_not_know_is_refused_with_the_nearest(licence, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        check_licence(licence)
    assert {near, "other"} <= HUB_LICENCES
    check_licence(near)
    check_licence(None)


def test_numbers_come_from_the_record_and_unmeasured_ones_are_absent(card):
    assert "|  | R@1 | median rank |" in card and "| text → video | 12.3 | 3.5 |" in card
    assert "R@5 |" not in card and "video → text |" not in card
    for fact in ("30 optimiser steps with batches of 16 pairs", "seed 7", "12.6 minutes of wall time", "2 threads",
                 "train: holiday, 90 videos, 180 captions; 2 listed videos were missing",
                 "51,000 of 151,000 parameters", "torch 2.13.0", "commit 0f0f0f0f0f0f with local changes",
                 "10 videos, 20 captions, epoch 3"):  # fmt: skip
        assert fact in card, fact
    assert "decord" not in card


def test_users_install_what_the_endpoint_does_but_for_the_image_s_own_bounds(card):
    lines = (Path(__file__).resolve().parents[2] / "hub_cards" / "requirements.txt").read_text().splitlines()
    assert not any(line.startswith("torch") for line in lines), "pip would replace the torch of the endpoint's image"
    assert 'pip install "torch" "transformers>=5.6" "av>=15" "numpy>=1.26" "spacy>=3.8"' in card


def test_paths_of_the_run_keep_only_their_last_part(card):
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["data"] == {"name": "videofolder", "videos": "holiday", "annotations": "list.csv"}
    assert recipe["model"]["from_clip"] == "openai/clip-vit-base-patch32"
    assert "anna" not in card


def test_without_a_record_the_card_claims_nothing(model_folder, identity, model):
    card = model_card(find_source(model_folder, identity), model, "user/tiny")
    assert "\n# tiny\n" in card == model_card(find_source(model_folder, identity), model, "user/tiny")
    assert "\n# tiny\n" in model_card(find_source(model_folder, identity), model, "tiny")
    for absent in ("## Results", "## Training", "Environmental cost", "model-index", "base_model", "stereotypes"):
        assert absent not in card, absent
    assert "no evaluation is part of the record" in card and "has stated no licence" in card
    assert "license" not in ModelCard(card).data.to_dict()
    assert f"| Parameters | {sum(p.numel() for p in model.parameters()):,} |" in card


RESULT = {
    "metrics": {"text_to_video_R@1": 0.5, "video_to_text_R@1": 0.25, "text_to_video_rsum": 1.5},
    "data": {"dataset": "msrvtt", "split": "test", "videos": 990, "captions": 990, "missing_videos": 10},
    "frames": 12,
    "ties": "average",
    "postprocessing": "DSL (transductive)",
}


def write_json(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_result_files_of_dmae_evaluate_are_read(model_folder, identity, tmp_path, model):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    elsewhere = write_json(tmp_path / "outputs" / "evaluate" / "results.json", {**RESULT, "model": identity})
    card = model_card(find_source(folder, identity, (elsewhere.parent,)), model, "user/tiny")
    said = "990 videos, 990 captions, 10 videos missing, frames 12, ties average, post-processing: DSL (transductive)"
    assert f"**msrvtt, test split** ({said})" in card
    assert "| text → video | 50.0 | 150.0 |" in card and "| video → text | 25.0 |  |" in card
    assert "## Results" not in model_card(find_source(folder, identity), model, "user/tiny")


def test_the_demo_s_own_test_is_read(model_folder, identity, tmp_path, model):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    after = {"text_to_video_R@1": 0.29, "gallery_size": 300, "model": identity}
    write_json(tmp_path / "metrics.json", {"random": {}, "before": {}, "after": after, "near_miss": {}})
    card = model_card(find_source(folder, identity), model, "user/tiny")
    assert "**MovingDigits, test split** (300 videos)" in card and "| text → video | 29.0 |" in card


WRONG = {
    "other weights": lambda identity: {**identity, "weights": "0" * 16},
    "other frames": lambda identity: {**identity, "processor": "0" * 16},
    "no record": lambda identity: None,
}


@pytest.mark.parametrize("whose", WRONG)
def test_results_of_another_model_are_left_out_by_name_and_refused_when_given(
    model_folder, identity, tmp_path, model, whose
):
    folder = shutil.copytree(model_folder, tmp_path / "client_a" / "model")
    theirs = {**RESULT, "model": WRONG[whose](identity)}
    foreign = write_json(tmp_path / "client_a" / "client_b" / "results.json", theirs)
    (foreign.parent / "ranking.png").write_bytes(b"\x89PNG")
    source = find_source(folder, identity)
    assert not source.results and not source.pictures
    assert [line.startswith(f"{foreign}: left out") for line in source.left_out] == [True]
    with pytest.raises(ValueError, match="left out"):
        find_source(folder, identity, (foreign,))


@pytest.mark.parametrize(
    "saved", [{}, {"best": {"weights": "0" * 16, "epoch": 1, "metrics": {"text_to_video_R@1": 1}}}]
)
def test_the_record_of_another_run_is_left_out(model_folder, identity, run_folder, tmp_path, model, saved):
    folder = shutil.copytree(model_folder, tmp_path / "mine")
    record = json.loads((run_folder / "run.json").read_text())
    foreign = write_json(tmp_path / "run.json", {**record, "best": None, **saved})
    (tmp_path / "curves.png").write_bytes(b"\x89PNG")
    source = find_source(folder, identity)
    assert (source.record, source.results, source.pictures) == ({}, [], [])
    assert str(foreign) in source.left_out[0]
    assert "holiday" not in model_card(source, model, "user/tiny")


def test_the_last_model_has_the_run_s_record_but_not_the_best_one_s_scores(run_folder, identity, tmp_path):
    shutil.copytree(run_folder / "best", tmp_path / "last")
    record = json.loads((run_folder / "run.json").read_text())
    record["best"]["weights"] = "0" * 16
    write_json(tmp_path / "run.json", {**record, "last": {"epoch": 4, "weights": identity["weights"]}})
    source = find_source(tmp_path / "last", identity)
    assert source.record["seed"] == 7 and not source.results and not source.left_out


def test_a_broken_record_is_named(model_folder, identity, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: cannot be read as JSON"):
        find_source(folder, identity)


def test_eval_results_are_written_for_the_hub_s_own_benchmarks_alone():
    metrics = {"text_to_video_R@1": 0.431, "text_to_video_ndcg@10": 0.5125}
    plain = Result("MSR-VTT", "test 1k-A", metrics, ["12 frames"], "2026-01-02")
    assert eval_results_yaml([plain]) == {}
    benchmark = {"id": "mteb/MSRVTT", "task": "t2v", "metric": "text_to_video_ndcg@10"}
    files = eval_results_yaml([plain, Result("MSRVTTT2V", "test", metrics, ["12 frames"], "2026-01-02", benchmark)])
    assert list(files) == [".eval_results/msrvttt2v_test.yaml"]
    assert yaml.safe_load(files[".eval_results/msrvttt2v_test.yaml"]) == [
        {
            "dataset": {"id": "mteb/MSRVTT", "task_id": "t2v"},
            "value": 51.25,
            "date": "2026-01-02",
            "notes": "test split, 12 frames",
        }
    ]


def test_a_benchmark_is_recorded_as_it_was_said():
    assert named_benchmark(None, "x") == {}
    said = named_benchmark("mteb/MSRVTT:t2v", "text_to_video_R@1")["benchmark"]
    assert said == {"id": "mteb/MSRVTT", "task": "t2v", "metric": "text_to_video_R@1"}
    assert named_benchmark("mteb/MSRVTT", "x", "MSRVTTT2V")["benchmark"]["task"] == "MSRVTTT2V"
    with pytest.raises(ValueError, match="--benchmark 'msrvtt': give the Hub's id"):
        named_benchmark("msrvtt", "x")


def test_a_template_word_without_a_fact_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        render("dataset_card.md", {"metadata": "", "name": "x"})

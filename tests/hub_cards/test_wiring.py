"""Which fact stands where in a card, what of a record counts, and what an upload is said to do."""

import hashlib
import json
import subprocess
from types import SimpleNamespace

import pytest
import yaml

from dmae.data.listing import read_rows
from dmae.hub_cards import cards, dataset_cards, publish, scan, staging
from dmae.hub_cards.leaderboard import ranked
from dmae.hub_cards.licences import base_terms
from dmae.hub_cards.record import (
    METRICS,
    Result,
    Source,
    _evaluation,
    _selected_epoch,
    dataset_name,
    find_model,
    find_source,
    seeds_table,
)
from dmae.modeling_dmae.configuration_dmae import DMAEConfig


def test_captions_and_videos_of_a_corpus_are_counted_in_each_form(tmp_path):
    """A file of two clips is two videos; two captions of one are one, under whatever name the column goes."""
    folder = tmp_path / "train"
    folder.mkdir()
    for rows, expected in (
        ("path,caption,start\na.mp4,one,\na.mp4,two,\na.mp4,three,4\nb.mp4,,\n", (3, 3)),
        ('{"file_name": "a", "captions": ["x", "y"]}\n{"file_name": "b", "text": "z", "captions": null}\n', (2, 3)),
    ):
        source = folder / ("metadata.csv" if rows.startswith("path") else "metadata.jsonl")
        source.write_text(rows)
        facts = dataset_cards._split_facts("train", [row for _, row in read_rows(source)])
        assert (facts["videos"], facts["captions"], facts["name"]) == (*expected, "train")


def test_conditions_of_a_result_are_all_that_was_recorded():
    data = {"dataset": "/home/anna/mine", "split": "test", "videos": 3, "captions": 5, "undecodable_videos": 2}
    content = {"metrics": {"x": 1}, "data": data, "seed": 0, "global_batch": 64, "dtype": "bfloat16", "max_words": 32,
               "postprocessing": None, "date": "2026-01-02T03", "frames": 12}  # fmt: skip
    found = _evaluation(content)
    assert (found.dataset, found.split, found.day) == ("mine", "test", "2026-01-02")
    assert found.conditions == [
        "3 videos", "5 captions", "2 videos undecodable", "frames 12", "words 32", "seed 0", "training batch 64",
        "dtype bfloat16",
    ]  # fmt: skip
    assert _evaluation({"metrics": {}, "data": None}) is None and _evaluation({"data": data}) is None
    own = {"config": {"data": {"videos": "C:\\anna\\holiday\\"}}}
    assert (dataset_name("videofolder", own), dataset_name("videofolder"), dataset_name(None)) == (
        "holiday", "own videos", "own videos",
    )  # fmt: skip


def test_shares_are_percent_and_ranks_are_ranks_in_either_direction():
    metrics = {f"{side}_{name}": 0.125 * (n + 1) for side in ("text_to_video", "video_to_text")
               for n, name in enumerate(METRICS)}  # fmt: skip
    result = Result("d", "test", metrics | {"video_to_text_R@1": None, "text_to_video_mean_rank": 7.25})
    assert result.percent()["text_to_video_rsum"] == 50.0 and result.percent()["text_to_video_mean_rank"] == 7.2
    lines = result.table.splitlines()
    assert lines[0] == "|  | R@1 | R@5 | R@10 | rsum | median rank | mean rank |"
    assert lines[2] == "| text → video | 12.5 | 25.0 | 37.5 | 50.0 | 0.6 | 7.2 |"
    assert lines[3].startswith("| video → text |  | 25.0 |")
    interval = {name: {"mean": value, "low": value - 0.5, "high": value + 0.25} for name, value in metrics.items()}
    assert "| text → video | 12.5 ± 25.0 | " in seeds_table({"metrics": interval})
    assert "| 0.8 ± 0.2 |" in seeds_table({"metrics": interval})


def test_the_model_of_a_folder_is_the_best_before_the_last_and_the_first_seed_s(tmp_path):
    for name in ("last", "model", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        assert find_model(tmp_path).name == {"last": "last", "model": "last", "best": "best"}[name]
    for seed in (3, 4):
        (tmp_path / "seeds" / f"seed-{seed}" / "best").mkdir(parents=True)
        (tmp_path / "seeds" / f"seed-{seed}" / "best" / "config.json").write_text("{}")
    (tmp_path / "seeds" / "seeds.json").write_text(json.dumps({"seeds": [4, 3], "models": {"4": "W"}}))
    model = find_model(tmp_path / "seeds")
    assert model == tmp_path / "seeds" / "seed-4" / "best"
    assert find_source(model, {"weights": "W", "processor": "P"}).seeds["models"] == {"4": "W"}
    assert find_source(model, {"weights": "V", "processor": "P"}).seeds == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"interaction": "wti", "textual_attention": False, "partial_order": False},
         {"Similarity": "weighted token", "Form": "each, words and whole", "Attention": "visual attention",
          "Trained with": "NegNCE", "Temporal encoder": "1 layer over frame"}),
        ({"interaction": "ti", "visual_attention": False, "loss": "info_nce", "temporal_layers": 2,
          "temporal_input": "patch", "text_granularity": "words"},
         {"Similarity": "(`ti`)", "Attention": "textual attention", "Trained with": "InfoNCE and TPM-CL",
          "Temporal encoder": "2 layers over patch", "Form": ", words"}),
        ({"interaction": "ti", "visual_attention": False, "textual_attention": False}, {"Attention": "none"}),
    ],
)  # fmt: skip
def test_the_architecture_is_the_configuration_s(words, expected):
    config = DMAEConfig.tiny(**words)
    expected |= {"Form": f"{config.similarity_form}, {expected['Form'].split(', ')[1]}"} if "Form" in expected else {}
    rows = dict(cards._architecture(SimpleNamespace(config=config, parameters=list), None))
    for name, said in expected.items():
        assert said in rows[name] and (name != "Trained with" or said == rows[name]), name
    vision = config.vision_config
    assert rows["Towers"] == f"trained from scratch, {vision.hidden_size} wide, {vision.num_hidden_layers} layers"
    assert rows["Input"] == f"{config.max_frames} frames of 32 pixels, {config.max_words} text tokens"
    assert rows["Joint width"] == str(config.projection_dim)
    mean = cards._architecture(SimpleNamespace(config=DMAEConfig.tiny(interaction="mean"), parameters=list), "a/b")
    assert dict(mean)["Towers"] == "a/b" and not {"Form", "Attention"} & set(dict(mean))


def test_what_training_took_is_said_as_it_was_recorded():
    hardware = {"cpu": "x86_64", "threads": 2}
    assert cards._cost({"wall_seconds": 3599, "hardware": hardware}).endswith(
        "took 60.0 minutes of wall time on the processor alone (x86_64, 2 threads)."
    )
    assert "took 1.0 hours of wall time on 2 x H200." in cards._cost(
        {"wall_seconds": 3600, "hardware": {"gpus": ["H200", "H200"]}}
    )
    assert cards._cost({}) == cards._selection({}) == cards._recipe({}) == "" and cards._training({}) == []
    said = cards._training(
        {"steps": 3, "seed": 0, "trained_parameters": 1, "parameters": 2, "dtype": "bf16",
         "code": {"git": {"commit": "a" * 40, "dirty": False}, "packages": {"torch": "2", "av": None}}}
    )  # fmt: skip
    assert said == [
        "3 optimiser steps", "1 of 2 parameters trained", "seed 0", "precision bf16",
        "software: torch 2, commit aaaaaaaaaaaa",
    ]  # fmt: skip
    record = {"best": {"epoch": 0}, "config": {"training": {"metric_for_best_model": "rsum"}}}
    assert "the best validation rsum." in cards._selection(record)
    summary = {"dataset": "msvd", "split": "test", "seeds": [3, 1], "metrics": {}}
    with pytest.raises(KeyError):
        cards._seeds(summary)
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    summary["metrics"] = {f"{side}_{name}": interval for side in ("text_to_video", "video_to_text") for name in METRICS}
    assert cards._seeds(summary)["said"] == "msvd, test split, 2 seeds (3, 1)" and cards._seeds({}) == {}


def test_terms_are_those_of_the_base():
    assert base_terms("facebook/metaclip-2-mt5").licence == "cc-by-nc-4.0"
    assert base_terms("google/siglip2-base").licence == "apache-2.0"
    assert base_terms("somebody/siglip") is base_terms(None) is None
    assert cards.hub_name("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    assert cards.hub_name("/home/x") is cards.hub_name("name") is cards.hub_name(None) is None


def test_a_leaderboard_ranks_by_recall_and_puts_what_saw_the_test_set_below():
    r1 = "text_to_video_R@1"
    rows = {("a", ""): {r1: 40.0}, ("b", "DSL"): {r1: 60.0}, ("c", ""): {r1: 50.0}, ("d", "DSL"): {r1: 61.0}}
    found = ranked(rows, [r1, "x"])
    assert [row["model"] for row in found] == ["c", "a", "d", "b"] and found[0]["cells"] == ["50.0", ""]
    assert [row["how"] for row in found] == ["", "", "DSL", "DSL"]


def test_files_are_compared_by_the_hash_the_hub_keeps(tmp_path):
    (tmp_path / "one.txt").write_bytes(b"hello\n")
    git = subprocess.run(["git", "hash-object", "one.txt"], cwd=tmp_path, capture_output=True, text=True, check=True)
    sha1, sha256 = git.stdout.strip(), hashlib.sha256(b"hello\n").hexdigest()
    file = tmp_path / "one.txt"
    files = {"same": file, "large": file, "changed": file, "new": file}
    remote = {"same": (sha1, 6), "large": (sha256, 6), "changed": (sha1[::-1], 9), "old_dmae.py": ("x", 7),
              "notes.md": ("x", 8), "model.safetensors": ("x", 2_500_000)}  # fmt: skip
    found = publish.compare(files, remote)
    assert found == [
        ("changed", "changed", 6), ("large", "same", 6), ("model.safetensors", "removed", 2_500_000),
        ("new", "new", 6), ("old_dmae.py", "removed", 7), ("same", "same", 6),
    ]  # fmt: skip
    assert publish.describe(found, "model a/b").splitlines() == [
        "model a/b:", "  ~ changed  (6 B)", "  = large  (6 B)", "  - model.safetensors  (2.5 MB)", "  + new  (6 B)",
        "  - old_dmae.py  (7 B)", "  = same  (6 B)", "2 of 6 files to upload, 12 B",
    ]  # fmt: skip
    sizes = (999, 1000, 999_999, 1_000_000, 2e9)
    assert [publish._readable(size) for size in sizes] == ["999 B", "1.0 KB", "1000.0 KB", "1.0 MB", "2.0 GB"]


def test_pictures_of_one_name_are_both_kept_with_their_captions(tmp_path):
    paths = []
    for place in ("run", "test"):
        (tmp_path / place).mkdir()
        paths.append(tmp_path / place / "words_and_frames.png")
        paths[-1].write_bytes(place.encode())
    (tmp_path / "out").mkdir()
    found = staging._pictures(Source(tmp_path, pictures=paths), tmp_path / "out")
    assert [one["path"] for one in found] == ["pictures/words_and_frames.png", "pictures/test_words_and_frames.png"]
    assert [(tmp_path / "out" / one["path"]).read_bytes() for one in found] == [b"run", b"test"]
    assert all(one["caption"] == "Words and frames of the best match" for one in found)


def test_nothing_hidden_is_staged_but_results(tmp_path):
    for name in (".git/config", ".env", "a/.cache/x", ".eval_results/d.yaml", "b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list(staging.files_in(tmp_path)) == [".eval_results/d.yaml", "b.txt"]


def test_the_head_of_a_dataset_card_is_the_owner_s_word_and_no_model_s(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "x"}\n')
    card = dataset_cards.dataset_card(tmp_path, "user/clips", "mit")
    assert yaml.safe_load(card.split("---")[1]) == {
        "license": "mit", "task_categories": ["feature-extraction"], "pretty_name": "clips",
        "tags": ["text-to-video-retrieval", "video-text-retrieval"],
    }  # fmt: skip
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\nMy own words.\n")
    assert "My own words." in dataset_cards.dataset_card(tmp_path, "user/clips", None)
    assert "license: mit" in dataset_cards.dataset_card(tmp_path, "user/clips", "mit")


def test_a_dataset_needs_a_licence_and_no_owner_s_name(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "x"}\n')
    with pytest.raises(ValueError, match=r"^a dataset needs its owner's licence: --license NAME"):
        dataset_cards.dataset_card(tmp_path, "user/clips", None)
    assert (
        yaml.safe_load(dataset_cards.dataset_card(tmp_path, "clips", "mit").split("---")[1])["pretty_name"] == "clips"
    )


def test_a_folder_says_to_sentence_transformers_what_reads_it(tmp_path):
    staging.add_sentence_module(tmp_path)
    module = [{"idx": 0, "name": "0", "path": "", "type": "sentence_dmae.TextVideoModule"}]
    assert json.loads((tmp_path / "modules.json").read_text()) == module
    settings = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
    assert json.loads((tmp_path / "config_sentence_transformers.json").read_text()) == settings
    assert "class TextVideoModule" in (tmp_path / "sentence_dmae.py").read_text()


@pytest.mark.parametrize(("count", "more"), [(50, False), (51, True), (60, True)])
def test_many_private_texts_are_named_up_to_fifty_and_the_rest_counted(tmp_path, count, more):
    """One text a file."""
    files = {}
    for number in range(count):
        files[f"{number:02}.txt"] = tmp_path / f"{number:02}.txt"
        files[f"{number:02}.txt"].write_text("see /home/zyx_nobody/notes")
    with pytest.raises(ValueError, match="would go public") as refused:
        scan.refuse_private(files)
    _, *lines = str(refused.value).splitlines()
    assert len(lines) == 50 + more and lines[0].strip().startswith("00.txt: ")
    assert not more or lines[-1].strip() == f"and {count - 50} more"


def test_a_file_is_read_in_parts_that_overlap_and_is_a_place_where_faults_strike(tmp_path, monkeypatch):
    """What stands across two parts is in one of them; no part is larger than it is said to be."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(250)))
    monkeypatch.setattr(scan, "BLOCK", 100)
    monkeypatch.setattr(scan, "OVERLAP", 10)
    struck = []
    monkeypatch.setattr("dmae.files.fault", lambda *words: struck.append(words))
    whole = path.read_bytes()
    assert list(scan._blocks(path)) == [whole[:100], whole[90:200], whole[190:]]
    publish._object_id(path, 40)
    assert struck == [("read", path)] * 2


def test_the_validation_that_chose_the_weights_is_a_result():
    record = {
        "best": {"epoch": 3, "metrics": {"x": 1}}, "updated": "2026-01-02T03",
        "splits": {"validation": {"dataset": "msvd", "split": "val", "videos": 3}},
    }  # fmt: skip
    assert _selected_epoch(record) == [Result("msvd", "val", {"x": 1}, ["3 videos", "epoch 3"], "2026-01-02T03")]
    bare = {"best": {"metrics": {"x": 1}}}
    assert _selected_epoch(bare) == [Result("own videos", "validation", {"x": 1}, [], None)]


def test_the_metric_is_staged_with_its_own_name_and_example(tmp_path):
    files = staging.stage_metric(tmp_path, "user/metric")
    code = {path.name for path in staging.METRIC.iterdir() if path.is_file()} - {"__init__.py"}
    assert set(files) == code | {"README.md", "index.html"} and list(files) == sorted(files)
    card, page = (files[name].read_text(encoding="utf-8") for name in ("README.md", "index.html"))
    assert 'evaluate.load("user/metric")' in card and "metrics/text_video_retrieval" not in card.split("```")[1]
    assert "evaluate.load(&#34;user/metric&#34;)" in page.split("<pre>")[1].split("</pre>")[0]
    assert "```" not in page and "spaces/user/metric/blob" in page

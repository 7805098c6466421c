"""`dmae evaluate` from files to results.json: nothing lost in silence, encoded once, refused when not comparable."""

import importlib.metadata
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file

from dmae import DMAEConfig, DMAEForTextVideoRetrieval, DMAEProcessor, FrameSampler, retrieval_metrics
from dmae.data.registry import DatasetLocation, load_dataset
from dmae.evaluation import cache as evaluation_cache
from dmae.evaluation.evaluate_model import EvaluationOptions, evaluate_model
from dmae.evaluation.queries import Queries
from dmae.evaluation.results import Results, check_same_protocol, compare, print_table
from dmae.evaluation.scoring import encode_split, score_split
from dmae.metrics.text_video_retrieval.postprocessing import DSL_TEMPERATURE, QB_NORM_TEMPERATURE, dsl, qb_norm
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_ranks
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.training.tokenizer import train_bpe_tokenizer


@pytest.fixture(scope="module")
def msvd(miniature, tmp_path_factory):
    """Test split of several captions a video, of which one file is gone and one is cut off."""
    name, annotations, videos = miniature("msvd")
    folder = tmp_path_factory.mktemp("damaged") / "videos"
    shutil.copytree(videos, folder)
    rows = load_dataset(name, annotations, folder, split="test").dataset
    gone, cut = rows[0], rows[3]
    Path(gone["video"]).unlink()
    with open(cut["video"], "r+b") as file:
        file.truncate(200)
    return {"annotations": str(annotations), "videos": str(folder)}, gone["video_id"], cut["video_id"]


@pytest.fixture(scope="module")
def models(msvd, tmp_path_factory):
    """Two tiny random models in their folders."""
    rows = load_dataset("msvd", split="train", **msvd[0]).dataset
    tokenizer = train_bpe_tokenizer([caption for row in rows for caption in row["captions"]], 300)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = DMAEConfig.tiny(temporal_init="random", partial_order=False)
        config.text_config.vocab_size = len(tokenizer)
        sampler = FrameSampler(num_frames=config.max_frames, size=config.vision_config.image_size, sampling="uniform")
        folders.append(tmp_path_factory.mktemp(f"model{seed}"))
        DMAEForTextVideoRetrieval(config).save_pretrained(folders[-1])
        DMAEProcessor(tokenizer, sampler, max_words=config.max_words).save_pretrained(folders[-1])
    return folders


def run(model, output, msvd, cache=None, other=None, **options):
    options = EvaluationOptions(num_workers=0, samples=20, device="cpu", **options)
    return evaluate_model(str(model), DatasetLocation("msvd", **msvd[0]), output, options, cache, other)


@pytest.fixture(scope="module")
def evaluated(models, msvd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return folder, run(models[0], folder / "plain", msvd, folder / "cache")[0]


def test_the_record_says_what_the_numbers_rest_on(evaluated, msvd):
    folder, record = evaluated
    _, gone, cut = msvd
    data = record["data"]
    assert (data["dataset"], data["split"], data["listed_videos"], data["videos"]) == ("msvd", "test", 6, 4)
    assert [entry["video_id"] for entry in data["missing"]] == [gone]
    assert [entry["video_id"] for entry in data["undecodable"]] == [cut] and data["undecodable"][0]["error"]
    assert data["captions"] > data["videos"] and data["truncated_captions"] >= 0
    needed = [
        "frames",
        "max_words",
        "ties",
        "protocol",
        "postprocessing",
        "seed",
        "world_size",
        "global_batch",
        "dtype",
    ]
    assert set(needed) | {"code", "date", "model", "intervals"} <= record.keys()
    assert json.loads((folder / "plain" / "results.json").read_text()) == json.loads(json.dumps(record))


def test_the_kept_matrix_gives_the_metrics_again(evaluated):
    folder, record = evaluated
    arrays = load_file(folder / "plain" / "similarities.safetensors")
    assert arrays["similarities"].shape == (record["data"]["captions"], 4)
    assert retrieval_metrics(arrays["similarities"], arrays["gold"]) == record["metrics"]


def test_a_second_evaluation_encodes_nothing(evaluated, models, msvd, monkeypatch):
    folder, record = evaluated

    def refuse(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(evaluation_cache, "encode_split", refuse)
    again, _ = run(models[0], folder / "again", msvd, folder / "cache", protocol="individual")
    assert again["metrics"]["text_to_video_rsum"] == record["metrics"]["text_to_video_rsum"]
    with pytest.raises(AssertionError, match="encoded again"):
        run(models[1], folder / "other", msvd, folder / "cache")


def test_a_damaged_cache_file_is_written_anew(evaluated, models, msvd, tmp_path):
    folder, record = evaluated
    for path in (folder / "cache").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:1000])
    assert run(models[0], tmp_path / "out", msvd, tmp_path)[0]["metrics"] == record["metrics"]
    assert all(path.stat().st_size > 1000 for path in tmp_path.glob("*.safetensors"))


def test_dsl_and_qb_norm_are_labelled_and_change_ranks_only(evaluated, models, msvd):
    folder, record = evaluated
    for post, label in (("dsl", "transductive"), ("qbnorm", "inductive")):
        result, _ = run(models[0], folder / post, msvd, folder / "cache", post=post)
        assert label in result["postprocessing"] and record["postprocessing"] is None
        plain, other = (load_file(folder / name / "similarities.safetensors") for name in ("plain", post))
        np.testing.assert_array_equal(plain["similarities"], other["similarities"])
        with pytest.raises(ValueError, match="post-processing: none here, "):
            check_same_protocol(record, result)
    assert result["bank"]["split"] == "train" and result["bank"]["captions"] > 0


def test_post_processing_uses_the_banks_that_it_names(models, msvd):
    """QB-Norm: training captions for text→video, training videos for video→text; DSL: the test split itself."""
    model = DMAEForTextVideoRetrieval.from_pretrained(models[0])
    processor = DMAEProcessor.from_pretrained(models[0])
    encoded = {}
    for name in ("train", "test"):
        rows = load_dataset("msvd", split=name, **msvd[0]).dataset
        encoded[name] = encode_split(Accelerator(cpu=True), model, processor, rows, 5, 0, name)
    train, test = encoded["train"], encoded["test"]

    def scores(texts, videos):
        return similarity(texts, videos, model.config).detach().numpy()

    plain = scores(test.texts, test.videos)
    beta, tau = (fixed / model.config.score_scale for fixed in (QB_NORM_TEMPERATURE, DSL_TEMPERATURE))
    to_video = qb_norm(plain, scores(train.texts, test.videos), beta)
    to_text = qb_norm(plain.T, scores(test.texts, train.videos).T, beta).T
    found = score_split(test, model.config, post="qbnorm", bank=train)
    np.testing.assert_array_equal(found.text_ranks, retrieval_ranks(to_video, test.gold)[0])
    np.testing.assert_array_equal(found.video_ranks, retrieval_ranks(to_text, test.gold)[1])
    np.testing.assert_allclose(found.ranked, to_video, rtol=1e-5)
    for_text, for_video = dsl(plain, tau)
    found = score_split(test, model.config, post="dsl")
    np.testing.assert_array_equal(found.text_ranks, retrieval_ranks(for_text, test.gold)[0])
    np.testing.assert_array_equal(found.video_ranks, retrieval_ranks(for_video, test.gold)[1])


def test_counts_in_the_record_are_counted(evaluated, models, msvd):
    """Captions that the model cannot read whole, listed, missing and undecodable videos."""
    _, record = evaluated
    _, gone, cut = msvd
    rows = load_dataset("msvd", split="test", **msvd[0]).dataset
    processor = DMAEProcessor.from_pretrained(models[0])
    captions = [caption for row in rows if row["video_id"] != cut for caption in row["captions"]]
    lengths = [len(processor.tokenizer(caption)["input_ids"]) for caption in captions]
    data = record["data"]
    assert data["captions"] == len(captions) and data["videos"] == len(rows) - 1
    assert data["truncated_captions"] == sum(length > processor.max_words for length in lengths)
    assert (data["missing_videos"], data["undecodable_videos"]) == (1, 1) and gone not in rows["video_id"]
    packages = record["code"]["packages"]
    assert packages == {name: importlib.metadata.version(name) for name in packages}


def test_two_models_are_compared_on_the_same_draws(evaluated, models, msvd, capsys):
    folder, _record = evaluated
    result, comparison = run(models[1], folder / "second", msvd, None, folder / "plain")
    entry = comparison["text_to_video_mean_rank"]
    assert entry["difference"] == result["metrics"]["text_to_video_mean_rank"] - entry["other"]
    assert entry["interval"][0] <= entry["difference"] <= entry["interval"][1]
    print_table(result, comparison)
    assert "difference" in capsys.readouterr().out


def test_results_are_paired_by_id_not_by_row(models, msvd, tmp_path):
    """The same model on the same split with its rows shuffled: no difference in any draw, in any array."""
    rows = list(load_dataset("msvd", split="test", **msvd[0]).dataset)
    lines = [{"file_name": Path(row["video"]).name, **row, "captions": row["captions"][::-1]} for row in rows]
    own = tmp_path / "own"
    for name, order in (("plain", lines), ("shuffled", lines[::-1])):
        (own / name).mkdir(parents=True)
        for line in order:
            shutil.copy(line["video"], own / name)
        text = [json.dumps({key: line[key] for key in ("file_name", "video_id", "captions")}) for line in order]
        (own / name / "metadata.jsonl").write_text("\n".join(text) + "\n")
    options = EvaluationOptions(num_workers=0, samples=50, device="cpu")
    results = {}
    for name in ("plain", "shuffled"):
        evaluate_model(str(models[0]), DatasetLocation(str(own / name)), tmp_path / name, options)
        results[name] = Results.read(tmp_path / name)
        results[name].record["data"]["dataset"] = "own"
    plain, other = results["plain"], results["shuffled"]
    assert not np.array_equal(plain.arrays["text_ranks"], other.arrays["text_ranks"]), "else nothing is shown"
    comparison = compare(plain, other, samples=200)
    assert all(entry["interval"] == [0, 0] for entry in comparison.values())
    aligned = other.in_order_of(plain)
    for name in plain.arrays.keys() - {"similarities"}:
        np.testing.assert_array_equal(aligned.arrays[name], plain.arrays[name], name)
    np.testing.assert_allclose(aligned.arrays["similarities"], plain.arrays["similarities"], atol=1e-6)


def test_results_of_other_pairs_are_not_paired(evaluated):
    folder, _ = evaluated
    ours, theirs = (Results.read(folder / "plain") for _ in range(2))
    theirs.arrays["caption_keys"] = theirs.arrays["caption_keys"] + 1
    with pytest.raises(ValueError, match="they rank other captions"):
        compare(ours, theirs)
    del theirs.arrays["caption_keys"]
    with pytest.raises(ValueError, match="does not say which captions it holds; evaluate again"):
        compare(ours, theirs)


def test_the_per_query_file_agrees_with_the_results(evaluated, models, msvd, tmp_path):
    """With post-processing: the ranks of the file are the ones that the metrics were made of."""
    folder, record = evaluated
    for post in (None, "dsl"):
        options = EvaluationOptions(num_workers=0, samples=0, device="cpu", post=post)
        arguments = (
            str(models[0]),
            DatasetLocation("msvd", **msvd[0]),
            tmp_path / str(post),
            options,
            folder / "cache",
        )
        found, _ = evaluate_model(*arguments, per_query=tmp_path / f"{post}.jsonl")
        queries = Queries.read(tmp_path / f"{post}.jsonl")
        assert np.mean(queries.ranks <= 1) == found["metrics"]["text_to_video_R@1"]
        assert np.mean(queries.ranks) == pytest.approx(found["metrics"]["text_to_video_mean_rank"])
        assert len(queries.ranks) == record["data"]["captions"]
        for line in (tmp_path / f"{post}.jsonl").read_text().strip("\n").split("\n"):
            row = json.loads(line)
            assert row["rank"] > 1 or row["top"][0]["video_id"] == row["video_id"]


def test_pictures_are_written_beside_the_results(evaluated, models, msvd, tmp_path):
    folder, _ = evaluated
    options = EvaluationOptions(num_workers=0, samples=0, device="cpu")
    evaluate_model(
        str(models[0]),
        DatasetLocation("msvd", **msvd[0]),
        tmp_path,
        options,
        folder / "cache",
        folder / "plain",
        pictures=True,
    )
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"hard_negatives.html", "hard_negatives.csv", "words_and_frames.html", "side_by_side.html"}
    picture = (tmp_path / "words_and_frames.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(evaluated, models, msvd, tiny, tmp_path):
    command = [
        *tiny.launch(2, tiny.free_port()),
        "-m",
        "dmae",
        "evaluate",
        "--model",
        str(models[0]),
        "--dataset",
        "msvd",
    ]
    command += [word for name, value in msvd[0].items() for word in (f"--{name}", value)]
    command += ["--no-cache", "--device", "cpu", "--samples", "0", "--output", str(tmp_path)]
    run = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    record = Results.read(tmp_path).record
    assert record["world_size"] == 2 and record["metrics"] == evaluated[1]["metrics"]


def test_unequal_protocols_are_refused_before_anything_is_loaded(evaluated, msvd, tmp_path):
    folder, _ = evaluated
    with pytest.raises(ValueError, match=r"ties: optimistic here, average there.*same way"):
        run("no-such-model", tmp_path, msvd, None, folder / "plain", ties="optimistic")
    with pytest.raises(ValueError, match="split: train here, test there"):
        run("no-such-model", tmp_path, msvd, None, folder / "plain" / "results.json", split="train")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="not written by"):
        Results.read(tmp_path)


@pytest.mark.parametrize("option", [{"protocol": "x"}, {"ties": "x"}, {"post": "x"}])
def test_unknown_words_list_the_valid_ones(option, msvd, tmp_path):
    with pytest.raises(ValueError, match="valid: "):
        run("no-such-model", tmp_path, msvd, **option)


def test_tiles_rank_as_the_whole_matrix_does(models, msvd):
    """Above the size limit nothing holds the matrix; the ranks are the same, and they are those of `similarity`."""
    model = DMAEForTextVideoRetrieval.from_pretrained(models[0])
    processor = DMAEProcessor.from_pretrained(models[0])
    rows = load_dataset("msvd", split="train", **msvd[0]).dataset
    split = encode_split(Accelerator(cpu=True), model, processor, rows, 5, 0, "videos")
    assert split.video_ids == list(rows["video_id"])
    whole, tiled = (score_split(split, model.config, matrix_bytes=size) for size in (1 << 20, 8))
    assert tiled.similarities is None
    np.testing.assert_array_equal(whole.text_ranks, tiled.text_ranks)
    np.testing.assert_array_equal(whole.video_ranks, tiled.video_ranks)
    direct = similarity(split.texts, split.videos, model.config).numpy()
    np.testing.assert_allclose(whole.similarities, direct, atol=1e-6)
    with pytest.raises(ValueError, match="needs the whole matrix"):
        score_split(split, model.config, post="dsl", matrix_bytes=8)

"""What stands around mteb: the rows it is given and the file that is left. mteb itself runs in the slow tests."""

import io
import json
import logging
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from dmae.evaluation.cache import default_cache
from dmae.evaluation.evaluate_model import EvaluationOptions, default_split
from dmae.evaluation.results import Results, named_benchmark, print_table
from dmae.evaluation.scoring import similarity_matrix
from dmae.inference.embedding import encode_texts

TEXTS = ["a red square", "the sky is blue", "two dogs run"]


@pytest.fixture
def mteb(monkeypatch):
    """The three names that are taken from mteb; the modules that import it are loaded anew, and forgotten."""
    for name in ("mteb", "mteb.models", "mteb.models.abs_encoder", "mteb.models.model_meta"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["mteb.models.abs_encoder"].AbsEncoder = object
    create_empty = staticmethod(lambda overwrites: SimpleNamespace(**overwrites))
    sys.modules["mteb.models.model_meta"].ModelMeta = SimpleNamespace(create_empty=create_empty)
    monkeypatch.delitem(sys.modules, "dmae.evaluation.mteb_model", raising=False)
    yield sys.modules["mteb"]
    sys.modules.pop("dmae.evaluation.mteb_model", None)


@pytest.fixture
def loaded(mteb, model_folder):
    from dmae.evaluation.mteb_model import load_mteb_model

    return load_mteb_model(str(model_folder), device="cpu", batch_size=5, num_workers=0)


def rows_of(clips, numbers):
    from datasets import Video

    paths = [str(clips / f"clip{number:02d}.mp4") for number in numbers]
    rows = Dataset.from_dict({"id": [f"c{number}" for number in numbers], "video": paths})
    return rows.cast_column("video", Video(decode=False))


def test_retrieval_by_the_model_s_own_score(loaded, model, processor, encoded, clips):
    texts = Dataset.from_dict({"id": ["x", "y", "z"], "text": TEXTS})
    scores = similarity_matrix(encode_texts(model, processor, TEXTS), encoded.embeddings[[3, 1, 8]], model.config)
    ids = ["c3", "c1", "c8"]
    loaded.index(rows_of(clips, (3, 1, 8)))
    found = loaded.search(texts, top_k=2)
    for query, row in zip("xyz", scores):
        best = np.argsort(-row)[:2]
        assert list(found[query]) == [ids[place] for place in best]
        assert list(found[query].values()) == pytest.approx(row[best].tolist(), abs=1e-4)
    only = {"x": ["c8", "gone"], "y": ["c1", "c3"], "z": []}
    assert {query: set(row) for query, row in loaded.search(texts, top_k=5, top_ranked=only).items()} == {
        "x": {"c8"}, "y": {"c1", "c3"}, "z": set(),
    }  # fmt: skip
    loaded.index(texts)
    turned = loaded.search(rows_of(clips, (3, 1, 8)), top_k=3)
    for number, video in enumerate(ids):
        assert turned[video] == pytest.approx(dict(zip("xyz", scores[:, number].tolist())), abs=1e-4)
    with pytest.raises(ValueError, match="on both sides"):
        loaded.search(texts, top_k=1)


def test_what_cannot_be_read_ranks_last_or_ends_it(loaded, clips, tmp_path, caplog):
    (tmp_path / "clip07.mp4").write_bytes(b"no video")
    broken = Dataset.from_dict({"id": ["a", "b"], "video": [str(clips / "clip00.mp4"), str(tmp_path / "clip07.mp4")]})
    with caplog.at_level(logging.WARNING):
        loaded.index(broken)
    assert "document b cannot be read" in caplog.text
    texts = Dataset.from_dict({"text": TEXTS[:1]})
    assert list(loaded.search(texts, top_k=9)["0"]) == ["a"]
    with pytest.raises(ValueError, match="1 queries cannot be read: b; repair"):
        loaded.search(broken, top_k=1)
    with pytest.raises(ValueError, match="1 of 2 videos cannot be read"):
        loaded.encode(SimpleNamespace(dataset=broken))
    with pytest.raises(ValueError, match="a row has the columns id, sound; texts and videos are read"):
        loaded.encode(SimpleNamespace(dataset=Dataset.from_dict({"id": ["a"], "sound": ["b"]})))


def test_single_vectors_are_the_sentence_s_and_the_mean_frame_s(loaded, model, processor, encoded, clips):
    words = loaded.encode(SimpleNamespace(dataset=Dataset.from_dict({"text": TEXTS})))
    sentence = torch.nn.functional.normalize(encode_texts(model, processor, TEXTS).sentence_embeds, dim=-1)
    np.testing.assert_allclose(words, sentence, atol=1e-5)
    video, mask = encoded.embeddings[[2]].video_embeds, encoded.embeddings[[2]].video_mask
    mean = torch.nn.functional.normalize(video[0][mask[0]].sum(0), dim=-1)
    np.testing.assert_allclose(loaded.encode(SimpleNamespace(dataset=rows_of(clips, (2,))))[0], mean, atol=1e-5)


def test_what_mteb_is_told_of_a_model(loaded, model, model_folder):
    about = vars(loaded.mteb_model_meta)
    count = sum(weight.numel() for weight in model.parameters())
    loader = about.pop("loader")
    assert about == {
        "name": f"local/{model_folder.name}", "revision": "no_revision_available", "languages": ["eng-Latn"],
        "n_parameters": count, "memory_usage_mb": round(count * 4 / 2**20), "max_tokens": model.config.max_words,
        "embed_dim": model.config.projection_dim, "framework": ["PyTorch", "Transformers"],
        "similarity_fn_name": "cosine", "use_instructions": False, "modalities": ["text", "video"],
        "open_weights": False,
    }  # fmt: skip
    assert (loaded.batch_size, loaded.num_workers, loader.args) == (5, 0, (str(model_folder),))
    from dmae.evaluation.mteb_model import model_meta

    named = model_meta(model, "org/name", "abc")
    assert (named.name, named.revision, named.open_weights) == ("org/name", "abc", True)


def test_a_task_leaves_its_results_file(mteb, monkeypatch, model_folder, tmp_path):
    from dmae.evaluation.mteb_run import evaluate_mteb

    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 2")
    row = {"main_score": 0.5, "recall_at_1": 0.25, "recall_at_5": 0.625, "recall_at_10": 0.75, "recall_at_100": 1.0}
    asked = []

    def evaluate(model, task, **options):
        asked.append((task, options))
        return [SimpleNamespace(scores={"test": [row, {"main_score": 9}], "other": []})]

    mteb.evaluate = evaluate
    about = {"dataset": {"revision": "r1"}, "main_score": "ndcg_at_10"}
    tasks = [
        SimpleNamespace(metadata=SimpleNamespace(name=name, category=category, **about))
        for name, category in (("One", "t2v"), ("Two", "v2t"), ("Three", "v2c"))
    ]
    found = evaluate_mteb(str(model_folder), tasks, tmp_path / "out", "cpu", benchmark="org/set")
    assert found == {"One": row, "Two": row, "Three": row}
    assert asked == [(task, {"cache": None, "co2_tracker": False}) for task in tasks]
    one, two, three = (
        json.loads((tmp_path / "out" / name / "results.json").read_text()) for name in ("One", "Two", "Three")
    )
    assert one["metrics"] == {
        "text_to_video_R@1": 0.25, "text_to_video_R@5": 0.625, "text_to_video_R@10": 0.75,
        "text_to_video_ndcg_at_10": 0.5,
    }  # fmt: skip
    assert set(two["metrics"]) == {f"video_to_text_{name}" for name in ("R@1", "R@5", "R@10", "ndcg_at_10")}
    assert three["metrics"] == {"mteb_ndcg_at_10": 0.5}
    benchmark = {"id": "org/set", "task": "One", "metric": "text_to_video_ndcg_at_10"}
    assert one["data"] == {"dataset": "One", "split": "test", "revision": "r1", "benchmark": benchmark}
    assert one["main_score"] == {"name": "ndcg_at_10", "value": 0.5} and len(one["model"]["weights"]) > 8
    assert one["mteb"] == {"version": "mteb 2", "scores": row} and one["model"]["name"] == f"local/{model_folder.name}"
    text = (tmp_path / "out" / "One" / "results.json").read_text()
    assert text.startswith('{\n  "metrics": {\n    "text') and text.endswith("}\n")
    evaluate_mteb(str(model_folder), tasks[:1], tmp_path / "out", "cpu", benchmark="org/set")  # once more, over it
    assert time.strptime(one["date"], "%Y-%m-%d") and one["frames"] > 0 and one["max_words"] > 0


def test_names_of_benchmarks_and_tasks(mteb):
    from dmae.evaluation.mteb_model import find_tasks

    def get_tasks(tasks):
        if tasks != ["Known"]:
            raise KeyError("none")
        return iter(["a task"])

    mteb.get_benchmarks = lambda: [SimpleNamespace(name="Bench")]
    mteb.get_benchmark = lambda name: SimpleNamespace(tasks=(name, "two"))
    mteb.get_tasks = get_tasks
    assert find_tasks("Bench") == ["Bench", "two"] and find_tasks("Known") == ["a task"]
    with pytest.raises(ValueError, match="no task and no benchmark 'Other'"):
        find_tasks("Other")
    assert named_benchmark(None, "m") == {}
    assert named_benchmark("a/b:c", "m", "d") == {"benchmark": {"id": "a/b", "task": "c", "metric": "m"}}
    assert named_benchmark("a/b", "m", "d")["benchmark"]["task"] == "d"
    for wrong in ("a", "a/b/c", "/b", ":c"):
        with pytest.raises(ValueError, match="OWNER/NAME"):
            named_benchmark(wrong, "m")


# ---- records ----------------------------------------------------------------------------------------------------


def test_where_embeddings_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("DMAE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path / "evaluate"
    monkeypatch.delenv("DMAE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "dmae" / "evaluate"


def test_a_folder_of_one_s_own_is_evaluated_whole_unless_it_is_divided(tmp_path):
    from dmae.data.registry import DatasetLocation

    rows = '{"file_name": "a.mp4", "text": "x"}\n'
    for name in ("whole", "divided/train", "half"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "whole" / "metadata.jsonl").write_text(rows)
    (tmp_path / "divided" / "train" / "metadata.jsonl").write_text(rows)
    (tmp_path / "half" / "metadata.csv").write_text("file_name,text,split\na.mp4,x,test\n")
    (tmp_path / "list.csv").write_text("file_name,text\na.mp4,x\n")
    for name, expected in (("whole", None), ("divided", "test"), ("half", "test"), ("list.csv", None)):
        assert default_split(DatasetLocation(str(tmp_path / name))) == expected, name
    assert default_split(DatasetLocation("msvd", str(tmp_path))) == "test"
    (tmp_path / "empty").mkdir()
    assert default_split(DatasetLocation(str(tmp_path / "empty"))) == "test"
    EvaluationOptions().check()


def printed(*arguments) -> list[str]:
    """The lines of a table on a wide console, single spaces between its cells."""
    from rich.console import Console

    stream = io.StringIO()
    print_table(*arguments, console=Console(file=stream, width=200, markup=False, emoji=False, highlight=False))
    return [" ".join(line.split()) for line in stream.getvalue().splitlines() if line.strip(" ─")]


def test_a_table_in_full(capsys):
    values = {"R@1": 0.5, "R@5": 0.5, "R@10": 0.5, "median_rank": 2.0, "mean_rank": 3.5, "rsum": 1.5}
    sides = ("text_to_video", "video_to_text")
    metrics = {f"{side}_{name}": value for side in sides for name, value in values.items()}
    data = {"dataset": "[b]own[/b]", "split": "test", "videos": 4, "captions": 9}
    record = {"metrics": metrics, "data": data, "postprocessing": None}
    title, head = "[b]own[/b] test · 4 videos, 9 captions", "R@1 R@5 R@10 MdR MnR rsum"
    row = "50.0 50.0 50.0 2.0 3.5 150.0"
    assert printed(record) == [title, head, f"text → video {row}", f"video → text {row}"]
    print_table(record)
    out = capsys.readouterr().out
    assert "[b]own[/b] test" in out, "names are no markup"
    assert len(out.strip().splitlines()) == 6 and out.splitlines()[-2].startswith(" video → text  ")  # no blank lines
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rich.console.Console", lambda **words: made.append(words) or SimpleNamespace(print=made.append))
        print_table(record)
    assert made[0] == {"markup": False, "emoji": False, "highlight": False} and len(made) == 2
    intervals = {name: [value / 2, value] for name, value in metrics.items()}
    whole = {**record, "postprocessing": "DSL", "intervals": intervals, "bootstrap": {"confidence": 0.9}}
    draws = "90 % of draws 25.0…50.0 25.0…50.0 25.0…50.0 1.0…2.0 1.8…3.5 75.0…150.0"
    other = [f"the other {row}", "difference -50.0 -50.0 -50.0 -2.0 -3.5 -150.0"]
    theirs = "95 % of draws -50.0…+50.0 -50.0…+50.0 -50.0…+50.0 -2.0…+2.0 -3.5…+3.5 -150.0…+150.0"
    found = {name: {"other": value, "difference": -value} for name, value in metrics.items()}
    assert printed(whole, found) == [
        f"{title} · DSL", head, f"text → video {row}", draws, *other, f"video → text {row}", draws, *other,
    ]  # fmt: skip
    found = {name: {**entry, "interval": [entry["difference"], entry["other"]]} for name, entry in found.items()}
    assert printed(whole, found)[2:7] == [f"text → video {row}", draws, *other, theirs]


def test_results_are_read_from_a_folder_or_a_file(tmp_path):
    record = {"metrics": {"é": 1.0}, "data": {}}
    arrays = {"gold": np.arange(6).reshape(2, 3).T}
    Results(record, arrays).write(tmp_path / "a" / "b", ["v1", "v2"])
    for path in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "results.json"):
        found = Results.read(path)
        assert found.record == record
        np.testing.assert_array_equal(found.arrays["gold"], arrays["gold"])
    text = (tmp_path / "a" / "b" / "results.json").read_text(encoding="utf-8")
    assert text == '{\n  "metrics": {\n    "é": 1.0\n  },\n  "data": {}\n}\n'
    (tmp_path / "a" / "b" / "similarities.safetensors").unlink()
    assert Results.read(tmp_path / "a" / "b").arrays == {}
    for content, told in (
        ("[", "not a results file"),
        ('{"metrics": {}}', "no metrics and data"),
        ("[]", "no metrics"),
        ('["metrics", "data"]', "no metrics"),
        ('{"data": {}}', "no metrics"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=told):
            Results.read(tmp_path / "bad.json")


def test_a_model_is_loaded_where_and_as_it_is_said(mteb, model, processor, monkeypatch):
    from dmae.evaluation import mteb_model

    asked = []

    def load(*words, **named):
        asked.append((words, named))
        return model, processor

    monkeypatch.setattr(mteb_model, "load_model_and_processor", load)
    mteb_model.load_mteb_model("org/name", "main", "cuda:1")
    loaded = mteb_model.load_mteb_model("org/name", num_workers=2)
    assert asked == [(("org/name", "cuda:1"), {"revision": "main"}), (("org/name", "auto"), {"revision": None})]
    assert (loaded.batch_size, loaded.num_workers, loaded.mteb_model_meta.name) == (16, 2, "org/name")
    large = SimpleNamespace(parameters=lambda: [torch.empty(10 << 20, 3, device="meta")], config=model.config)
    about = mteb_model.model_meta(large, "org/name")
    assert (about.n_parameters, about.memory_usage_mb) == (30 << 20, 120)


def test_frames_that_a_short_video_has_not_count_for_nothing(loaded, model, processor, make_clip, tmp_path):
    path = make_clip(tmp_path / "short.mp4", 5, seconds=0.125)
    from datasets import Video

    rows = Dataset.from_dict({"id": ["a"], "video": [str(path)]}).cast_column("video", Video(decode=False))
    with torch.inference_mode():
        video = model.get_video_features(**processor(videos=str(path), return_tensors="pt"))
    assert not video.video_mask.all()
    mean = torch.nn.functional.normalize(video.video_embeds[video.video_mask].sum(0), dim=-1)
    np.testing.assert_allclose(loaded.encode(SimpleNamespace(dataset=rows))[0], mean, atol=1e-5)

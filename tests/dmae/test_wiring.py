"""What is typed arrives: every option of a command, at a value that is no default, reaches the function it is for."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dmae.cli import app
from dmae.commands.search import default_index
from dmae.retrieval.results import SearchResult


@pytest.fixture
def called(monkeypatch):
    """called("module.function", result) -> (arguments, named arguments) of its call, once it was called."""

    def watch(place: str, result=None):
        seen = []
        monkeypatch.setattr(place, lambda *arguments, **named: seen.append((arguments, named)) or result)
        return seen

    return watch


def run(*words) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_evaluate(called, tmp_path):
    seen = called("dmae.evaluation.evaluate_model.evaluate_model")
    settings = {
        "split": "validation", "protocol": "individual", "ties": "pessimistic", "post": "dsl", "bank_split": "other",
        "bank_videos": 7, "batch_size": 3, "num_workers": 5, "dtype": "bfloat16", "device": "cuda:1", "samples": 11,
        "seed": 13,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--annotations", "an", "--videos", "vi", "--output", tmp_path / "out", "--compare", tmp_path / "other"]
    words += ["--per-query", tmp_path / "q.jsonl", "--pictures", "--cache", tmp_path / "cache"]
    run("evaluate", "--model", "some/model", "--dataset", "msvd", *words)
    ((model, dataset, output, options, cache, other, pictures, per_query), _) = seen.pop()
    assert {name: getattr(options, name) for name in settings} == settings and options.confidence == 0.95
    assert (model, *dataset[:3]) == ("some/model", "msvd", "an", "vi") and pictures is True
    assert (output, other, per_query) == (tmp_path / "out", tmp_path / "other", tmp_path / "q.jsonl")
    assert cache == tmp_path / "cache"
    run("evaluate", "--model", "some/model", "--dataset", "msvd", "--split", "train", "--no-cache")
    ((_, _, output, _, cache, *_), _) = seen.pop()
    assert cache is None and output == Path("outputs/evaluate/model/msvd-train")


def test_index(called, tmp_path):
    skipped = [{"path": "p\nq", "error": "e", "video_id": "p"}]
    summary = SimpleNamespace(
        embedded=4,
        unchanged=3,
        moved=2,
        removed=1,
        gone=0,
        videos=9,
        rows=12,
        seconds=2.0,
        skipped=skipped,
        damaged=["d"],
    )
    seen = called("dmae.retrieval.indexing.index_videos", summary)
    words = ["--model", "m", "--window", 8, "--stride", 2, "--device", "cuda:1", "--dtype", "bfloat16"]
    words += ["--batch-size", 3, "--num-workers", 5, "--backend", "flat", "--frames", "int8", "--prune", "--retry"]
    words += ["--query-bank", tmp_path / "b.txt", "--exclude", "a*", "--exclude", "b", "--root", "old=new"]
    said = run("index", tmp_path, "-o", tmp_path / "out", *words)
    ((videos, output, model, plan), named) = seen.pop()
    assert (videos, output, model, plan.window, plan.stride) == (tmp_path, tmp_path / "out", "m", 8, 2)
    wanted = {
        "device": "cuda:1", "dtype": "bfloat16", "batch_size": 3, "num_workers": 5, "backend": "flat", "frames": "int8",
        "prune": True, "retry": True, "query_bank": tmp_path / "b.txt",
    }  # fmt: skip
    assert {name: named[name] for name in wanted} == wanted
    assert (list(named["exclude"]), list(named["roots"])) == (["a*", "b"], ["old=new"])
    assert "9 videos in 12 rows; 4 embedded (2.0 videos/s), 3 unchanged, 2 moved, 1 skipped, 1 removed" in said
    strict = CliRunner().invoke(app, ["index", str(tmp_path), "--strict"])
    assert strict.exit_code == 1 and "index: 9 videos, 4 embedded now, 3 unchanged, 2 moved, 1 skipped" in strict.stderr
    ((_, output, model, plan), _) = seen.pop()
    assert (output, model, plan) == (default_index(tmp_path), None, None)
    assert default_index(tmp_path).name == f"{tmp_path.name}.index"


def test_search(called, monkeypatch, tmp_path):
    hit = SearchResult("a", "x/a.mp4", 0.25, 1.0, 65.0, reasons=("seen at 0:01",))
    asked = []
    index = SimpleNamespace(
        search=lambda texts, **options: asked.append((texts, options)) or [[hit] for _ in texts],
        search_by_video=lambda video, **options: asked.append((video, options)) or [hit],
    )
    opened = called("dmae.commands.search.opened", index)
    words = ["--top-k", 7, "--filter", "year>=2019", "--hits-per-video", 3, "--candidates", 11, "--exact"]
    said = run(
        "search", tmp_path, "a dog", *words, "--text-weight", 0.5, "--model", "m", "--device", "cuda:1", "--json"
    )
    assert opened.pop()[0] == (tmp_path, "m", "cuda:1")
    wanted = {"top_k": 7, "filter": {"year": [">=2019"]}, "hits_per_video": 3, "candidates": 11, "exact": True}
    texts, options = asked.pop()
    assert texts == ["a dog"] and {name: options[name] for name in wanted} == wanted
    assert (options["qb_norm"], options["text_weight"]) == (False, 0.5)
    (found,) = json.loads(said)["results"]
    assert json.loads(said)["query"] == "a dog" and found == json.loads(json.dumps(hit.to_dict()))
    run("search", tmp_path, "a dog", "--qb-norm")
    assert asked.pop()[1]["qb_norm"] is True
    said = run("search", tmp_path, "--video", tmp_path / "c.mp4", "--top-k", 2)
    video, options = asked.pop()
    assert (video, options["top_k"]) == (tmp_path / "c.mp4", 2) and "text_weight" not in options
    assert said == "0.250\t0:01-1:05\tseen at 0:01\tx/a.mp4\n"
    (tmp_path / "q.txt").write_text("one\n\ntwo\n")
    assert len(run("search", tmp_path, "--queries", tmp_path / "q.txt").splitlines()) == 2
    assert asked.pop()[0] == ["one", "two"]


def test_an_index_is_opened_with_its_own_model_or_the_one_that_is_named(called, monkeypatch, tmp_path):
    from dmae.commands.search import opened

    called("dmae.retrieval.storage.read_manifest", {"model": {"name": "own", "revision": "abc"}})
    loaded = called("dmae.inference.loading.load_model_and_processor", ("model", "processor"))
    opening = called("dmae.retrieval.index.VideoIndex.open", "index")
    assert opened(tmp_path, None, "cpu") == "index" and opening.pop()[0] == (tmp_path, "model", "processor")
    assert loaded.pop() == (("own",), {"device": "cpu", "revision": "abc"})
    opened(tmp_path, "other", "cpu")
    assert loaded.pop() == (("other",), {"device": "cpu", "revision": None})


def test_serve(called, tmp_path):
    checked = called("dmae.retrieval.server.options.checked_options", "options")
    called("dmae.retrieval.storage.read_manifest")
    called("dmae.commands.search.opened", "index")
    served = called("dmae.retrieval.server.app.serve")
    words = ["--host", "0.0.0.0", "--port", 99, "--token", "t", "--name", "n", "--webhook-host", "w"]
    run("serve", tmp_path, *words, "--connections", 5, "--cache", tmp_path / "c", "--cache-gb", 0.5)
    ((token, no_token), named) = checked.pop()
    wanted = {
        "host": "0.0.0.0", "port": 99, "names": ("n",), "webhook_hosts": ("w",), "connections": 5,
        "cache": tmp_path / "c", "cache_bytes": 2**29,
    }  # fmt: skip
    assert (token, no_token) == ("t", False) and {name: named[name] for name in wanted} == wanted
    assert served.pop()[0] == ("index", "options")

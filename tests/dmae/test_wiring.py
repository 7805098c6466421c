"""What is typed arrives: every option, at a value that is no default, reaches what it is for; what is said was done."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dmae.cli import app
from dmae.commands import compare, export, hub, index
from dmae.commands import search as search_command
from dmae.training import run as training


@pytest.fixture
def called(monkeypatch):
    """called("module.function", result) -> (arguments, named arguments) of its call, once it was called."""

    def watch(place: str, result=None):
        seen = []
        monkeypatch.setattr(place, lambda *arguments, **named: seen.append((arguments, named)) or result)
        return seen

    for module in ("evaluate", "export", "hub", "index", "prepare", "search"):
        monkeypatch.setattr(f"dmae.commands.{module}.require", lambda *extras: None)  # not all are installed everywhere

    return watch


def run(*words, code: int = 0):
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result if code else result.stdout


def spelled(settings: dict) -> list:
    """--name value of each, --name alone for True, several times for a list."""
    words = []
    for name, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}"] + ([] if one is True else [one])
    return words


def test_evaluate(called, tmp_path):
    seen = called("dmae.evaluation.evaluate_model.evaluate_model")
    settings = {
        "split": "validation", "protocol": "individual", "ties": "pessimistic", "post": "dsl", "bank_split": "other",
        "bank_videos": 7, "batch_size": 3, "num_workers": 5, "dtype": "bfloat16", "device": "cuda:1", "samples": 11,
        "seed": 13,
    }  # fmt: skip
    words = spelled(settings)
    words += ["--annotations", "an", "--videos", "vi", "--output", tmp_path / "out", "--compare", tmp_path / "other"]
    words += ["--per-query", tmp_path / "q.jsonl", "--pictures", "--cache", tmp_path / "cache"]
    run("evaluate", "--model", "some/model", "--dataset", "msvd", *words)
    ((model, dataset, output, options), besides) = seen.pop()
    assert {name: getattr(options, name) for name in settings} == settings and options.confidence == 0.95
    assert (model, *dataset[:3], output) == ("some/model", "msvd", "an", "vi", tmp_path / "out")
    places = {"cache": tmp_path / "cache", "other": tmp_path / "other", "per_query": tmp_path / "q.jsonl"}
    assert besides == {**places, "pictures": True}
    run("evaluate", "--model", "some/model", "--dataset", "msvd", "--split", "train", "--no-cache")
    ((_, _, output, _), besides) = seen.pop()
    assert besides["cache"] is None and output == Path("outputs/evaluate/model/msvd-train")
    for model, name in (("outputs/a/best", "a/best"), ("b c/seed-7/last", "b c/seed-7/last"), ("org/name", "name")):
        run("evaluate", "--model", model, "--dataset", "msvd", "--no-cache")
        ((_, _, output, *_), _) = seen.pop()
        assert output == Path("outputs/evaluate", name, "msvd"), "two runs would write over one another"


def summary_of(**told):
    from dmae.retrieval.indexing import IndexSummary

    return IndexSummary(**told)


def test_index(called, tmp_path):
    skipped = [{"path": name, "video_id": name, "error": f"why {name}"} for name in ("new.mp4", "old.mp4")]
    told = {"embedded": 6, "unchanged": 5, "moved": 4, "videos": 11, "rows": 30, "seconds": 2.0, "damaged": ["broken"]}
    seen = called(
        "dmae.retrieval.indexing.index_videos", summary_of(**told, gone=3, skipped=skipped, known={"old.mp4"})
    )
    settings = {
        "device": "cuda:1", "dtype": "int8", "fast": True, "batch_size": 3, "num_workers": 5, "backend": "flat",
        "frames": "merged", "prune": True, "retry": True, "transcribe": "whisper",
    }  # fmt: skip
    more = {"window": 8.0, "stride": 2.0, "exclude": ["a*", "b"], "root": ["x=y"], "query_bank": tmp_path / "bank.txt"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    words = ["index", tmp_path, "-o", tmp_path / "out", "--model", tmp_path / "model"]
    result = CliRunner().invoke(app, list(map(str, [*words, *spelled(settings | more)])), catch_exceptions=False)
    ((videos, output, model, plan), named) = seen.pop()
    assert (videos, output, model) == (tmp_path, tmp_path / "out", str(tmp_path / "model"))
    assert (plan.window, plan.stride) == (8.0, 2.0)
    assert named == settings | {"exclude": ["a*", "b"], "roots": ["x=y"], "query_bank": tmp_path / "bank.txt"}
    assert "11 videos in 30 rows; 6 embedded (3.0 videos/s), 5 unchanged, 4 moved, 2 skipped, 3 whose" in result.stdout
    assert "skipped new.mp4: why new.mp4" in result.stderr and "skipped old.mp4" not in result.stderr
    assert "1 skipped as in the run before" in result.stderr and "damaged in the index" in result.stderr
    assert "index: 11 videos, 6 embedded now, 5 unchanged, 4 moved, 2 skipped" in result.stderr


def test_index_by_default(called, tmp_path):
    (tmp_path / "Films").mkdir()
    seen = called("dmae.retrieval.indexing.index_videos", summary_of(excluded=("kept*",), removed=2, gone=9))
    result = CliRunner().invoke(app, ["index", str(tmp_path / "Films"), "--strict"], catch_exceptions=False)
    assert result.exit_code == 0 and "0 embedded, 0 unchanged, 0 moved, 0 skipped, 2 removed\n" in result.stdout
    assert "left out as in the run before: kept*" in result.stderr
    ((_, output, model, plan), named) = seen.pop()
    assert (output, model, plan) == (tmp_path / "Films.index", None, None)
    assert named == {
        "device": "auto", "dtype": "auto", "fast": False, "batch_size": 16, "num_workers": None, "backend": None,
        "frames": None, "prune": False, "retry": False, "query_bank": None, "transcribe": None, "exclude": None,
        "roots": (),
    }  # fmt: skip
    listing = tmp_path / "list.v2.csv"
    listing.write_text("file_name\n")
    run("index", listing, "--exclude", "")
    ((_, output, *_), named) = seen.pop()
    assert (output, named["exclude"]) == (tmp_path / "list.v2.index", [])
    for one in ("fast", "prune", "retry"):
        run("index", listing, f"--{one}")
        ((_, named),) = (seen.pop(),)
        assert [name for name, value in named.items() if value is True] == [one]
    called("dmae.retrieval.indexing.index_videos", summary_of(skipped=[{"path": "a", "error": "b"}]))
    assert "1 files could not be read" in run("index", listing, "--strict", code=1).stderr


HIT = {
    "video_id": "a", "path": "a.mp4", "score": 0.25, "start": 61.0, "end": 3700.0, "reasons": ["red", "seven"],
    "missing": True,
}  # fmt: skip


@pytest.fixture
def an_index(monkeypatch, tmp_path):
    """A folder that passes for an index, and what an index would be asked: (kind, arguments, options)."""
    (tmp_path / "manifest.json").write_text("{}")
    asked = []
    hit = SimpleNamespace(**HIT, to_dict=lambda: HIT)
    found = SimpleNamespace(
        text_weight=0.7,
        search=lambda texts, **options: asked.append(("words", texts, options)) or [[hit]],
        search_by_video=lambda video, **options: asked.append(("video", video, options)) or [hit],
    )

    def opened(*arguments):
        asked.append(("opened", arguments, {}))
        return found

    monkeypatch.setattr(search_command, "opened", opened)
    monkeypatch.setattr(export, "opened", opened)
    return asked


def test_search(an_index, called, monkeypatch, tmp_path):
    settings = {"top_k": 3, "filter": ["year>=2019", "title=x"], "hits_per_video": 4, "candidates": 9, "exact": True}
    words = [*spelled(settings), "--model", "m", "--device", "cpu"]
    shown = run("search", tmp_path, "a dog", *words, "--text-weight", "0.5", "--html", tmp_path / "page.html", "--json")
    opening, (kind, texts, options) = an_index
    assert opening[1] == (tmp_path, "m", "cpu") and (kind, texts) == ("words", ["a dog"])
    filters = {"year": [">=2019"], "title": ["x"]}
    assert options == settings | {"filter": filters, "qb_norm": False, "text_weight": 0.5}
    assert json.loads(shown) == {"query": "a dog", "results": [HIT]}
    assert (tmp_path / "page.html").is_file()
    an_index.clear()
    shown = run("search", tmp_path, "a dog")
    assert shown == "0.250\t1:01-1:01:40\tred, seven\ta.mp4 (the file is gone)\n"
    assert an_index[1][2] == {
        "top_k": 5, "hits_per_video": 1, "filter": {}, "candidates": None, "exact": False, "qb_norm": False,
        "text_weight": 0.7,
    }  # fmt: skip
    an_index.clear()
    run("search", tmp_path, "a dog", "--qb-norm", "--text-weight", "2")
    assert an_index[1][2]["qb_norm"] is True and "text_weight" not in an_index[1][2]
    an_index.clear()
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"")
    run("search", tmp_path, "--video", clip, "--top-k", "2")
    assert an_index[1][:2] == ("video", clip) and "text_weight" not in an_index[1][2]


class Server:
    """What a running server is asked."""

    def __init__(self):
        self.asked = []

    def ask(self, text, **options):
        self.asked.append((text, options))
        return [HIT]


def test_a_running_server_is_asked_what_it_can_answer_and_nothing_else(an_index, monkeypatch, tmp_path):
    server = Server()
    monkeypatch.setattr("dmae.retrieval.running.running", lambda folder: server)
    words = ["--filter", "a=b c", "--filter", "d=e", "--text-weight", "0.5", "--top-k", "500", "--hits-per-video", "2"]
    shown = run("search", tmp_path, "a dog", *words, "--json")
    assert json.loads(shown) == {"query": "a dog", "results": [HIT]} and not an_index
    options = {"top_k": 500, "hits_per_video": 2, "text_weight": 0.5, "filter": "'a=b c' d=e"}
    assert server.asked == [("a dog", options)]
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"")
    for other in (
        ["a dog -cat"], ["a dog", "--top-k", "501"], ["a dog", "--exact"], ["a dog", "--candidates", "9"],
        ["a dog", "--qb-norm"], ["a dog", "--model", "m"], ["a dog", "--device", "cpu"], ["--video", clip],
        ["a dog", "--html", tmp_path / "page.html"],
    ):  # fmt: skip
        an_index.clear()
        run("search", tmp_path, *other)
        assert len(an_index) == 2, other
    assert len(server.asked) == 1


def test_serve(an_index, called, monkeypatch, tmp_path):
    seen = called("dmae.retrieval.server.app.serve")
    monkeypatch.setenv("DMAE_TOKEN", "")
    settings = {"host": "0.0.0.0", "port": 81, "token": "t" * 20, "name": ["nas", "tv"], "webhook_host": ["hook"]}
    settings |= {"connections": 7, "cache": tmp_path / "cache", "cache_gb": 0.5}
    run("serve", tmp_path, *spelled(settings), "--device", "cpu")
    ((_, options), _) = seen.pop()
    assert an_index[0][1] == (tmp_path, None, "cpu")
    assert (options.host, options.port, options.token, options.connections) == ("0.0.0.0", 81, "t" * 20, 7)
    assert (options.names, options.webhook_hosts) == (("nas", "tv"), ("hook",))
    assert (options.cache, options.cache_bytes) == (tmp_path / "cache", 2**29)
    run("serve", tmp_path, "--no-token", "--host", "0.0.0.0")
    assert seen.pop()[0][1].token is None


def test_export_clips(an_index, called, tmp_path):
    seen = called("dmae.retrieval.server.media.write_clip")
    output, settings = tmp_path / "out", {"top_k": 3, "filter": ["a=b"], "hits_per_video": 2}
    HIT_ROW = {"moment": "1:01", "metadata": {}}
    an_index_hit = SimpleNamespace(**HIT, **HIT_ROW)
    search_command.opened(tmp_path).search = lambda query, **options: (
        an_index.append((query, options))
        or [[an_index_hit, SimpleNamespace(**{**HIT, **HIT_ROW, "start": 1.0, "video_id": "../b"})]]
    )
    words = [*spelled(settings), "--margin", "2", "--width", "32", "--model", "m", "--device", "cpu"]
    shown = run("export-clips", tmp_path, "a dog", "-o", output, *words)
    assert an_index[-2][1] == (tmp_path, "m", "cpu")
    assert an_index[-1] == ("a dog", settings | {"filter": {"a": ["b"]}})
    first, second = (arguments for arguments, _ in seen)
    assert first == ("a.mp4", 59.0, 3702.0, 32, 60.0, str(output / "001_a_61s.mp4"))
    assert second[1:] == (0.0, 3702.0, 32, 60.0, str(output / "002_b_1s.mp4"))
    assert "2 clips, 0 left out" in shown and (output / "clips.csv").read_text().count("\n") == 3
    (output / "001_a_61s.mp4").write_bytes(b"")
    assert "exists already" in run("export-clips", tmp_path, "a dog", "-o", output, code=1).stderr
    assert len(seen) == 2
    run("export-clips", tmp_path, "a dog", "-o", output, "--overwrite")
    assert seen[2][0][1:4] == (61.0, 3700.0, None)


def test_clips_that_cannot_be_written_are_counted_and_named(an_index, monkeypatch, tmp_path):
    def refused(*arguments):
        raise OSError("no such codec")

    monkeypatch.setattr("dmae.retrieval.server.media.write_clip", refused)
    result = run("export-clips", tmp_path, "a dog", "-o", tmp_path / "out", code=1)
    assert "0 clips, 1 left out" in result.stdout and "left out a.mp4: no such codec" in result.stderr
    assert "no clip could be written" in result.stderr


def test_push_and_leaderboard(called, tmp_path):
    quiet, seen = called("transformers.utils.logging.disable_progress_bar"), called("dmae.hub_cards.push.push")
    settings = {"private": True, "dry_run": True, "license": "mit", "space": True}
    run("push", "folder", "--repo-id", "a/b", *spelled(settings), "--trained-on", "x/y", "--results", "r.json", "--yes")
    (positional, named) = seen.pop()
    assert quiet and positional == ("folder", "a/b") and callable(named.pop("show")) and named.pop("confirm") is None
    assert named == settings | {"results": ("r.json",), "datasets": ("x/y",)}
    run("push", "folder", "--repo-id", "a/b")
    (_, named) = seen.pop()
    assert named.pop("confirm") is hub._ask and named.pop("show")
    assert named == {"private": None, "dry_run": False, "license": None, "space": False, "results": (), "datasets": ()}
    seen = called("dmae.hub_cards.leaderboard.write_leaderboard", ["c: left out"])
    shown = run("leaderboard", "a", "b", "-o", tmp_path / "page.html")
    assert seen.pop()[0] == (["a", "b"], tmp_path / "page.html") and shown == f"{tmp_path / 'page.html'}\n"


def test_nothing_is_published_where_nobody_answers(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ValueError, match="nothing was sent: nobody answered"):
        hub._ask("publish?")


def test_prepare(called, tmp_path):
    seen = called("dmae.data.preparation.prepare_dataset")
    settings = {"annotations": tmp_path / "an", "videos": tmp_path / "vi", "output": tmp_path / "out", "holdout": 7}
    settings |= {"decode": "all", "shards": True}
    more = ["--frame-cache", "--codec", "lossless", "--split", "a", "--split", "b", "--no-words", "--num-workers", 3]
    run("prepare", "msvd", *spelled(settings), *more, "--num-frames", 5, "--size", 48, "--sampling", "uniform")
    ((wanted, sampler, _), _) = seen.pop()
    assert {name: getattr(wanted, name) for name in settings} == settings
    assert (wanted.name, wanted.codec, wanted.splits, wanted.words) == ("msvd", "lossless", ("a", "b"), False)
    assert wanted.workers == 3
    assert (sampler.num_frames, sampler.size, sampler.sampling) == (5, 48, "uniform")
    run("prepare", "msvd", "-o", tmp_path / "out", "--codec", "lossless")
    ((wanted, *_), _) = seen.pop()
    assert wanted.codec is None and wanted.decode == "sample" and wanted.words and not wanted.shards


def test_an_interrupted_preparation_says_how_to_go_on(monkeypatch, tmp_path):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("dmae.data.preparation.prepare_dataset", interrupted)
    result = run("prepare", "msvd", "-o", tmp_path / "out", code=130)
    assert "run the same command again to go on" in result.stderr and not result.stdout


def test_export(called, tmp_path):
    loaded = called("dmae.inference.loading.load_model_and_processor", ("the model", None))
    graph = tmp_path / "text.onnx"
    graph.write_bytes(b"x" * 1_500_000)
    seen = called("dmae.inference.export.export_towers", [graph])
    result = CliRunner().invoke(app, ["export", "-m", "m", "-o", str(tmp_path / "out"), "--form", "torch"])
    assert loaded.pop() == (("m",), {"device": "cpu", "dtype": "float32"})
    assert seen.pop()[0] == ("the model", tmp_path / "out", "torch") and f"{graph}: 1.5 MB" in result.stderr


def test_watch(called, tmp_path):
    pytest.importorskip("watchdog")
    seen = called("dmae.retrieval.watching.watch")
    loaded = called("dmae.inference.loading.load_described", "loaded")
    indexed = called("dmae.retrieval.indexing.index_videos", summary_of(videos=3))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    words = ["--model", tmp_path / "model", "--device", "cpu", "--prune", "--exclude", "a*", "--poll", "60"]
    run("watch", tmp_path, "-o", tmp_path / "out", *words)
    ((described,), named) = loaded.pop()
    assert described["name"] == str(tmp_path / "model") and named == {"device": "cpu"}
    ((folder, update, stop), named) = seen.pop()
    assert folder == tmp_path and named == {"poll": 60.0} and not stop.is_set()
    update()
    assert indexed.pop() == ((tmp_path, tmp_path / "out", "loaded"), {"prune": True, "exclude": ["a*"]})


def test_train_options_become_words_of_the_recipe():
    given = {
        "config": "msvd", "set": ["a.b=1"], "variant": "v", "output_dir": "out", "max_steps": 3,
        "resume_from_checkpoint": "last", "gradient_cache_chunk": 4, "gradient_accumulation_steps": 5,
        "save_total_limit": 6, "seeds": 7, "dry_run": True,
    }  # fmt: skip
    options = training.parse([str(word) for word in spelled(given)])
    assert (options.config, options.settings, options.seeds, options.dry_run) == ("msvd", ["a.b=1"], 7, True)
    names = ("output_dir", "max_steps", "resume_from_checkpoint", "gradient_cache_chunk",
             "gradient_accumulation_steps", "save_total_limit")  # fmt: skip
    assert options.recipe_words == {"variant": "v"} | {f"training.{name}": given[name] for name in names}
    made = training.overrides(options)
    assert made[0] == "a.b=1" and "training.max_steps=3\n...\n" in made and len(made) == 8
    assert training.overrides(training.parse(["--config", "msvd"])) == []


def test_what_training_says_at_its_end(called, capsys):
    called("dmae.training.config.load_config", "the recipe")
    seeds, plan = called("dmae.training.seeds.train_seeds"), called("dmae.training.plan.describe", "the plan")
    result = SimpleNamespace(status="finished", model_dir="M", output_dir="O", seconds=61.4)
    trained = called("dmae.training.loop.train", result)
    training.run(training.Options("r", [], {}, None, False))
    assert capsys.readouterr().out == "the model is in M (61 s)\n" and trained.pop()[0] == ("the recipe",)
    result.status = "preempted"
    training.run(training.Options("r", [], {}, None, False))
    assert capsys.readouterr().out == "stopped as asked, saved in O (61 s)\n" and trained.pop()
    training.run(training.Options("r", [], {}, 5, False))
    training.run(training.Options("r", [], {}, 5, True))
    assert seeds == [(("the recipe", 5), {})] and plan == [(("the recipe",), {})] and not trained
    assert capsys.readouterr().out == "the plan\n"


def test_compare_says_which_is_which(called):
    entry = {"first": 0.5, "second": 0.25, "difference": 0.25, "low": -0.125, "high": 0.375}
    assert compare._row("text_to_video_R@1", entry) == ["text_to_video_R@1", "50.0", "25.0", "+25.0", "-12.5 … +37.5"]
    moved = [{"first": 1.0, "second": 9.5, "caption": "a", "video_id": "v"}] * 3
    called("dmae.commands.compare._compared", ({"text_to_video_R@1": entry}, moved))
    shown = run("compare", "x", "y", "--metric", "text_to_video_R@1", "--top-k", "2")
    assert "3 queries moved" in shown and shown.count("  1 against 9.5: a (v)") == 2
    told = json.loads(run("compare", "x", "y", "--metric", "text_to_video_R@1", "--top-k", "1", "--json"))
    assert (told["difference"], told["low"], told["high"], len(told["moved"])) == (0.25, -0.125, 0.375, 1)


def test_compare_names_what_is_not_there(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(FileNotFoundError, match=r"b\.jsonl: no such file; `dmae evaluate … --per-query FILE.jsonl`"):
        compare._compared(tmp_path / "a.jsonl", tmp_path / "b.jsonl", 2, 0)


def test_an_index_lies_beside_its_videos(tmp_path):
    (tmp_path / "a.b").mkdir()
    assert index.default_index(tmp_path / "a.b").name == "a.b.index"
    assert index.default_index(tmp_path / "list.csv") == tmp_path / "list.index"

"""What a command prints, to the line: which of it goes to stdout, which to stderr, and the exit code."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dmae import extras
from dmae.cli import app
from dmae.commands import evaluate, export, index, search
from dmae.inference.presets import PRESETS, Preset
from dmae.retrieval.indexing import IndexSummary
from dmae.terminal import json_line, one_line, print_table, printable


def invoke(*words):
    """-> (exit code, lines of stdout, lines of stderr)"""
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, list(map(str, words)))
    return result.exit_code, result.stdout.splitlines(), result.stderr.splitlines()


@pytest.fixture
def everything_installed(monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda name: True)


@pytest.fixture
def an_index(tmp_path):
    folder = tmp_path / "an.index"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


# ---------------------------------------------------------------------- what an option needs

NEEDED = {
    "demo": ["train"],
    "train --config msvd": ["train"],
    "compare a b": ["train"],
    "evaluate --model m --dataset d": ["train"],
    "evaluate --model m --mteb t": ["mteb"],
    "prepare msvd -o out": ["train"],
    "push folder --repo-id a/b": ["train"],
    "leaderboard a": ["train"],
    "export -m m -o out": ["export"],
    "index videos --backend faiss": ["search"],
    "watch videos": ["watch"],
    "serve an.index": ["serve"],
    "export-clips an.index dog -o out": ["serve"],
}


@pytest.mark.parametrize("words", NEEDED)
def test_the_extra_of_a_command_is_asked_for_before_its_work(an_index, monkeypatch, words):
    monkeypatch.chdir(an_index.parent)
    (an_index.parent / "videos").mkdir()
    before = sorted(an_index.parent.rglob("*"))
    monkeypatch.setattr(extras, "packages", lambda extra: [f"package-of-{extra}"])
    monkeypatch.setattr(extras, "installed", lambda name: False)
    code, out, errors = invoke(*words.split())
    (extra,) = NEEDED[words]
    said = f"error: this needs package-of-{extra}; install them: pip install 'dmae[{extra}]'"
    assert (code, out, errors) == (1, [], [said]) and sorted(an_index.parent.rglob("*")) == before


def test_an_extra_that_nobody_lists_asks_for_nothing(monkeypatch):
    listed = ["av>=1", 'faiss-cpu<2; extra == "search"', "a.b[c]~=1; extra == 'search'", "x; extra == 'searching'"]
    monkeypatch.setattr(extras, "requires", lambda name: listed if name == "dmae" else None)
    assert extras.packages("search") == ["faiss-cpu", "a.b"] and extras.packages("train") == []
    monkeypatch.setattr(extras, "requires", lambda name: None)
    assert extras.packages("search") == []

    def not_installed(name):
        raise extras.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", not_installed)
    assert extras.packages("search") == []
    assert extras.installed("pytest") is True and extras.installed("no-such-package") is False


# ---------------------------------------------------------------------- compare

RANKS = {"first": [1, 1, 4, 2], "second": [1, 2, 1, 2]}
CAPTIONS = ["a dog", "a [red] cat", "two\tbirds", "rain"]


@pytest.fixture
def per_query(tmp_path):
    paths = []
    for name, ranks in RANKS.items():
        lines = [{"video_id": f"v{n}", "caption": CAPTIONS[n], "rank": rank, "top": []} for n, rank in enumerate(ranks)]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def test_compare_of_queries_is_first_minus_second(per_query, everything_installed):
    code, out, errors = invoke("compare", *per_query, "--json", "--samples", 20, "--metric", "text_to_video_R@1")
    told = json.loads(out[0])
    assert (code, len(out), errors) == (0, 1, [])
    assert list(told) == ["metric", "difference", "low", "high", "metrics", "moved"]
    r1 = told["metrics"]["text_to_video_R@1"]
    assert (r1["first"], r1["second"], r1["difference"]) == (0.5, 0.5, 0.0) and told["difference"] == 0.0
    assert (told["low"], told["high"]) == (r1["low"], r1["high"]) and r1["low"] < 0 < r1["high"]
    assert told["metrics"]["text_to_video_mean_rank"]["difference"] == 0.5
    rows = [(row["video_id"], row["caption"], row["first"], row["second"]) for row in told["moved"]]
    assert rows == [("v2", "two\tbirds", 4.0, 1.0), ("v1", "a [red] cat", 1.0, 2.0)]
    again = json.loads(invoke("compare", *per_query, "--json", "--samples", 20, "--seed", 1, "--top-k", 1)[1][0])
    assert again["metric"] == "text_to_video_rsum" and len(again["moved"]) == 1
    assert again["difference"] == told["metrics"]["text_to_video_rsum"]["difference"]

    code, out, errors = invoke("compare", *per_query, "--samples", 20)
    assert (code, errors) == (0, []) and "".join(out).count("minus") == 1
    rows = [[cell.strip() for cell in line.strip("│┃").split("│" if "│" in line else "┃")] for line in out]
    assert ["", "first", "second", "difference", "95 % of draws"] in rows
    table = {row[0]: row[1:4] for row in rows if len(row) == 5}
    assert table["text_to_video_R@1"] == ["50.0", "50.0", "+0.0"]
    assert table["text_to_video_mean_rank"] == ["2.0", "1.5", "+0.5"]
    moved = ["2 queries moved; the most:", "  4 against 1: two\\tbirds (v2)", "  1 against 2: a [red] cat (v1)"]
    assert out[-3:] == moved
    same = invoke("compare", per_query[0], per_query[0], "--samples", 20)
    assert same[0] == 0 and not any("moved" in line for line in same[1])
    refused = invoke("compare", *per_query, "--metric", "R@1", "--samples", 20)
    names = ", ".join(told["metrics"])
    assert refused == (1, [], [f"error: no metric 'R@1'; there are {names}"])


def test_compare_takes_two_of_a_kind(per_query, everything_installed, monkeypatch):
    first, other = per_query[0], per_query[0].with_name("results.json")
    other.write_text("{}")
    said = f"error: {first} and {other}: give two per-query files or two results"
    assert invoke("compare", first, other) == (1, [], [said])
    missing = f"error: {other}x: no such file; `dmae evaluate … --per-query FILE.jsonl` writes one"
    assert invoke("compare", first, f"{other}x") == (1, [], [missing])
    monkeypatch.setattr("dmae.evaluation.results.Results.read", lambda path: ("read", path))
    monkeypatch.setattr("dmae.evaluation.results.compare_results", lambda *arguments: arguments)
    from dmae.commands.compare import _compared
    from dmae.evaluation.queries import Queries

    ours, theirs = map(Queries.read, per_query)
    monkeypatch.setattr("dmae.evaluation.queries.compare_queries", lambda *arguments: arguments)
    monkeypatch.setattr("dmae.evaluation.queries.moved", lambda *arguments: arguments)
    (first, second, *drawn), (one, other_one) = _compared(*per_query, 5, 3)
    assert drawn == [5, 3] and first.keys == one.keys == ours.keys and first.ranks.tolist() == ours.ranks.tolist()
    assert second.ranks.tolist() == other_one.ranks.tolist() == theirs.ranks.tolist() != ours.ranks.tolist()
    assert _compared(other, other.parent, 5, 3) == ((("read", other), ("read", other.parent), 5, 3), [])


# ---------------------------------------------------------------------- evaluate

DATA = {"missing_videos": 0, "undecodable_videos": 0, "listed_videos": 9, "truncated_captions": 0}


def test_evaluate_shows_and_names_what_it_wrote(monkeypatch, tmp_path, everything_installed):
    shown, data = [], dict(DATA)
    monkeypatch.setattr("dmae.evaluation.evaluate_model.evaluate_model", lambda *words: ({"data": data}, "compared"))
    monkeypatch.setattr("dmae.evaluation.results.print_table", lambda *words: shown.append(words))
    (tmp_path / "b.html").touch()
    (tmp_path / "a.html").touch()
    words = ["evaluate", "--model", "m", "--dataset", "msvd", "-o", tmp_path]
    assert invoke(*words) == (0, [f"wrote results.json in {tmp_path}"], [])
    assert shown == [({"data": data}, "compared")]
    data.update(missing_videos=2, undecodable_videos=1)
    lost = "left out: 2 of 9 listed videos are missing, 1 cannot be decoded; results.json names them"
    assert invoke(*words, "--pictures") == (0, [lost, f"wrote results.json, a.html, b.html in {tmp_path}"], [])
    data.update(missing_videos=0, truncated_captions=4)
    lost, cut = lost.replace("2 of", "0 of"), "4 captions are longer than the model reads and were cut"
    assert invoke(*words)[1] == [lost, cut, f"wrote results.json in {tmp_path}"]
    data.update(missing_videos=3, undecodable_videos=0, truncated_captions=0)
    assert len(invoke(*words)[1]) == 2
    monkeypatch.setattr("dmae.evaluation.evaluate_model.evaluate_model", lambda *words: None)  # of another rank
    assert invoke(*words) == (0, [], []) and len(shown) == 4


def test_evaluate_wants_a_dataset_or_a_task_of_mteb(monkeypatch, tmp_path, everything_installed):
    both = ["evaluate", "--model", "m", "--dataset", "d", "--mteb", "t"]
    for words in (both, both[:3]):
        assert invoke(*words) == (1, [], ["error: give --dataset, or --mteb with a name: one of the two"])
    run, tasks = [], SimpleNamespace(find_tasks=lambda name: [name])
    scores = {"one": {"main_score": 0.12345}, "two": {"main_score": 1.0}}
    runner = SimpleNamespace(evaluate_mteb=lambda *words: run.append(words) or scores)
    monkeypatch.setitem(sys.modules, "dmae.evaluation.mteb_model", tasks)
    monkeypatch.setitem(sys.modules, "dmae.evaluation.mteb_run", runner)
    said = ["one: 12.35 (mteb's main score)", "two: 100.00 (mteb's main score)"]
    words = ["evaluate", "--model", "a/m", "--mteb", "t"]
    assert invoke(*words) == (0, [*said, "wrote 2 results.json in outputs/evaluate/m/mteb"], [])
    more = ["-o", tmp_path, "--device", "cpu", "--batch-size", 3, "--num-workers", 0, "--benchmark", "a/b"]
    assert invoke(*words, *more)[1][-1] == f"wrote 2 results.json in {tmp_path}"
    assert run == [
        ("a/m", ["t"], Path("outputs/evaluate/m/mteb"), "auto", 16, None, None),
        ("a/m", ["t"], tmp_path, "cpu", 3, 0, "a/b"),
    ]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("org/model", "model"), ("runs/a/best", "a/best"), ("a/b/seed-1/checkpoint-20", "b/seed-1/checkpoint-20"),
        ("best", "best"), ("last/best", "last/best"), ("/here", "here"), ("a/best-of", "best-of"),
    ],
)  # fmt: skip
def test_a_run_s_results_lie_under_its_name(model, name, tmp_path, monkeypatch):
    assert evaluate.default_output(model) == Path("outputs/evaluate", name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    assert evaluate.default_output("best") == Path("outputs/evaluate/run/best"), "a folder that is here is known whole"


# ---------------------------------------------------------------------- index, watch


def test_index_says_what_it_did_and_counts_every_file(monkeypatch, tmp_path):
    skipped = [{"path": "new\n.mp4", "error": "why"}, {"path": "old.mp4", "error": "old"}]
    told = {"videos": 11, "rows": 30, "unchanged": 5, "moved": 4, "damaged": ["broken"], "skipped": skipped}
    made = [IndexSummary(**told, embedded=6, seconds=4.0, gone=3, known={"old.mp4"}, excluded=("kept*", "b"))]
    monkeypatch.setattr("dmae.retrieval.indexing.index_videos", lambda *words, **named: made[-1])
    videos, output = tmp_path / "videos", tmp_path / "the.index"
    videos.mkdir()
    code, out, errors = invoke("index", videos, "-o", output)
    line = f"{output}: 11 videos in 30 rows; 6 embedded (1.5 videos/s), 5 unchanged, 4 moved, 2 skipped"
    assert (code, out) == (0, [f"{line}, 3 whose files are gone (--prune forgets them)"])
    assert errors == [
        "  damaged in the index, embedded again if its file is here: broken",
        "  skipped new\\n.mp4: why",
        "  left out as in the run before: kept*, b (--exclude '' takes them in)",
        f"  1 skipped as in the run before, listed in {output / 'skipped.jsonl'}; --retry tries again",
        "index: 11 videos, 6 embedded now, 5 unchanged, 4 moved, 2 skipped",
    ]
    code, out, errors = invoke("index", videos, "-o", output, "--exclude", "kept*", "--strict")
    said = f"error: 2 files could not be read; they are listed in {output / 'skipped.jsonl'}"
    assert (code, len(out), errors[-1]) == (1, 1, said) and not any("left out" in line for line in errors)
    made.append(IndexSummary(videos=2, rows=2, unchanged=2, removed=1, gone=9))
    code, out, errors = invoke("index", videos, "-o", output, "--strict")
    assert (code, out) == (0, [f"{output}: 2 videos in 2 rows; 0 embedded, 2 unchanged, 0 moved, 0 skipped, 1 removed"])
    assert errors == ["index: 2 videos, 0 embedded now, 2 unchanged, 0 moved, 0 skipped"]
    made.append(IndexSummary(videos=2))
    assert invoke("index", videos, "-o", output)[1][0].endswith("0 skipped")


def test_only_what_is_given_of_windows_makes_a_plan(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "dmae.retrieval.indexing.index_videos",
        lambda *words, **named: seen.append((words[3], named["roots"])) or IndexSummary(),
    )
    for words in ([], ["--window", 8], ["--window", 8, "--stride", 2], ["--root", "a=b"]):
        assert invoke("index", tmp_path, "-o", tmp_path / "x", *words)[0] == 0
    assert invoke("index", tmp_path, "-o", tmp_path / "x", "--stride", 2)[0] == 1  # of no window
    plans = [plan and (plan.window, plan.stride) for plan, _ in seen]
    assert plans[0] is None and plans[1][0] == 8 and plans[2] == (8, 2) and plans[3] is None
    assert [roots for _, roots in seen] == [(), (), (), ["a=b"]]


def test_roots_and_foreign_folders_are_refused_before_any_work(monkeypatch, tmp_path, an_index):
    videos = tmp_path / "videos"
    videos.mkdir()
    (an_index / "manifest.json").write_text(json.dumps({"roots": {"films": "/old"}}))
    code, _, errors = invoke("index", videos, "-o", an_index, "--root", "none=/new")
    assert code == 1 and len(errors) == 1 and "none" in errors[0] and "films" in errors[0]
    (an_index / "manifest.json").write_text("{}")
    assert "none" in invoke("index", videos, "-o", an_index, "--root", "none=/new")[2][0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    code, _, errors = invoke("index", videos, "-o", tmp_path / "mine")
    assert code == 1 and str(tmp_path / "mine") in errors[0]
    assert invoke("index", tmp_path / "no", "-o", tmp_path / "x") == (
        1, [], [f"error: {tmp_path / 'no'}: no such folder or metadata file"],
    )  # fmt: skip
    monkeypatch.setattr(index, "require", lambda *extra: None)
    code, _, errors = invoke("watch", videos, "-o", tmp_path / "mine")
    assert code == 1 and str(tmp_path / "mine") in errors[0]
    (tmp_path / "a.csv").touch()
    for name in ("no", "a.csv"):
        assert invoke("watch", tmp_path / name) == (1, [], [f"error: {tmp_path / name}: no such folder"])
    assert invoke("watch", videos, "--model", "./no-model")[2] == ["error: ./no-model: no such model folder"]


def test_watching_goes_on_after_a_failure_and_with_the_model_of_the_index(monkeypatch, tmp_path, an_index, capsys):
    loaded, followed = [], []
    watching = SimpleNamespace(watch=lambda *words, **named: followed.append((words, named)))
    monkeypatch.setitem(sys.modules, "dmae.retrieval.watching", watching)
    monkeypatch.setattr(index, "require", lambda *extra: None)
    monkeypatch.setattr("dmae.inference.loading.load_described", lambda *words, **named: loaded.append((words, named)))
    monkeypatch.setattr("dmae.retrieval.storage.read_manifest", lambda folder: {"model": {"built in": folder}})
    videos = an_index.with_suffix("")
    videos.mkdir()
    assert invoke("watch", videos, "--device", "cpu")[0] == 0
    assert loaded.pop() == (({"built in": an_index},), {"device": "cpu"})
    (((folder, *_), named),) = followed
    assert folder == videos and named == {"poll": 0.0}
    assert invoke("watch", videos, "-o", tmp_path / "new", "--model", "a/b")[0] == 0
    assert loaded.pop()[0][0]["name"] == "a/b"
    seen = []

    def indexed(*words, **named):
        seen.append((words, named))
        if len(seen) > 1:
            raise OSError("the drive\nis away")
        return IndexSummary(videos=3)

    monkeypatch.setattr("dmae.retrieval.indexing.index_videos", indexed)
    monkeypatch.setattr(sys.stderr, "flush", lambda: None)
    invoke("watch", videos)
    (_, update, _), _ = followed[-1]
    update()
    update()
    assert capsys.readouterr() == (
        "", "index: 3 videos, 0 embedded now, 0 unchanged, 0 moved, 0 skipped\nnot updated: the drive\\nis away\n",
    )  # fmt: skip
    assert seen[0] == ((videos, an_index, None), {"prune": False, "exclude": None})


def test_a_line_for_a_log_is_written_at_once(monkeypatch):
    flushed = []
    monkeypatch.setattr("builtins.print", lambda *words, **named: flushed.append(named["flush"]))
    index._report(IndexSummary())
    assert flushed == [True]


# ---------------------------------------------------------------------- search, index-info, duplicates


def hit(number, **more):
    told = {"video_id": f"v{number}", "path": f"v{number}.mp4", "score": 1 / number, "start": 60.0 * number}
    return told | {"end": 60.0 * number + 1, "reasons": ["red", "dog"][:number], "missing": False} | more


def test_a_search_prints_a_line_a_hit_and_says_where_none_is(monkeypatch, an_index, tmp_path):
    hits = {"a dog": [hit(1), hit(2, missing=True, path="od\td é.mp4")], "n\none": []}
    found = SimpleNamespace(
        text_weight=1.0,
        search=lambda texts, **options: [
            [SimpleNamespace(to_dict=lambda one=one: one) for one in hits[t]] for t in texts
        ],
    )
    monkeypatch.setattr(search, "opened", lambda *arguments: found)
    assert invoke("search", an_index, "a dog") == (
        0,
        ["1.000\t1:00-1:01\tred\tv1.mp4", "0.500\t2:00-2:01\tred, dog\tod\\td é.mp4 (the file is gone)"],
        [],
    )  # fmt: skip
    nothing = "nothing found for 'n\\none'; the index may be empty, or the filter too narrow"
    assert invoke("search", an_index, "n\none")[1:] == ([], [nothing])
    (tmp_path / "queries.txt").write_text("a dog\n\na dog\n")
    code, out, errors = invoke("search", an_index, "--queries", tmp_path / "queries.txt", "--json")
    assert (code, errors) == (0, []) and [json.loads(line) for line in out] == [
        {"query": "a dog", "results": hits["a dog"]}
    ] * 2
    monkeypatch.setattr("dmae.visuals.gallery.write_results_page", lambda page, *words: Path(page).write_text("x"))
    assert invoke("search", an_index, "a dog", "--html", tmp_path / "p.html")[2] == [f"wrote {tmp_path / 'p.html'}"]
    give = "error: give one of: words, --video CLIP, or --queries FILE"
    for words in ([], ["a", "--queries", "q"], ["a", "--video", "v"], ["--video", "v", "--queries", "q"]):
        assert invoke("search", an_index, *words) == (1, [], [give])
    missing = tmp_path / "no.mp4"
    assert invoke("search", an_index, "--video", missing)[2] == [f"error: {missing}: no such video file"]
    assert invoke("search", an_index, " ")[2] == ["error: the query is empty; type some words"]


def test_on_a_terminal_hits_are_a_table(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    search._print_hits("a [b] dog", [hit(1), hit(2)])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("│┃").split("│" if "│" in line else "┃")] for line in lines]
    assert lines[0].strip() == "a [b] dog" and rows[2] == ["#", "video", "score", "moment", "why", "path"]
    assert rows[4:6] == [
        ["1", "v1", "1.000", "1:00-1:01", "red", "v1.mp4"],
        ["2", "v2", "0.500", "2:00-2:01", "red, dog", "v2.mp4"],
    ]


def test_a_server_that_does_not_answer_is_named_and_the_search_goes_on(monkeypatch, an_index):
    from dmae.retrieval.running import FILE, NotAnswering

    class Gone:
        def ask(self, text, **options):
            raise NotAnswering("it\nhangs")

    monkeypatch.setattr("dmae.retrieval.running.running", lambda folder: Gone())
    found = SimpleNamespace(text_weight=1.0, search=lambda texts, **options: [[]])
    monkeypatch.setattr(search, "opened", lambda *arguments: found)
    said = f"{an_index / FILE} names a server, but it\\nhangs; searching here"
    assert invoke("search", an_index, "a dog")[2][0] == said


def test_the_index_is_opened_with_its_own_model_or_the_named_one(monkeypatch):
    monkeypatch.setattr("dmae.retrieval.index.VideoIndex.open", lambda *words, **named: (words, named))
    monkeypatch.setattr(
        "dmae.retrieval.storage.read_manifest", lambda path: {"model": {"key_frames": True, "of": path}}
    )
    monkeypatch.setattr("dmae.inference.loading.load_described", lambda *words, **named: ("loaded", (words, named)))
    assert search.opened("path", None, "cpu") == (("path",), {"device": "cpu"})
    described = {"name": "a/b", "revision": None, "key_frames": True}
    assert search.opened("path", "a/b", "cpu") == (("path", "loaded", ((described,), {"device": "cpu"})), {})
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        search.opened("path", "./none", "cpu")


def test_index_info_is_the_index_s_own_account(monkeypatch, an_index):
    info = {"model": "a\nb", "counts": {"videos": 2, "rows": 5}, "size": 12}
    monkeypatch.setattr(
        "dmae.retrieval.index.VideoIndex.open", lambda path: SimpleNamespace(info=lambda: info | {"path": str(path)})
    )
    lines = ["model        a\\nb", "counts       videos 2, rows 5", "size         12", f"path         {an_index}"]
    assert invoke("index-info", an_index) == (0, lines, [])
    code, out, errors = invoke("index-info", an_index, "--json")
    assert (code, errors) == (0, []) and json.loads(*out) == info | {"path": str(an_index)}


def test_serving_is_refused_without_an_index_or_a_model(monkeypatch, an_index, everything_installed):
    code, _, errors = invoke("serve", an_index.parent / "no")
    assert code == 1 and "make one with `dmae index`" in errors[-1]
    assert invoke("serve", an_index, "--model", "./none")[2] == ["error: ./none: no such model folder"]
    code, _, errors = invoke("export-clips", an_index.parent / "no", " ", "-o", an_index.parent / "out")
    assert code == 1 and "make one with `dmae index`" in errors[-1]
    assert invoke("export-clips", an_index, " ", "-o", an_index.parent / "out")[2][0].startswith("error: the query is")
    code, _, errors = invoke("duplicates", an_index.parent / "no")
    assert code == 1 and "make one with `dmae index`" in errors[-1]


def test_duplicates_are_pairs_with_their_times_and_copies(monkeypatch, an_index):
    asked = []
    pair = {"kind": "same passages", "videos": ["a", "b"], "paths": ["a\n.mp4", "b.mp4"]}
    pair["passages"] = [{"first": [0, 61], "second": [5, 66]}, {"first": [100, 110], "second": [3600, 3610]}]
    rows = [{"video_id": "a", "path": "a.mp4"}, {"video_id": "b", "path": "b.mp4", "copies": [{"path": "c.mp4"}]}]
    snapshot = SimpleNamespace(rows=lambda: [rows[0], *rows])
    monkeypatch.setattr("dmae.retrieval.index.VideoIndex.open", lambda path: SimpleNamespace(snapshot=snapshot))

    def find(*words):
        asked.append(words)
        return [SimpleNamespace(to_dict=lambda: pair)]

    monkeypatch.setattr("dmae.retrieval.duplicates.find_duplicates", find)
    assert invoke("duplicates", an_index, "--threshold", 0.5) == (
        0,
        [
            "same passages\t0:00-1:01=0:05-1:06, 1:40-1:50=1:00:00-1:00:10\ta\\n.mp4\tb.mp4",
            "same content\t\tb.mp4\tc.mp4",
        ],
        ["2 pairs among 2 videos"],
    )  # fmt: skip
    code, out, errors = invoke("duplicates", an_index, "--json", "--threshold", 1)
    copy = {"kind": "same content", "videos": ["b", "b"], "paths": ["b.mp4", "c.mp4"], "passages": []}
    assert (code, [json.loads(line) for line in out], errors) == (0, [pair, copy], ["2 pairs among 2 videos"])
    assert asked == [(snapshot, 0.5), (snapshot, 1.0)]
    for wrong in ("0", "1.5", "-0.1", "nan"):
        said = f"error: --threshold {float(wrong)} must be above 0 and at most 1"
        assert invoke("duplicates", an_index, f"--threshold={wrong}") == (1, [], [said])


# ---------------------------------------------------------------------- the rest


def test_what_cannot_be_cut_is_counted_named_and_not_in_the_table(monkeypatch, an_index, tmp_path):
    monkeypatch.setattr(export, "require", lambda *extra: None)
    hits = [SimpleNamespace(**hit(1)), SimpleNamespace(**hit(2))]
    monkeypatch.setattr(export, "opened", lambda *words: SimpleNamespace(search=lambda *words, **named: [hits, "no"]))
    monkeypatch.setattr("dmae.retrieval.server.export.as_csv", lambda rows: f"{[row.path for row in rows]}\udce9\n")
    fails, written = {"v2.mp4": "no\nroom"}, []

    def write(path, *words):
        written.append((path, *words))
        if path in fails:
            raise ValueError(fails[path])

    monkeypatch.setattr("dmae.retrieval.server.media.write_clip", write)
    output = tmp_path / "new" / "clips"
    words = ["export-clips", an_index, "dog", "-o", output]
    shown = ([f"{output}: 1 clips, 1 left out"], ["  left out v2.mp4: no\\nroom"])
    assert invoke(*words) == (0, *shown)
    assert written[0] == ("v1.mp4", 60.0, 61.0, None, 60.0, str(output / "001_v1_60s.mp4"))
    assert (output / "clips.csv").read_text() == "['v1.mp4']\\udce9\n"
    fails["v1.mp4"] = "neither"
    code, _, errors = invoke(*words)
    assert (code, errors[-1]) == (1, "error: no clip could be written")
    hits.clear()
    assert invoke(*words) == (0, [f"{output}: 0 clips, 0 left out"], [])


@pytest.mark.parametrize(
    ("video_id", "name"),
    [("a/b:c", "a_b_c"), ("../..", "clip"), ("x" * 90, "x" * 80), ("_.é_1-2.", "é_1-2"), ("a  b", "a_b")],
)
def test_a_clip_s_file_name_is_the_video_s_as_far_as_files_allow(video_id, name):
    assert export.safe_name(video_id) == name


def test_publishing_shows_on_stdout_and_asks(monkeypatch, everything_installed):
    answers = []

    def publish(source, repo_id, *, show, confirm, **options):
        show("what would change")
        answers.append(confirm and confirm("Publish?"))

    monkeypatch.setattr("dmae.hub_cards.push.push", publish)
    for typed in ("y\n", "n\n"):
        result = CliRunner().invoke(app, ["push", "folder", "--repo-id", "a/b"], input=typed)
        assert result.stdout.startswith("what would change\nPublish? [y/N]: ") and result.exit_code == 0
    assert answers == [True, False]
    result = CliRunner().invoke(app, ["push", "folder", "--repo-id", "a/b"], input="")
    said = "error: nothing was sent: nobody answered; give --yes where nobody can"
    assert result.exit_code == 1 and result.stderr.splitlines()[-1] == said
    assert CliRunner().invoke(app, ["push", "folder", "--repo-id", "a/b", "--yes"]).stdout == "what would change\n"
    assert answers[2:] == [None]


def test_a_leaderboard_names_the_silent_beside_its_page(monkeypatch, tmp_path, everything_installed):
    monkeypatch.setattr("dmae.hub_cards.leaderboard.write_leaderboard", lambda models, page: [f"{m}?" for m in models])
    assert invoke("leaderboard", "a", "b", "-o", tmp_path / "p") == (0, [str(tmp_path / "p")], ["a?", "b?"])


def test_models_are_a_row_each(monkeypatch):
    told = Preset("a/é", "clip", 7, 224, 16, "all", "MIT", None, "nobody", 0.25, "a note")
    monkeypatch.setattr("dmae.inference.presets.PRESETS", (told, *PRESETS))
    code, out, errors = invoke("models")
    assert (code, errors) == (0, []) and {len(line) for line in out[:-1]} == {160}, "as wide as a log may be"
    assert out[0].split() == ["model", "parameters", "languages", "licence", "R@1", "CPU", "s", "/", "clip"]
    assert out[1].split() == ["a/é", "7", "M", "all", "MIT", "-", "0.2", "a", "note"]
    default = out[2].split()
    assert default[0] == PRESETS[0].name and default[5:7] == ["31.2", "2.2"]
    note = "R@1: published zero-shot text-to-video on MSR-VTT 1k-A, where one is known; sources with --json."
    assert out[-1] == note
    lines = invoke("models", "--json")[1]
    assert lines[:3] == ["[", " {", '  "name": "a/é",'] and len(json.loads("\n".join(lines))) == len(PRESETS) + 1


def test_preparing_prints_as_it_goes_on_all_cores(monkeypatch, tmp_path, everything_installed):
    def prepare(wanted, sampler, show):
        show(f"{wanted.name} {wanted.splits} {wanted.workers} {sampler.num_frames}")
        if wanted.name == "msvd":
            raise KeyboardInterrupt

    monkeypatch.setattr("dmae.data.preparation.prepare_dataset", prepare)
    for cores, workers in ((6, 6), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert invoke("prepare", "didemo", "-o", tmp_path) == (0, [f"didemo () {workers} 12"], [])
    said = "interrupted; finished frames are kept, run the same command again to go on"
    words = ["prepare", "msvd", "-o", tmp_path, "--num-workers", 2, "--split", "a"]
    assert invoke(*words) == (130, ["msvd ('a',) 2 12"], [said])


def test_exported_files_are_named_on_stderr(monkeypatch, tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"x" * 1_250_000)
    monkeypatch.setattr("dmae.inference.loading.load_model_and_processor", lambda *words, **named: ("model", None))
    asked = []
    monkeypatch.setattr(
        "dmae.inference.export.export_towers", lambda *words: asked.append(words) or [tmp_path / "a.pt2"]
    )
    monkeypatch.setattr(extras, "installed", lambda name: False)  # the programs of torch need none
    words = ["export", "-m", "m", "-o", tmp_path, "--form", "torch"]
    assert invoke(*words) == (0, [], [f"{tmp_path / 'a.pt2'}: 1.2 MB"]) and asked == [("model", tmp_path, "torch")]


def test_demo_and_train_hand_on_what_was_typed(monkeypatch, tmp_path, everything_installed):
    seen = []
    monkeypatch.setattr("dmae.demo.run_demo", lambda *words: seen.append(words))
    invoke("demo")
    invoke("demo", "--output-dir", tmp_path, "--preset", "tiny", "--set", "a.b=1", "--set", "c.d=2")
    assert seen == [(Path("outputs/demo"), "demo", ()), (tmp_path, "tiny", ("a.b=1", "c.d=2"))]
    monkeypatch.setattr("dmae.training.run.train", lambda **words: seen.append(words))
    invoke("train", "--config", "msvd", "--max-steps", 3)
    assert (seen[-1]["config"], seen[-1]["max_steps"]) == ("msvd", 3)


def test_names_are_shown_and_never_act():
    odd = "a\n[red]\x1b[0m é\udce9\u202e"
    assert printable(odd) == "a\\n[red]\\x1b[0m é\\xe9\\u202e" and printable("\udc85") == "\\x85"
    assert one_line(odd) == "a\\n[red]\\x1b[0m é\udce9\\u202e" and one_line(7) == printable(7) == "7"
    assert printable("\ud800 \udd00") == "\\ud800 \\udd00"  # no bytes of a name
    assert json_line({"é": "\n"}) == '{"é": "\\n"}' and json_line(["é\udce9"]) == '["\\u00e9\\udce9"]'


def test_a_table_takes_no_markup_from_its_cells(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_table("[b]t[/b] :cat:", ["a [x]", "b"], [["[red]1[/red]", ":dog: 12"], ["x" * 50, "\n"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "[b]t[/b] :cat:" and all(len(line) <= 40 for line in lines)
    assert "a [x]" in lines[2] and "[red]1[/red]" in lines[4] and ":dog: 12" in lines[4]
    assert sum(line.count("x") for line in lines[5:]) == 50 and "…" not in "".join(lines), "folded, not cut"
    assert any("\\n" in line for line in lines) and "\x1b" not in "".join(lines)


def test_numbers_in_a_table_are_not_coloured(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_table("t", ["a"], [["12 'x' True"]])
    assert "12 'x' True" in capsys.readouterr().out

"""What a command prints, to the line: which of it goes to stdout, which to stderr, and the exit code."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dmae import extras
from dmae.cli import app
from dmae.commands import evaluate
from dmae.inference.presets import PRESETS, Preset
from dmae.terminal import json_line, one_line, print_table, printable

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
def test_the_extra_of_a_command_is_asked_for_before_its_work(an_index, monkeypatch, words, invoke):
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


def test_compare_of_queries_is_first_minus_second(per_query, everything_installed, invoke):
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


def test_compare_takes_two_of_a_kind(per_query, everything_installed, monkeypatch, invoke):
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


def test_evaluate_shows_and_names_what_it_wrote(monkeypatch, tmp_path, everything_installed, invoke):
    shown, data = [], dict(DATA)
    monkeypatch.setattr(
        "dmae.evaluation.evaluate_model.evaluate_model", lambda *words, **besides: ({"data": data}, "compared")
    )
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
    monkeypatch.setattr(
        "dmae.evaluation.evaluate_model.evaluate_model", lambda *words, **besides: None
    )  # of another rank
    assert invoke(*words) == (0, [], []) and len(shown) == 4


def test_evaluate_wants_a_dataset_or_a_task_of_mteb(monkeypatch, tmp_path, everything_installed, invoke):
    both = ["evaluate", "--model", "m", "--dataset", "d", "--mteb", "t"]
    for words in (both, both[:3]):
        assert invoke(*words) == (1, [], ["error: give --dataset, or --mteb with a name: one of the two"])
    run, tasks = [], SimpleNamespace(find_tasks=lambda name: [name])
    scores = {"one": {"main_score": 0.12345}, "two": {"main_score": 1.0}}
    runner = SimpleNamespace(evaluate_mteb=lambda *words, **how: run.append((*words, how)) or scores)
    monkeypatch.setitem(sys.modules, "dmae.evaluation.mteb_model", tasks)
    monkeypatch.setitem(sys.modules, "dmae.evaluation.mteb_run", runner)
    how = lambda *values: dict(zip(("device", "batch_size", "workers", "benchmark"), values))  # noqa: E731
    said = ["one: 12.35 (mteb's main score)", "two: 100.00 (mteb's main score)"]
    words = ["evaluate", "--model", "a/m", "--mteb", "t"]
    assert invoke(*words) == (0, [*said, "wrote 2 results.json in outputs/evaluate/m/mteb"], [])
    more = ["-o", tmp_path, "--device", "cpu", "--batch-size", 3, "--num-workers", 0, "--benchmark", "a/b"]
    assert invoke(*words, *more)[1][-1] == f"wrote 2 results.json in {tmp_path}"
    assert run == [
        ("a/m", ["t"], Path("outputs/evaluate/m/mteb"), how("auto", 16, None, None)),
        ("a/m", ["t"], tmp_path, how("cpu", 3, 0, "a/b")),
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


# ---------------------------------------------------------------------- the rest


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


def test_a_leaderboard_names_the_silent_beside_its_page(monkeypatch, tmp_path, everything_installed, invoke):
    monkeypatch.setattr("dmae.hub_cards.leaderboard.write_leaderboard", lambda models, page: [f"{m}?" for m in models])
    assert invoke("leaderboard", "a", "b", "-o", tmp_path / "p") == (0, [str(tmp_path / "p")], ["a?", "b?"])


def test_models_are_a_row_each(monkeypatch, invoke):
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


def test_preparing_prints_as_it_goes_on_all_cores(monkeypatch, tmp_path, everything_installed, invoke):
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


def test_exported_files_are_named_on_stderr(monkeypatch, tmp_path, invoke):
    (tmp_path / "a.pt2").write_bytes(b"x" * 1_250_000)
    monkeypatch.setattr("dmae.inference.loading.load_model_and_processor", lambda *words, **named: ("model", None))
    asked = []
    monkeypatch.setattr(
        "dmae.inference.export.export_towers", lambda *words: asked.append(words) or [tmp_path / "a.pt2"]
    )
    monkeypatch.setattr(extras, "installed", lambda name: False)  # the programs of torch need none
    words = ["export", "-m", "m", "-o", tmp_path, "--form", "torch"]
    assert invoke(*words) == (0, [], [f"{tmp_path / 'a.pt2'}: 1.2 MB"]) and asked == [("model", tmp_path, "torch")]


def test_demo_and_train_hand_on_what_was_typed(monkeypatch, tmp_path, everything_installed, invoke):
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

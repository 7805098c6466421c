"""What the commands that make, follow and search an index print, to the line, and their exit codes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmae.commands import export, index, search
from dmae.retrieval.indexing import IndexSummary

# ---------------------------------------------------------------------- index, watch


def test_index_says_what_it_did_and_counts_every_file(monkeypatch, tmp_path, invoke):
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


def test_only_what_is_given_of_windows_makes_a_plan(monkeypatch, tmp_path, invoke):
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


def test_roots_and_foreign_folders_are_refused_before_any_work(monkeypatch, tmp_path, an_index, invoke):
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
    monkeypatch.setattr("dmae.retrieval.indexing.index_videos", lambda *words, **named: 1 / 0)
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


def test_watching_goes_on_after_a_failure_and_with_the_model_of_the_index(
    monkeypatch, tmp_path, an_index, capsys, invoke
):
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


def test_a_search_prints_a_line_a_hit_and_says_where_none_is(monkeypatch, an_index, tmp_path, invoke):
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


def test_a_server_that_does_not_answer_is_named_and_the_search_goes_on(monkeypatch, an_index, invoke):
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


def test_index_info_is_the_index_s_own_account(monkeypatch, an_index, invoke):
    info = {"model": "a\nb", "counts": {"videos": 2, "rows": 5}, "size": 12}
    monkeypatch.setattr(
        "dmae.retrieval.index.VideoIndex.open", lambda path: SimpleNamespace(info=lambda: info | {"path": str(path)})
    )
    lines = ["model        a\\nb", "counts       videos 2, rows 5", "size         12", f"path         {an_index}"]
    assert invoke("index-info", an_index) == (0, lines, [])
    code, out, errors = invoke("index-info", an_index, "--json")
    assert (code, errors) == (0, []) and json.loads(*out) == info | {"path": str(an_index)}


def test_serving_is_refused_without_an_index_or_a_model(monkeypatch, an_index, everything_installed, invoke):
    code, _, errors = invoke("serve", an_index.parent / "no")
    assert code == 1 and "make one with `dmae index`" in errors[-1]
    assert invoke("serve", an_index, "--model", "./none")[2] == ["error: ./none: no such model folder"]
    code, _, errors = invoke("export-clips", an_index.parent / "no", " ", "-o", an_index.parent / "out")
    assert code == 1 and "make one with `dmae index`" in errors[-1]
    assert invoke("export-clips", an_index, " ", "-o", an_index.parent / "out")[2][0].startswith("error: the query is")
    code, _, errors = invoke("duplicates", an_index.parent / "no")
    assert code == 1 and "make one with `dmae index`" in errors[-1]


def test_duplicates_are_pairs_with_their_times_and_copies(monkeypatch, an_index, invoke):
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


def test_what_cannot_be_cut_is_counted_named_and_not_in_the_table(monkeypatch, an_index, tmp_path, invoke):
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

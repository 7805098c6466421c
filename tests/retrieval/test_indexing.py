"""`dmae index`: incremental, atomic, and safe against damaged files and kills."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from dmae.cli import app
from dmae.data.sources import find_videos
from dmae.retrieval import indexing, storage
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.windows import WindowPlan


@pytest.fixture
def videos(clips, tmp_path):
    return shutil.copytree(clips, tmp_path / "videos")


def run(videos, output, model_folder, **options):
    return index_videos(videos, output, str(model_folder), num_workers=0, batch_size=4, **options)


def test_the_second_run_does_nothing(videos, tmp_path, model_folder):
    first = run(videos, tmp_path / "index", model_folder)
    before = storage.read_manifest(tmp_path / "index")
    second = index_videos(videos, tmp_path / "index", num_workers=0)
    assert (first.embedded, second.embedded, second.unchanged) == (12, 0, 12)
    assert storage.read_manifest(tmp_path / "index") == before


def test_only_new_and_changed_files_are_embedded(videos, tmp_path, model_folder, make_clip):
    run(videos, tmp_path / "index", model_folder)
    make_clip(videos / "clip03.mp4", seed=50)
    make_clip(videos / "new.mp4", seed=51)
    (videos / "clip11.mp4").unlink()
    again = run(videos, tmp_path / "index", model_folder)
    assert (again.embedded, again.unchanged, again.gone, again.videos) == (2, 10, 1, 13)
    pruned = run(videos, tmp_path / "index", model_folder, prune=True)
    assert (pruned.embedded, pruned.removed, pruned.videos) == (0, 1, 12)


def test_damaged_files_are_named_and_not_tried_again(videos, tmp_path, model_folder, monkeypatch):
    (videos / "bad.mp4").write_bytes(b"no video")
    for _ in range(2):
        summary = run(videos, tmp_path / "index", model_folder)
        assert summary.videos == 12
        assert [entry["video_id"] for entry in summary.skipped] == ["bad"]
        lines = (tmp_path / "index" / "skipped.jsonl").read_text().splitlines()
        assert [json.loads(line)["path"] for line in lines] == [str(videos / "bad.mp4")]
        # a second decode of the known bad file would be a bug
        monkeypatch.setattr(indexing, "iter_videos", lambda *args, **kwargs: pytest.fail("decoded again"))


def test_a_file_that_became_damaged_leaves_no_stale_rows(videos, tmp_path, model_folder):
    run(videos, tmp_path / "index", model_folder)
    (videos / "clip00.mp4").write_bytes(b"no video any more")
    summary = run(videos, tmp_path / "index", model_folder)
    assert summary.videos == 11 and summary.skipped[0]["video_id"] == "clip00"


def test_a_folder_of_damaged_files_leaves_nothing_behind(tmp_path, model_folder):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"none of 1 files.*bad\.mp4"):
        run(tmp_path / "videos", tmp_path / "index", model_folder)
    assert not (tmp_path / "index").exists()


def test_windows_of_a_long_video(tmp_path, model_folder, make_clip):
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "long.mp4", seed=1, seconds=7)
    make_clip(tmp_path / "videos" / "short.mp4", seed=2, seconds=2)
    summary = run(tmp_path / "videos", tmp_path / "index", model_folder, window=WindowPlan(3, 2))
    assert (summary.videos, summary.rows) == (2, 4)
    index = VideoIndex.open(tmp_path / "index")
    rows = [(row["start"], row["end"]) for row in index.rows() if row["video_id"] == "long"]
    assert rows == [(0, 3), (2, 5), (4, 7)]
    hits = index.search("a red square", top_k=5)[0]
    assert sorted(hit.video_id for hit in hits) == ["long", "short"]
    with pytest.raises(ValueError, match="windows of 3 s every 2 s, not windows of 5 s every 5 s"):
        run(tmp_path / "videos", tmp_path / "index", model_folder, window=WindowPlan(5, 5))


def test_metadata_becomes_filters(videos, tmp_path, model_folder):
    kinds = ["even", "odd", "even", "odd"]
    rows = [{"file_name": f"clip{n:02d}.mp4", "video_id": f"v{n}", "kind": kind} for n, kind in enumerate(kinds)]
    (videos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(videos, tmp_path / "index", model_folder)
    index = VideoIndex.open(tmp_path / "index")
    assert len(index) == 12
    assert {hit.video_id for hit in index.search("red", filter={"kind": "even"})[0]} == {"v0", "v2"}


SLOW_INDEXING = """
import sys, time
from dmae.retrieval import indexing

def slowly(*arguments, batches=indexing.iter_videos):
    for batch in batches(*arguments):
        yield batch
        time.sleep(0.1)

indexing.COMMIT_SECONDS, indexing.iter_videos = 0.0, slowly
indexing.index_videos(*sys.argv[1:], num_workers=0, batch_size=1)
"""


def kill_and_rerun(videos, output, model_folder, seconds):
    """Start indexing, SIGKILL it `seconds` after it began to write, and look at what it left: a whole index or none.

    Every video is a commit with a pause behind it, so that kills meet the work and not the time before or after it.
    """
    arguments = [sys.executable, "-c", SLOW_INDEXING, str(videos), str(output), str(model_folder)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (output / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (output / storage.MANIFEST).exists():
        ids = [row["video_id"] for row in VideoIndex.open(output).rows()]
        assert len(ids) == len(set(ids))
        return len(ids)
    return 0


def killed_at_random(videos, tmp_path, model_folder, times, longest=1.6):
    reached = []
    for attempt in range(times):
        output = tmp_path / f"index{attempt}"
        moment = random.Random(attempt).uniform(0.0, longest)
        reached.append(kill_and_rerun(videos, output, model_folder, moment))
        summary = run(videos, output, model_folder)
        assert summary.embedded + summary.unchanged == summary.rows == 12
        assert sorted(VideoIndex.open(output).video_ids) == [f"clip{n:02d}" for n in range(12)]
        assert not list(output.glob(".*.dmae-*"))
    return reached


def test_killed_at_any_moment_and_run_again(videos, tmp_path, model_folder):
    killed_at_random(videos, tmp_path, model_folder, times=3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_twenty_moments(videos, tmp_path, model_folder):
    reached = killed_at_random(videos, tmp_path, model_folder, times=20)
    assert len(set(reached)) > 3, reached  # the kills fell into different stages


def test_a_reader_never_sees_half_a_commit(videos, tmp_path, model_folder, monkeypatch):
    output = tmp_path / "index"
    run(videos, output, model_folder)
    before = VideoIndex.open(output).search("a red square", top_k=12)

    def no_commit(folder, manifest):
        raise OSError("disk full")

    monkeypatch.setattr(storage, "write_manifest", no_commit)
    with pytest.raises(OSError, match="disk full"):
        VideoIndex.open(output).delete(["clip00"])
    monkeypatch.undo()
    assert VideoIndex.open(output).search("a red square", top_k=12) == before


def test_a_second_writer_is_refused(videos, tmp_path, model_folder):
    run(videos, tmp_path / "index", model_folder)
    with storage.only_writer(tmp_path / "index"), pytest.raises(OSError, match="being written by another process"):
        VideoIndex.open(tmp_path / "index").delete(["clip00"])


# ---------------------------------------------------------------------- the commands and bad input


@pytest.fixture
def index_folder(videos, tmp_path, model_folder):
    run(videos, tmp_path / "index", model_folder)
    return tmp_path / "index"


def command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr.strip().splitlines()[-1] if result.exit_code else ""


def test_commands_from_folder_to_result(videos, tmp_path, model_folder):
    code, out, _ = command("index", videos, "-o", tmp_path / "index", "--model", model_folder, "--num-workers", 0)
    assert code == 0 and "12 videos in 12 rows; 12 embedded" in out
    code, out, _ = command("search", tmp_path / "index", "a red square", "--json", "--top-k", 3)
    answer = json.loads(out)
    assert code == 0 and answer["query"] == "a red square" and len(answer["results"]) == 3
    assert list(answer["results"][0])[:5] == ["video_id", "path", "score", "start", "end"]
    code, out, _ = command("search", tmp_path / "index", "--video", videos / "clip02.mp4", "--json")
    assert json.loads(out)["results"][0]["video_id"] == "clip02"
    (tmp_path / "queries.txt").write_text("red\n\nblue\n")
    page = tmp_path / "page.html"
    code, out, _ = command(
        "search", tmp_path / "index", "--queries", tmp_path / "queries.txt", "--json", "--html", page
    )
    assert [json.loads(line)["query"] for line in out.splitlines()] == ["red", "blue"]
    assert page.read_text().count("<video") == 10
    code, out, _ = command("index-info", tmp_path / "index", "--json")
    assert json.loads(out)["rows"] == 12


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([""], "empty"),
        (["x" * 10_000], "10000 characters"),
        (["red", "--filter", "size=1"], "unknown filter size"),
        (["red", "--filter", "size"], "not key=value"),
        (["red", "--model", "/no/such/model"], "no such model folder"),
        ([], "give one of"),
        (["--video", "missing.mp4"], "no such video file"),
        (["--queries", "missing.txt"], "missing.txt"),
    ],
)
def test_bad_searches_say_what_is_wrong_and_change_nothing(index_folder, arguments, message):
    before = {path.name: path.read_bytes() for path in index_folder.iterdir()}
    code, _, error = command("search", index_folder, *arguments)
    assert code == 1 and message in error
    assert {path.name: path.read_bytes() for path in index_folder.iterdir()} == before


@pytest.mark.parametrize(
    "content, message",
    [
        ("{ not json", "damaged manifest"),
        ("[]", "damaged manifest"),
        ('{"format": 1}', "damaged manifest, generation"),
        ('{"format": 99}', "format 99, and this version of dmae reads up to 3"),
    ],
)
@pytest.mark.parametrize("name", ["search", "index", "index-info"])
def test_damaged_and_newer_manifests_are_refused_unchanged(index_folder, videos, content, message, name):
    manifest = index_folder / storage.MANIFEST
    manifest.write_text(content)
    arguments = {"search": [index_folder, "red"], "index": [videos, "-o", index_folder], "index-info": [index_folder]}
    code, _, error = command(name, *arguments[name])
    assert code == 1 and message in error
    assert manifest.read_text() == content


def test_a_damaged_segment_is_named(index_folder):
    segment = next(index_folder.glob("segment-*"))
    segment.write_bytes(segment.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{segment.name}: damaged segment"):
        VideoIndex.open(index_folder)


def test_strict_fails_but_keeps_the_index(videos, tmp_path, model_folder):
    (videos / "bad.mp4").write_bytes(b"no video")
    arguments = ["index", videos, "-o", tmp_path / "index", "--model", model_folder, "--num-workers", 0]
    assert command(*arguments)[0] == 0
    code, _, error = command(*arguments, "--strict")
    assert code == 1 and "skipped.jsonl" in error
    assert len(VideoIndex.open(tmp_path / "index")) == 12


@pytest.mark.parametrize(
    "content, message", [('{"video": 1', "line 1: not valid JSON"), ('{"name": "a.mp4"}', "no column")]
)
def test_a_wrong_listing_is_refused_before_anything_is_written(tmp_path, model_folder, content, message):
    (tmp_path / "metadata.jsonl").write_text(content + "\n")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "metadata.jsonl", tmp_path / "index", model_folder)
    assert not (tmp_path / "index").exists()


def test_links_to_one_file_are_one_video(tmp_path):
    (tmp_path / "real.mp4").write_bytes(b"x")
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / name).symlink_to(tmp_path / "real.mp4")
    (found,), missing = find_videos(tmp_path)
    assert (found.video_id, missing) == ("real", [])

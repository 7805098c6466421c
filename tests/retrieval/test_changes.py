"""An index follows its files: a file is its content, wherever it lies and whatever it is called."""

import json
import os
import shutil

import av
import numpy as np
import pytest

from dmae.inference import embedding
from dmae.retrieval import indexing, stretching
from dmae.retrieval.asking import parse_filter
from dmae.retrieval.filters import holds
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.places import content_id, located, remapped, stored, with_root
from dmae.retrieval.windows import WindowPlan


@pytest.fixture
def videos(clips, tmp_path):
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.mp4", "b.mp4", "sub/c.mp4"]):
        shutil.copy(clips / f"clip{number:02d}.mp4", folder / name)
    return folder


@pytest.fixture
def run(videos, tmp_path, model, processor, model_folder):
    def run(source=videos, **options):
        if not (tmp_path / "index").exists():
            options.setdefault("model", str(model_folder))
        return index_videos(source, tmp_path / "index", num_workers=0, **options)

    return run


def scores(tmp_path):
    return {round(hit.score, 5): hit for hit in VideoIndex.open(tmp_path / "index").search("a red square", top_k=9)[0]}


def counts(summary):
    return summary.videos, summary.embedded, summary.unchanged, summary.moved, len(summary.skipped)


def test_renamed_and_moved_files_are_not_embedded_again(videos, run, tmp_path, monkeypatch):
    assert counts(run()) == (3, 3, 0, 0, 0)
    before = scores(tmp_path)
    os.rename(videos / "a.mp4", videos / "new name.mp4")
    os.rename(videos / "sub", videos / "other")
    os.utime(videos / "b.mp4", ns=(1, 1))
    monkeypatch.setattr(embedding, "in_worker", lambda *arguments: pytest.fail("embedded again"))
    assert counts(run()) == (3, 0, 1, 2, 0)
    after = scores(tmp_path)
    assert before.keys() == after.keys()
    assert sorted(hit.video_id for hit in after.values()) == ["b", "new name", "other/c"]
    assert all(os.path.exists(hit.path) and not hit.missing for hit in after.values())
    assert counts(run()) == (3, 0, 3, 0, 0)


def test_a_folder_that_is_mounted_elsewhere_changes_one_line(videos, run, tmp_path):
    run()
    segments = sorted(path.name for path in (tmp_path / "index").glob("segment-*"))
    os.rename(videos, tmp_path / "elsewhere")
    assert all(hit.missing for hit in scores(tmp_path).values())
    summary = run(tmp_path / "elsewhere", roots=[f"{videos}={tmp_path / 'elsewhere'}"])
    assert counts(summary) == (3, 0, 3, 0, 0)
    assert sorted(path.name for path in (tmp_path / "index").glob("segment-*")) == segments
    assert VideoIndex.open(tmp_path / "index").info()["roots"] == {"videos": str(tmp_path / "elsewhere")}
    os.rename(tmp_path / "elsewhere", tmp_path / "third")
    assert counts(run(tmp_path / "third")) == (3, 0, 0, 3, 0)  # unsaid, the content still tells


def test_two_equal_files_are_one_result_with_a_copy(videos, run, tmp_path):
    shutil.copy(videos / "a.mp4", videos / "sub" / "again.mp4")
    assert counts(run()) == (3, 3, 0, 0, 0)
    hit = next(hit for hit in scores(tmp_path).values() if hit.video_id == "a")
    assert (hit.path, hit.copies) == (str(videos / "a.mp4"), (str(videos / "sub" / "again.mp4"),))
    shutil.copy(videos / "b.mp4", videos / "b2.mp4")
    assert counts(run()) == (3, 0, 3, 0, 0)
    (videos / "a.mp4").unlink()
    hit = next(hit for hit in scores(tmp_path).values() if hit.video_id == "a")
    assert (hit.path, hit.copies, hit.missing) == (
        str(videos / "sub" / "again.mp4"),
        (str(videos / "a.mp4"),),
        False,
    )
    assert counts(run()) == (3, 0, 2, 1, 0)
    assert {hit.video_id for hit in scores(tmp_path).values()} == {"b", "sub/again", "sub/c"}


def test_another_content_in_the_place_of_a_file_that_has_a_copy(videos, run, tmp_path, make_clip):
    shutil.copy(videos / "a.mp4", videos / "z.mp4")
    run()
    make_clip(videos / "a.mp4", seed=77)
    summary = run()
    assert (summary.videos, summary.embedded, summary.moved) == (4, 1, 1)
    found = {hit.video_id: hit for hit in scores(tmp_path).values()}
    assert sorted(found) == ["a", "b", "sub/c", "z"] and found["z"].copies == found["a"].copies == ()


def test_dead_files_are_marked_and_forgotten_only_when_asked(videos, run, tmp_path):
    run()
    (videos / "b.mp4").unlink()
    assert (run().gone, run(prune=True).removed) == (1, 1)
    assert {hit.video_id for hit in scores(tmp_path).values()} == {"a", "sub/c"}


def test_metadata_is_read_again_shown_and_filtered(videos, run, tmp_path):
    (videos / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mp4", "title": "At the Beach", "year": 2018}))
    run()
    (videos / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mp4", "title": "At the Lake", "year": 2019}))
    assert counts(run()) == (3, 0, 3, 0, 0)
    index = VideoIndex.open(tmp_path / "index")
    hit = next(hit for hit in index.search("red")[0] if hit.video_id == "a")
    assert (hit.metadata["title"], hit.metadata["year"], hit.metadata["duration"]) == ("At the Lake", 2019, 2.0)
    for wanted, ids in [
        ("YEAR>=2019", ["a"]),
        ("title=*lake", ["a"]),
        ("duration<1", []),
        ("title!=at the lake", ["b", "sub/c"]),
    ]:
        assert sorted(hit.video_id for hit in index.search("red", filter=parse_filter([wanted]))[0]) == ids


@pytest.mark.parametrize(
    "value, condition, expected",
    [
        (2019, ">=2019", True),
        ("2018", ">=2019", False),
        ("2019-07-01T10:00:00", ">2019", False),
        ("2019-07-01T10:00:00", "<=2019", True),
        ("2019-07-01T10:00:00", ">=2019-07", True),
        ("2019-07-01T10:00:00", "<2019-07-01", False),
        ("Summer", ">2019", False),
        (None, "*", True),
        (["One", "two"], "one", True),
        ("Été", "été", True),
    ],
)
def test_conditions(value, condition, expected):
    assert holds(value, condition) is expected


def test_the_capture_date_is_the_files_own(run, videos, tmp_path):
    with av.open(str(videos / "a.mp4")) as source, av.open(str(videos / "dated.mp4"), "w") as container:
        container.metadata["creation_time"] = "2019-05-01T12:00:00Z"
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    run()
    index = VideoIndex.open(tmp_path / "index")
    assert [hit.video_id for hit in index.search("red", filter={"captured": "2019-05-01*"})[0]] == ["dated"]


def test_what_systems_keep_and_what_is_excluded_is_left_out(run, videos):
    for name in ("@eaDir/a.mp4", ".Trash-1000/x.mp4", "raw/x.mp4", "sub/proxy_c.mp4"):
        (videos / name).parent.mkdir(exist_ok=True)
        shutil.copy(videos / "a.mp4", videos / name)
        with (videos / name).open("ab") as file:
            file.write(name.encode())  # another content
    assert run(exclude=["raw", "proxy_*"]).videos == 3
    assert run(exclude=[]).videos == 5


def test_an_interrupted_run_keeps_the_windows_of_a_long_video(
    tmp_path, model, processor, model_folder, make_clip, monkeypatch
):
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "film.mp4", seed=5, seconds=12)
    options = {"num_workers": 0, "batch_size": 1, "window": WindowPlan(2, 1)}
    monkeypatch.setattr(stretching, "STRETCH", 4.0)  # three windows at a time
    whole = index_videos(tmp_path / "videos", tmp_path / "whole", str(model_folder), **options)
    batches = indexing.iter_videos

    def interrupted(*arguments):
        for number, batch in enumerate(batches(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(indexing, "iter_videos", interrupted)
    monkeypatch.setattr(indexing, "COMMIT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        index_videos(tmp_path / "videos", tmp_path / "index", str(model_folder), **options)
    assert len(VideoIndex.open(tmp_path / "index")) == 6
    asked = []
    monkeypatch.setattr(
        indexing, "iter_videos", lambda *a: (asked.extend(batch.items) or batch for batch in batches(*a))
    )
    again = index_videos(tmp_path / "videos", tmp_path / "index", **options)
    assert (again.rows, len(asked)) == (whole.rows, whole.rows - 6)
    rows = [
        [(row["start"], row["end"]) for row in VideoIndex.open(tmp_path / name).rows()] for name in ("whole", "index")
    ]
    assert rows[0] == rows[1]
    assert index_videos(tmp_path / "videos", tmp_path / "index", **options).unchanged == 1


# ---------------------------------------------------------------------- places


def test_a_path_comes_back_as_it_was_under_any_roots(tmp_path):
    inner = {"outer": str(tmp_path), "inner": str(tmp_path / "in")}
    for path in (str(tmp_path / "in" / "caf\udce9.mp4"), str(tmp_path / "x.mp4"), "/elsewhere/y.mp4"):
        row = {"path": path, "copies": [{"path": str(tmp_path / "c.mp4"), "signature": [1, 2]}]}
        for roots in ({}, inner, {"videos": "/"}):
            assert located(json.loads(json.dumps(stored(row, roots))), roots) == row
    assert stored({"path": str(tmp_path / "in" / "a")}, inner) == {"path": "a", "root": "inner"}


def test_roots_have_names_of_their_own_and_unknown_ones_are_refused(tmp_path):
    for name in ("a/clips", "b/clips"):
        (tmp_path / name).mkdir(parents=True)
    roots = with_root(with_root({}, tmp_path / "a" / "clips"), tmp_path / "b" / "clips")
    assert list(roots) == ["clips", "clips-2"] and with_root(roots, tmp_path / "a" / "clips") == roots
    assert remapped(roots, [f"clips={tmp_path}"])["clips"] == str(tmp_path)
    with pytest.raises(ValueError, match="the index has: clips="):
        remapped(roots, [f"films={tmp_path}"])


def test_content_is_told_apart_at_its_beginning_middle_and_end(tmp_path):
    data = np.zeros(10 * 2**20, np.uint8)
    names = set()
    for number, place in enumerate([None, 0, len(data) // 2, len(data) - 1]):
        changed = data.copy()
        if place is not None:
            changed[place] = 1
        (tmp_path / str(number)).write_bytes(changed.tobytes())
        names.add(content_id(tmp_path / str(number)))
    (tmp_path / "longer").write_bytes(data.tobytes() + b"\0")
    names.add(content_id(tmp_path / "longer"))
    assert len(names) == 5


def test_equal_files_that_cannot_be_read_are_all_named(run, videos):
    for name in ("bad1.mp4", "bad2.mp4"):
        (videos / name).write_bytes(b"no video")
    for _ in range(2):
        assert sorted(os.path.basename(entry["path"]) for entry in run().skipped) == ["bad1.mp4", "bad2.mp4"]


def test_what_was_left_out_stays_out_until_it_is_asked_for(videos, run, tmp_path):
    assert counts(run(exclude=["sub"]))[:2] == (2, 2)
    later = run()
    assert (later.videos, later.embedded, later.excluded) == (2, 0, ("sub",))
    assert counts(run(exclude=[]))[:2] == (3, 1)
    assert run().excluded == ()


def test_a_file_that_was_known_to_be_damaged_is_not_told_again(videos, run, tmp_path):
    (videos / "bad.mp4").write_bytes(b"no video")
    assert run().known == set()
    assert run().known == {str(videos / "bad.mp4")}
    (videos / "worse.mp4").write_bytes(b"no video either")
    again = run()
    assert again.known == {str(videos / "bad.mp4")} and len(again.skipped) == 2

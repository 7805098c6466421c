"""The index that a run works on: made as it was asked for, or the one that is there, if it was made so."""

import pytest

from dmae import files
from dmae.retrieval import opening, storage
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.opening import Layout, open_or_new
from dmae.retrieval.windows import WindowPlan


def layout(**values) -> Layout:
    return Layout(**{"window": None, "backend": None, "frames": None, "fast": False, **values})


def test_an_index_stays_as_it_was_laid_out(tmp_path):
    built = {"model": {}, "window": [3, 2], "backend": "flat", "frames": "int8"}
    for same in ({}, {"window": WindowPlan(3, 2)}, {"backend": "flat"}, {"frames": "int8"}):
        layout(**same).check(built, tmp_path)
    layout(fast=True).check({**built, "model": {"key_frames": True}}, tmp_path)
    layout(frames="float16").check({"model": {}}, tmp_path)
    more = "; leave the option out, or choose another folder"
    for asked, manifest, told in (
        ({"window": WindowPlan(5)}, built, f"windows of 3 s every 2 s, not windows of 5 s{more}"),
        ({"window": WindowPlan(0)}, built, f"windows of 3 s every 2 s, not whole videos{more}"),
        ({"window": WindowPlan()}, {**built, "window": [0, None]}, f"whole videos, not automatic windows{more}"),
        ({"window": WindowPlan(2.5, 1)}, {"model": {}}, f"automatic windows, not windows of 2.5 s every 1 s{more}"),
        ({"backend": "faiss"}, built, f"backend flat, not backend faiss{more}"),
        ({"frames": "merged"}, built, f"frames int8, not frames merged{more}"),
        ({"frames": "int8"}, {"model": {}}, f"frames float16, not frames int8{more}"),
        ({"fast": True}, built, "all frames, not with key frames; choose another folder"),
    ):
        with pytest.raises(ValueError) as error:
            layout(**asked).check(manifest, tmp_path)
        assert str(error.value) == f"{tmp_path} was built with {told}"
    assert layout().cut is None and layout(window=WindowPlan()).cut == [None, None]
    assert layout(window=WindowPlan(4)).cut == [4, None]


@pytest.fixture
def noted(monkeypatch, model, processor):
    """What was asked of loading, of what it remembers, and of 8 bits."""
    calls = []
    monkeypatch.setattr(opening, "in_8_bits", lambda network: calls.append(("8 bits", network)))
    monkeypatch.setattr(opening, "remember_weights", lambda *of: calls.append(("remember", *of)))
    monkeypatch.setattr(opening, "weights_stamp", lambda *of: ("stamp of", *of))
    monkeypatch.setattr(opening, "named", lambda *of: {"name": "N", "revision": "R", "of": of})
    monkeypatch.setattr(
        opening,
        "load_described",
        lambda described, **how: (calls.append((described["of"], how)), (model, processor))[1],
    )
    return calls


def test_a_new_index_is_laid_out_as_asked_and_not_written_yet(tmp_path, model, processor, noted):
    output = tmp_path / "index"
    index, damaged = open_or_new(output, (model, processor), layout(), "cpu", "auto")
    manifest = index.manifest
    assert (manifest["window"], manifest["frames"], manifest["backend"]) == ([None, None], "float16", "auto")
    assert damaged == [] and (index.model, index.processor, index.path) == (model, processor, output)
    assert noted == [("remember", None, manifest["model"]["weights"])], "one that came loaded has no files"
    asked = layout(window=WindowPlan(3, 2), backend="flat", frames="int8")
    index, _ = open_or_new(output, "a name", asked, "cuda:1", "int8")
    assert (index.manifest["window"], index.manifest["frames"], index.manifest["backend"]) == ([3, 2], "int8", "flat")
    assert noted[1:] == [
        (("a name", None, False), {"device": "cuda:1", "dtype": "float32"}),
        ("remember", ("stamp of", "N", "R"), index.manifest["model"]["weights"]),
        ("8 bits", model),
    ]
    open_or_new(output, None, layout(fast=True), "cpu", "bfloat16")
    assert noted[4] == ((None, None, True), {"device": "cpu", "dtype": "bfloat16"}) and len(noted) == 6
    assert not output.exists()
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no index"):
        open_or_new(tmp_path, (model, processor), layout(), "cpu", "auto")


def test_the_index_that_is_there_is_checked_and_rid_of_damage(
    tmp_path, encoded, model, processor, make_model, noted, monkeypatch
):
    output = tmp_path / "index"
    VideoIndex.build(encoded, model, processor).save(output)
    monkeypatch.setattr(opening, "repair", lambda folder: [f"repaired {folder}"])
    index, damaged = open_or_new(output, None, layout(), "cpu", "auto")
    assert damaged == [f"repaired {output}"] and len(index) == 12 and (index.model, index.path) == (model, output)
    manifest = storage.read_manifest(output)
    assert noted == [
        ((None, manifest["model"], False), {"device": "cpu", "dtype": "auto"}),
        ("remember", ("stamp of", "N", "R"), manifest["model"]["weights"]),
    ]
    with pytest.raises(ValueError, match="was built with frames float16, not frames int8"):
        open_or_new(output, None, layout(frames="int8"), "cpu", "auto")
    monkeypatch.setattr(opening, "repair", lambda folder: pytest.fail("changed before it was checked"))
    with pytest.raises(ValueError, match="was built with"):
        open_or_new(output, (make_model(seed=5, interaction="wti"), processor), layout(), "cpu", "auto")


def test_a_run_that_was_killed_at_its_first_commit_is_run_again(tmp_path, clips, model, processor):
    """Its lock and half of a manifest are all that is there: `dmae index` once refused the folder for ever."""
    left = [tmp_path / "index" / name for name in (".lock", f".{storage.MANIFEST}.4711{files.NEW}")]
    left[0].parent.mkdir()
    for path in left:
        path.write_text("")
    with pytest.raises(ValueError, match="none of 1 files"):
        (tmp_path / "bad").mkdir(), (tmp_path / "bad" / "bad.mp4").write_bytes(b"no video")
        index_videos(tmp_path / "bad", left[0].parent, (model, processor), num_workers=0)
    assert not left[1].exists()
    left[0].parent.mkdir(exist_ok=True), left[1].write_text("")
    assert index_videos(clips, left[0].parent, (model, processor), num_workers=0).embedded == 12
    assert not left[1].exists()

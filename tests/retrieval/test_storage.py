"""An index is the one it was made as, and every bit of it is what was committed, or it says what is wrong."""

import json
import re
import shutil

import numpy as np
import pytest

from dmae import files
from dmae.retrieval import storage
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.repair import repair
from dmae.retrieval.segments import DamagedSegment, Segment

QUERY = "a red square moves left"


@pytest.fixture
def folder(encoded, model, processor, tmp_path):
    VideoIndex.build(encoded, model, processor).save(tmp_path / "index")
    return tmp_path / "index"


def segment_of(folder):
    return next(folder.glob("segment-*"))


def tensor_start(path, name):
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return 8 + size + json.loads(stream.read(size))[name]["data_offsets"][0]


def flip(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


# ---------------------------------------------------------------------- identity


def test_of_two_first_runs_with_different_models_one_is_refused(encoded, model, make_model, processor, tmp_path):
    first = VideoIndex.empty(model, processor, path=tmp_path / "index")
    second = VideoIndex.empty(make_model(seed=1, interaction="wti"), processor, path=tmp_path / "index")
    first.add(encoded)
    with pytest.raises(ValueError, match="holds another index now") as refusal:
        second.add(encoded)
    for index in (first, second):
        assert index.manifest["model"]["weights"] in str(refusal.value)
    assert len(VideoIndex.open(tmp_path / "index", model, processor)) == 12


def test_two_first_runs_with_the_same_settings_share_the_index(encoded, model, processor, tmp_path):
    first, second = (VideoIndex.empty(model, processor, path=tmp_path / "index") for _ in range(2))
    one, rest = encoded.split(lambda video_id: video_id == "clip00")
    first.add(one)
    second.add(rest)
    assert len(VideoIndex.open(tmp_path / "index")) == 12


def test_other_windows_in_a_first_run_are_refused(encoded, model, processor, tmp_path):
    first, second = (VideoIndex.empty(model, processor, path=tmp_path / "i", window=[n, n]) for n in (5, 9))
    first.add(encoded)
    with pytest.raises(ValueError, match="another index"):
        second.add(encoded)


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": 0}], ids=["another model", "the same model"])
def test_an_index_that_was_replaced_under_a_reader_is_detected(folder, encoded, make_model, processor, model, other):
    reader = VideoIndex.open(folder, model, processor)
    before = reader.search(QUERY)
    shutil.rmtree(folder)
    assert not reader.refresh()  # gone is not another: what was opened can still be searched
    with pytest.raises(FileNotFoundError, match="none any more"):
        reader.delete(["clip00"])
    VideoIndex.build(encoded, make_model(interaction="wti", **other), processor).save(folder)
    for change in (reader.refresh, lambda: reader.delete(["clip00"]), lambda: reader.add(encoded)):
        with pytest.raises(ValueError, match="another index now"):
            change()
    assert reader.search(QUERY) == before
    assert len(VideoIndex.open(folder)) == 12


def test_a_copy_has_an_identity_of_its_own(folder, tmp_path, model, processor):
    copy = VideoIndex.open(folder, model, processor).save(tmp_path / "copy")
    assert copy.manifest["id"] != storage.read_manifest(folder)["id"]
    assert storage.read_manifest(tmp_path / "copy")["id"] == copy.manifest["id"]


# ---------------------------------------------------------------------- the gap between a segment and its manifest


class Struck(BaseException):
    """Nothing in the writer expects it, as nothing expects a kill."""


@pytest.mark.parametrize("point", ["write", "fsync", "rename"])
def test_a_segment_without_its_manifest_is_not_there_and_goes(folder, encoded, model, processor, monkeypatch, point):
    one, _ = encoded.split(lambda video_id: video_id == "clip00")
    later = one._replace(items=[{**one.items[0], "video_id": "later"}])

    def strike(name, path):
        if name == point and len(list(folder.glob("segment-*"))) == 2:  # the new segment has its name
            raise Struck

    with monkeypatch.context() as patch, pytest.raises(Struck):
        patch.setattr(files, "fault", strike)
        VideoIndex.open(folder, model, processor).add(later)
    assert len(list(folder.glob("segment-*"))) == 2
    reader = VideoIndex.open(folder, model, processor)
    assert "later" not in reader.video_ids and len(reader) == 12
    VideoIndex.open(folder, model, processor).delete(["clip05"])
    assert len(list(folder.glob("segment-*"))) == 1
    assert reader.refresh() and len(reader) == 11


def test_what_the_last_commit_named_stays_until_the_next_one_is_there(folder, model, processor, monkeypatch):
    """A kill between the two would else leave a manifest without its segments."""
    index, seen = VideoIndex.open(folder, model, processor), []
    monkeypatch.setattr(
        files, "fault", lambda name, path: name == "sweep" and seen.append(storage.read_manifest(folder)["generation"])
    )
    before = index.manifest["generation"]
    index.delete(["clip00"])
    assert seen == [before + 1] and storage.read_manifest(folder) | {"checksum": 0} == index.manifest | {"checksum": 0}


# ---------------------------------------------------------------------- damage


def test_no_flipped_bit_changes_an_answer(folder, model, processor):
    """Every part of a segment, the manifest too: either the same answer, or an error that names the file."""
    opened = VideoIndex.open(folder, model, processor)
    before = opened.search(QUERY, top_k=12)
    segment, manifest = segment_of(folder), folder / storage.MANIFEST
    places = [
        (segment, tensor_start(segment, name) + 5, bit) for name in opened.snapshot.segments[0].arrays for bit in (0, 6)
    ]
    random = np.random.default_rng(0)
    for path, count in ((segment, 30), (manifest, 15)):
        places += [(path, int(random.integers(path.stat().st_size)), int(random.integers(8))) for _ in range(count)]
    told = 0
    for path, byte, bit in places:
        flip(path, byte, bit)
        try:
            assert VideoIndex.open(folder, model, processor).search(QUERY, top_k=12) == before
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error)
            told += 1
        flip(path, byte, bit)
    assert told > len(places) / 2


def test_a_damaged_frame_is_found_when_it_is_first_scored(folder, model, processor):
    segment = segment_of(folder)
    index = VideoIndex.open(folder, model, processor)
    row_bytes = index.snapshot.segments[0].arrays["frames"][0].nbytes
    flip(segment, tensor_start(segment, "frames") + 3 * row_bytes + 1)
    opened = VideoIndex.open(folder, model, processor)
    opened.snapshot.gather(np.array([0, 1, 2, 4]))
    with pytest.raises(DamagedSegment, match=rf"{segment.name}.*frames of row 3"):
        opened.snapshot.gather(np.array([2, 3]))
    with pytest.raises(DamagedSegment):  # nor may it be copied and given a checksum
        opened.save(folder.with_name("copy"))


def damage_frames_of_row_3(folder):
    segment = segment_of(folder)
    row_bytes = VideoIndex.open(folder).snapshot.segments[0].arrays["frames"][0].nbytes
    flip(segment, tensor_start(segment, "frames") + 3 * row_bytes + 1)


def damage_weights(folder):
    flip(segment_of(folder), tensor_start(segment_of(folder), "frame_weights"))


def damage_header(folder):
    flip(segment_of(folder), 20)


def cut_short(folder):
    segment_of(folder).write_bytes(segment_of(folder).read_bytes()[:-100])


def lose(folder):
    segment_of(folder).unlink()


@pytest.mark.parametrize(
    "damage, again",
    [(damage_frames_of_row_3, 1), (damage_weights, 12), (damage_header, 12), (cut_short, 12), (lose, 12)],
)
def test_the_next_run_embeds_the_videos_of_a_damaged_segment_again(clips, tmp_path, model_folder, damage, again):
    output = tmp_path / "index"
    index_videos(clips, output, str(model_folder), num_workers=0)
    before = VideoIndex.open(output).search(QUERY, top_k=12)[0]
    damage(output)
    summary = index_videos(clips, output, num_workers=0)
    assert (summary.embedded, summary.unchanged) == (again, 12 - again)
    named = {"clip03"} if again == 1 else {f"clip{n:02d}" for n in range(12)}
    assert set(summary.damaged) == named or "12 rows of segment-" in summary.damaged[0]
    after = VideoIndex.open(output).search(QUERY, top_k=12)[0]
    assert {hit.video_id: hit.score for hit in after} == pytest.approx({hit.video_id: hit.score for hit in before})
    assert repair(output) == []


def test_all_windows_of_a_damaged_video_go(encoded, model, processor, tmp_path):
    items = [{**item, "video_id": "long" if n < 6 else item["video_id"]} for n, item in enumerate(encoded.items)]
    VideoIndex.build(encoded._replace(items=items), model, processor).save(tmp_path / "index")
    damage_frames_of_row_3(tmp_path / "index")
    assert repair(tmp_path / "index") == ["long"]
    assert len(VideoIndex.open(tmp_path / "index")) == 6


def test_names_of_any_kind_are_kept(encoded, model, processor, tmp_path):
    names = ["\udce9t\udce9.mp4", "a\u2028b", "a\x85b", "a\nb", "-a", "[/x]"]
    items = [{**item, "video_id": name} for item, name in zip(encoded.items, names)]
    some, _ = encoded.split(lambda video_id: video_id in encoded.video_ids[: len(names)])
    VideoIndex.build(some._replace(items=items), model, processor).save(tmp_path / "index")
    assert VideoIndex.open(tmp_path / "index").video_ids == names


@pytest.mark.parametrize(
    "change",
    [
        {"segments": {}},
        {"segments": [3]},
        {"segments": [{"file": "../../secret.safetensors", "rows": 1, "deleted": []}]},
        {"segments": [{"file": "segment-00.safetensors", "rows": 1, "deleted": [1]}]},
        {"segments": [{"file": "segment-00.safetensors", "rows": "1", "deleted": []}]},
        {"model": []},
        {"model": {"name": 3, "weights": "", "processor": ""}},
        {"config": "x"},
        {"generation": "1"},
        {"next_id": None},
        {"plan": []},
        {"faiss": {"file": "/etc/passwd"}},
        {"id": 7},
    ],
    ids=str,
)
def test_a_wrong_typed_manifest_is_one_line(folder, change):
    manifest = {**storage.read_manifest(folder), **change}
    storage.write_manifest(folder, manifest)  # with a checksum that is right
    with pytest.raises(ValueError, match=r"manifest.json: damaged manifest, [^\n]+$"):
        VideoIndex.open(folder)


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"format": 2, "x": ' + b"[" * 200_000, b"\xff\xfe", b"", b"3"])
def test_deep_or_foreign_json_is_one_line(folder, content):
    (folder / storage.MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged manifest[^\n]+$"):
        VideoIndex.open(folder)


def test_a_deep_segment_header_is_one_line(folder):
    deep = b"[" * 100_000
    segment_of(folder).write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(DamagedSegment, match=r"damaged segment[^\n]+$"):
        VideoIndex.open(folder)


# ---------------------------------------------------------------------- the manifest and its folder


def manifest(**values) -> dict:
    model = {"name": "m", "weights": "w", "processor": "p"}
    return storage.new_manifest(**{"model": model, "config": {}, "id": "one", **values})


def told(folder, text=None) -> str:
    """What is said of this manifest."""
    if text is not None:
        (folder / storage.MANIFEST).write_text(text)
    with pytest.raises(ValueError) as error:
        storage.read_manifest(folder)
    return str(error.value).removeprefix(f"{folder / storage.MANIFEST}: ")


def test_a_new_index_has_no_rows_and_a_name_of_its_own():
    one, other = storage.new_manifest(config={}), storage.new_manifest(config={})
    assert one | {"id": ""} == {
        "format": 3, "id": "", "generation": 0, "next_id": 0, "plan": {}, "segments": [], "config": {},
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{32}", one["id"]) and one["id"] != other["id"]
    assert re.fullmatch(r"kind-[0-9a-f]{16}\.end", storage.fresh_name("kind", "end"))


def test_a_manifest_comes_back_with_a_checksum_of_what_it_says(tmp_path):
    """Of all but the checksum, in any order; a line for each value, as people read it."""
    storage.write_manifest(tmp_path, manifest(plan={1: (2, 3)}, format=1))
    written = (tmp_path / storage.MANIFEST).read_text()
    assert written.startswith('{\n "format": 3,\n "id": "one",\n')
    assert json.loads(written)["checksum"] == 1_013_916_711
    found = storage.read_manifest(tmp_path)
    assert found == manifest(plan={"1": [2, 3]}, checksum=1_013_916_711)
    (tmp_path / storage.MANIFEST).write_text(json.dumps(dict(reversed(found.items()))))
    assert storage.read_manifest(tmp_path) == found


def test_what_is_wrong_with_a_manifest_is_said(tmp_path, monkeypatch):
    points = []
    monkeypatch.setattr(files, "fault", lambda *point: points.append(point))
    with pytest.raises(FileNotFoundError, match=r"holds no index \(manifest.json is missing\); make one with `dmae"):
        storage.read_manifest(tmp_path)
    assert points == []
    again = "; index the videos again into a new folder"
    assert told(tmp_path, "{}") == f"damaged manifest (KeyError: 'format'){again}"
    assert points == [("read", tmp_path / storage.MANIFEST)]
    for version in ("4", '"2"', "2.0", "true"):
        shown = repr(json.loads(version))
        assert told(tmp_path, f'{{"format": {version}}}') == (
            f"format {shown}, and this version of dmae reads up to 3; upgrade dmae"
        )
    missing = "damaged manifest, next_id, model, config, segments missing"
    assert told(tmp_path, '{"format": 3, "generation": 1}') == missing + again
    for format, checksum in ((2, {}), (3, {"checksum": 5})):
        content = manifest(format=format) | checksum
        start = f"damaged manifest, checksum {checksum.get('checksum')} where its content has "
        assert re.fullmatch(rf"{start}\d{{5,}}{again}", told(tmp_path, json.dumps(content)))
    oldest = manifest(format=1, plan=None)
    (tmp_path / storage.MANIFEST).write_text(json.dumps(oldest))
    assert storage.read_manifest(tmp_path) == oldest
    segment = {"file": "segment-0a.safetensors", "rows": 2, "deleted": [0, 1]}
    storage.write_manifest(tmp_path, manifest(segments=[segment], faiss={"file": "coarse-0a.faiss"}))
    assert storage.read_manifest(tmp_path)["segments"] == [segment]
    named = "segment 'segment-0a.safetensors' with deleted rows"
    for wrong, reason in (
        ({"segments": [3]}, "segment 3"),
        ({"segments": [{**segment, "rows": "2"}]}, f"segment {dict(segment, rows='2')!r:.100}"),
        ({"segments": [{**segment, "deleted": [2]}]}, f"{named} [2] of 2"),
        ({"segments": [{**segment, "deleted": [-1]}]}, f"{named} [-1] of 2"),
        ({"segments": [{**segment, "deleted": [True]}]}, f"{named} [True] of 2"),
        ({"segments": [{**segment, "file": "a"}]}, "segment 'a' with deleted rows [0, 1] of 2"),
        ({"faiss": {"file": "../a"}}, "faiss file '../a'"), ({"id": 7}, "id is 7 and should be of type str"),
        ({"model": {"name": "m", "weights": 1}}, "weights is 1 and should be of type str"),
        ({"generation": True}, "generation is True and should be of type int"),
    ):  # fmt: skip
        storage.write_manifest(tmp_path, manifest(**wrong))
        assert told(tmp_path) == f"damaged manifest, {reason}{again}"


def test_an_index_goes_on_only_with_itself(tmp_path):
    """By its id once it has rows; before, by its settings; by the weights and frames of its model always."""
    ours, new = manifest(generation=1, window=[1, 1]), manifest(id="new", window=[1, 1], backend="auto", frames="int8")
    model = ours["model"]
    storage.check_same_index(ours, {**ours, "window": None, "model": {**model, "name": "other"}}, tmp_path)
    storage.check_same_index(new, {**new, "id": "other"}, tmp_path)
    for one, other in (
        (ours, {"id": "other"}), (new, {"window": [2, 2]}), (new, {"backend": "faiss"}), (new, {"frames": "merged"}),
        (ours, {"model": {**model, "weights": "x"}}), (ours, {"model": {**model, "processor": "x"}}),
    ):  # fmt: skip
        theirs = one | other
        built = theirs["model"]
        with pytest.raises(ValueError) as error:
            storage.check_same_index(one, theirs, tmp_path)
        assert str(error.value) == (
            f"{tmp_path} holds another index now: {theirs['id']}, built with m (weights {built['weights']}, frames "
            f"{built['processor']}), while this one is {one['id']}, built with m (weights w, frames p); open the "
            "folder again, or choose another"
        )


def test_a_state_is_read_again_while_segments_are_merged_away(tmp_path, monkeypatch):
    """A few times; a segment that is open stays open, with the rows that are deleted now."""
    entries = [{"file": "kept", "deleted": [1]}, {"file": "new", "deleted": []}]
    reads, known = [], Segment({"ids": np.arange(3)}, "kept", [], 5)

    def opened(path, entry):
        if reads.pop():
            raise FileNotFoundError(2, "gone", str(path / entry["file"]))
        return entry["file"]

    looked = []
    monkeypatch.setattr(storage, "read_manifest", lambda path: looked.append(path) or {"segments": entries})
    monkeypatch.setattr(Segment, "open", opened)
    reads[:] = [False, True, True, True, True]
    manifest, (kept, new) = storage.read_state(tmp_path, [known])
    assert looked == [tmp_path] * 5 and manifest == {"segments": entries} and new == "new"
    assert (kept.arrays, kept.file, kept.deleted, kept.header) == (known.arrays, "kept", [1], 5)
    looked.clear()
    reads[:] = [True] * 9
    with pytest.raises(ValueError, match=f"^{tmp_path}: damaged index, new is missing; run `dmae index` again$"):
        storage.read_state(tmp_path, [known])
    assert looked == [tmp_path] * 5


def test_one_writer_makes_the_folder_and_undoes_it_where_nothing_came(tmp_path, monkeypatch):
    synced, folder = [], tmp_path / "a" / "index"
    monkeypatch.setattr(files, "sync_names", synced.append)
    with storage.only_writer(folder):
        assert synced == [tmp_path / "a", tmp_path] and (folder / ".lock").is_file()
        held = pytest.raises(OSError, match=f"^{folder} is being written by another process; try again when")
        with held, storage.only_writer(folder):
            pytest.fail("two writers")
    with storage.only_writer(folder):
        assert len(synced) == 2
    (folder / storage.MANIFEST).write_text("{}")
    storage.remove_if_new(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "manifest.json"]
    (folder / storage.MANIFEST).rename(folder / "note.txt")
    for _ in range(2):
        storage.remove_if_new(folder)
        assert [path.name for path in folder.iterdir()] == ["note.txt"]
    (folder / "note.txt").unlink()
    storage.remove_if_new(folder)
    assert not folder.exists()


def test_a_writer_sweeps_what_no_manifest_names(tmp_path, monkeypatch):
    points, kept = [], ["coarse-0a.faiss", "note.txt", "segment-0a.safetensors", "segment-x.safetensors"]
    for name in (*kept, "segment-0b.safetensors", "coarse-0b.faiss", ".manifest.json.dmae-new"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(files, "fault", lambda *point: points.append(point))
    named = {"segments": [{"file": "segment-0a.safetensors"}], "faiss": {"file": "coarse-0a.faiss"}}
    storage.sweep(tmp_path, named)
    assert points == [("sweep", tmp_path)] and sorted(path.name for path in tmp_path.iterdir()) == kept
    storage.sweep(tmp_path, {**named, "faiss": None})
    assert sorted(path.name for path in tmp_path.iterdir()) == kept[1:]
    storage.sweep(tmp_path / "gone", named)

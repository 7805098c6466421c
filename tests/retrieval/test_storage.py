"""An index is the one it was made as, and every bit of it is what was committed, or it says what is wrong."""

import json
import shutil

import numpy as np
import pytest

from dmae import files
from dmae.retrieval import storage
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.indexing import index_videos
from dmae.retrieval.repair import repair
from dmae.retrieval.segments import DamagedSegment

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

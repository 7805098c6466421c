"""What is counted, named and left out on the way from annotations to rows, and what `dmae prepare` says it did."""

import hashlib
import json

import pytest
from datasets import Dataset

from dmae.data import preparation
from dmae.data.clips import FEATURES, Clip, LoadedSplit, clips_to_dataset, sha256_of, stable_id
from dmae.data.frame_cache.builder import BuildReport
from dmae.data.loaders import shards
from dmae.data.mixing import mixed
from dmae.data.preparation import Preparation, describe
from dmae.data.registry import canonical_name, load_dataset, locate


def split_of(dataset: str, *ids: str, **report) -> LoadedSplit:
    rows = [{"video_id": name, "video": f"{name}.mp4", "captions": ["a b"], "start": None, "end": None} for name in ids]
    counts = {"videos": len(ids), "captions": 7, "listed_videos": len(ids) + 1, "missing_videos": 1}
    lost = {"video_id": "lost", "video": "lost.mp4", "reason": "gone"}
    facts = {"dataset": dataset, "split": "train", "published_videos": [9], "annotation_files": {"a.json": dataset}}
    return LoadedSplit(
        Dataset.from_list(rows, features=FEATURES), [lost], facts | counts | report, {ids[0]: {"from": dataset}}
    )


@pytest.mark.parametrize("name", ["msvd", "msrvtt-9k"])
def test_sets_of_one_name_stay_apart_and_all_is_counted(name):
    """A name may have dashes of its own."""
    for first, second in ((name, "didemo"), ("didemo", name)):
        sets = [split_of(one, "x", "y", holdout=n) for n, one in enumerate((first, second, name, name))]
        whole = mixed(sets[0], sets[1:])
        leads = [video_id.rpartition(":")[0] for video_id in whole.dataset["video_id"][::2]]
        assert leads == ["", second, f"{name}-2", f"{name}-3"]
        assert [item["video_id"] for item in whole.missing] == [f"{lead}:lost".removeprefix(":") for lead in leads]
        assert whole.report["missing"] == whole.missing and whole.report["sets"] == [one.report for one in sets]
        counted = [whole.report[key] for key in ("videos", "captions", "listed_videos", "missing_videos")]
        assert counted == [8, 28, 12, 4] and whole.report["published_videos"] is None
        assert whole.report["holdout"] == 0, "what is not counted is the first set's"
        hashes = {f"{lead}:a.json".removeprefix(":"): one.report["dataset"] for lead, one in zip(leads, sets)}
        assert whole.report["annotation_files"] == hashes
        assert list(whole.metadata.values()) == [{"from": one.report["dataset"]} for one in sets]
        assert list(whole.metadata) == whole.dataset["video_id"][::2] and whole.dataset["set"][::2] == [0, 1, 2, 3]


def test_the_fingerprint_of_rows_depends_on_all_that_is_in_them():
    clip = Clip("a", "a.mp4", ["one"], 0.0, 2.0)
    base = clips_to_dataset([clip], "train", {"f": "1"})
    others = [
        ([Clip("b", "a.mp4", ["one"], 0.0, 2.0)], "train", {"f": "1"}),
        ([Clip("a", "b.mp4", ["one"], 0.0, 2.0)], "train", {"f": "1"}),
        ([Clip("a", "a.mp4", ["two"], 0.0, 2.0)], "train", {"f": "1"}),
        ([Clip("a", "a.mp4", ["one"], 1.0, 2.0)], "train", {"f": "1"}),
        ([Clip("a", "a.mp4", ["one"], 0.0, 3.0)], "train", {"f": "1"}),
        ([clip], "test", {"f": "1"}),
        ([clip], "train", {"f": "2"}),
    ]
    prints = {clips_to_dataset(*other)._fingerprint for other in others}
    assert len(prints) == len(others) and base._fingerprint not in prints
    assert base._fingerprint == clips_to_dataset([clip], "train", {"f": "1"})._fingerprint and base.split == "train"
    two = [
        clips_to_dataset([clip], "train", dict(files)) for files in ([("f", "1"), ("g", "2")], [("g", "2"), ("f", "1")])
    ]
    assert two[0]._fingerprint == two[1]._fingerprint, "the order in which files are read is nothing to the rows"
    assert {len(name) for name in prints} == {16}, "as long as the ones that `datasets` itself gives"


def test_ids_and_hashes_are_the_same_on_every_machine(tmp_path):
    """Checkpoints, and two ranks of one run, meet by these numbers; int64 takes them with their sign."""
    assert stable_id("video0") == 7143160185425398533
    ids = [stable_id(f"video{n}") for n in range(200)]
    assert len(set(ids)) == 200 and all(-(2**63) <= number < 2**63 for number in ids)
    assert min(ids) < 0 < max(ids) and max(ids) > 2**60, "all 64 bits are used"
    (tmp_path / "a.json").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a.json") == hashlib.sha256(b"abc").hexdigest()


def test_a_report_is_written_for_people_and_again(tmp_path):
    split = split_of("msvd", "a", note="caf\u00e9")
    for _ in range(2):  # into a folder that is there by now
        path = split.write_report(tmp_path / "new" / "out")
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "new" / "out" / "data_msvd_train.json" and json.loads(text) == split.report
    assert text.startswith('{\n  "dataset": "msvd",\n') and text.endswith("}\n") and "caf\u00e9" in text


def test_lsmdc_skips_a_header_and_names_clips_without_a_sentence(tmp_path):
    head, line = "id\tstart\tend\tfrom\tto\tsentence", "{}\t00.1\t00.2\t00.1\t00.2\t{}"
    rows = [head, line.format("a", "One."), line.format("b", " "), "", line.format("a", "Two.")]
    (tmp_path / "LSMDC16_annos_val.csv").write_text("\n".join(rows), encoding="utf-8")
    loaded = load_dataset("lsmdc", tmp_path, split="validation")
    assert [tuple(row.values()) for row in loaded.dataset] == [("a", "a.avi", ["One.", "Two."], None, None)]
    assert loaded.missing == [{"video_id": "b", "video": "b.avi", "reason": "no caption"}]
    numbered = head.replace("end", "end2")  # what tells a header is its second column
    (tmp_path / "LSMDC16_annos_val.csv").write_text("\n".join([numbered, rows[1]]), encoding="utf-8")
    assert load_dataset("lsmdc", tmp_path, split="validation").dataset["video_id"][:] == ["a"]
    (tmp_path / "LSMDC16_annos_val.csv").write_text("\n".join([rows[1], head]), encoding="utf-8")
    assert load_dataset("lsmdc", tmp_path, split="validation").dataset["video_id"][:] == ["a", "id"]


def test_vatex_in_the_form_of_cap4video_gives_english(tmp_path):
    content = {"v": {"enCap": ["one", "two"], "chCap": ["三"]}, "w": {"enCap": ["x"]}}
    (tmp_path / "vatex_data.json").write_text(json.dumps(content), encoding="utf-8")
    for file, split in (("train_list", "train"), ("val_list", "validation"), ("test_list", "test")):
        (tmp_path / f"{file}.txt").write_text("v\n")
        assert load_dataset("vatex", tmp_path, split=split).dataset["captions"][:] == [["one", "two"]]
        (tmp_path / f"{file}.txt").unlink()
    (tmp_path / "test_list.txt").write_text("v\nz\n")
    assert [item["video_id"] for item in load_dataset("vatex", tmp_path, split="test").missing] == ["z"]


def test_each_protocol_of_msrvtt_has_its_own_list(tmp_path):
    videos = {"sentences": [{"video_id": f"video{n}", "caption": f"caption {n}"} for n in (0, 6513, 7009, 7010, 9999)]}
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(videos))
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo7010\n")
    (tmp_path / "MSRVTT_train.7k.csv").write_text("video_id\nvideo7009\n")
    found = {
        name: load_dataset(name, tmp_path).dataset["video_id"][:] for name in ("msrvtt", "msrvtt-9k", "MSR-VTT_7k")
    }
    assert found == {
        "msrvtt": ["video0", "video7010"],
        "msrvtt-9k": ["video0", "video7010"],
        "MSR-VTT_7k": ["video7009"],
    }
    full = {split: ["video0"] for split in ("train", "validation", "test")}
    full = {split: load_dataset("msrvtt-full", tmp_path, split=split).dataset["video_id"][:] for split in full}
    assert full == {
        "train": ["video0"], "validation": ["video6513", "video7009"], "test": ["video7010", "video9999"],
    }  # fmt: skip


def test_where_a_dataset_lies(tmp_path):
    (tmp_path / "list.csv").write_text("path,caption\n")
    assert locate(str(tmp_path), None, None) == ("videofolder", tmp_path, tmp_path)
    assert locate("videofolder", tmp_path / "list.csv", None) == ("videofolder", tmp_path / "list.csv", tmp_path)
    assert locate("videofolder", None, "v")[1:] == locate("videofolder", "v", "v")[1:]
    assert locate("webdataset", None, tmp_path) == ("webdataset", tmp_path, tmp_path)
    assert locate("msvd", "an", None)[2] is None and str(locate("msvd", "an", "vi")[2]) == "vi"
    with pytest.raises(ValueError, match="msvd: give `annotations`"):
        locate("msvd", None, "videos")
    assert (canonical_name("CSV"), canonical_name("msrvtt_1ka")) == ("videofolder", "msrvtt-9k")
    for holdout, message in ((-1, "holdout is -1"), (12, "leaves nothing of 12")):
        listing = [{"file_name": f"{n}.mp4", "text": "x"} for n in range(12)]
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listing))
        with pytest.raises(ValueError, match=message):
            load_dataset(str(tmp_path), split="train", holdout=holdout)


def report_of(**changed) -> dict:
    missing = [{"video_id": f"v{n}", "reason": f"why {n}"} for n in range(5)]
    counts = {"published_videos": [9000, 10], "listed_videos": 1234, "videos": 1229, "captions": 4000}
    return {**counts, "holdout": 0, "videos_checked": True, "missing": missing, **changed}


def test_what_is_said_of_a_split():
    first, *others = describe(report_of())
    assert first == "1,234 videos listed (published: 9,000 or 10), 1,229 usable, 4,000 captions"
    assert others == [*(f"missing: v{n}: why {n}" for n in range(3)), "missing: 2 more, all named in the report"]
    assert describe(report_of(listed_videos=9000, missing=[]))[0].startswith("9,000 videos listed (as published), ")
    assert describe(report_of(holdout=3))[0].startswith("1,234 videos listed, 1,229 usable")
    assert len(describe(report_of(missing=report_of()["missing"][:3], videos_checked=False))) == 4
    lost = [*report_of()["missing"][:4]]
    assert describe(report_of(missing=lost))[-1] == "missing: 1 more, all named in the report"
    told = []
    preparation.tell_unreadable("test", lost, told.append)
    assert told == [f"test: unreadable: v{n}: why {n}" for n in range(3)]


def test_a_sample_is_spread_over_the_split_and_failures_are_named(monkeypatch, tmp_path):
    tried, said = [], []

    def decode(work, rows, workers):
        tried.extend(row["video_id"] for row in rows)
        assert workers == 3
        return [(row, ValueError("broken") if row["video_id"] == "v2" else 1) for row in rows]

    monkeypatch.setattr(preparation, "map_in_workers", decode)
    monkeypatch.setattr(preparation, "SAMPLE", 4)
    split = split_of("msvd", *(f"v{n}" for n in range(10)))
    for wanted, expected in (("sample", ["v0", "v2", "v5", "v7"]), ("all", [f"v{n}" for n in range(10)])):
        plan = Preparation("msvd", None, None, tmp_path, decode=wanted, workers=3)
        found = preparation.check_decoding(plan, "train", split, None, said.append)
        assert tried == expected and found == [{"video_id": "v2", "video": "v2.mp4", "reason": "broken"}]
        assert said == [f"train: decoded {len(expected)} of 10 videos, 1 unreadable", "train: unreadable: v2: broken"]
        tried.clear(), said.clear()


def test_shards_hold_what_decodes_split_by_split(monkeypatch, tmp_path):
    packed = {}
    monkeypatch.setattr(
        preparation, "write_shards", lambda rows, folder: packed.update({folder.name: rows}) or [folder / "0.tar"] * 2
    )
    loaded = {"train": split_of("msvd", "a", "b", "c"), "test": split_of("msvd", "d", "e")}
    plan, said = Preparation("msvd", tmp_path, tmp_path, tmp_path / "out", shards=True), []
    broken = {"train": [{"video_id": "b"}], "test": []}
    assert preparation.pack_shards(plan, loaded, broken, said.append) == {
        "train": {"tars": 2, "clips": 2}, "test": {"tars": 2, "clips": 2},
    }  # fmt: skip
    assert [[row["video_id"] for row in rows] for rows in packed.values()] == [["a", "c"], ["d", "e"]]
    assert said[0] == f"train: 2 clips in 2 tars -> {tmp_path / 'out' / 'shards' / 'train'}"
    own = Preparation("videofolder", tmp_path, None, tmp_path / "own", shards=True)  # the videos lie beside the list
    assert list(preparation.pack_shards(own, {"test": loaded["test"]}, broken, said.append)) == ["test"]
    with pytest.raises(ValueError, match="to pack them"):
        preparation.pack_shards(Preparation("msvd", tmp_path, None, tmp_path), loaded, broken, said.append)


def test_the_frame_cache_says_what_it_made_and_whose_clips_failed(monkeypatch, tmp_path):
    lost = [{"video_id": "b", "video": "b.mp4", "reason": "x"}, {"video_id": "d", "video": "d.mp4", "reason": "y"}]
    asked = []

    def build(rows, folder, sampler, codec, workers, advance):
        asked.append(([row["video_id"] for row in rows], sampler, codec, workers))
        folder.mkdir()
        (folder / "shard-0.arrow").write_bytes(bytes(1_500_000))
        return BuildReport(kept=1, made=2, remade=["a"], unreadable=lost)

    monkeypatch.setattr(preparation, "build_frame_cache", build)
    loaded = {"train": split_of("msvd", "a", "b"), "test": split_of("msvd", "c", "d")}
    unreadable, said = {"train": [], "test": []}, []
    plan = Preparation("msvd", None, None, tmp_path, workers=5)
    found = preparation.cache_frames(plan, "jpeg", loaded, "the sampler", unreadable, said.append)
    assert asked == [(["a", "b", "c", "d"], "the sampler", "jpeg", 5)]
    assert unreadable == {"train": lost[:1], "test": lost[1:]} and found["bytes"] == 1_500_000
    assert said[-1].startswith("frame cache: 2 clips made, 1 kept, 1 were damaged or outdated, 2 unreadable; 1.5 MB")


def test_tars_are_filled_to_their_size_in_order(tmp_path):
    for name, size in {"a": 3, "b": 4, "c": 9, "d": 1}.items():
        (tmp_path / name).write_bytes(bytes(size))
    rows = [{"video": str(tmp_path / name)} for name in "abcd"]
    groups = [[row["video"][-1] for row in group] for group in shards._groups(rows, 7)]
    assert groups == [["a", "b"], ["c"], ["d"]] and list(shards._groups([], 7)) == []

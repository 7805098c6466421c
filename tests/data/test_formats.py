"""The loaders read each dataset's true file formats, quirks included, into one schema."""

import hashlib
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from dmae.data.clips import FEATURES
from dmae.data.files import read_pickle
from dmae.data.registry import DATASETS, available_splits, load_dataset
from dmae.processing.sources_dmae import file_holding

SHARED = Path(os.environ.get("DMAE_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
REAL = SHARED / "annotations"
SPLITS = [(name, split) for name in DATASETS for split in DATASETS[name].sizes or ("train", "validation", "test")]


def write(folder: Path, **files) -> Path:
    """`write(folder, name__json=…)`: `__` stands for the dot; text is written as it is, anything else as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_dataset_gives_the_one_schema(miniature, name, split):
    loaded = load_dataset(*miniature(name), split=split, check_videos=True)
    assert loaded.dataset.features == FEATURES
    assert loaded.missing == []
    assert loaded.report["videos"] == loaded.report["listed_videos"] == len(loaded.dataset) > 0
    assert len(set(loaded.dataset["video_id"])) == len(loaded.dataset)
    for row in loaded.dataset:
        assert Path(file_holding(row["video"])).is_file()
        assert row["captions"] and all(caption == " ".join(caption.split()) for caption in row["captions"])


@pytest.mark.parametrize("name", DATASETS)
def test_splits_share_no_video(miniature, name):
    source = miniature(name)
    ids = [set(load_dataset(*source, split=split).dataset["video_id"]) for split in available_splits(*source)]
    assert sum(map(len, ids)) == len(set().union(*ids))


def test_fingerprint_depends_on_content_only(miniature, tmp_path):
    source = miniature("vatex")
    first, again = (load_dataset(*source, split="train").dataset._fingerprint for _ in range(2))
    assert first == again != load_dataset(*source, split="test").dataset._fingerprint
    captions = json.loads((source.annotations / "ref_captions.json").read_text())
    names = (source.annotations / "train_list.txt").read_text()
    captions[names.split()[0]].append("one more")
    changed = write(tmp_path / "changed", ref_captions__json=captions, train_list__txt=names)
    assert load_dataset("vatex", changed, source.videos).dataset._fingerprint != first


def test_msrvtt_reads_both_json_forms_alike(tmp_path):
    texts = [("video1", "a dog  runs "), ("video0", "a cat"), ("video1", "the dog is running")]
    first = {"videos": [], "sentences": [{"video_id": v, "caption": c, "sen_id": 0} for v, c in texts]}
    second = {"annotations": [{"image_id": v, "caption": c, "id": 1} for v, c in texts]}
    ids = "video_id\nvideo0\nvideo1\nvideo1\n"
    forms = [{"MSRVTT_data__json": first}, {"MSR_VTT__json": second}]
    rows = [
        load_dataset("MSR-VTT", write(tmp_path / str(i), **form, **{"MSRVTT_train.9k__csv": ids})).dataset.to_list()
        for i, form in enumerate(forms)
    ]
    assert rows[0] == rows[1]
    assert [(row["video_id"], row["captions"]) for row in rows[0]] == [
        ("video0", ["a cat"]),
        ("video1", ["a dog runs", "the dog is running"]),
    ]


def test_msrvtt_full_split_by_field_or_by_number(tmp_path):
    numbers = {"train": [0, 6512], "validation": [6513, 7009], "test": [7010, 9999]}
    names = {"train": "train", "validation": "validate", "test": "test"}
    everything = [(number, split) for split, ns in numbers.items() for number in ns]
    videos = [{"video_id": f"video{n}", "split": names[split]} for n, split in everything]
    sentences = [{"video_id": f"video{n}", "caption": "x"} for n, _ in everything]
    by_field = write(tmp_path / "field", MSRVTT_data__json={"videos": videos, "sentences": sentences})
    annotations = [{"image_id": item["video_id"], "caption": "x"} for item in sentences]
    by_number = write(tmp_path / "number", MSR_VTT__json={"annotations": annotations})
    for folder in (by_field, by_number):
        for split, expected in numbers.items():
            ids = load_dataset("msrvtt-full", folder, split=split).dataset["video_id"]
            assert list(ids) == [f"video{n}" for n in expected]
    annotations += [{"image_id": name, "caption": "x"} for name in ("videoX", "video-1", "other")]  # no official number
    loaded = load_dataset("msrvtt-full", write(tmp_path / "number", MSR_VTT__json={"annotations": annotations}))
    assert loaded.dataset["video_id"][:] == ["video0", "video6512"]


def test_msrvtt_test_keeps_queries_that_are_the_same_sentence(tmp_path):
    rows = "key,vid_key,video_id,sentence\nret0,msr1,video1,a man talks\nret1,msr2,video2,a man talks\n"
    loaded = load_dataset("msrvtt-7k", write(tmp_path, MSRVTT_JSFUSION_test__csv=rows), split="test")
    assert [tuple(row.values())[:3] for row in loaded.dataset] == [
        (video, f"{video}.mp4", ["a man talks"]) for video in ("video1", "video2")
    ]


def test_msvd_pickle_and_json_agree(tmp_path):
    raw = OrderedDict({"b_1_2": [["a", "man", "runs"], ["he", "runs"]], "a_3_4": [["a", "cat"]], "unlisted": [["x"]]})
    joined = {key: [" ".join(tokens) for tokens in texts] for key, texts in raw.items()}
    lists = {"test_list__txt": "a_3_4\nb_1_2\n\nabsent_5_6\n"}
    pickled, plain = write(tmp_path / "p", **lists), write(tmp_path / "j", captions_msvd__json=joined, **lists)
    (pickled / "raw-captions.pkl").write_bytes(pickle.dumps(raw))
    loaded = [load_dataset("msvd", folder, split="test") for folder in (pickled, plain)]
    assert loaded[0].dataset.to_list() == loaded[1].dataset.to_list()
    assert loaded[0].dataset["video_id"][:] == ["a_3_4", "b_1_2"]
    assert loaded[0].missing == [{"video_id": "absent_5_6", "video": "absent_5_6.avi", "reason": "no caption"}]


class Evil:
    def __reduce__(self):
        return (os.system, ("exit 3",))


@pytest.mark.parametrize("content", [pickle.dumps({"a": Evil()}), b"not a pickle", pickle.dumps({"a": 1})[:-2], b""])
def test_pickle_with_code_or_damage_is_refused(tmp_path, content):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"raw-captions\.pkl: refused"):
        read_pickle(path)


def test_didemo_joins_descriptions_and_finds_other_extensions(tmp_path):
    def item(number, video, text):
        return {"annotation_id": number, "description": text, "times": [[0, 1]], "video": video}

    data = [item(1, "1@N1_a.mov", "first. "), item(2, "2@N2_b.", "other"), item(3, "1@N1_a.mov", "then this")]
    folder = write(tmp_path / "annotations", test_data__json=data)
    videos = write(tmp_path / "videos", **{"1@N1_a__mp4": "x", "2@N2_b__mp4": "x"})
    rows = load_dataset("didemo", folder, videos, "test").dataset.to_list()
    assert [(row["video_id"], row["captions"]) for row in rows] == [
        ("1@N1_a.mov", ["first. then this"]),
        ("2@N2_b.", ["other"]),
    ]
    assert {(row["start"], row["end"]) for row in rows} == {(0.0, 31.0)}
    assert [Path(row["video"]).name for row in rows] == ["1@N1_a.mp4", "2@N2_b.mp4"]


def test_didemo_list_selects_and_names_what_has_no_description(tmp_path):
    data = [{"description": "x", "video": f"{name}.avi"} for name in "abc"]
    folder = write(tmp_path, val_data__json=data, val_list__txt="c.avi\na\nz.avi\n")
    loaded = load_dataset("didemo", folder, split="validation")
    assert loaded.dataset["video_id"][:] == ["c.avi", "a.avi"]
    assert [item["video_id"] for item in loaded.missing] == ["z.avi"]
    assert loaded.report["listed_videos"] == 3


def test_activitynet_joins_sentences_with_single_spaces(tmp_path):
    data = {"v_a": {"duration": 1.0, "timestamps": [[0, 1], [0, 1]], "sentences": ["One.", "  Two."]}}
    loaded = load_dataset("activitynet", write(tmp_path, val_1__json=data), split="test")
    assert [tuple(row.values())[:3] for row in loaded.dataset] == [("v_a", "v_a.mp4", ["One. Two."])]


def test_lsmdc_ids_keep_their_dots(tmp_path):
    clip = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    line = f"{clip}\t00.00.51.926\t00.00.54.129\t00.00.51.926\t00.00.54.129\tSOMEONE, \u2028 walks.\n"
    folder = write(tmp_path / "annotations", LSMDC16_annos_val__csv=line)
    film = tmp_path / "videos" / "0001_American_Beauty"
    film.mkdir(parents=True)
    (film / f"{clip}.mp4").write_text("x")
    row = load_dataset("lsmdc", folder, tmp_path / "videos", "validation").dataset[0]
    assert (row["video_id"], row["captions"]) == (clip, ["SOMEONE, walks."])
    assert row["video"].endswith(f"0001_American_Beauty/{clip}.mp4")


def test_vatex_takes_names_from_an_array(tmp_path):
    folder = write(tmp_path, ref_captions__json={"b_000001_000011": ["x", "y"], "a_000000_000010": ["z"]})
    np.save(folder / "tst_names.npy", np.array(["b_000001_000011"]))
    assert load_dataset("vatex", folder, split="test").dataset["captions"][:] == [["x", "y"]]
    np.save(folder / "tst_names.npy", np.array(["b_000001_000011", None], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not an array of strings"):
        load_dataset("vatex", folder, split="test")


WRONG_FILES = [
    (
        "msrvtt-9k",
        "test",
        {"MSRVTT_JSFUSION_test__csv": "key,vid,caption\n1,2,3\n"},
        "no column video_id, sentence.*key, vid",
    ),
    (
        "msrvtt-full",
        "train",
        {"MSRVTT_data__json": {"videos": [], "captions": []}},
        "'sentences' or 'annotations'.*captions",
    ),
    ("msrvtt-full", "train", {"MSR_VTT__json": {"annotations": [{"id": 1}]}}, "item 0: no 'image_id'; it has id"),
    ("msvd", "test", {"test_list__txt": "a\n", "captions_msvd__json": ["a"]}, "expected {id: captions}, found list"),
    ("msvd", "test", {"test_list__txt": "\n", "captions_msvd__json": {}}, "the list is empty"),
    ("didemo", "test", {"test_data__json": [{"video": "a.mp4", "text": "x"}]}, "no 'description'; it has video, text"),
    ("activitynet", "train", {"train__json": '{"v_a": {"sent'}, "not valid JSON"),
    ("activitynet", "train", {"train__json": ["v_a"]}, "expected {video id: annotation}, found list"),
    ("didemo", "test", {"test_data__json": {"video": "a.mp4"}}, "expected a list of annotations, found dict"),
    ("vatex", "test", {"ref_captions__json": ["x"], "test_list__txt": "x\n"}, "expected {id: captions}, found list"),
    ("lsmdc", "test", {"LSMDC16_challenge_1000_publictect__csv": "a,b,c\n"}, "line 1: expected 6 tab-separated"),
]


@pytest.mark.parametrize(("name", "split", "files", "message"), WRONG_FILES)
def test_malformed_files_say_what_and_where(tmp_path, name, split, files, message):
    folder = write(tmp_path / "annotations", **files)
    with pytest.raises(ValueError, match=message) as raised:
        load_dataset(name, folder, split=split)
    assert str(folder) in str(raised.value)


def test_absent_files_and_unknown_words_list_the_valid_ones(tmp_path):
    write(tmp_path, notes__txt="x")
    with pytest.raises(FileNotFoundError, match=r"none of MSRVTT_data\.json, MSR_VTT\.json .*holds notes\.txt"):
        load_dataset("msrvtt", tmp_path)
    with pytest.raises(FileNotFoundError, match="no such annotation folder"):
        load_dataset("msvd", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"did you mean activitynet\?.*videofolder"):
        load_dataset("activtynet", tmp_path)
    with pytest.raises(ValueError, match="no split 'validation'; valid: train, test; holdout=N"):
        load_dataset("activitynet", tmp_path, split="validation")


def test_holdout_divides_the_training_split(miniature):
    source = miniature("activitynet")
    whole = load_dataset(*source, split="train").dataset["video_id"][:]
    train, validation = (
        load_dataset(*source, split=split, holdout=5).dataset["video_id"][:] for split in ("train", "validation")
    )
    assert len(validation) == 5
    assert sorted(train + validation) == sorted(whole)
    more = load_dataset(*source, split="validation", holdout=6).dataset["video_id"][:]
    assert set(validation) < set(more)
    with pytest.raises(ValueError, match="leaves nothing of 12"):
        load_dataset(*source, split="train", holdout=12)
    assert len(load_dataset(*source, split="train", holdout=11).dataset) == 1
    for name in ("msvd", "videofolder"):
        with pytest.raises(ValueError, match="validation split of its own"):
            load_dataset(*miniature(name), split="train", holdout=2)


def test_what_cannot_be_used_is_training_s_and_is_told(tmp_path):
    data = {f"v_{n}": {"sentences": ["x"] if n < 3 else []} for n in range(7)}
    folder = write(tmp_path / "annotations", train__json=data)
    unusable = [{"video_id": f"v_{n}", "video": f"v_{n}.mp4", "reason": "no caption"} for n in range(3, 7)]
    train, validation = (load_dataset("activitynet", folder, split=name, holdout=1) for name in ("train", "validation"))
    assert (train.missing, validation.missing) == (unusable, []) and train.report["listed_videos"] == 6
    assert train.report["holdout"] == 1 and train.report["split"] == "train"
    assert train.report["published_videos"] == [10009] and validation.report["published_videos"] is None
    path = folder / "train.json"
    assert train.report["annotation_files"] == {"train.json": hashlib.sha256(path.read_bytes()).hexdigest()}
    write(folder, train__json={name: {"sentences": []} for name in data})
    with pytest.raises(FileNotFoundError) as raised:
        load_dataset("activitynet", folder)
    reasons = "; ".join(f"v_{n}: no caption" for n in range(3))
    assert str(raised.value) == f"{folder}: none of the 7 listed videos can be used ({reasons}; …)"
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "x"}\n{"file_name": "b.mp4", "text": " "}\n')
    (folder / "a.mp4").write_bytes(b"x")
    loaded = load_dataset("videofolder", folder, split=None)
    assert loaded.report["split"] == str(loaded.dataset.split) == "all" and not loaded.report["published_videos"]


REAL_FILES = [
    ("msrvtt-9k", "MSRVTT_JSFUSION_test.csv", 1000, 995),
    ("didemo", "didemo_test_data.json", 1037, None),
    ("activitynet", "activitynet_val_1.json", 4917, None),
]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real annotation files are not here")
@pytest.mark.parametrize(("name", "file", "videos", "distinct"), REAL_FILES)
@pytest.mark.parametrize("as_folder", [True, False])
def test_real_annotation_files_load_as_they_are(name, file, videos, distinct, as_folder):
    loaded = load_dataset(name, REAL if as_folder else REAL / file, split="test")
    assert len(loaded.dataset) == loaded.report["listed_videos"] == videos
    assert videos in loaded.report["published_videos"]
    captions = [caption for captions in loaded.dataset["captions"] for caption in captions]
    assert len(captions) == videos
    assert distinct is None or len(set(captions)) == distinct


@pytest.mark.skipif(not REAL.is_dir(), reason="the real annotation files are not here")
def test_the_real_9k_list_selects_9000_videos(tmp_path):
    everything = {"annotations": [{"image_id": f"video{n}", "caption": f"caption {n}"} for n in range(10000)]}
    folder = write(tmp_path, MSR_VTT__json=everything)
    (folder / "MSRVTT_train.9k.csv").write_bytes((REAL / "MSRVTT_train.9k.csv").read_bytes())
    train = load_dataset("msrvtt-9k", folder)
    test = load_dataset("msrvtt-9k", REAL, split="test")
    assert train.report["published_videos"] == [len(train.dataset)] == [9000]
    assert not set(train.dataset["video_id"]) & set(test.dataset["video_id"])

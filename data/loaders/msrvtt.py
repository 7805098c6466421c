"""MSR-VTT (Xu et al., CVPR 2016): 10,000 web clips, 20 captions each; three splits are in use.

`9k` (also "1k-A", Yu et al. 2018): 9,000 training videos and the JSFUSION test of 1,000 videos with one caption each.
`7k`: 7,010 training videos, the same test. `full`: the official 6,513 / 497 / 2,990. Captions come from
`MSRVTT_data.json` (`{"videos": …, "sentences": [{"video_id", "caption"}]}`) or `MSR_VTT.json` (`{"annotations":
[{"image_id", "caption"}]}`); the ids from `MSRVTT_train.9k.csv`, `MSRVTT_train.7k.csv` (column `video_id`) and
`MSRVTT_JSFUSION_test.csv` (`key,vid_key,video_id,sentence`).
"""

from functools import partial
from pathlib import Path

from dmae.data.clips import Annotations, Clip
from dmae.data.files import as_captions, column_of, find_file, read_csv, read_json, select

CAPTION_FILES = ("MSRVTT_data.json", "MSR_VTT.json")
TRAIN_FILES = {"9k": "MSRVTT_train.9k.csv", "7k": "MSRVTT_train.7k.csv"}
TEST_FILE = "MSRVTT_JSFUSION_test.csv"
OFFICIAL_RANGES = {"train": range(6513), "validation": range(6513, 7010), "test": range(7010, 10000)}
SPLIT_NAMES = {"train": "train", "validate": "validation", "val": "validation", "test": "test"}


def read(annotations: Path, split: str, variant: str) -> Annotations:
    """One split of the variant `9k`, `7k` or `full`."""
    if split == "test" and variant != "full":
        return read_jsfusion_test(find_file(annotations, TEST_FILE))
    caption_file = find_file(annotations, *CAPTION_FILES)
    data = read_json(caption_file)
    captions = captions_by_video(data, caption_file)
    if variant == "full":
        ids, files = official_ids(data, split, captions), [caption_file]
    else:
        id_file = find_file(annotations, TRAIN_FILES[variant])
        ids, files = [row["video_id"] for _, row in read_csv(id_file, ("video_id",))], [id_file, caption_file]
    clips, unusable = select(ids, captions, ".mp4")
    return Annotations(clips, files, unusable)


read_9k, read_7k, read_full = (partial(read, variant=name) for name in ("9k", "7k", "full"))


def read_jsfusion_test(path: Path) -> Annotations:
    """One row per query; five sentences occur twice, on different videos."""
    rows = read_csv(path, ("video_id", "sentence"))
    clips = [
        Clip(row["video_id"], row["video_id"] + ".mp4", as_captions(row["sentence"], f"{path}, line {line}"))
        for line, row in rows
    ]
    return Annotations(clips, [path])


def captions_by_video(data, path: Path) -> dict[str, list[str]]:
    """`{video_id: captions}` from either JSON form, in file order."""
    if not isinstance(data, dict) or not {"sentences", "annotations"} & set(data):
        found = ", ".join(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path}: expected an object with 'sentences' or 'annotations', found {found}")
    items, key = (data["sentences"], "video_id") if "sentences" in data else (data["annotations"], "image_id")
    captions: dict[str, list[str]] = {}
    for number, item in enumerate(items):
        where = f"{path}, item {number}"
        video_id = str(column_of(item, key, where))
        captions.setdefault(video_id, []).extend(as_captions(column_of(item, "caption", where), where))
    return captions


def official_ids(data: dict, split: str, captions: dict) -> list[str]:
    """Ids of the official split: by the `split` field of `videos`, or by the published number ranges without one."""
    videos = [video for video in data.get("videos", []) if "split" in video]
    if videos:
        return [video["video_id"] for video in videos if SPLIT_NAMES.get(video["split"]) == split]
    return [video_id for video_id in captions if number_of(video_id) in OFFICIAL_RANGES[split]]


def number_of(video_id: str) -> int:
    digits = video_id.removeprefix("video")
    return int(digits) if digits.isdecimal() else -1

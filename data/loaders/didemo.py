"""DiDeMo (Hendricks et al., ICCV 2017) as paragraph-to-video retrieval: a video's descriptions, joined, find the video.

`{train,val,test}_data.json` is a list of `{annotation_id, description, times: [[s, e], …] in 5-s units, video}`. With a
`{train,val,test}_list.txt` beside it only the listed videos are used (1,004 of the 1,037 official test videos in the
list most results are on). A `video` carries the extension of the original upload, or just its dot; on disk it may be
another, or have a second one (`ID.3gp.mp4`). Only the first 30 s were annotated, so the clip is 0-31 s.
"""

from pathlib import Path

from dmae.data.clips import Annotations, Clip
from dmae.data.files import as_captions, column_of, find_file, optional_file, read_json, read_list
from dmae.data.videos import video_stem

PREFIXES = {"train": "train", "validation": "val", "test": "test"}
WINDOW = (0.0, 31.0)


def read(annotations: Path, split: str) -> Annotations:
    prefix = PREFIXES[split]
    data_file = find_file(annotations, f"{prefix}_data.json", f"didemo_{prefix}_data.json")
    list_file = optional_file(annotations, f"{prefix}_list.txt", f"didemo_{prefix}_list.txt")
    descriptions: dict[str, list[str]] = {}
    data = read_json(data_file)
    if not isinstance(data, list):
        raise ValueError(f"{data_file}: expected a list of annotations, found {type(data).__name__}")
    for number, item in enumerate(data):
        where = f"{data_file}, item {number}"
        texts = as_captions(column_of(item, "description", where), where)
        descriptions.setdefault(str(column_of(item, "video", where)), []).extend(texts)
    ids, unusable = listed_ids(descriptions, list_file)
    clips = [Clip(video_id, video_id, [" ".join(descriptions[video_id])], *WINDOW) for video_id in ids]
    return Annotations(clips, [data_file, *([list_file] if list_file else [])], unusable)


def listed_ids(descriptions: dict[str, list[str]], list_file: Path | None) -> tuple[list[str], list[dict]]:
    """Ids in annotation order, or as the list has them (which may lack the extension); unknown ones are set aside."""
    if list_file is None:
        return list(descriptions), []
    by_stem = {video_stem(video_id): video_id for video_id in descriptions}
    ids, unusable = [], []
    for name in dict.fromkeys(read_list(list_file)):
        video_id = name if name in descriptions else by_stem.get(video_stem(name))
        if video_id is None:
            unusable.append({"video_id": name, "video": name, "reason": "no description"})
        else:
            ids.append(video_id)
    return ids, unusable

"""ActivityNet Captions (Krishna et al., ICCV 2017) as paragraph-to-video retrieval on whole videos.

`train.json` (10,009 videos) and `val_1.json` (4,917, the test set of the literature) are `{"v_<id>": {"duration",
"timestamps", "sentences"}}`; a video's sentences joined are its one caption.
"""

from pathlib import Path

from dmae.data.clips import Annotations, Clip
from dmae.data.files import as_captions, column_of, find_file, read_json

FILES = {"train": "train.json", "test": "val_1.json"}


def read(annotations: Path, split: str) -> Annotations:
    path = find_file(annotations, FILES[split], "activitynet_" + FILES[split])
    data = read_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected {{video id: annotation}}, found {type(data).__name__}")
    clips = []
    for video_id, item in data.items():
        where = f"{path}, {video_id!r}"
        sentences = as_captions(column_of(item, "sentences", where), where)
        # the annotations say v_ID, the downloads of the lineage ID.mp4
        other = video_id.removeprefix("v_") + ".mp4"
        clips.append(Clip(video_id, video_id + ".mp4", [" ".join(sentences)] if sentences else [], other_file=other))
    unusable = [{"video_id": c.video_id, "video": c.file, "reason": "no caption"} for c in clips if not c.captions]
    return Annotations([clip for clip in clips if clip.captions], [path], unusable)

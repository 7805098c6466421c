"""LSMDC (Rohrbach et al., IJCV 2017): clips of films, one description each.

Tab-separated without a header: clip id, start and end aligned, start and end extracted, sentence. The ids hold dots,
and clips lie in one folder per film (`<film>/<clip id>.avi`) or flat; they are cut already, so there is no window.
"""

from pathlib import Path

from dmae.data.clips import Annotations, Clip
from dmae.data.files import as_captions, find_file, read_text

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "validation": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
COLUMNS = 6


def read(annotations: Path, split: str) -> Annotations:
    path = find_file(annotations, FILES[split])
    clips: dict[str, Clip] = {}
    unusable = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != COLUMNS:
            raise ValueError(f"{path}, line {number}: expected {COLUMNS} tab-separated columns, found {len(fields)}")
        clip_id, captions = fields[0].strip(), as_captions(fields[-1], f"{path}, line {number}")
        if number == 1 and not any(character.isdigit() for character in fields[1]):
            continue  # some copies begin with a header
        if not captions:
            unusable.append({"video_id": clip_id, "video": clip_id + ".avi", "reason": "no caption"})
        elif clip_id in clips:
            clips[clip_id].captions.extend(captions)
        else:
            clips[clip_id] = Clip(clip_id, clip_id + ".avi", captions)
    return Annotations(list(clips.values()), [path], unusable)

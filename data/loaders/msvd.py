"""MSVD (Chen and Dolan, ACL 2011): 1,970 clips with about 41 captions each (80,827; 27,763 of them in the test split).

`{train,val,test}_list.txt` hold the ids; captions are `raw-captions.pkl` (`{id: [[token, …], …]}`, read without
executing anything) or `captions_msvd.json` (`{id: [caption, …]}`). Each caption of the test split is its own query.
"""

from pathlib import Path

from dmae.data.clips import Annotations
from dmae.data.files import as_captions, find_file, read_json, read_list, read_pickle, select

LIST_FILES = {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"}
CAPTION_FILES = ("raw-captions.pkl", "captions_msvd.json")


def read(annotations: Path, split: str) -> Annotations:
    list_file = find_file(annotations, LIST_FILES[split], "msvd_" + LIST_FILES[split])
    caption_file = find_file(annotations, *CAPTION_FILES)
    raw = read_pickle(caption_file) if caption_file.suffix == ".pkl" else read_json(caption_file)
    if not isinstance(raw, dict):
        raise ValueError(f"{caption_file}: expected {{id: captions}}, found {type(raw).__name__}")
    captions = {str(video_id): joined(texts, f"{caption_file}, {video_id!r}") for video_id, texts in raw.items()}
    clips, unusable = select(read_list(list_file), captions, ".avi")
    return Annotations(clips, [list_file, caption_file], unusable)


def joined(texts, where: str) -> list[str]:
    """Captions, whether given as texts or as lists of tokens."""
    if isinstance(texts, (list, tuple)):
        texts = [" ".join(map(str, text)) if isinstance(text, (list, tuple)) else text for text in texts]
    return as_captions(texts, where)

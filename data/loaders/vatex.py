"""VATEX (Wang et al., ICCV 2019), English captions, in the retrieval split of Chen et al. (HGR, CVPR 2020).

Captions are `ref_captions.json` (`{id: [caption, …]}`) or, in Cap4Video's form, `vatex_data.json` (`{id: {"enCap":
[caption, …], "chCap": […]}}`, of which the English ones are taken); the ids of a split are `{train,val,test}_list.txt`
or `{trn,val,tst}_names.npy`. An id is `<YouTube id>_<start>_<end>` with six-digit seconds, and names a cut file.
"""

from pathlib import Path

import numpy as np

from dmae.data.clips import Annotations
from dmae.data.files import as_captions, column_of, find_file, read_json, read_list, select

LIST_FILES = {
    "train": ("train_list.txt", "trn_names.npy"),
    "validation": ("val_list.txt", "val_names.npy"),
    "test": ("test_list.txt", "tst_names.npy"),
}


def read(annotations: Path, split: str) -> Annotations:
    list_file = find_file(annotations, *LIST_FILES[split])
    caption_file = find_file(annotations, "ref_captions.json", "vatex_data.json")
    raw = read_json(caption_file)
    if not isinstance(raw, dict):
        raise ValueError(f"{caption_file}: expected {{id: captions}}, found {type(raw).__name__}")
    captions = {}
    for video_id, texts in raw.items():
        where = f"{caption_file}, {video_id!r}"
        captions[video_id] = as_captions(column_of(texts, "enCap", where) if isinstance(texts, dict) else texts, where)
    ids = read_names(list_file) if list_file.suffix == ".npy" else read_list(list_file)
    clips, unusable = select(ids, captions, ".mp4")
    return Annotations(clips, [list_file, caption_file], unusable)


def read_names(path: Path) -> list[str]:
    """An array of strings; one of Python objects (a pickle) is refused."""
    try:
        return [str(name) for name in np.load(path, allow_pickle=False)]
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not an array of strings ({error}); save the ids as {path.stem}.txt") from None

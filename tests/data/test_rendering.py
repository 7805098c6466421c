"""What the generated corpora share."""

import json

import pytest

from dmae.data.rendering import distinct, rendered_folder
from dmae.files import partial_name


def test_texts_are_drawn_in_order_without_repetition():
    draws = iter("babcad")
    assert distinct(lambda: next(draws), 3) == ["b", "a", "c"]
    assert list(draws) == ["a", "d"]  # not one draw more than is needed: the generator's later values depend on it


def test_a_scene_without_enough_wordings_ends_with_the_count():
    with pytest.raises(ValueError, match=r"^10,000 draws gave 1 of 2 different captions; ask for fewer"):
        distinct(lambda: "a red dog", 2)


def test_a_corpus_is_whole_or_not_there_and_holds_nothing_of_a_killed_run(tmp_path):
    folder, filled = tmp_path / "corpus", []
    partial = partial_name(folder)

    def fill(place, fails=False):
        filled.append(place)
        place.mkdir()
        (place / "a.mp4").touch()
        if fails:
            raise OSError("the disk is full")

    partial.mkdir()
    (partial / "left.mp4").touch()
    with pytest.raises(OSError, match="full"):
        rendered_folder(folder, {"name": "m", "seeds": (1, 2)}, "card", lambda place: fill(place, True))
    assert list(tmp_path.iterdir()) == []
    partial.mkdir()
    (partial / "left.mp4").touch()
    for _ in range(2):  # the second time it is left as it is
        assert rendered_folder(folder, {"name": "m", "seeds": (1, 2)}, "the é card", fill) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "a.mp4", "corpus.json"]
    assert filled == [partial] * 2 and list(tmp_path.iterdir()) == [folder]
    assert (folder / "README.md").read_text(encoding="utf-8") == "the é card"
    assert (folder / "corpus.json").read_text() == json.dumps({"name": "m", "seeds": [1, 2]}, indent=1) + "\n"
    with pytest.raises(ValueError, match=r"corpus already holds another n corpus; remove it or choose another folder$"):
        rendered_folder(folder, {"name": "n"}, "card", fill)
    (folder / "corpus.json").unlink()
    with pytest.raises(ValueError, match="already holds something else; remove it"):
        rendered_folder(folder, {"name": "m"}, "card", fill)

"""What the generated corpora share."""

import pytest

from dmae.data.rendering import distinct


def test_texts_are_drawn_in_order_without_repetition():
    draws = iter("babcad")
    assert distinct(lambda: next(draws), 3) == ["b", "a", "c"]
    assert list(draws) == ["a", "d"]  # not one draw more than is needed: the generator's later values depend on it


def test_a_scene_without_enough_wordings_ends_with_the_count():
    with pytest.raises(ValueError, match=r"^10,000 draws gave 1 of 2 different captions; ask for fewer"):
        distinct(lambda: "a red dog", 2)

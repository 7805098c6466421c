"""What the generated corpora share."""

import pytest

from dmae.data.rendering import distinct


def test_texts_are_drawn_in_order_without_repetition_or_what_is_taken():
    draws = iter("abacbd")
    assert distinct(lambda: next(draws), 2, taken={"a"}) == ["b", "c"]
    assert list(draws) == ["b", "d"]  # not one draw more than is needed: the generator's later values depend on it


def test_a_scene_without_enough_wordings_ends_with_the_count():
    with pytest.raises(ValueError, match=r"gave 1 of 2 captions"):
        distinct(lambda: "a red dog", 2)

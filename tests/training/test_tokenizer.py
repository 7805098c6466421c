"""The small tokenizer that a model trained from random weights brings along."""

import pytest

from dmae.training.tokenizer import train_bpe_tokenizer

TEXTS = ["a red square moves left", "a blue circle moves right, it's 42"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe_tokenizer(TEXTS * 3, vocab_size=400, max_length=16)


def test_ids_are_clip_like(tokenizer):
    ids = tokenizer("A red  SQUARE", padding="max_length", max_length=8)["input_ids"]
    assert ids == tokenizer("a red square", padding="max_length", max_length=8)["input_ids"]
    assert (ids[0], ids.count(tokenizer.eos_token_id), ids[-1]) == (0, 1, tokenizer.pad_token_id)
    assert tokenizer.eos_token_id != 2 and len(tokenizer) <= 400
    assert len(set(tokenizer.all_special_ids)) == 3


@pytest.mark.parametrize("text", ["zebra quiz", "日本 😀", "don't 42", "café, \u0000"])
def test_any_string_is_encoded_whole(tokenizer, text):
    encoded = tokenizer(text, return_offsets_mapping=True)
    covered = {i for a, b in encoded["offset_mapping"] for i in range(a, b)}
    assert covered == {i for i, letter in enumerate(text) if not letter.isspace()}
    plain = tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)
    assert "".join(plain.split()) == "".join(text.split())


def test_truncation_keeps_the_end_token(tokenizer):
    ids = tokenizer("a red square " * 20, truncation=True)["input_ids"]
    assert len(ids) == 16 and ids[-1] == tokenizer.eos_token_id


def test_frequent_words_become_one_piece(tokenizer):
    assert len(tokenizer("a red square moves")["input_ids"]) == 6


def test_saved_and_loaded(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"] and again.model_max_length == 16


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size=100: must be at least 259"):
        train_bpe_tokenizer(TEXTS, vocab_size=100)

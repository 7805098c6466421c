"""DSL and QB-Norm against their formulas written out, and what they must and must not change."""

import os

import numpy as np
import pytest

from dmae.metrics.text_video_retrieval.postprocessing import QueryBank, dsl, qb_norm


@pytest.fixture
def similarities():
    return np.random.default_rng(0).uniform(-0.2, 0.4, (7, 5))


def test_dsl_is_the_formula_in_both_directions(similarities):
    to_video, to_text = dsl(similarities, temperature=10)
    weights = np.exp(10 * similarities)
    np.testing.assert_allclose(to_video, similarities * weights / weights.sum(0))
    np.testing.assert_allclose(to_text, similarities * weights / weights.sum(1, keepdims=True))


def test_dsl_demotes_a_video_that_answers_every_query():
    hub = np.array([[0.50, 0.49, 0.10], [0.60, 0.10, 0.55], [0.90, 0.20, 0.20]])
    assert hub.argmax(1).tolist() == [0, 0, 0]
    assert dsl(hub, temperature=20)[0].argmax(1).tolist() == [1, 2, 0]


def test_qb_norm_is_the_dynamic_inverted_softmax(similarities):
    bank = np.random.default_rng(1).uniform(-0.2, 0.4, (4, 5))
    active = set(bank.argmax(1))
    inverted = np.exp(20 * similarities) / np.exp(20 * bank).sum(0)
    for row, plain, ratio in zip(qb_norm(similarities, bank), similarities, inverted):
        expected = ratio if plain.argmax() in active else plain
        np.testing.assert_array_equal(np.argsort(row), np.argsort(expected))


def test_qb_norm_leaves_queries_alone_whose_best_item_no_bank_query_wants(similarities):
    bank = np.array([[1.0, 0, 0, 0, 0]])
    similarities[:, 3] = 0.9
    np.testing.assert_allclose(qb_norm(similarities, bank, temperature=20), 20 * similarities)


def test_one_live_query_gives_what_it_gives_among_others(similarities, tmp_path):
    names = [f"v{number}" for number in range(5)]
    bank_similarities = np.random.default_rng(2).uniform(-0.2, 0.4, (9, 5))
    bank = QueryBank.build([bank_similarities[:4], bank_similarities[4:]], gallery_ids=names)
    bank.save(tmp_path / "bank.npz")
    loaded = QueryBank.load(tmp_path / "bank.npz", gallery_ids=names)
    expected = qb_norm(similarities, bank_similarities)
    np.testing.assert_allclose(bank.normalize(similarities), expected)
    np.testing.assert_allclose(loaded.normalize(similarities[2]), expected[2])
    assert [path.name for path in tmp_path.iterdir()] == ["bank.npz"]


def test_large_temperatures_stay_finite(similarities):
    assert np.isfinite(qb_norm(similarities, similarities, temperature=1e4)).all()
    assert all(np.isfinite(matrix).all() for matrix in dsl(similarities, temperature=1e4))


def test_banks_that_do_not_fit_are_refused(similarities, tmp_path):
    bank = QueryBank.build([similarities], gallery_ids=list("abcde"))
    bank.save(tmp_path / "bank.npz")
    with pytest.raises(ValueError, match="other videos"):
        QueryBank.load(tmp_path / "bank.npz", gallery_ids=list("abced"))
    with pytest.raises(ValueError, match="built over 5"):
        bank.normalize(similarities[:, :4])
    with pytest.raises(ValueError, match="no query"):
        QueryBank.build([])
    with pytest.raises(ValueError, match="no query"):
        QueryBank.build([similarities[:0]])
    with pytest.raises(ValueError, match="covers 4"):
        QueryBank.build([similarities, similarities[:, :4]])
    with pytest.raises(ValueError, match="temperature"):
        qb_norm(similarities, similarities, temperature=0)
    with pytest.raises(ValueError, match="NaN"):
        dsl(np.full((2, 2), np.nan))
    (tmp_path / "bad.npz").write_bytes(b"not a bank")
    with pytest.raises(ValueError, match="not a query bank"):
        QueryBank.load(tmp_path / "bad.npz")


@pytest.mark.parametrize("given, kept", [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i8", "f8")])
def test_half_precision_is_widened_and_wider_numbers_stay(given, kept):
    """Sixteen bits would merge close scores; sixty-four for what has thirty-two doubles a large matrix."""
    values = np.array([[1, 0, 2], [3, 1, 0]], given)
    assert {matrix.dtype for matrix in dsl(values)} == {np.dtype(kept)}


@pytest.mark.parametrize("top_k", [1, 3, 300])
def test_a_bank_wakes_the_best_of_each_of_its_queries(top_k):
    scores = np.random.default_rng(0).standard_normal((20, 300))
    bank = QueryBank.build([scores[:7], scores[7:]], temperature=1, top_k=top_k)
    expected = {place for row in scores for place in np.argsort(-row)[:top_k].tolist()}
    assert set(np.flatnonzero(bank.activated).tolist()) == expected
    np.testing.assert_allclose(bank.log_mass, np.log(np.exp(scores).sum(0)))
    for settings in ({"temperature": 0}, {"temperature": -1}, {"top_k": 0}):
        with pytest.raises(ValueError, match="temperature must be above 0 and top_k at least 1"):
            QueryBank.build([scores], **settings)


def test_a_bank_has_a_name_for_every_item(similarities):
    with pytest.raises(ValueError, match=r"^4 gallery ids for a bank over 5 items$"):
        QueryBank.build([similarities], gallery_ids=list("abcd"))


def test_a_bank_is_on_disk_before_it_has_its_name_and_a_failed_one_leaves_nothing(similarities, tmp_path, monkeypatch):
    QueryBank.build([similarities]).save(tmp_path / "bank.npz")
    before = (tmp_path / "bank.npz").read_bytes()
    synced, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    other = QueryBank.build([similarities + 1], gallery_ids=list("abcde"))

    def refuse(partial, path):
        raise OSError("no room for a name")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no room for a name"):
        other.save(tmp_path / "bank.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["bank.npz"]
    assert (tmp_path / "bank.npz").read_bytes() == before
    monkeypatch.setattr(os, "replace", replace)
    other.save(tmp_path / "bank.npz")
    assert synced == [(tmp_path / "bank.npz").stat().st_size] * 2
    assert QueryBank.load(tmp_path / "bank.npz", list("abcde")).gallery_ids.tolist() == list("abcde")
    with pytest.raises(FileNotFoundError, match="gone"):
        other.save(tmp_path / "gone" / "bank.npz")

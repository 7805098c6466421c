"""A search beside its answer: how well mixed queries fit, and the order of time."""

from types import SimpleNamespace

import numpy as np
import pytest

from dmae.retrieval.fit import fit
from dmae.retrieval.index import VideoIndex
from dmae.retrieval.results import SearchResult
from dmae.retrieval.server.live import LiveIndex
from dmae.retrieval.server.searching import Search, Searcher, in_order


@pytest.fixture
def searcher(encoded, model, processor):
    searcher = Searcher(LiveIndex(VideoIndex.build(encoded, model, processor)), None, None)

    def asked(q: str, random_scores):
        searcher.background = SimpleNamespace(fit=lambda score: fit(score, np.array(random_scores)))
        return searcher.found(Search(q=q), searcher.run(Search(q=q), 12), with_moments=False)

    return asked


def test_words_to_leave_out_have_a_fit_too_so_that_they_make_news(searcher):
    """Else a saved search with a minus would never find anything new."""
    plain = {one.hit.video_id: one.hit.score for one in searcher("a red square", [0.0])}
    unwanted = {one.hit.video_id: one.hit.score for one in searcher("the sky is blue", [0.0])}
    bound = float(np.median([*unwanted.values()]))
    for one in searcher('a red square -"the sky is blue"', [bound]):
        name = one.hit.video_id
        assert one.fit == (0.0 if unwanted[name] > bound else float(plain[name] > bound))


def test_newest_is_by_the_date_that_the_file_itself_tells():
    said = {
        "a": {"captured": "2021-05-01"},
        "b": {"year": 2023},
        "c": {},
        "d": {"captured": "2022-01-01", "year": 1990},
    }
    hits = [SearchResult(name, name, 0.5, 0.0, 1.0, metadata=metadata) for name, metadata in said.items()]
    assert [hit.video_id for hit in in_order(hits, "newest")] == ["b", "d", "a", "c"]

"""A bank beside an index gives each live query what the matrix form of QB-Norm gives it."""

import numpy as np
import pytest

from dmae import VideoIndex
from dmae.metrics.text_video_retrieval.postprocessing import qb_norm
from dmae.modeling_dmae.similarity_dmae import similarity
from dmae.retrieval.embedding import encode_texts
from dmae.retrieval.query_bank import build_query_bank, open_query_bank, search_with_bank

BANK = ["a red square moves left", "two dogs run", "the sky is blue", "a green circle moves up", "grass"]
QUERIES = ["a blue square moves up", "dogs on the grass"]


def test_live_queries_are_ranked_as_by_the_matrix_form(encoded, model, processor, tmp_path):
    index = VideoIndex.build(encoded, model, processor).save(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="build_query_bank"):
        open_query_bank(index)
    build_query_bank(index, BANK)
    bank = open_query_bank(index)
    scores = [
        similarity(encode_texts(model, processor, texts), encoded.embeddings, model.config).numpy()
        for texts in (QUERIES, BANK)
    ]
    for query, expected in zip(QUERIES, qb_norm(*scores)):
        results = search_with_bank(index, bank, query, top_k=5)
        best = np.argsort(-expected)[:5]
        assert [result.video_id for result in results] == [encoded.video_ids[number] for number in best]
        assert [result.score for result in results] == pytest.approx(expected[best].tolist(), abs=0.05)


def test_a_bank_of_an_index_that_has_changed_is_refused(encoded, model, processor, tmp_path):
    index = VideoIndex.build(encoded, model, processor).save(tmp_path / "index")
    build_query_bank(index, BANK)
    index.delete([encoded.video_ids[0]])
    with pytest.raises(ValueError, match="other videos"):
        open_query_bank(index)

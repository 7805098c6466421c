"""The metric, published as a Space, loads with `evaluate.load("user/text_video_retrieval")` and computes the same."""

import json

import numpy as np
import pytest

from dmae.hub_cards.push import push
from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics

SIMILARITIES = [[0.9, 0.1, 0.3], [0.8, 0.3, 0.2], [0.1, 0.2, 0.7]]
LOAD = """
import json
import evaluate
metric = evaluate.load("user/text_video_retrieval")
print("FOUND " + json.dumps(metric.compute(predictions={similarities}, references=[0, 1, 2])))
"""

pytestmark = pytest.mark.timeout(1800)


def test_the_published_metric_computes_what_the_local_one_does(online, isolated, tmp_path):
    commit = push("metric", "user/text_video_retrieval", show=lambda text: None)
    assert commit.oid == online.repos["spaces/user/text_video_retrieval"][-1].oid
    files = online.files("spaces/user/text_video_retrieval")
    assert b'evaluate.load("user/text_video_retrieval")' in files["README.md"]
    assert b"evaluate.load(&#34;user/text_video_retrieval&#34;)" in files["index.html"]
    environment = online.environment(tmp_path)
    printed = isolated(LOAD.format(similarities=SIMILARITIES), tmp_path, environment).split("FOUND ")[1]
    assert json.loads(printed) == pytest.approx(retrieval_metrics(np.array(SIMILARITIES), np.array([0, 1, 2])))

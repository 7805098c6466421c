"""mteb's own evaluation of a task made from generated clips gives what our metric gives, in both directions."""

import json

import numpy as np
import pytest

pytest.importorskip("mteb")
pytestmark = pytest.mark.slow
CAPTIONS = [
    f"{n} {colour} squares move" for n in ("one", "two", "three") for colour in ("red", "blue", "grey", "green")
]


def make_task(direction: str, clips):
    from datasets import Dataset, Video
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    paths = [str(path) for path in sorted(clips.iterdir())]
    ids = [f"c{number:02d}" for number in range(len(paths))]
    videos = Dataset.from_dict({"id": ids, "video": paths}).cast_column("video", Video())
    texts = Dataset.from_dict({"id": ids, "text": CAPTIONS[: len(paths)]})

    class Clips(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Clips{direction}", description="generated", dataset={"path": "none/none", "revision": "1"},
            type="Any2AnyRetrieval", eval_langs=["eng-Latn"], eval_splits=["test"], main_score="ndcg_at_10",
            reference=None, category=direction.lower(), modalities=["text", "video"], date=("2026-01-01", "2026-01-02"),
            domains=["Web"], task_subtypes=[], license="mit", annotations_creators="derived", dialect=[],
            sample_creation="created", bibtex_citation="", prompt=None,
        )  # fmt: skip

        def load_data(self, num_proc=None, **kwargs):
            queries, corpus = (texts, videos) if direction == "T2V" else (videos, texts)
            gold = {name: {name: 1} for name in ids}
            split = {"queries": queries, "corpus": corpus, "relevant_docs": gold, "top_ranked": None}
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return Clips()


@pytest.fixture(scope="module")
def ours(model, processor, clips):
    """The matrix of the model's own scores, by the code that search and evaluation share."""
    from dmae.evaluation.scoring import similarity_matrix
    from dmae.inference.embedding import encode_texts, encode_videos

    items = [{"video_id": path.stem, "video": str(path)} for path in sorted(clips.iterdir())]
    videos = encode_videos(model, processor, items, num_workers=0).embeddings
    return similarity_matrix(encode_texts(model, processor, CAPTIONS[: len(items)]), videos, model.config)


@pytest.mark.parametrize("direction, side", [("T2V", "text_to_video"), ("V2T", "video_to_text")])
def test_mteb_s_figures_are_our_metric_s(model_folder, clips, ours, tmp_path, direction, side):
    from dmae.evaluation.mteb_run import evaluate_mteb
    from dmae.metrics.text_video_retrieval.retrieval_metrics import retrieval_metrics

    found = evaluate_mteb(
        str(model_folder), [make_task(direction, clips)], tmp_path, "cpu", workers=0, benchmark="mteb/clips"
    )
    expected = retrieval_metrics(ours, np.arange(len(ours)))
    scores = found[f"Clips{direction}"]
    for k in (1, 5, 10):
        assert scores[f"recall_at_{k}"] == pytest.approx(expected[f"{side}_R@{k}"], abs=1e-5)
    assert 0 < scores["recall_at_5"] < 1, "a task that everything or nothing solves would show nothing"
    record = json.loads((tmp_path / f"Clips{direction}" / "results.json").read_text())
    assert record["metrics"][f"{side}_R@5"] == scores["recall_at_5"] and record["model"]["weights"]
    benchmark = record["data"]["benchmark"]
    assert (benchmark["id"], benchmark["task"]) == ("mteb/clips", f"Clips{direction}")
    assert record["metrics"][benchmark["metric"]] == scores["main_score"]
    assert record["main_score"] == {"name": "ndcg_at_10", "value": scores["main_score"]}


def test_vectors_are_unit_and_read_by_our_sampler(model_folder, clips):
    from types import SimpleNamespace

    from dmae.evaluation.mteb_model import load_mteb_model

    loaded = load_mteb_model(str(model_folder), device="cpu", num_workers=0)
    task = make_task("T2V", clips)
    task.load_data()
    split = task.dataset["default"]["test"]
    for rows in (split["queries"], split["corpus"]):
        vectors = loaded.encode(SimpleNamespace(dataset=rows))
        assert vectors.shape == (12, 64)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    loaded.index(split["corpus"])
    only = {query: ["c03", "c01"] for query in split["queries"]["id"]}
    found = loaded.search(split["queries"], top_k=10, top_ranked=only)
    assert all(set(documents) == {"c01", "c03"} for documents in found.values())
    with pytest.raises(ValueError, match="on both sides"):
        loaded.search(split["corpus"], top_k=1)


def test_an_unknown_name_is_refused():
    from dmae.evaluation.mteb_model import find_tasks

    with pytest.raises(ValueError, match="knows no task and no benchmark 'MSRVTTX'"):
        find_tasks("MSRVTTX")
    assert [task.metadata.name for task in find_tasks("MSRVTTT2V")] == ["MSRVTTT2V"]
    assert len(find_tasks("MVEB(text, video, v1)")) > 10

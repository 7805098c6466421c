"""The two pipelines in this process: what they rank and return is the model's own, and what they save is whole."""

import json
from pathlib import Path

import pytest
import torch

from dmae.hub_cards.pipeline_dmae import TextVideoFeatureExtractionPipeline, TextVideoRetrievalPipeline
from dmae.inference.loading import load_model_and_processor

TEXTS = ["a dog runs", "two cats sleep on a sofa"]


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load_model_and_processor(model_folder)


@pytest.fixture(scope="module")
def search(loaded):
    return TextVideoRetrievalPipeline(model=loaded[0], processor=loaded[1], device="cpu")


@pytest.fixture(scope="module")
def extract(loaded):
    return TextVideoFeatureExtractionPipeline(model=loaded[0], processor=loaded[1], device="cpu")


def test_sentences_are_ranked_by_the_model_s_own_similarity(loaded, search, clips):
    model, processor = loaded
    videos = [str(path) for path in clips.values()]
    inputs = processor(text=TEXTS, videos=videos, return_tensors="pt")
    with torch.inference_mode():
        scores = model(**inputs).logits_per_text / model.logit_scale.exp()
    losses = []
    hook = model.register_forward_hook(lambda *words: losses.append(words[-1].loss))
    found = search(TEXTS, videos, batch_size=2)
    hook.remove()
    assert losses == [None, None], "as many clips as sentences are no pairs"
    for row, values in zip(found, scores, strict=True):
        order = values.argsort(descending=True).tolist()
        assert [hit["index"] for hit in row] == order and [hit["video"] for hit in row] == [videos[i] for i in order]
        assert [hit["score"] for hit in row] == pytest.approx(values[order].tolist(), abs=1e-6)
    assert search(TEXTS[1], videos, top_k=1) == [pytest.approx(found[1][0], abs=1e-6)]
    assert [hit["index"] for hit in search(TEXTS[0], videos[:1] * 3)] == [0, 1, 2], "equal scores keep their order"
    (alone,) = search(TEXTS[0], videos[0])
    for one in (Path(videos[0]), Path(videos[0]).read_bytes(), {"path": videos[0]}):
        assert search(TEXTS[0], one) == [{**alone, "video": one}]
    for nothing in ([[], videos], [TEXTS, []]):
        with pytest.raises(ValueError, match=f"got {len(nothing[0])} sentences and {len(nothing[1])} videos; both"):
            search(*nothing)


def test_embeddings_are_one_row_a_word_or_frame_without_padding(loaded, extract, clips):
    model, processor = loaded
    with torch.inference_mode():
        text = model.get_text_features(**processor(text=TEXTS[1], return_tensors="pt"))
        video = model.get_video_features(**processor(videos=str(clips["red"]), return_tensors="pt"))
    words, frames = text.word_embeds[text.word_mask], video.attended_embeds[video.video_mask]
    assert torch.allclose(torch.tensor(extract(TEXTS[1])), words[None], atol=1e-6)
    assert torch.allclose(extract(videos=str(clips["red"]), return_tensors=True), frames[None], atol=1e-6)
    of_two = extract(TEXTS, pooled=True)
    assert torch.allclose(torch.tensor(of_two[1]), text.sentence_embeds, atol=1e-6) and len(of_two) == 2
    (mean,) = extract(videos=str(clips["red"]), pooled=True)
    weighted = (video.frame_weights[video.video_mask][:, None] * frames).sum(0)
    assert torch.allclose(torch.tensor(mean), weighted / weighted.norm(), atol=1e-6)
    for both in ({}, {"texts": TEXTS, "videos": [str(clips["red"])]}):
        with pytest.raises(ValueError, match="one of the two"):
            extract(**both)


def test_a_saved_pipeline_is_a_folder_with_model_processor_and_code(search, tmp_path):
    search.save_pretrained(str(tmp_path))
    there = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "pipeline_dmae.py"} <= there
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert settings["custom_pipelines"] == {
        "text-video-retrieval": {
            "impl": "pipeline_dmae.TextVideoRetrievalPipeline", "pt": ["AutoModel"], "type": "multimodal",
        },
        "feature-extraction": {
            "impl": "pipeline_dmae.TextVideoFeatureExtractionPipeline", "pt": ["AutoModel"], "type": "multimodal",
        },
    }  # fmt: skip

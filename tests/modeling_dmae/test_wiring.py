"""What small wrong edits left unnoticed: signs, positions, which pairs are remembered, what a share is a share of."""

import pytest
import torch
from transformers import PreTrainedModel

from dmae import DMAEConfig, DMAEForTextVideoRetrieval
from dmae.modeling_dmae.attention_dmae import textual_attention, visual_attention
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.objective_dmae import contrastive_terms
from dmae.modeling_dmae.partial_order_dmae import weighted_direction
from dmae.modeling_dmae.temporal_dmae import TemporalEncoder, strongest_patches


def test_a_weighted_direction_keeps_its_signs():
    tokens = torch.tensor([[[1.0, -2.0], [3.0, -4.0]], [[-1.0, 0.5], [2.0, 2.0]]])
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    for row in range(2):
        total = sum(weights[row, n] * tokens[row, n] for n in range(2))
        torch.testing.assert_close(weighted_direction(tokens, weights)[row], total / total.norm())


def test_frames_are_told_apart_by_their_positions():
    """Frames in another order are another video; each with its own position, only the rows change place."""
    torch.manual_seed(0)
    encoder = TemporalEncoder(DMAEConfig.tiny(temporal_init="random"))
    torch.nn.init.normal_(encoder.positions.weight)
    tokens, mask = torch.randn(1, 4, 64), torch.ones(1, 4, dtype=torch.bool)
    places, order = torch.arange(4)[None], torch.tensor([2, 0, 3, 1])
    as_they_are = encoder(tokens, mask, places)
    torch.testing.assert_close(encoder(tokens[:, order], mask, places[:, order]), as_they_are[:, order])
    assert not torch.allclose(encoder(tokens[:, order], mask, places), as_they_are[:, order], atol=1e-3)


def pairs(count: int, seed: int) -> tuple[TextEmbeddings, VideoEmbeddings]:
    generator = torch.Generator().manual_seed(seed)
    words, frames = torch.randn(count, 3, 8, generator=generator), torch.randn(count, 2, 8, generator=generator)
    text = TextEmbeddings(words[:, 0], words, torch.full((count, 3), 1 / 3), torch.ones(count, 3, dtype=torch.bool))
    return text, VideoEmbeddings(frames, frames, torch.full((count, 2), 0.5), torch.ones(count, 2, dtype=torch.bool))


def test_the_share_of_hard_negatives_is_of_all_negatives():
    text, video = pairs(4, 1)
    terms = contrastive_terms(text, video, torch.tensor(1.0), DMAEConfig.tiny(), torch.arange(4))
    scores, hard = terms["scores"], 0
    for i in range(4):
        for j in range(4):
            hard += i != j and bool(scores[i, j] > min(scores[i, i], scores[j, j]))
    assert 0 < hard < 12 and abs(float(terms["hard_negative_share"]) - hard / 12) < 1e-6


def test_the_strongest_patches_are_those_of_a_stable_sort():
    """The most similar to the first token, the first of equals, in raster order."""
    torch.manual_seed(0)
    tokens = torch.randint(-1, 2, (3, 2, 10, 4)).float()  # few values: many ties
    closeness = (tokens[:, :, 1:] @ tokens[:, :, :1].mT)[..., 0]
    for keep in (1, 4, 8):
        sorted_places = closeness.sort(dim=-1, descending=True, stable=True).indices[..., :keep].sort(-1).values + 1
        kept, places = strongest_patches(tokens, keep)
        assert torch.equal(places[..., 1:], sorted_places) and bool((places[..., 0] == 0).all())
        assert torch.equal(kept, tokens.gather(2, places[..., None].expand(-1, -1, -1, 4)))


def features(**changed):
    """get_video_features of two clips, with something changed."""
    model = DMAEForTextVideoRetrieval(DMAEConfig.tiny(partial_order=False))
    given = {"pixel_values": torch.zeros(2, 4, 3, 32, 32), "video_mask": torch.ones(2, 4, dtype=torch.bool)}
    return model.get_video_features(**given | changed)


FRAMES, MASK = torch.ones(1, 2, 8), torch.ones(1, 2, dtype=torch.bool)
REFUSED = {
    "an axis too few": (lambda: features(pixel_values=torch.zeros(2, 3, 32, 32)), r"is \(2, 3, 32, 32\); give"),
    "too many frames": (lambda: features(pixel_values=torch.zeros(2, 5, 3, 32, 32)), "has 5 frames, max_frames=4"),
    "another mask": (lambda: features(video_mask=torch.ones(2, 3)), r"is \(2, 3\); pixel_values asks for \(2, 4\)"),
    "no mask": (lambda: features(frame_tokens=FRAMES[:, :, None], video_mask=None), "frame_tokens without video_mask"),
    "no field": (lambda: DMAEForTextVideoRetrieval.from_clip("x", max_frame=3), "did you mean 'max_frames'"),
    "no such weighting": (lambda: textual_attention(FRAMES[..., 0], MASK, "hard"), "mode='hard'"),
    "no neighbours": (lambda: visual_attention(FRAMES, MASK, 0), "top_k=0 must be at least 1"),
    "a number beyond": (lambda: DMAEConfig.tiny(partial_weight=-1), "partial_weight=-1 must be a number between"),
    "no number": (lambda: DMAEConfig.tiny(partial_weight="1"), "partial_weight='1' must be a number"),
    "no whole number": (lambda: DMAEConfig.tiny(max_frames=2.0), "max_frames=2.0 must be a whole number"),
    "too deep": (lambda: DMAEConfig.tiny(temporal_init="clip", temporal_layers=9), "temporal_layers is 9, the text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_name(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_the_scale_of_a_scored_frame_follows_its_attention():
    """`dsl` and QB-Norm divide their fixed temperature by it."""
    scale = lambda **words: DMAEConfig.tiny(**words).score_scale  # noqa: E731
    assert scale(visual_top_k=3) == 3 and scale(visual_top_k=3, visual_scale="halved") == 1.5
    assert scale(visual_top_k=3, visual_scale="unit") == 1
    assert scale(visual_attention=False) == scale(interaction="mean") == 1
    config = DMAEConfig.tiny(temporal_input="patch", patches_per_frame=2)
    assert (config.frame_size, config.patches_in_frame, config.tokens_per_frame) == (32, 4, 3)
    assert config.temporal_positions == config.max_frames * 5 and DMAEConfig.tiny().temporal_positions == 4
    assert DMAEConfig.tiny(textual_attention=False).processor_words()["word_weighting"] == "uniform"
    assert DMAEConfig.tiny(interaction="wti", text_granularity="sentence").learns_frame_weights
    assert not DMAEConfig.tiny(interaction="wti", text_granularity="sentence").learns_word_weights


def test_tokens_of_texts_can_be_exchanged_and_uploads_are_made_whole(monkeypatch, tmp_path):
    model = DMAEForTextVideoRetrieval(DMAEConfig.tiny(partial_order=False))
    table = torch.nn.Embedding(7, model.get_input_embeddings().weight.shape[1])
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table is model.text_model.get_input_embeddings()
    done = []
    sent = lambda self, *given, **more: done.append(given) or "sent"  # noqa: E731
    monkeypatch.setattr(PreTrainedModel, "_upload_modified_files", sent)
    monkeypatch.setattr(type(model), "finish_upload", lambda *given: done.append(given))
    assert model._upload_modified_files("folder", "user/name", "rest") == "sent"
    assert done == [(model, "folder", "user/name"), ("folder", "user/name", "rest")]
    monkeypatch.setattr(type(model), "finish_upload", None)
    assert model._upload_modified_files("folder", "user/name") == "sent" and len(done) == 3

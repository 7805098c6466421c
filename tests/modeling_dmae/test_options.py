"""Options of the configuration reach the functions that read them, and mean there what they mean elsewhere."""

import pytest
import torch

from dmae import DMAEConfig
from dmae.modeling_dmae.attention_dmae import attended_frames, visual_attention
from dmae.modeling_dmae.embeddings_dmae import TextEmbeddings, VideoEmbeddings
from dmae.modeling_dmae.losses_dmae import push_away
from dmae.modeling_dmae.objective_dmae import contrastive_terms


@pytest.fixture
def pixels():
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def words_of(model, ids: list[int], weights: list[float]):
    mask = torch.ones(1, len(ids), dtype=torch.long)
    with torch.no_grad():
        return model.get_text_features(torch.tensor([ids]), mask, word_weights=torch.tensor([weights]))


@pytest.mark.parametrize("attention", [True, False])
def test_without_textual_attention_no_weight_of_a_word_counts(make_model, attention):
    model = make_model(textual_attention=attention, interaction="ti").eval()
    found = words_of(model, [0, 7, 9, 1], [1.0, 2.0, 4.0, 1.0]).word_weights[0]
    assert torch.isclose(found[1], found[2]) == (not attention) and found[1] > 0


def test_as_many_frames_are_kept_as_the_configuration_says(make_model, pixels):
    mask = torch.ones(2, 4, dtype=torch.bool)
    for top_k in (1, 2, 3):
        model = make_model(visual_top_k=top_k, visual_scale="halved").eval()
        with torch.no_grad():
            video = model.get_video_features(pixels, mask)
        assert torch.equal(video.attended_embeds, attended_frames(video.video_embeds, mask, top_k, "halved"))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_halved_is_half_of_what_is_printed_whatever_is_kept(top_k):
    frames, mask = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4, dtype=torch.bool)
    halved, printed = (attended_frames(frames, mask, top_k, scale) for scale in ("halved", "printed"))
    assert torch.equal(2 * halved, printed)


def test_whatever_lies_in_padding_it_reaches_no_gradient():
    frames = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    frames[0, 2] = float("nan")
    frames.requires_grad_()
    visual_attention(frames, torch.tensor([[True, True, False]])).sum().backward()
    assert frames.grad is not None and frames.grad.isfinite().all() and not frames.grad[0, 2].any()


def test_a_patch_s_place_counts_all_patches_of_the_frames_before(make_model, pixels):
    """2x2 patches and a frame's own token: with all kept, frame f's tokens stand at 5f to 5f+4."""
    model = make_model(temporal_input="patch").eval()
    per_frame = 1 + model.config.patches_in_frame
    mask = torch.ones(2, 4, dtype=torch.bool)
    with torch.no_grad():
        tokens, _ = model._frame_tokens(pixels, mask, {})
        _, visual = model._video_of_tokens(tokens, mask)
    assert visual["positions"].tolist() == [[*range(4 * per_frame)]] * 2 and per_frame > 1


@pytest.mark.parametrize("margin, share", [(0.0, 0.0), (0.9, 0.0), (1.1, 1.0)])
def test_a_hard_negative_is_one_within_the_margin_of_the_loss(margin, share):
    """Each pair is alike by 1 and unlike all others by 0: a negative counts where the margin is more than 1."""
    words, all_real = torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool)
    text = TextEmbeddings(words[:, 0], words, torch.ones(3, 1), all_real)
    video = VideoEmbeddings(words, words, torch.ones(3, 1), all_real)
    config = DMAEConfig.tiny(negative_margin=margin, partial_order=False)
    assert contrastive_terms(text, video, torch.tensor(1.0), config)["hard_negative_share"] == share


def test_one_hard_negative_is_pushed_with_its_whole_weight():
    """−log(1 − p), over one: with two counted at least, half of it would be left."""
    logits = torch.tensor([[2.0, 1.0], [-3.0, 2.0]])
    hard = torch.tensor([[False, True], [False, False]])
    expected = -torch.log1p(-logits.softmax(1)[0, 1])
    torch.testing.assert_close(push_away(logits, hard), expected)

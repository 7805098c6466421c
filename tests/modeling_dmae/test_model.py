"""The whole model: switches, padding, gradients, word masks, every field of the configuration, bad input."""

import pytest
import torch

from dmae.modeling_dmae.configuration_dmae import DMAEConfig

ROWS = {
    "baseline": dict(textual_attention=False, visual_attention=False, loss="info_nce", partial_order=False),
    "neg_nce": dict(textual_attention=False, visual_attention=False, partial_order=False),
    "textual": dict(visual_attention=False, partial_order=False),
    "visual": dict(textual_attention=False, partial_order=False),
    "tpm": dict(textual_attention=False, visual_attention=False, loss="info_nce"),
    "all": {},
    "wti_patches": dict(interaction="wti", temporal_input="patch", patches_per_frame=2),
    "wti_sentence": dict(interaction="wti", text_granularity="sentence"),
    "mean": dict(interaction="mean"),
    "linear_pooled_eos": dict(word_weighting="linear", similarity_form="pooled", tpm_includes_eos=True),
    "gamma": dict(negative_weight=0.3, mask_ratio=0.2, partial_margin=0.2),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains_every_parameter_it_has(row, tiny_batch, tiny_model):
    model = tiny_model(**ROWS[row])
    output = model(**tiny_batch)
    output.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(output.logits_per_video, output.logits_per_text.T)
    if model.config.partial_order:
        parts = output.sentence_video_loss + output.words_video_loss + output.words_masked_loss
        torch.testing.assert_close(output.partial_order_loss, parts)
        torch.testing.assert_close(output.loss, output.contrastive_loss + output.partial_order_loss)


def test_preset_paper_is_as_printed():
    config = DMAEConfig.paper(max_frames=8)
    assert (config.temporal_init, config.similarity_form, config.mask_gradient) == ("random", "pooled", "none")
    assert (config.word_weighting, config.mask_duplicates, config.max_frames) == ("softmax", False, 8)


@pytest.mark.parametrize("temporal_input", ["frame", "patch"])
def test_padding_is_inert(temporal_input, tiny_batch, tiny_model):
    model = tiny_model(temporal_input=temporal_input, temporal_init="random", interaction="wti")
    before = model(**tiny_batch)
    hidden = ~tiny_batch["video_mask"]
    tiny_batch["pixel_values"][hidden] = float("nan")
    tiny_batch["input_ids"][tiny_batch["attention_mask"] == 0] = 77
    tiny_batch["word_weights"][~tiny_batch["word_mask"]] = 1e9
    after = model(**tiny_batch)
    torch.testing.assert_close(after.loss, before.loss)
    torch.testing.assert_close(after.logits_per_text, before.logits_per_text)


def test_wti_is_ti_at_step_0(tiny_batch, tiny_model):
    ti, wti = tiny_model(temporal_init="random"), tiny_model(temporal_init="random", interaction="wti")
    wti.load_state_dict(ti.state_dict(), strict=False)
    torch.testing.assert_close(wti(**tiny_batch).logits_per_text, ti(**tiny_batch).logits_per_text)


OPENAI_IDS = dict(bos_token_id=0, eos_token_id=2, pad_token_id=1)  # what their configurations say; their ids differ


@pytest.mark.parametrize("ids", [OPENAI_IDS, dict(bos_token_id=126, eos_token_id=127, pad_token_id=127)])
def test_default_word_mask_is_the_pieces_between_bos_and_the_end(ids, tiny_model):
    torch.manual_seed(0)
    tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=1)
    text = dict(tower, vocab_size=128, max_position_embeddings=16, **ids)
    model = tiny_model(text_config=text, tpm_includes_eos=True)
    input_ids = torch.full((3, 16), 127)  # CLIP's tokenizer pads with its end token
    for row, words in enumerate([9, 1, 14]):
        input_ids[row, 0] = 126
        input_ids[row, 1 : words + 1] = torch.randint(0, 100, (words,))
    attended = torch.arange(16) < torch.tensor([11, 3, 16])[:, None]
    expected = torch.zeros(3, 16, dtype=torch.bool)
    expected[0, 1:10] = expected[1, 1:2] = expected[2, 1:15] = True
    with_end = expected.clone()
    with_end[torch.arange(3), torch.tensor([10, 2, 15])] = True
    for mask in (None, attended.long()):
        assert torch.equal(model.get_text_features(input_ids, mask).word_mask, expected)
        tokens = model.encode_pairs(input_ids, mask, pixel_values=torch.randn(3, 4, 3, 32, 32))[2]
        assert torch.equal(tokens.text_mask, with_end)


def test_a_text_cut_before_its_end_token_keeps_its_last_word(tiny_model):
    input_ids = torch.tensor([[0, 5, 6, 7], [0, 5, 1, 1]])
    attended = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    mask = tiny_model().get_text_features(input_ids, attended).word_mask
    assert mask.tolist() == [[False, True, True, True], [False, True, False, False]]


OTHER_VALUES = {
    "text_config": (dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=128), {}),
    "vision_config": (
        dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=8),
        {},
    ),
    "projection_dim": (128, {}),
    "logit_scale_init_value": (1.0, {}),
    "max_words": (12, {}),
    "max_frames": (6, {}),
    "interaction": ("wti", {}),
    "similarity_form": ("pooled", {}),
    "text_granularity": ("words", {}),
    "word_weighting": ("linear", {}),
    "textual_attention": (False, {}),
    "visual_attention": (False, {}),
    "visual_top_k": (3, {}),
    "visual_scale": ("halved", {}),
    "content_weight": (3.0, {}),
    "irrelevant_words": (1, {}),
    "temporal_input": ("patch", {}),
    "temporal_layers": (2, {}),
    "temporal_init": ("random", {}),
    "patches_per_frame": (2, dict(temporal_input="patch")),
    "loss": ("info_nce", {}),
    "positive_weight": (0.5, {}),
    "negative_weight": (0.9, {}),
    "negative_margin": (2.0, dict(mask_duplicates=False)),
    "mask_duplicates": (False, {}),
    "partial_order": (False, {}),
    "partial_margin": (0.2, {}),
    "mask_ratio": (0.2, {}),
    "partial_weight": (0.5, {}),
    "mask_gradient": ("none", {}),
    "tpm_includes_eos": (True, {}),
    "margin_schedule": ("linear", {}),
    "partial_margin_start": (0.3, dict(margin_schedule="linear")),
    "merge_tokens": (2, {}),
    "initializer_range": (0.5, {}),
}


def test_every_field_of_the_configuration_changes_something(tiny_batch, tiny_model):
    """Weights, loss, gradient, or what the model's processor makes of a caption: a field without effect is a lie."""
    assert list(OTHER_VALUES) == DMAEConfig.field_names()
    tiny_batch |= {"video_ids": torch.tensor([1, 1, 2]), "caption_ids": torch.tensor([1, 2, 3])}
    silent = []
    for name, (value, also) in OTHER_VALUES.items():
        both = [{"temporal_init": "random", **words} for words in (also, {**also, name: value})]
        effects = [_effect(tiny_model, tiny_batch, **words) for words in both]
        if name == "temporal_init":
            effects[1] = _effect(tiny_model, tiny_batch, temporal_init="identity")
        if _same(*effects):
            silent.append(name)
    assert silent == []


def _effect(tiny_model, batch, **words) -> dict:
    """What a configuration makes: weights, a training step's loss and gradient, and what it asks of its processor."""
    model = tiny_model(**words).train()
    model.progress = 0.5
    seen = {f"weight {name}": value.clone() for name, value in model.state_dict().items()}
    cut = {
        name: value[:, : model.config.max_words] if value.shape[1:] == (16,) else value for name, value in batch.items()
    }
    frames = model.config.max_frames
    for name in ("pixel_values", "video_mask"):
        cut[name] = torch.cat([cut[name], cut[name].new_zeros(3, frames - 4, *cut[name].shape[2:])], 1)
    model(**cut)
    loss = model(**cut).loss  # the second batch meets what the memory kept of the first
    loss.backward()
    seen |= {f"gradient {name}": p.grad for name, p in model.named_parameters()}
    return seen | {"loss": loss.detach(), "processor": model.config.processor_words()}


def _same(one: dict, other: dict) -> bool:
    if one.keys() != other.keys() or one["processor"] != other["processor"]:
        return False
    return all(
        value.shape == other[name].shape and torch.equal(value, other[name])
        for name, value in one.items()
        if name != "processor"
    )


def test_the_margin_follows_training_and_is_refused_where_nobody_says_how_far_it_is(tiny_batch, tiny_model):
    model = tiny_model(margin_schedule="linear", partial_margin_start=0.1).train()
    with pytest.raises(ValueError, match=r"set model\.progress, from 0\.0 to 1\.0"):
        model(**tiny_batch)
    assert model(**tiny_batch, return_loss=False).loss is None
    losses = []
    for model.progress in (0.0, 0.5, 1.0):
        losses.append(model(**tiny_batch).partial_order_loss)
    models = [tiny_model(partial_margin=margin).train() for margin in (0.1, 0.35, 0.6)]
    constant = [model(**tiny_batch).partial_order_loss for model in models]
    torch.testing.assert_close(losses, constant)
    model.progress = None
    torch.testing.assert_close(model.eval()(**tiny_batch).partial_order_loss, constant[2])


def test_explanation_on_request(tiny_batch, tiny_model):
    model = tiny_model()
    assert model(**tiny_batch).word_frame_similarities is None
    output = model(**tiny_batch, output_explanation=True)
    assert output.word_frame_similarities.shape == (3, 3, 16, 4)
    assert not (output.masked_words & ~output.word_mask).any()
    assert output.masked_words.any(1).all()
    torch.testing.assert_close(output.word_weights.sum(1), torch.ones(3))


def test_other_counts_and_batches_of_one(tiny_batch, tiny_model):
    model = tiny_model()
    text = {k: v[:1] for k, v in tiny_batch.items() if k not in ("pixel_values", "video_mask")}
    video = {k: tiny_batch[k] for k in ("pixel_values", "video_mask")}
    assert model(**text, **video).loss is None
    single = model(**{k: v[:1] for k, v in tiny_batch.items()})
    assert single.contrastive_loss.item() == 0.0
    single.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_clamp_logit_scale(tiny_model):
    model = tiny_model()
    model.logit_scale.data.fill_(9.0)
    model.clamp_logit_scale()
    assert model.logit_scale.exp().item() == pytest.approx(100.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_models_stay_close(dtype, tiny_batch, tiny_model):
    model = tiny_model(temporal_init="random")
    exact = model(**tiny_batch).logits_per_text / model.logit_scale.exp()
    output = model.to(dtype)(**tiny_batch)
    assert torch.isfinite(output.loss)
    assert (output.logits_per_text / model.logit_scale.float().exp() - exact).abs().max() < 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (dict(interaction="tti"), "did you mean 'ti'.*'wti'"),
        (dict(interactoin="ti"), "did you mean 'interaction'"),
        (dict(mask_ratio=1.0), "mask_ratio"),
        (dict(max_words=99), "exceeds the text tower's 32 positions"),
        (dict(visual_top_k=0), "visual_top_k=0"),
        (dict(patches_per_frame=9), "a frame has 4 patches"),
        (dict(temporal_init="clip"), "intermediate_size is 128 and must be 256"),
        (dict(partial_order="yes"), "True or False"),
        (dict(text_config={"model_type": "clop"}), "unknown to transformers"),
    ],
)
def test_bad_configurations_say_what_is_valid(words, message):
    with pytest.raises(ValueError, match=message):
        DMAEConfig.tiny(**words)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b["word_mask"].__setitem__(1, False), "word_mask: row 1 of 3"),
        (lambda b: b["video_mask"].__setitem__(2, False), "video_mask: row 2 of 3"),
        (lambda b: b["pixel_values"][0].fill_(float("nan")), "video_embeds: row 0 of 3"),
        (lambda b: b.update(word_mask=b["word_mask"][:, :5]), "word_mask is"),
        (lambda b: b.update(pixel_values=b["pixel_values"][:, :2], video_mask=b["video_mask"][:, :2]), "max_frames=4"),
    ],
)
def test_bad_batches_are_named(spoil, message, tiny_batch, tiny_model):
    spoil(tiny_batch)
    with pytest.raises(ValueError, match=message):
        tiny_model()(**tiny_batch)
